// SPDX-License-Identifier: MIT
#ifndef MOE_CORE_MEMORY_HPP
#define MOE_CORE_MEMORY_HPP

#include <cstddef>
#include <memory>
#include <new>
#include <span>
#include <type_traits>
#include <utility>

#include <moe/config.hpp>
#include <moe/core/error.hpp>
#include <moe/core/types.hpp>

namespace moe::inline MOE_ABI {

/// Alignment of everything the library allocates, bytes: one cache line, one AVX-512 register.
inline constexpr std::size_t cache_line = 64;

namespace detail {

/// From here on memory is aligned to, and asked for in, pages of 2 MiB: rows of weights lie a page
/// or more apart, and with pages of 4 KiB every piece of one costs an address translation: forward
/// and backward of 16 experts of 2048 x 1024 took 545 ms with those and 500 ms with these.
inline constexpr Index huge_page = Index{1} << 21;
inline constexpr Index huge_page_from = 2 * huge_page;

#if defined(__linux__)
// The one wish we have of the kernel, declared under a name of our own: <sys/mman.h> and its macros
// stay out of users' translation units, and its declarations cannot clash with this one.
#define MOE_STRING(x) #x
#define MOE_SYMBOL(prefix, name) MOE_STRING(prefix) name
extern "C" int moe_madvise(void* memory, std::size_t bytes, int advice) noexcept
    __asm__(MOE_SYMBOL(__USER_LABEL_PREFIX__, "madvise"));
#undef MOE_SYMBOL
#undef MOE_STRING
inline constexpr int advise_huge_pages = 14;  ///< MADV_HUGEPAGE, the same on every architecture
#endif

struct AlignedDelete {
    std::align_val_t alignment{cache_line};
    void operator()(void* memory) const { ::operator delete(memory, alignment); }
};

/// Uninitialised, cache-line aligned room for `count` elements.
/// @throws std::length_error if the byte count overflows; std::bad_alloc
template <class T>
std::unique_ptr<T, AlignedDelete> allocate(Index count) {
    const Index bytes = checked_product(count, static_cast<Index>(sizeof(T)));
    if (bytes == 0) return nullptr;
    const bool huge = bytes >= huge_page_from;
    const std::align_val_t alignment{huge ? static_cast<std::size_t>(huge_page) : cache_line};
    void* const memory = ::operator new(static_cast<std::size_t>(bytes), alignment);
#if defined(__linux__)
    // A wish: where it is not granted, nothing changes.
    if (huge)
        moe_madvise(memory, static_cast<std::size_t>(bytes / huge_page * huge_page),
                    advise_huge_pages);
#endif
    return std::unique_ptr<T, AlignedDelete>(static_cast<T*>(memory), AlignedDelete{alignment});
}

}  // namespace detail

/// Scratch that grows and never shrinks, so that the second call of the same size allocates
/// nothing. resize() keeps the contents if they fit the memory that is there, else they are lost.
template <class T>
class Buffer {
    static_assert(std::is_trivially_copyable_v<T>);

public:
    Buffer() = default;
    /// What was moved from is empty and may be used again.
    Buffer(Buffer&& other) noexcept
        : memory_(std::move(other.memory_)),
          size_(std::exchange(other.size_, 0)),
          capacity_(std::exchange(other.capacity_, 0)) {}
    Buffer& operator=(Buffer&& other) noexcept {
        memory_ = std::move(other.memory_);
        size_ = std::exchange(other.size_, 0);
        capacity_ = std::exchange(other.capacity_, 0);
        return *this;
    }
    ~Buffer() = default;

    /// Makes room for `count` elements and returns them.
    /// @throws std::length_error if count is negative or the byte count overflows; std::bad_alloc.
    ///         The buffer is empty then.
    std::span<T> resize(Index count) {
        if (count > capacity_ || count < 0) {
            memory_.reset();
            capacity_ = 0;
            size_ = 0;
            memory_ = detail::allocate<T>(count);
            capacity_ = count;
        }
        size_ = count;
        return span();
    }

    /// resize(), then every element is `value`.
    std::span<T> assign(Index count, T value) {
        resize(count);
        for (Index i = 0; i < count; ++i) data()[i] = value;
        return span();
    }

    /// resize() to a row-major [rows, cols] matrix.
    View<T> matrix(Index rows, Index cols) requires is_scalar<T> {
        resize(detail::checked_product(rows, cols));
        return View<T>(data(), rows, cols, Eigen::OuterStride<>(cols));
    }

    T* data() { return memory_.get(); }
    const T* data() const { return memory_.get(); }
    Index size() const { return size_; }
    Index bytes() const { return capacity_ * static_cast<Index>(sizeof(T)); }
    std::span<T> span() { return {data(), static_cast<std::size_t>(size_)}; }
    std::span<const T> span() const { return {data(), static_cast<std::size_t>(size_)}; }
    T& operator[](Index i) {
        MOE_ASSERT(0 <= i && i < size_, "an element of the buffer");
        return data()[i];
    }
    const T& operator[](Index i) const {
        MOE_ASSERT(0 <= i && i < size_, "an element of the buffer");
        return data()[i];
    }

private:
    std::unique_ptr<T, detail::AlignedDelete> memory_;
    Index size_ = 0;
    Index capacity_ = 0;
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_CORE_MEMORY_HPP
