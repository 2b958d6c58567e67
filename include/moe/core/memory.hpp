// SPDX-License-Identifier: MIT
#ifndef MOE_CORE_MEMORY_HPP
#define MOE_CORE_MEMORY_HPP

#include <cstddef>
#include <memory>
#include <new>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

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

/// What memory of so many bytes is aligned to.
inline std::align_val_t alignment(Index bytes) {
    return std::align_val_t(bytes >= huge_page_from ? static_cast<std::size_t>(huge_page)
                                                    : cache_line);
}

/// Uninitialised room for `count` elements of `size` bytes; null if that is nothing. To be given
/// back with deallocate().
/// @throws std::length_error if the byte count overflows; std::bad_alloc
inline void* allocate_bytes(Index count, std::size_t size) {
    const Index bytes = checked_product(count, static_cast<Index>(size));
    if (bytes == 0) return nullptr;
    void* const memory = ::operator new(static_cast<std::size_t>(bytes), alignment(bytes));
#if defined(__linux__)
    // A wish: where it is not granted, nothing changes.
    if (bytes >= huge_page_from)
        moe_madvise(memory, static_cast<std::size_t>(bytes / huge_page * huge_page),
                    advise_huge_pages);
#endif
    return memory;
}
inline void deallocate(void* memory, Index bytes) { ::operator delete(memory, alignment(bytes)); }

/// What a vector holds. The conversion to std::span that C++ has asks for all that ranges can be;
/// where no template puts it off, that costs a compiler more than most of our headers.
template <class T>
std::span<const T> elements(const std::vector<T>& vector) {
    return std::span<const T>(vector.data(), vector.size());
}

struct AlignedDelete {
    Index bytes = 0;
    void operator()(void* memory) const { deallocate(memory, bytes); }
};

/// Uninitialised, cache-line aligned room for `count` elements.
/// @throws std::length_error if the byte count overflows; std::bad_alloc
template <class T>
std::unique_ptr<T, AlignedDelete> allocate(Index count) {
    T* memory = static_cast<T*>(allocate_bytes(count, sizeof(T)));  // throws before bytes overflow
    return std::unique_ptr<T, AlignedDelete>(memory, AlignedDelete{count * Index{sizeof(T)}});
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
        : data_(std::exchange(other.data_, nullptr)),
          size_(std::exchange(other.size_, 0)),
          capacity_(std::exchange(other.capacity_, 0)) {}
    Buffer& operator=(Buffer&& other) noexcept {
        if (this != &other) release();
        data_ = std::exchange(other.data_, nullptr);
        size_ = std::exchange(other.size_, 0);
        capacity_ = std::exchange(other.capacity_, 0);
        return *this;
    }
    ~Buffer() { release(); }

    /// Makes room for `count` elements and returns them.
    /// @throws std::length_error if count is negative or the byte count overflows; std::bad_alloc.
    ///         The buffer is empty then.
    std::span<T> resize(Index count) {
        if (count > capacity_ || count < 0) {
            release();
            data_ = static_cast<T*>(detail::allocate_bytes(count, sizeof(T)));
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

    T* data() { return data_; }
    const T* data() const { return data_; }
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
    void release() {
        if (data_ != nullptr) detail::deallocate(data_, bytes());
        data_ = nullptr;
        size_ = capacity_ = 0;
    }

    T* data_ = nullptr;
    Index size_ = 0;
    Index capacity_ = 0;
};

namespace detail {

/// The next multiple of 16 elements: workers that are that far apart share no cache line.
inline Index round_up_16(Index count) { return (count + 15) / 16 * 16; }

}  // namespace detail
}  // namespace moe::inline MOE_ABI

#endif  // MOE_CORE_MEMORY_HPP
