// SPDX-License-Identifier: MIT
// Kernels against what the machine can do, both measured here.
//
//   peak/...     fused multiply-adds on registers only, two operations each
//   tile/...     one tile in the first-level cache; `of_peak` is its share of that
//   product/...  whole products of an expert's shape; `of_peak` likewise
//   pack/...     GB/s read plus written, next to copy/... of the same bytes
//   others       elements per second

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
#include <moe/kernels/product.hpp>

namespace {

using moe::Activation;
using moe::Index;
using moe::Isa;
using moe::KernelTable;

/// Chains of fused multiply-adds, more than latency times throughput of any processor we know.
/// Chaotic ones (x = x x - 1.8), because multiplying ones by ones draws less power.
#if defined(__x86_64__)
[[gnu::noinline]] __attribute__((target("avx512f"))) float run_avx512(Index n) {
    __m512 x[24];
    for (int j = 0; j < 24; ++j) x[j] = _mm512_set1_ps(0.01f * static_cast<float>(j));
    const __m512 c = _mm512_set1_ps(-1.8f);
    for (Index i = 0; i < n; ++i) {
#pragma GCC unroll 24
        for (int j = 0; j < 24; ++j) x[j] = _mm512_fmadd_ps(x[j], x[j], c);
    }
    __m512 sum = x[0];
    for (const auto& r : x) sum = _mm512_add_ps(sum, r);
    return _mm512_cvtss_f32(sum);
}

[[gnu::noinline]] __attribute__((target("avx2,fma"))) float run_avx2(Index n) {
    __m256 x[12];
    for (int j = 0; j < 12; ++j) x[j] = _mm256_set1_ps(0.01f * static_cast<float>(j));
    const __m256 c = _mm256_set1_ps(-1.8f);
    for (Index i = 0; i < n; ++i) {
#pragma GCC unroll 12
        for (int j = 0; j < 12; ++j) x[j] = _mm256_fmadd_ps(x[j], x[j], c);
    }
    __m256 sum = x[0];
    for (const auto& r : x) sum = _mm256_add_ps(sum, r);
    return _mm256_cvtss_f32(sum);
}

double measure_peak(Isa isa) {
    double best = 0;
    for (int run = 0; run < 1000; ++run) {
        Index n = 5000;
        benchmark::DoNotOptimize(n);
        const auto start = std::chrono::steady_clock::now();
        benchmark::DoNotOptimize(isa == Isa::avx512 ? run_avx512(n) : run_avx2(n));
        const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
        const double operations = isa == Isa::avx512 ? 24.0 * 16 * 2 : 12.0 * 8 * 2;
        best = std::max(best, operations * static_cast<double>(n) / time.count());
    }
    return best;
}
#endif

/// Operations per second that the fused multiply-add units of one core do from registers, best of
/// many runs; 0 where it is not measured. Double has half the lanes, and no table above AVX2.
///
/// A processor may lower its clock once loads are mixed in: on a Granite Rapids core at 3.4 GHz a
/// tile of 14 x 32 ran at 2.9 GHz, 84 % of this peak and 98 % of the issue slots at that clock. All
/// of 14x32, 8x48 and 9x48 ended at the same 180 GFLOP/s.
double peak(Isa isa, std::size_t scalar_size) {
#if defined(__x86_64__)
    if (isa == Isa::scalar) return 0;
    if (scalar_size == 8) return peak(Isa::avx2, 4) / 2;
    static const double avx2 = measure_peak(Isa::avx2);
    static const double avx512 = moe::best_isa() == Isa::avx512 ? measure_peak(Isa::avx512) : avx2;
    return isa == Isa::avx512 ? avx512 : avx2;
#else
    (void)isa;
    (void)scalar_size;
    return 0;
#endif
}

/// Memory aligned like a packed panel.
template <class S>
class Buffer {
public:
    explicit Buffer(Index size) : memory_(static_cast<std::size_t>(size) + 64) {
        const auto address = reinterpret_cast<std::uintptr_t>(memory_.data());
        data_ = memory_.data() + (64 - address % 64) % 64 / sizeof(S);
        for (Index i = 0; i < size; ++i) data_[i] = S(0.001) * static_cast<S>(i % 1000) - S(0.5);
    }
    S* data() { return data_; }

private:
    std::vector<S> memory_;
    S* data_;
};

void report_flops(benchmark::State& state, double flops, double peak_flops) {
    const double total = flops * static_cast<double>(state.iterations());
    state.counters["flops"] = benchmark::Counter(total, benchmark::Counter::kIsRate);
    if (peak_flops > 0)
        state.counters["of_peak"] =
            benchmark::Counter(total / peak_flops, benchmark::Counter::kIsRate);
}

void report_bytes(benchmark::State& state, double bytes) {
    state.counters["bytes"] = benchmark::Counter(bytes * static_cast<double>(state.iterations()),
                                                 benchmark::Counter::kIsRate);
}

template <class S>
void tile(benchmark::State& state, Isa isa, Index rows, Index k, bool by_rows) {
    const KernelTable<S>& t = moe::kernels<S>(isa);
    const Index width = t.panel_width, stride = by_rows ? k + 16 : rows;
    Buffer<S> a((by_rows ? rows : k) * stride), b(k * width), c(rows * width);
    for (auto _ : state) {
        t.tile(rows, width, k, a.data(), by_rows ? stride : 1, by_rows ? 1 : stride, b.data(),
               width, c.data(), width, true, nullptr, 0);
        benchmark::ClobberMemory();
    }
    report_flops(state, 2.0 * static_cast<double>(rows * width * k), peak(isa, sizeof(S)));
}

/// rows of x times W^T: `packed` beforehand, or from W [out, in] as training has it.
template <class S>
void product(benchmark::State& state, Isa isa, Index rows, Index out, Index in, bool packed) {
    const KernelTable<S>& t = moe::kernels<S>(isa);
    Buffer<S> x(rows * (in + 16)), w(out * in), y(rows * out),
        scratch(moe::product_scratch(t, out));
    const moe::Strided<S> a{x.data(), in + 16, 1}, b{w.data(), 1, in};
    moe::PackedMatrix<S> matrix;
    matrix.pack(t, b, in, out);
    for (auto _ : state) {
        if (packed)
            moe::product(t, rows, out, in, a, matrix.view(), y.data(), out, false);
        else
            moe::product(t, rows, out, in, a, b, y.data(), out, false, scratch.data());
        benchmark::ClobberMemory();
    }
    report_flops(state, 2.0 * static_cast<double>(rows * out * in), peak(isa, sizeof(S)));
}

/// What backward multiplies: dx = dy W, or dW += dy^T x (`gradient`), rows of dy [rows, out], W
/// [out, in]. Four matrices in turn, so that they come from beyond the second-level cache.
template <class S>
void backward_product(benchmark::State& state, Isa isa, Index rows, Index out, Index in,
                      bool gradient) {
    const KernelTable<S>& t = moe::kernels<S>(isa);
    constexpr Index matrices = 4;
    Buffer<S> x(rows * (in + 16)), dy(rows * (out + 16)), w(matrices * out * in),
        scratch(moe::product_scratch(t, in));
    Index turn = 0;
    for (auto _ : state) {
        S* const weight = w.data() + turn++ % matrices * out * in;
        if (gradient)
            moe::product(t, out, in, rows, {dy.data(), 1, out + 16}, {x.data(), in + 16, 1}, weight,
                         in, true, scratch.data());
        else
            moe::product(t, rows, in, out, {dy.data(), out + 16, 1}, {weight, in, 1}, x.data(),
                         in + 16, false, scratch.data());
        benchmark::ClobberMemory();
    }
    report_flops(state, 2.0 * static_cast<double>(rows * out * in), peak(isa, sizeof(S)));
}

/// B of k rows from W [panel_width, k] (`transposed`) or W [k, panel_width].
template <class S>
void pack(benchmark::State& state, Isa isa, Index out, Index in, bool transposed) {
    const KernelTable<S>& t = moe::kernels<S>(isa);
    Buffer<S> w(out * in);
    moe::PackedMatrix<S> matrix;
    const moe::Strided<S> b{w.data(), transposed ? 1 : out, transposed ? in : 1};
    for (auto _ : state) {
        matrix.pack(t, b, in, out);
        benchmark::ClobberMemory();
    }
    report_bytes(state, 2.0 * static_cast<double>(out * in) * sizeof(S));
}

void copy(benchmark::State& state, Index size) {
    Buffer<float> from(size), to(size);
    for (auto _ : state) {
        std::memcpy(to.data(), from.data(), static_cast<std::size_t>(size) * sizeof(float));
        benchmark::ClobberMemory();
    }
    report_bytes(state, 2.0 * static_cast<double>(size) * sizeof(float));
}

template <class S>
void elementwise(benchmark::State& state, Isa isa, int which) {
    const KernelTable<S>& t = moe::kernels<S>(isa);
    const Index n = 1024;
    Buffer<S> x(n), u(n), d(n), y(n), z(n);
    for (auto _ : state) {
        switch (which) {
            case 0:
                t.softmax(n, x.data(), y.data());
                break;
            case 1:
                benchmark::DoNotOptimize(t.dot(n, x.data(), u.data()));
                break;
            case 2:
                t.axpy(n, S(0.5), x.data(), y.data());
                break;
            case 3:
                t.activate(Activation::silu, n, x.data(), y.data());
                break;
            case 4:
                t.activate(Activation::gelu, n, x.data(), y.data());
                break;
            case 5:
                t.gate(Activation::silu, n, x.data(), u.data(), y.data());
                break;
            case 6:
                t.gate_backward(Activation::silu, n, x.data(), u.data(), d.data(), y.data(),
                                z.data());
                break;
            default:
                t.gate_backward(Activation::gelu, n, x.data(), u.data(), d.data(), y.data(),
                                z.data());
        }
        benchmark::ClobberMemory();
    }
    state.SetItemsProcessed(state.iterations() * n);
}

template <class S>
void add_benchmarks(const std::string& type) {
    for (const Isa isa : moe::supported_isas()) {
        const std::string end = "/" + type + "/" + moe::name(isa);
        const KernelTable<S>& t = moe::kernels<S>(isa);
        const auto add = [](const std::string& name, auto... arguments) {
            benchmark::RegisterBenchmark(name.c_str(), arguments...);
        };
        for (Index rows = t.tile_rows; rows >= 1; rows -= rows > 8 ? 3 : rows > 4 ? 2 : 1)
            for (const Index k : {256, 512}) {
                const std::string shape = std::to_string(rows) + "x" +
                                          std::to_string(t.panel_width) + "/k:" + std::to_string(k);
                add("tile/" + shape + end, tile<S>, isa, rows, k, true);
                if (rows == t.tile_rows)
                    add("tile_a_col/" + shape + end, tile<S>, isa, rows, k, false);
            }
        if (isa == Isa::scalar) continue;
        for (const Index rows : {1, 4, 16, 64, 256}) {
            const std::string shape = "qwen3_up/rows:" + std::to_string(rows);
            add("product/packed/" + shape + end, product<S>, isa, rows, 768, 2048, true);
            add("product/in_place/" + shape + end, product<S>, isa, rows, 768, 2048, false);
        }
        for (const Index rows : {2, 16, 128}) {
            const std::string shape = "mixtral_mini_up/rows:" + std::to_string(rows);
            add("dx/" + shape + end, backward_product<S>, isa, rows, 3584, 1024, false);
            add("dw/" + shape + end, backward_product<S>, isa, rows, 3584, 1024, true);
        }
        for (const Index in : {256, 2048, 2056}) {
            add("pack/transposed/768x" + std::to_string(in) + end, pack<S>, isa, 768, in, true);
            add("pack/rows/768x" + std::to_string(in) + end, pack<S>, isa, 768, in, false);
        }
        const char* names[] = {
            "softmax",           "dot", "axpy", "silu", "gelu", "gate_silu", "gate_backward_silu",
            "gate_backward_gelu"};
        for (int which = 0; which < 8; ++which)
            add(names[which] + std::string("/1024") + end, elementwise<S>, isa, which);
    }
}

}  // namespace

int main(int argc, char** argv) {
    for (const Isa isa : moe::supported_isas())
        benchmark::AddCustomContext(std::string("peak_gflops_float_") + moe::name(isa),
                                    std::to_string(peak(isa, sizeof(float)) * 1e-9));
    add_benchmarks<float>("f32");
    add_benchmarks<double>("f64");
    for (const Index size : {768 * 256, 768 * 2048})
        benchmark::RegisterBenchmark(("copy/f32/" + std::to_string(size)).c_str(), copy, size);
    benchmark::Initialize(&argc, argv);
    if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
    benchmark::RunSpecifiedBenchmarks();
    benchmark::Shutdown();
    return 0;
}
