// SPDX-License-Identifier: MIT
// Kernels against what the machine can do, both measured here.
//
//   peak_...     fused multiply-adds on registers only, two operations each
//   tile/...     one tile in the first-level cache; `of_peak` is its share of that
//   product/...  whole products of an expert's shape; `of_peak` likewise. `weights` are bytes of
//                them per second; cold ones come from memory, where `of_read` is their share of
//                what the machine reads with one thread. narrow_... are of elements that are
//                widened where they lie.
//   pack/...     GB/s read plus written, next to copy/... of the same bytes
//   others       elements per second

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <type_traits>
#include <utility>

#include <benchmark/benchmark.h>

#include <moe/core/memory.hpp>
#include <moe/kernels/dispatch.hpp>
#include <moe/kernels/product.hpp>

#include "machine.hpp"

namespace {

using moe::Activation;
using moe::Index;
using moe::Isa;
using moe::KernelTable;

/// Operations per second that the fused multiply-add units of one core do from registers, best of
/// many runs; 0 where kernels do not use them by themselves. Double has half the lanes.
///
/// A processor may lower its clock once loads are mixed in: on a Granite Rapids core at 3.4 GHz a
/// tile of 14 x 32 ran at 2.9 GHz, 84 % of this peak and 98 % of the issue slots at that clock. All
/// of 14x32, 8x48 and 9x48 ended at the same 180 GFLOP/s.
double peak(Isa isa, std::size_t scalar_size) {
    if (isa == Isa::scalar) return 0;
    static std::map<Isa, double> known;
    double& best = known[isa];
    if (best == 0) {
        const moe::ScopedIsa forced(isa);
        const machine::Loop loop = machine::fastest_loop(moe::Compute::exact);
        for (int run = 0; run < 1000; ++run)
            best = std::max(best, loop.operations * 5000 / machine::timed([&] { loop.run(5000); }));
    }
    return scalar_size == 8 ? best / 2 : best;
}

/// Memory like that of weights and scratch. Two bytes next to each other are an ordinary bf16 and
/// an ordinary half.
template <class S>
class Buffer {
public:
    explicit Buffer(Index size) : memory_(moe::detail::allocate<S>(size)) {
        for (Index i = 0; i < size; ++i)
            if constexpr (std::is_same_v<S, std::byte>)
                data()[i] = static_cast<std::byte>(0x21 + i * 7 % 29);
            else
                data()[i] = S(0.001) * static_cast<S>(i % 1000) - S(0.5);
    }
    S* data() { return memory_.get(); }

private:
    decltype(moe::detail::allocate<S>(0)) memory_;
};

/// Matrices of one size, the next one each time: `cold` ones do not fit the last-level cache
/// together.
template <class S>
class Weights {
public:
    Weights(Index size, bool cold) : size_(size) {
        const Index room = 4 * machine::last_level_cache() / static_cast<Index>(sizeof(S));
        count_ = cold ? std::max<Index>(2, room / size) : 1;
        data_ = pool(std::max(room, count_ * size));
    }
    S* next() { return data_ + turn_++ % count_ * size_; }

private:
    static S* pool(Index size) {  // kept from one benchmark to the next
        static std::map<Index, Buffer<S>> pools;
        return pools.try_emplace(size, size).first->second.data();
    }

    Index size_, count_, turn_ = 0;
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
               width, c.data(), width, true, {b.data()});
        benchmark::ClobberMemory();
    }
    report_flops(state, 2.0 * static_cast<double>(rows * width * k), peak(isa, sizeof(S)));
}

void report_weights(benchmark::State& state, double bytes, bool cold) {
    const double total = bytes * static_cast<double>(state.iterations());
    state.counters["weights"] = benchmark::Counter(total, benchmark::Counter::kIsRate);
    if (cold)
        state.counters["of_read"] = benchmark::Counter(
            total / machine::read_bandwidth(1).per_second, benchmark::Counter::kIsRate);
}

/// rows of x times W^T: `packed` beforehand (any weights are), or from W [out, in] as training has
/// it, 128 outputs at a time as tasks have them.
template <class S>
void product(benchmark::State& state, Isa isa, Index rows, Index out, Index in, bool packed,
             bool cold) {
    const KernelTable<S>& t = moe::kernels<S>(isa);
    Buffer<S> x(rows * (in + 16)), y(rows * out), scratch(moe::product_scratch(t, out));
    Weights<S> weights(moe::packed_size(t, in, out), cold);
    const moe::Strided<S> a{x.data(), in + 16, 1};
    for (auto _ : state) {
        const S* const w = weights.next();
        for (Index j = 0; j < out; j += 128) {
            const Index columns = std::min<Index>(128, out - j);
            if (packed)
                moe::product(t, rows, columns, in, a,
                             moe::Panels<S>{w + j * in, w + (j + 128) % out * in}, y.data() + j,
                             out, false);
            else
                moe::product(t, rows, columns, in, a, moe::Strided<S>{w + j * in, 1, in},
                             y.data() + j, out, false, scratch.data());
        }
        benchmark::ClobberMemory();
    }
    const double elements = static_cast<double>(out * in);
    report_flops(state, 2.0 * static_cast<double>(rows) * elements, peak(isa, sizeof(S)));
    report_weights(state, elements * sizeof(S), cold);
}

