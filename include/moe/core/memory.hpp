// SPDX-License-Identifier: MIT
#ifndef MOE_CORE_MEMORY_HPP
#define MOE_CORE_MEMORY_HPP

#include <cstddef>
#include <memory>
#include <new>
#include <span>
#include <type_traits>
#include <utility>

#include <moe/core/error.hpp>
#include <moe/core/types.hpp>

namespace moe::inline MOE_ABI {

/// Alignment of everything the library allocates, bytes: one cache line, one AVX-512 register.
inline constexpr std::size_t cache_line = 64;

namespace detail {

struct AlignedDelete {
    void operator()(void* memory) const {
        ::operator delete (memory, std::align_val_t{cache_line});
    }
};

/// Uninitialised, cache-line aligned room for `count` elements.
/// @throws std::length_error if the byte count overflows; std::bad_alloc
template <class T>
std::unique_ptr<T, AlignedDelete> allocate(Index count) {
    const Index bytes = checked_product(count, static_cast<Index>(sizeof(T)));
    if (bytes == 0) return nullptr;
    return std::unique_ptr<T, AlignedDelete>(static_cast<T*>(
        ::operator new(static_cast<std::size_t>(bytes), std::align_val_t{cache_line})));
}

}  // namespace detail

/// Scratch that grows and never shrinks, so that the second call of the same size allocates
/// nothing. The contents are unspecified after resize().
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
    std::span<T> resize(Index count) {
        if (count > capacity_) {
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
    View<T> matrix(Index rows, Index cols)
        requires is_scalar<T>
    {
        resize(detail::checked_product(rows, cols));
        return View<T>(data(), rows, cols, Eigen::OuterStride<>(cols));
    }

    T* data() { return memory_.get(); }
    const T* data() const { return memory_.get(); }
    Index size() const { return size_; }
    Index bytes() const { return capacity_ * static_cast<Index>(sizeof(T)); }
    std::span<T> span() { return {data(), static_cast<std::size_t>(size_)}; }
    std::span<const T> span() const { return {data(), static_cast<std::size_t>(size_)}; }
    T& operator[](Index i) { return data()[i]; }
    const T& operator[](Index i) const { return data()[i]; }

private:
    std::unique_ptr<T, detail::AlignedDelete> memory_;
    Index size_ = 0;
    Index capacity_ = 0;
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_CORE_MEMORY_HPP
