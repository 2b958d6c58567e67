// SPDX-License-Identifier: MIT
// Kernels for stored weights against what the machine can do, all measured here.
//
//   read         memory beyond the last-level cache, read once: bytes per second
//   decode/...   stored panels to float panels; `bytes` are those stored
//   product/...  rows times a matrix [2048, 1024] in panels; matrices in turn, 128 MB of them, so
//                that they come from memory. `of_read` is the share of `read` that the stored bytes
//                come at, `of_peak` that of the multiply-adds on registers: FMA for exact and bf16,
//                what the table multiplies bytes with for int8.
//   encode/...   rows of 2048 activations: elements per second

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include <benchmark/benchmark.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <moe/kernels/dispatch.hpp>
#include <moe/kernels/storage_portable.hpp>
#include <moe/kernels/storage_table.hpp>

#if defined(__x86_64__)
#include <moe/kernels/x86/storage_avx512.hpp>
#endif

namespace {

using moe::Compute;
using moe::Index;
using moe::KernelTable;
using moe::Storage;
using moe::StorageTable;

constexpr Index k = 2048, columns = 1024, pool_bytes = 128 << 20;
constexpr Storage storages[] = {Storage::bf16,       Storage::f16,  Storage::int8,
                                Storage::int8_block, Storage::int4, Storage::int4_zero,
                                Storage::ternary};

/// A table, the table of floats that its decoded panels are for, and the multiply-adds that one of
/// its instructions for integers does for each of a float one.
struct Tables {
    const StorageTable* stored;
    const KernelTable<float>* floats;
    double int8_rate;
};

std::vector<Tables> tables() {
    std::vector<Tables> all{{&moe::storage_portable::table, &moe::portable_float::table, 0}};
#if defined(__x86_64__)
    const moe::CpuFeatures machine = moe::cpu_features();
    if (machine.vnni) all.push_back({&moe::storage_avx512::table, &moe::isa_avx512::table, 4});
#endif
    return all;
}

/// Aligned memory full of bytes that are no special number in any storage.
class Buffer {
public:
    explicit Buffer(Index bytes) : memory_(static_cast<std::size_t>(bytes) + 64) {
        const auto address = reinterpret_cast<std::uintptr_t>(memory_.data());
        data_ = memory_.data() + (64 - address % 64) % 64;
        std::uint32_t state = 1;
        for (Index i = 0; i < bytes; ++i) {
            state = state * 1664525U + 1013904223U;
            data_[i] = static_cast<std::byte>(0x21U + (state >> 24) % 0x1DU);
        }
    }
    std::byte* data() { return data_; }
    float* floats() { return reinterpret_cast<float*>(data_); }

private:
    std::vector<std::byte> memory_;
    std::byte* data_;
};

Buffer& pool() {
    static Buffer memory(pool_bytes + (1 << 20));
    return memory;
}

#if defined(__x86_64__)
/// Chaotic chains, x = x x - 1.8, because multiplying ones by ones draws less power.
[[gnu::noinline]] __attribute__((target("avx512f"))) void run_avx512(Index n) {
    __m512 x[24];
    for (int j = 0; j < 24; ++j) x[j] = _mm512_set1_ps(0.01f * static_cast<float>(j));
    const __m512 c = _mm512_set1_ps(-1.8f);
    for (Index i = 0; i < n; ++i)
#pragma GCC unroll 24
        for (int j = 0; j < 24; ++j) x[j] = _mm512_fmadd_ps(x[j], x[j], c);
    for (auto& r : x) benchmark::DoNotOptimize(r);
}
[[gnu::noinline]] __attribute__((target("avx2,fma"))) void run_avx2(Index n) {
    __m256 x[12];
    for (int j = 0; j < 12; ++j) x[j] = _mm256_set1_ps(0.01f * static_cast<float>(j));
    const __m256 c = _mm256_set1_ps(-1.8f);
    for (Index i = 0; i < n; ++i)
#pragma GCC unroll 12
        for (int j = 0; j < 12; ++j) x[j] = _mm256_fmadd_ps(x[j], x[j], c);
    for (auto& r : x) benchmark::DoNotOptimize(r);
}
[[gnu::noinline]] __attribute__((target("avx2"))) void read_all(const std::byte* p, Index bytes) {
    __m256i x[4] = {};
    for (Index i = 0; i < bytes; i += 128)
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j)
            x[j] = _mm256_xor_si256(
                x[j], _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + i + 32 * j)));
    for (auto& r : x) benchmark::DoNotOptimize(r);
}
#else
void read_all(const std::byte* p, Index bytes) {
    std::uint64_t x[8] = {};
    for (Index i = 0; i < bytes; i += 64)
        for (int j = 0; j < 8; ++j) {
            std::uint64_t word;
            std::memcpy(&word, p + i + 8 * j, 8);
            x[j] ^= word;
        }
    for (auto& r : x) benchmark::DoNotOptimize(r);
}
#endif

