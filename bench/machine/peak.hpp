// SPDX-License-Identifier: MIT
#ifndef MOE_BENCH_MACHINE_PEAK_HPP
#define MOE_BENCH_MACHINE_PEAK_HPP

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <map>

#include <benchmark/benchmark.h>

#if defined(__x86_64__)
#include <immintrin.h>

#include <moe/kernels/x86/amx.hpp>
#endif

#include <moe/core/storage.hpp>
#include <moe/kernels/dispatch.hpp>

#include "timing.hpp"

namespace machine {

/// Something per second, and how it was measured.
struct Rate {
    double per_second = 0;
    const char* how = "";
};

/// A loop of multiply-adds on registers only.
struct Loop {
    void (*run)(long rounds);
    double operations;  ///< of one round; a multiply-add is two
    const char* how;
};

// More chains than latency times throughput of any processor we know. Floats are chaotic
// (x = x x - 1.8), because multiplying ones by ones draws less power.

/// 16 chains of 4 floats, for compilers that know vectors and processors that we do not know.
inline void fma_portable(long rounds) {
    typedef float Four __attribute__((vector_size(16)));
    Four x[16];
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) x[j] = Four{} + 0.01f * static_cast<float>(j);
    const Four c = Four{} - 1.8f;
    for (long i = 0; i < rounds; ++i) {
#pragma GCC unroll 16
        for (int j = 0; j < 16; ++j) x[j] = x[j] * x[j] + c;
    }
#pragma GCC unroll 16
    for (int j = 1; j < 16; ++j) x[0] += x[j];
    float first = x[0][0];
    benchmark::DoNotOptimize(first);
}

#if defined(__x86_64__)
__attribute__((target("avx512f"))) inline void fma_avx512(long rounds) {
    __m512 x[24];
#pragma GCC unroll 24
    for (int j = 0; j < 24; ++j) x[j] = _mm512_set1_ps(0.01f * static_cast<float>(j));
    const __m512 c = _mm512_set1_ps(-1.8f);
    for (long i = 0; i < rounds; ++i) {
#pragma GCC unroll 24
        for (int j = 0; j < 24; ++j) x[j] = _mm512_fmadd_ps(x[j], x[j], c);
    }
#pragma GCC unroll 24
    for (int j = 1; j < 24; ++j) x[0] = _mm512_add_ps(x[0], x[j]);
    benchmark::DoNotOptimize(_mm512_cvtss_f32(x[0]));
}

__attribute__((target("avx2,fma"))) inline void fma_avx2(long rounds) {
    __m256 x[12];
#pragma GCC unroll 12
    for (int j = 0; j < 12; ++j) x[j] = _mm256_set1_ps(0.01f * static_cast<float>(j));
    const __m256 c = _mm256_set1_ps(-1.8f);
    for (long i = 0; i < rounds; ++i) {
#pragma GCC unroll 12
        for (int j = 0; j < 12; ++j) x[j] = _mm256_fmadd_ps(x[j], x[j], c);
    }
#pragma GCC unroll 12
    for (int j = 1; j < 12; ++j) x[0] = _mm256_add_ps(x[0], x[j]);
    benchmark::DoNotOptimize(_mm256_cvtss_f32(x[0]));
}

// An instruction by name, because g++ 12 keeps the chains of its intrinsic on the stack.
#define MOE_BENCH_DPBUSD(x, a, b) __asm__("vpdpbusd %2, %1, %0" : "+v"(x) : "v"(a), "v"(b))

__attribute__((target("avx512f,avx512vnni"))) inline void dot_avx512_vnni(long rounds) {
    __m512i x[16];
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) x[j] = _mm512_set1_epi32(j);
    const __m512i a = _mm512_set1_epi32(0x5AC3017E), b = _mm512_set1_epi32(0x13F2C581);
    for (long i = 0; i < rounds; ++i) {
#pragma GCC unroll 16
        for (int j = 0; j < 16; ++j) MOE_BENCH_DPBUSD(x[j], a, b);
    }
#pragma GCC unroll 16
    for (int j = 1; j < 16; ++j) x[0] = _mm512_add_epi32(x[0], x[j]);
    int sums[16];
    _mm512_storeu_si512(sums, x[0]);
    benchmark::DoNotOptimize(sums[0]);
}

#undef MOE_BENCH_DPBUSD
#define MOE_BENCH_DPBUSD(x, a, b) __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(x) : "x"(a), "x"(b))

__attribute__((target("avx2"))) inline void dot_avx_vnni(long rounds) {
    __m256i x[12];
#pragma GCC unroll 12
    for (int j = 0; j < 12; ++j) x[j] = _mm256_set1_epi32(j);
    const __m256i a = _mm256_set1_epi32(0x5AC3017E), b = _mm256_set1_epi32(0x13F2C581);
    for (long i = 0; i < rounds; ++i) {
#pragma GCC unroll 12
        for (int j = 0; j < 12; ++j) MOE_BENCH_DPBUSD(x[j], a, b);
    }
#pragma GCC unroll 12
    for (int j = 1; j < 12; ++j) x[0] = _mm256_add_epi32(x[0], x[j]);
    benchmark::DoNotOptimize(_mm_cvtsi128_si32(_mm256_castsi256_si128(x[0])));
}

