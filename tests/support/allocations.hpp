// SPDX-License-Identifier: MIT
#ifndef MOE_TESTS_SUPPORT_ALLOCATIONS_HPP
#define MOE_TESTS_SUPPORT_ALLOCATIONS_HPP

#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <new>
#include <stdexcept>

/// Counts what a piece of code allocates with operator new, in all threads.

namespace allocations {

inline std::atomic<long> count{0};

[[gnu::noinline]] inline void* obtain(std::size_t bytes, std::size_t alignment) {
    count.fetch_add(1);
    const std::size_t rounded = (bytes + alignment) / alignment * alignment;
    void* memory = std::aligned_alloc(alignment, rounded);
    if (memory == nullptr) throw std::bad_alloc();
    return memory;
}

/// Allocations while f runs.
/// @throws std::logic_error if they are not counted in this program
template <class F>
long in(F&& f) {
    const long before = count.load();
    ::operator delete(::operator new(1));
    ::operator delete (::operator new (64, std::align_val_t{64}), std::align_val_t{64});
    if (count.load() < before + 2) throw std::logic_error("allocations are not counted here");
    const long start = count.load();
    f();
    return count.load() - start;
}

}  // namespace allocations

// Weak, so that every test of a program may include this file.
[[gnu::weak]] void* operator new(std::size_t bytes) {
    return allocations::obtain(bytes, alignof(std::max_align_t));
}
[[gnu::weak]] void* operator new[](std::size_t bytes) {
    return allocations::obtain(bytes, alignof(std::max_align_t));
}
[[gnu::weak]] void* operator new(std::size_t bytes, std::align_val_t alignment) {
    return allocations::obtain(bytes, static_cast<std::size_t>(alignment));
}
[[gnu::weak]] void* operator new[](std::size_t bytes, std::align_val_t alignment) {
    return allocations::obtain(bytes, static_cast<std::size_t>(alignment));
}
[[gnu::weak]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::weak]] void operator delete[](void* memory) noexcept { std::free(memory); }
[[gnu::weak]] void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
[[gnu::weak]] void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }
[[gnu::weak]] void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
[[gnu::weak]] void operator delete[](void* memory, std::align_val_t) noexcept { std::free(memory); }
[[gnu::weak]] void operator delete(void* memory, std::size_t, std::align_val_t) noexcept {
    std::free(memory);
}
[[gnu::weak]] void operator delete[](void* memory, std::size_t, std::align_val_t) noexcept {
    std::free(memory);
}

#endif  // MOE_TESTS_SUPPORT_ALLOCATIONS_HPP