template <class F>
double seconds(const F& f) {
    const auto start = std::chrono::steady_clock::now();
    f();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// Operations per second of a float table's instruction set, best of many runs; 0 if not measured.
double peak(const Tables& t) {
#if defined(__x86_64__)
    static const auto measure = [](auto run, double lanes) {
        double best = 0;
        for (int i = 0; i < 1000; ++i)
            best = std::max(best, 2 * lanes * 5000 / seconds([&] { run(5000); }));
        return best;
    };
    static const double avx2 = moe::cpu_features().avx2 ? measure(run_avx2, 12 * 8) : 0;
    static const double avx512 = moe::cpu_features().avx512 ? measure(run_avx512, 24 * 16) : 0;
    if (t.floats == &moe::isa_avx512::table) return avx512;
    if (t.floats == &moe::isa_avx2::table) return avx2;
#endif
    (void)t;
    return 0;
}

/// Bytes per second of reading the pool, the upper quartile of some passes.
double read_rate() {
    static const double rate = [] {
        std::vector<double> rates;
        for (int i = 0; i < 21; ++i)
            rates.push_back(static_cast<double>(pool_bytes) /
                            seconds([] { read_all(pool().data(), pool_bytes); }));
        std::sort(rates.begin(), rates.end());
        return rates[15];
    }();
    return rate;
}

void report(benchmark::State& state, double bytes, double flops, double peak_flops) {
    const auto add = [&](const char* name, double per_iteration) {
        state.counters[name] = benchmark::Counter(
            per_iteration * static_cast<double>(state.iterations()), benchmark::Counter::kIsRate);
    };
    add("bytes", bytes);
    add("of_read", bytes / read_rate());
    if (flops > 0) add("flops", flops);
    if (peak_flops > 0) add("of_peak", flops / peak_flops);
}

void read_pool(benchmark::State& state) {
    for (auto _ : state) read_all(pool().data(), pool_bytes);
    state.counters["bytes"] = benchmark::Counter(
        static_cast<double>(pool_bytes * state.iterations()), benchmark::Counter::kIsRate);
}

/// Panels in turn, each with the one after it.
class Panels {
public:
    explicit Panels(Index bytes) : bytes_(bytes), count_(pool_bytes / bytes) {}
    const std::byte* next() {
        turn_ = turn_ + 1 < count_ ? turn_ + 1 : 0;
        return pool().data() + turn_ * bytes_;
    }
    const std::byte* ahead() const {
        return pool().data() + (turn_ + 1 < count_ ? turn_ + 1 : 0) * bytes_;
    }

private:
    Index bytes_, count_, turn_ = 0;
};

void decode(benchmark::State& state, Tables t, Storage storage) {
    const moe::PanelLayout layout = moe::panel_layout(storage, t.stored->panel_width);
    const Index records = moe::PanelLayout::records(k), part = 8;
    Buffer to(part * moe::record_rows * t.stored->panel_width * 4);
    Panels panels(layout.bytes(k));
    for (auto _ : state) {
        const std::byte* const panel = panels.next();
        for (Index r = 0; r < records; r += part)
            t.stored->decode(storage, part, panel + layout.scale_bytes + r * layout.record_bytes,
                             reinterpret_cast<const float*>(panel), to.floats());
        benchmark::ClobberMemory();
    }
    report(state, static_cast<double>(layout.bytes(k)), 0, 0);
}

/// One panel, decoded in slices that all rows are multiplied with.
void exact_product(const Tables& t, Storage storage, Index rows, const float* a, Index a_row,
                   const std::byte* panel, float* c, Index c_row, float* slice,
                   const std::byte* ahead) {
    constexpr Index part = 8;
    const Index width = t.stored->panel_width, height = t.floats->tile_rows;
    const moe::PanelLayout layout = moe::panel_layout(storage, width);
    const Index tiles = (rows + height - 1) / height;
    const Index ahead_step = layout.record_bytes / moe::record_rows / 4;
    for (Index r = 0; r < moe::PanelLayout::records(k); r += part) {
        t.stored->decode(storage, part, panel + layout.scale_bytes + r * layout.record_bytes,
                         reinterpret_cast<const float*>(panel), slice);
        for (Index i = 0, tile = 0; tile < tiles; ++tile) {
            const Index here = rows / tiles + (tile < rows % tiles ? 1 : 0);
            const auto* next = reinterpret_cast<const float*>(ahead + r * layout.record_bytes);
            t.floats->tile(here, width, part * moe::record_rows,
                           a + i * a_row + r * moe::record_rows, a_row, 1, slice, width,
                           c + i * c_row, c_row, r > 0, next, tile == 0 ? ahead_step : 0);
            i += here;
        }
    }
}

void product(benchmark::State& state, Tables t, Storage storage, Compute compute, Index rows) {
    const Index width = t.stored->panel_width, records = moe::PanelLayout::records(k);
    const moe::PanelLayout layout = moe::panel_layout(storage, width);
    const Index a_row = (k + 16) * 4, c_row = columns;
    Buffer a(rows * a_row), encoded(rows * a_row), c(rows * c_row * 4);
    Buffer slice(8 * moe::record_rows * width * 4);
    std::vector<std::int8_t> q(static_cast<std::size_t>(rows * (k + 64)));
    std::vector<float> scale(static_cast<std::size_t>(rows));
    std::vector<std::int32_t> sums(static_cast<std::size_t>(rows * records));
    for (Index i = 0; i < rows; ++i) {
        t.stored->encode_bf16(k, a.floats() + i * a_row / 4, encoded.data() + i * a_row);
        t.stored->encode_int8(k, a.floats() + i * a_row / 4, q.data() + i * (k + 64),
                              scale.data() + i, sums.data() + i * records);
    }
    const moe::Int8Rows x{q.data(), k + 64, scale.data(), sums.data(), records};
    Panels panels(layout.bytes(k));
    for (auto _ : state) {
        for (Index j = 0; j < columns; j += width) {
            const std::byte* const panel = panels.next();
            float* const to = c.floats() + j;
            if (compute == Compute::exact)
                exact_product(t, storage, rows, a.floats(), a_row / 4, panel, to, c_row,
                              slice.floats(), panels.ahead());
            else if (compute == Compute::bf16)
                t.stored->product_bf16(rows, width, records, encoded.data(), a_row, panel, to,
                                       c_row, panels.ahead());
            else
                t.stored->product_int8(storage, rows, width, records, x, panel, to, c_row,
                                       panels.ahead());
        }
        benchmark::ClobberMemory();
    }
    report(state, static_cast<double>(columns / width * layout.bytes(k)),
           2.0 * static_cast<double>(rows * columns * k),
           peak(t) * (compute == Compute::int8 ? t.int8_rate : 1));
}

void encode(benchmark::State& state, Tables t, Compute compute) {
    Buffer x(k * 4), to(k * 4);
    float scale = 0;
    std::int32_t sums[k / moe::record_rows];
    for (auto _ : state) {
        if (compute == Compute::bf16)
            t.stored->encode_bf16(k, x.floats(), to.data());
        else
            t.stored->encode_int8(k, x.floats(), reinterpret_cast<std::int8_t*>(to.data()), &scale,
                                  sums);
        benchmark::ClobberMemory();
    }
    state.SetItemsProcessed(state.iterations() * k);
}

}  // namespace

