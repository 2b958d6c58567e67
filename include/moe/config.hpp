// SPDX-License-Identifier: MIT
#ifndef MOE_CONFIG_HPP
#define MOE_CONFIG_HPP

/// Version, switches, and the name tag that keeps differently configured copies apart.
///
/// Switches a user may define before the first include, the same in every translation unit:
///
///     MOE_EXTERN_KERNELS   kernels are declared only; exactly one translation unit also defines
///                          MOE_IMPLEMENT_KERNELS and gets their code. Saves compile time.
///     MOE_ON_ERROR(text)   what happens on an error in a build without exceptions; `text` is a
///                          `const char*` and the expression must not return. Default:
///                          std::abort().
///     MOE_ASSERT(c, text)  the library's own invariants; off under NDEBUG. Never input checks.

#define MOE_VERSION_MAJOR 0
#define MOE_VERSION_MINOR 1
#define MOE_VERSION_PATCH 0

// Everything lives in an inline namespace named after what changes the generated code. Two
// translation units with different flags then hold different symbols, and the linker cannot hand
// one of them code that was compiled for the other's instruction set.
#if defined(__AVX512F__)
#define MOE_TAG_BASELINE avx512
#elif defined(__AVX2__)
#define MOE_TAG_BASELINE avx2
#else
#define MOE_TAG_BASELINE base
#endif

#if defined(_OPENMP)
#define MOE_TAG_THREADS omp
#else
#define MOE_TAG_THREADS std
#endif

#if defined(NDEBUG)
#define MOE_TAG_CHECKS release
#else
#define MOE_TAG_CHECKS checked
#endif

#if defined(__cpp_exceptions)
#define MOE_TAG_ERRORS throws
#else
#define MOE_TAG_ERRORS aborts
#endif

#define MOE_TAG_JOIN(major, minor, baseline, threads, checks, errors) \
    v##major##_##minor##_##baseline##_##threads##_##checks##_##errors
#define MOE_TAG_EXPAND(major, minor, baseline, threads, checks, errors) \
    MOE_TAG_JOIN(major, minor, baseline, threads, checks, errors)
#define MOE_ABI                                                                             \
    MOE_TAG_EXPAND(MOE_VERSION_MAJOR, MOE_VERSION_MINOR, MOE_TAG_BASELINE, MOE_TAG_THREADS, \
                   MOE_TAG_CHECKS, MOE_TAG_ERRORS)

#ifndef MOE_ASSERT
#include <cassert>
#define MOE_ASSERT(condition, text) assert((condition) && (text))
#endif

#endif  // MOE_CONFIG_HPP