#undef MOE_BENCH_DPBUSD

/// Pairs of bytes to 16 bits, pairs of those to 32, added: what there is without VNNI.
__attribute__((target("avx2"))) inline void dot_avx2(long rounds) {
    __m256i x[10];
#pragma GCC unroll 10
    for (int j = 0; j < 10; ++j) x[j] = _mm256_set1_epi32(0x01020304 * (j + 1));
    const __m256i b = _mm256_set1_epi32(0x13F2C581), ones = _mm256_set1_epi16(1);
    for (long i = 0; i < rounds; ++i) {
#pragma GCC unroll 10
        for (int j = 0; j < 10; ++j)
            x[j] = _mm256_add_epi32(x[j], _mm256_madd_epi16(_mm256_maddubs_epi16(x[j], b), ones));
    }
#pragma GCC unroll 10
    for (int j = 1; j < 10; ++j) x[0] = _mm256_add_epi32(x[0], x[j]);
    benchmark::DoNotOptimize(_mm_cvtsi128_si32(_mm256_castsi256_si128(x[0])));
}

/// Two tiles of A, two of B, all four products, as a kernel has them. Operands have either sign: as
/// bf16 they are in [1, 2), as int8 of any size.
template <moe::Compute compute>
void tiles(long rounds) {
    using namespace moe::amx;
    moe::amx::TileConfig config;
    config.palette = 1;
    std::fill_n(config.row_bytes, 8, std::uint16_t{64});
    std::fill_n(config.rows, 8, std::uint8_t{16});
    std::array<std::uint16_t, 512> operands;
    for (std::size_t i = 0; i < operands.size(); ++i)
        operands[i] = static_cast<std::uint16_t>(0x3F80U + i * 37 % 128 + i % 2 * 0x8000U);
    configure(config);
    zero<0>(), zero<1>(), zero<2>(), zero<3>();
    load<4>(operands.data(), 64), load<5>(operands.data(), 64);
    load<6>(operands.data(), 64), load<7>(operands.data(), 64);
    for (long i = 0; i < rounds; ++i) {
        if constexpr (compute == moe::Compute::bf16)
            dot_bf16<0, 4, 6>(), dot_bf16<1, 4, 7>(), dot_bf16<2, 5, 6>(), dot_bf16<3, 5, 7>();
        else
            dot_signed<0, 4, 6>(), dot_signed<1, 4, 7>(), dot_signed<2, 5, 6>(),
                dot_signed<3, 5, 7>();
    }
    release();
}
#endif

/// The loop that does most operations of a kind with the instruction set in use.
inline Loop fastest_loop(moe::Compute compute) {
#if defined(__x86_64__)
    const moe::Isa isa = moe::isa();
    const moe::CpuFeatures features = moe::cpu_features();
    if (isa >= moe::Isa::amx && compute != moe::Compute::exact && moe::amx::permitted()) {
        if (compute == moe::Compute::bf16)
            return {tiles<moe::Compute::bf16>, 4 * 2.0 * 16 * 16 * 32, "AMX tdpbf16ps"};
        return {tiles<moe::Compute::int8>, 4 * 2.0 * 16 * 16 * 64, "AMX tdpbssd"};
    }
    if (compute == moe::Compute::int8) {
        if (isa >= moe::Isa::avx512 && features.vnni)
            return {dot_avx512_vnni, 16 * 2.0 * 64, "VNNI vpdpbusd, 512 bits"};
        if (isa >= moe::Isa::avx2 && features.avx_vnni)
            return {dot_avx_vnni, 12 * 2.0 * 32, "AVX-VNNI vpdpbusd, 256 bits"};
        if (isa >= moe::Isa::avx2) return {dot_avx2, 10 * 2.0 * 32, "vpmaddubsw + vpmaddwd"};
    }
    if (isa >= moe::Isa::avx512) return {fma_avx512, 24 * 2.0 * 16, "FMA, 512 bits"};
    if (isa >= moe::Isa::avx2) return {fma_avx2, 12 * 2.0 * 8, "FMA, 256 bits"};
#else
    (void)compute;
#endif
    return {fma_portable, 16 * 2.0 * 4, "multiply-add, 128 bits"};
}

/// Operations per second of `threads` cores at once that one way of multiplying has at most, the
/// best of `runs` runs of some 2 ms. bf16 without tiles is multiplied by the fused multiply-add of
/// floats; int8 by it where there is neither AVX2 nor anything better.
inline Rate peak(moe::Compute compute, int threads, int runs = 30) {
    static std::map<moe::Compute, long> rounds_of;
    const Loop loop = fastest_loop(compute);
    long& rounds = rounds_of[compute];
    if (rounds == 0) {
        rounds = 1000;
        while (timed([&] { loop.run(rounds); }) < 2e-3) rounds *= 2;
    }
    const double seconds = together(threads, runs, [&loop, rounds](int, int) { loop.run(rounds); });
    return {loop.operations * static_cast<double>(rounds) * threads / seconds, loop.how};
}

}  // namespace machine

#endif  // MOE_BENCH_MACHINE_PEAK_HPP