/// rows of x times W^T for W [out, in] of narrow elements, as it lies in memory.
void narrow_product(benchmark::State& state, Isa isa, moe::Dtype dtype, Index rows, Index out,
                    Index in, bool cold) {
    const KernelTable<float>& t = moe::kernels<float>(isa);
    const moe::NarrowKernels& narrow =
        moe::detail::all_narrow_tables<std::int8_t>()[static_cast<std::size_t>(isa)]->of(dtype);
    Buffer<float> x(rows * (in + 16)), y(rows * out), scratch(moe::product_scratch(t, out));
    Buffer<float> scales(out);
    const Index bytes = out * in * narrow.element_size;
    Weights<std::byte> weights(bytes, cold);
    const bool scaled = dtype == moe::Dtype::i8;
    for (auto _ : state) {
        const moe::NarrowStrided w{.data = weights.next(),
                                   .row_stride = 1,
                                   .col_stride = in,
                                   .scales = scaled ? scales.data() : nullptr,
                                   .scale_row = 0,
                                   .scale_col = scaled ? 1 : 0,
                                   .kernels = &narrow};
        for (Index j = 0; j < out; j += 128)
            moe::product(t, rows, std::min<Index>(128, out - j), in, {x.data(), in + 16, 1},
                         w.from(0, j), y.data() + j, out, false, scratch.data());
        benchmark::ClobberMemory();
    }
    report_flops(state, 2.0 * static_cast<double>(rows * out * in), peak(isa, sizeof(float)));
    report_weights(state, static_cast<double>(bytes), cold);
}

/// What backward multiplies: dx = dy W, or dW += dy^T x (`gradient`), rows of dy [rows, out], W
/// [out, in], cold.
template <class S>
void backward_product(benchmark::State& state, Isa isa, Index rows, Index out, Index in,
                      bool gradient) {
    const KernelTable<S>& t = moe::kernels<S>(isa);
    Buffer<S> x(rows * (in + 16)), dy(rows * (out + 16)), scratch(moe::product_scratch(t, in));
    Weights<S> weights(out * in, true);
    for (auto _ : state) {
        S* const weight = weights.next();
        if (gradient)
            moe::product(t, out, in, rows, {dy.data(), 1, out + 16}, {x.data(), in + 16, 1}, weight,
                         in, true, scratch.data());
        else
            moe::product(t, rows, in, out, {dy.data(), out + 16, 1}, {weight, in, 1}, x.data(),
                         in + 16, false, scratch.data());
        benchmark::ClobberMemory();
    }
    const double elements = static_cast<double>(out * in);
    report_flops(state, 2.0 * static_cast<double>(rows) * elements, peak(isa, sizeof(S)));
    report_weights(state, elements * sizeof(S), true);
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
    Buffer<S> x(2 * n), u(n), d(n), y(n), z(n);
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
                t.gate_up(Activation::silu, n, x.data(), y.data());
                break;
            case 7:
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
        for (const Index rows : {1, 2, 4, 6, 8, 12, 16, 32, 64, 256})
            for (const bool cold : {true, false}) {
                const std::string shape =
                    "qwen3_up/rows:" + std::to_string(rows) + (cold ? "/cold" : "/hot");
                add("product/packed/" + shape + end, product<S>, isa, rows, 768, 2048, true, cold);
                add("product/in_place/" + shape + end, product<S>, isa, rows, 768, 2048, false,
                    cold);
            }
        if constexpr (std::is_same_v<S, float>)
            for (const auto& [name, dtype] : {std::pair{"bf16", moe::Dtype::bf16},
                                              {"f16", moe::Dtype::f16},
                                              {"i8", moe::Dtype::i8}})
                for (const Index rows : {1, 4, 8, 32})
                    for (const bool cold : {true, false})
                        add("product/narrow_" + std::string(name) + "/qwen3_up/rows:" +
                                std::to_string(rows) + (cold ? "/cold" : "/hot") + end,
                            narrow_product, isa, dtype, rows, 768, 2048, cold);
        for (const Index rows : {1, 2, 8, 16, 32, 48, 64, 128}) {
            const std::string shape = "mixtral_mini_up/rows:" + std::to_string(rows);
            add("dx/" + shape + end, backward_product<S>, isa, rows, 3584, 1024, false);
            add("dw/" + shape + end, backward_product<S>, isa, rows, 3584, 1024, true);
        }
        for (const Index in : {256, 2048, 2056}) {
            add("pack/transposed/768x" + std::to_string(in) + end, pack<S>, isa, 768, in, true);
            add("pack/rows/768x" + std::to_string(in) + end, pack<S>, isa, 768, in, false);
        }
        const char* names[] = {"softmax",
                               "dot",
                               "axpy",
                               "silu",
                               "gelu",
                               "gate_silu",
                               "gate_up_silu",
                               "gate_backward_silu",
                               "gate_backward_gelu"};
        for (int which = 0; which < 9; ++which)
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