int main(int argc, char** argv) {
    const auto add = [](const std::string& name, auto... arguments) {
        benchmark::RegisterBenchmark(name.c_str(), arguments...);
    };
    benchmark::AddCustomContext("read_gb_per_s", std::to_string(read_rate() * 1e-9));
    add("read", read_pool);
    for (const Tables& t : tables()) {
        benchmark::AddCustomContext(std::string("peak_gflops_float_") + t.stored->name,
                                    std::to_string(peak(t) * 1e-9));
        const std::string end = std::string("/") + t.stored->name;
        for (const Compute compute : {Compute::bf16, Compute::int8})
            add(std::string("encode/") + moe::name(compute) + end, encode, t, compute);
        for (const Storage storage : storages) {
            add(std::string("decode/") + moe::name(storage) + end, decode, t, storage);
            for (const Compute compute : {Compute::exact, Compute::bf16, Compute::int8})
                for (const Index rows : {1, 2, 4, 8, 16, 64, 256})
                    if (moe::fits(storage, compute))
                        add(std::string("product/") + moe::name(storage) + "/" +
                                moe::name(compute) + "/rows:" + std::to_string(rows) + end,
                            product, t, storage, compute, rows);
        }
    }
    benchmark::Initialize(&argc, argv);
    if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
    benchmark::RunSpecifiedBenchmarks();
    benchmark::Shutdown();
    return 0;
}
