// SPDX-License-Identifier: MIT
#ifndef MOE_CONFIG_HPP
#define MOE_CONFIG_HPP

/// Version, switches, and the name tag that keeps differently configured copies apart. The settings
/// of a layer, moe::Config, are in core/shape.hpp.
///
/// Switches a user may define before the first include:
///
///     MOE_EXTERN_KERNELS   kernels are declared only; one translation unit also defines
///                          MOE_IMPLEMENT_KERNELS and gets their code. Saves compile time.
///     MOE_ON_ERROR(text)   what happens on an error in a build without exceptions; `text` is a
///                          `const char*` and the expression must not return. Default:
///                          std::abort(). The same in every translation unit.
///     MOE_ASSERT(c, text)  the library's own invariants; off under NDEBUG. Never input checks.
///                          The same in every translation unit.

#define MOE_VERSION_MAJOR 0
#define MOE_VERSION_MINOR 1
#define MOE_VERSION_PATCH 0

// Everything lives in an inline namespace named after what changes the generated code. Two
// translation units with different flags then hold different symbols, and the linker cannot hand
// one of them code that was compiled for the other's instruction set. Types differ too: what
// crosses from one to the other are plain pointers and numbers. This is so for the library's own
// code; the inline functions of Eigen and of the standard library have one name under all flags.
//
// The kernels of MOE_EXTERN_KERNELS are in that namespace as well: each set of flags among the
// translation units that define it needs its own one with MOE_IMPLEMENT_KERNELS, compiled with
// those flags. Where it is missing, the linker names the tag in its complaint about `tables`.
#if defined(__AVX512F__)
#define MOE_TAG_BASELINE avx512
#elif defined(__AVX2__)
#define MOE_TAG_BASELINE avx2
#elif defined(__AVX__)
#define MOE_TAG_BASELINE avx
#elif defined(__SSE4_2__)
#define MOE_TAG_BASELINE sse4
#elif defined(__ARM_FEATURE_SVE)
#define MOE_TAG_BASELINE sve
#elif defined(__ARM_FEATURE_ATOMICS)
#define MOE_TAG_BASELINE lse
#else
#define MOE_TAG_BASELINE base
#endif

#if defined(__FMA__)
#define MOE_TAG_MULTIPLY fma
#else
#define MOE_TAG_MULTIPLY mul
#endif

// Under -ffast-math nothing holds that is said about bits, NaN and infinities.
#if defined(__FAST_MATH__)
#define MOE_TAG_MATH fast
#else
#define MOE_TAG_MATH exact
#endif

#if defined(MOE_EXTERN_KERNELS)
#define MOE_TAG_KERNELS extern
#else
#define MOE_TAG_KERNELS inline
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

#define MOE_TAG_JOIN(major, minor, isa, multiply, math, kernels, threads, checks, errors) \
    v##major##_##minor##_##isa##_##multiply##_##math##_##kernels##_##threads##_##checks##_##errors
#define MOE_TAG_EXPAND(...) MOE_TAG_JOIN(__VA_ARGS__)
#define MOE_ABI                                                                              \
    MOE_TAG_EXPAND(MOE_VERSION_MAJOR, MOE_VERSION_MINOR, MOE_TAG_BASELINE, MOE_TAG_MULTIPLY, \
                   MOE_TAG_MATH, MOE_TAG_KERNELS, MOE_TAG_THREADS, MOE_TAG_CHECKS, MOE_TAG_ERRORS)

#ifndef MOE_ASSERT
#include <cassert>
#define MOE_ASSERT(condition, text) assert((condition) && (text))
#endif

#endif  // MOE_CONFIG_HPP
