// SPDX-License-Identifier: MIT
#ifndef MOE_BENCH_MACHINE_HPP
#define MOE_BENCH_MACHINE_HPP

#include <algorithm>
#include <chrono>
#include <map>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <moe/kernels/dispatch.hpp>

/// What this machine can do, measured in this process.
namespace machine {

inline double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
}

template <class F>
double best_of(int runs, F&& f) {
    double best = 1e30;
    for (int i = 0; i < runs; ++i) {
        const double start = now();
        f();
        best = std::min(best, now() - start);
    }
    return best;
}

/// Seconds for f(thread) on `threads` threads at once, the best of several runs.
template <class F>
double together(int threads, F&& f) {
    return best_of(7, [&] {
        std::vector<std::thread> others;
        for (int t = 1; t < threads; ++t) others.emplace_back([&f, t] { f(t); });
        f(0);
        for (std::thread& other : others) other.join();
    });
}

#if defined(__x86_64__)
__attribute__((target("avx512f"))) inline float chains_avx512(long n) {
    __m512 x[24];
    for (auto& r : x) r = _mm512_set1_ps(1.0f);
    const __m512 a = _mm512_set1_ps(0.999f), b = _mm512_set1_ps(0.001f);
    for (long i = 0; i < n; ++i) {
#pragma GCC unroll 24
        for (int j = 0; j < 24; ++j) x[j] = _mm512_fmadd_ps(x[j], a, b);
    }
    __m512 sum = x[0];
    for (const auto& r : x) sum = _mm512_add_ps(sum, r);
    return _mm512_cvtss_f32(sum);
}
__attribute__((target("avx2,fma"))) inline float chains_avx2(long n) {
    __m256 x[12];
    for (auto& r : x) r = _mm256_set1_ps(1.0f);
    const __m256 a = _mm256_set1_ps(0.999f), b = _mm256_set1_ps(0.001f);
    for (long i = 0; i < n; ++i) {
#pragma GCC unroll 12
        for (int j = 0; j < 12; ++j) x[j] = _mm256_fmadd_ps(x[j], a, b);
    }
    __m256 sum = x[0];
    for (const auto& r : x) sum = _mm256_add_ps(sum, r);
    return _mm256_cvtss_f32(sum);
}
#endif

/// Floating-point operations per second of the fused multiply-add units, in float.
inline double peak_flops(int threads) {
    static std::map<int, double> known;
    double& peak = known[threads];
#if defined(__x86_64__)
    if (peak == 0) {
        const bool wide = moe::best_isa() == moe::Isa::avx512;
        const long n = 2000000;
        std::vector<float> sink(static_cast<std::size_t>(threads) * 16);
        const double time = together(threads, [&](int t) {
            sink[static_cast<std::size_t>(t) * 16] = wide ? chains_avx512(n) : chains_avx2(n);
        });
        peak = (wide ? 24.0 * 32 : 12.0 * 16) * static_cast<double>(n) * threads / time;
    }
#endif
    return peak;
}

/// Bytes per second read from a buffer larger than the last-level cache, 8 rows walked together.
inline double read_bandwidth(int threads) {
    static std::map<int, double> known;
    double& bandwidth = known[threads];
    if (bandwidth == 0) {
        const std::size_t rows = 8, row = std::size_t{1} << 23;  // floats: 256 MiB per thread
        std::vector<std::vector<float>> memory(static_cast<std::size_t>(threads));
        for (auto& part : memory) part.assign(rows * row, 1.0f);
        std::vector<float> sink(static_cast<std::size_t>(threads) * 16);
        const double time = together(threads, [&](int t) {
            const float* data = memory[static_cast<std::size_t>(t)].data();
            float sum[16] = {};
            for (std::size_t i = 0; i < row; i += 16)
                for (std::size_t r = 0; r < rows; ++r)
                    for (std::size_t j = 0; j < 16; ++j) sum[j] += data[r * row + i + j];
            sink[static_cast<std::size_t>(t) * 16] = sum[0];
        });
        bandwidth = 4.0 * static_cast<double>(rows * row) * threads / time;
    }
    return bandwidth;
}

}  // namespace machine

#endif
