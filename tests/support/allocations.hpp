// SPDX-License-Identifier: MIT
#ifndef MOE_TESTS_SUPPORT_ALLOCATIONS_HPP
#define MOE_TESTS_SUPPORT_ALLOCATIONS_HPP

#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <new>
#include <stdexcept>

/// Counts what a piece of code allocates with operator new, in all threads, and lets one of its
/// allocations fail.

// Sanitizers bring an operator new of their own, which is left alone; nothing is counted there.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define MOE_TESTS_COUNT_ALLOCATIONS 0
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define MOE_TESTS_COUNT_ALLOCATIONS 0
#endif
#endif
#ifndef MOE_TESTS_COUNT_ALLOCATIONS
#define MOE_TESTS_COUNT_ALLOCATIONS 1
#endif

namespace allocations {

inline constexpr bool are_counted = MOE_TESTS_COUNT_ALLOCATIONS != 0;

inline std::atomic<long> count{0};
inline std::atomic<long> bytes_asked_for{0};
inline std::atomic<long> until_failure{-1};  // allocations before the one that fails; < 0: none

[[gnu::noinline]] inline void* obtain(std::size_t bytes, std::size_t alignment) {
    count.fetch_add(1);
    bytes_asked_for.fetch_add(static_cast<long>(bytes));
    if (until_failure.load() >= 0 && until_failure.fetch_sub(1) == 0) throw std::bad_alloc();
    const std::size_t rounded = (bytes + alignment) / alignment * alignment;
    void* memory = std::aligned_alloc(alignment, rounded);
    if (memory == nullptr) throw std::bad_alloc();
    return memory;
}

/// Allocations while f runs.
/// @throws std::logic_error if they are not counted, though are_counted says so
template <class F>
long in(F&& f) {
    const long before = count.load();
    ::operator delete(::operator new(1));
    ::operator delete (::operator new (64, std::align_val_t{64}), std::align_val_t{64});
    if (are_counted && count.load() < before + 2)
        throw std::logic_error("allocations are not counted here");
    const long start = count.load();
    f();
    return count.load() - start;
}

/// Runs f with its n-th allocation, from 0, failing.
/// @return whether f made that many and threw std::bad_alloc
template <class F>
bool fails_at(long n, F&& f) {
    const auto stop = [] { until_failure.store(-1); };
    until_failure.store(n);
    try {
        f();
    } catch (const std::bad_alloc&) {
        return stop(), true;
    } catch (...) {
        stop();
        throw;
    }
    return stop(), false;
}

}  // namespace allocations

#if MOE_TESTS_COUNT_ALLOCATIONS
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
#endif

#endif  // MOE_TESTS_SUPPORT_ALLOCATIONS_HPP
