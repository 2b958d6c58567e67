// SPDX-License-Identifier: MIT
#ifndef MOE_BENCH_MACHINE_BANDWIDTH_HPP
#define MOE_BENCH_MACHINE_BANDWIDTH_HPP

#include <algorithm>
#include <bit>
#include <cstddef>
#include <fstream>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <benchmark/benchmark.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <moe/core/executor.hpp>
#include <moe/core/memory.hpp>
#include <moe/kernels/dispatch.hpp>

#include "peak.hpp"
#include "timing.hpp"

namespace machine {

using moe::Index;

/// Bytes of the last cache that /sys tells of; 32 MiB if it does not.
inline Index last_level_cache() {
    static const Index bytes = [] {
        Index largest = 0;
        for (int level = 0; level < 5; ++level) {
            std::ifstream file("/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(level) +
                               "/size");
            Index size = 0;
            char unit = 'K';
            if (file >> size >> unit)
                largest = std::max(largest, size << (unit == 'M' ? 20 : unit == 'K' ? 10 : 0));
        }
        return largest > 0 ? largest : Index{32} << 20;
    }();
    return bytes;
}

// Eight rows walked together, as the rows of matrices are that a kernel reads: `floats` of each, a
// multiple of 16, `stride` apart. The hardware fetches ahead for each of them.

#if defined(__x86_64__)
__attribute__((target("avx512f"))) inline void read_avx512(const float* data, Index stride,
                                                           Index floats) {
    __m512 sums[8];
#pragma GCC unroll 8
    for (int r = 0; r < 8; ++r) sums[r] = _mm512_setzero_ps();
    for (Index i = 0; i < floats; i += 16) {
#pragma GCC unroll 8
        for (int r = 0; r < 8; ++r)
            sums[r] = _mm512_add_ps(sums[r], _mm512_loadu_ps(data + r * stride + i));
    }
#pragma GCC unroll 8
    for (int r = 1; r < 8; ++r) sums[0] = _mm512_add_ps(sums[0], sums[r]);
    benchmark::DoNotOptimize(_mm512_cvtss_f32(sums[0]));
}

__attribute__((target("avx2"))) inline void read_avx2(const float* data, Index stride,
                                                      Index floats) {
    __m256 sums[8];
#pragma GCC unroll 8
    for (int r = 0; r < 8; ++r) sums[r] = _mm256_setzero_ps();
    for (Index i = 0; i < floats; i += 16) {
#pragma GCC unroll 8
        for (int r = 0; r < 8; ++r) {
            sums[r] = _mm256_add_ps(sums[r], _mm256_loadu_ps(data + r * stride + i));
            sums[r] = _mm256_add_ps(sums[r], _mm256_loadu_ps(data + r * stride + i + 8));
        }
    }
#pragma GCC unroll 8
    for (int r = 1; r < 8; ++r) sums[0] = _mm256_add_ps(sums[0], sums[r]);
    benchmark::DoNotOptimize(_mm256_cvtss_f32(sums[0]));
}
#endif

inline void read_portable(const float* data, Index stride, Index floats) {
    typedef float Four __attribute__((vector_size(16), aligned(4)));
    Four sums[8] = {};
    for (Index i = 0; i < floats; i += 4) {
#pragma GCC unroll 8
        for (int r = 0; r < 8; ++r)
            sums[r] += *reinterpret_cast<const Four*>(data + r * stride + i);
    }
#pragma GCC unroll 8
    for (int r = 1; r < 8; ++r) sums[0] += sums[r];
    float first = sums[0][0];
    benchmark::DoNotOptimize(first);
}

inline void read_rows(const float* data, Index stride, Index floats) {
#if defined(__x86_64__)
    if (moe::isa() >= moe::Isa::avx512) return read_avx512(data, stride, floats);
    if (moe::isa() >= moe::Isa::avx2) return read_avx2(data, stride, floats);
#endif
    read_portable(data, stride, floats);
}

/// Eight rows of memory in large pages, touched by the thread that makes it.
class EightRows {
public:
    explicit EightRows(Index bytes)
        : floats_(std::max<Index>(bytes / 8 / 64, 1) * 16),
          stride_(floats_ + 272),  // rows a power of two apart would share sets of the caches
          memory_(moe::detail::allocate<float>(8 * stride_)) {
        std::fill_n(memory_.get(), 8 * stride_, 1.0f);
    }
    Index bytes() const { return 8 * floats_ * Index{sizeof(float)}; }
    /// Of `parts` equal parts, the one with this number.
    void read(Index part, Index parts) const {
        const Index size = floats_ / parts / 16 * 16;
        read_rows(memory_.get() + part * size, stride_, size);
    }

private:
    Index floats_, stride_;
    decltype(moe::detail::allocate<float>(0)) memory_;
};

/// Bytes per second that `threads` threads read together from `bytes` bytes which they read again
/// and again, the best of `runs` runs. Rounded up to a power of two; from half the last-level cache
/// on it is memory: a pool of four times that cache, at least 1 GiB, of which each run reads the
/// next eighth.
inline Rate read_bandwidth(int threads, double bytes, int runs = 32) {
    const bool cold = bytes > static_cast<double>(last_level_cache()) / 2;
    const Index wanted = std::max(static_cast<Index>(bytes), Index{threads} << 14);
    const Index pool = cold ? std::max(4 * last_level_cache(), Index{1} << 30)
                            : static_cast<Index>(std::bit_ceil(static_cast<std::size_t>(wanted)));
    struct Pool {
        std::vector<std::unique_ptr<EightRows>> of_thread;
        Index next = 0;  // part that is read next
    };
    static std::map<std::pair<int, Index>, Pool> known;
    Pool& mine = known[{threads, pool}];
    mine.of_thread.resize(static_cast<std::size_t>(threads));
    const Index parts = cold ? 8 : 1,
                times = cold ? 1 : std::max<Index>(1, (Index{64} << 20) / pool);
    const double seconds = together(threads, runs, [&](int thread, int run) {
        auto& rows = mine.of_thread[static_cast<std::size_t>(thread)];
        if (!rows) rows = std::make_unique<EightRows>(pool / threads);
        for (Index i = 0; i < times; ++i) rows->read((mine.next + run) % parts, parts);
    });
    mine.next += runs + 1;
    return {static_cast<double>(mine.of_thread[0]->bytes() / parts * times) * threads / seconds,
            cold ? "8 rows together, from memory" : "8 rows together, from caches"};
}

/// From memory.
inline Rate read_bandwidth(int threads) { return read_bandwidth(threads, 1e18); }

/// Empties the caches of everyone who works for this executor: each reads more than fits them.
inline void evict_caches(moe::Executor& executor) {
    static const EightRows other(2 * last_level_cache());
    const Index parts = executor.concurrency();
    const auto read = [parts](Index part, int) { other.read(part, parts); };
    executor.run(parts, read);
}

}  // namespace machine

#endif  // MOE_BENCH_MACHINE_BANDWIDTH_HPP
