// SPDX-License-Identifier: MIT
// Kernels for stored weights against what the machine can do, all measured here.
//
//   decode/...   stored panels to float panels; `bytes` are those stored
//   product/...  rows times a matrix [2048, 1024] in panels; matrices in turn, 256 MB of them, so
//                that they come from memory. `of_read` is the rate at which stored bytes come as a
//                share of what one core reads, `of_peak` operations as a share of what it does on
//                registers.
//   encode/...   rows of 2048 activations: elements per second

#include <algorithm>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <benchmark/benchmark.h>

#include <moe/core/plan.hpp>
#include <moe/kernels/storage_dispatch.hpp>

#include "machine.hpp"

namespace {

using moe::Compute;
using moe::Index;
using moe::Isa;
using moe::KernelTable;
using moe::Storage;
using moe::StorageTable;

constexpr Index k = 2048, columns = 1024, pool_bytes = 256 << 20;
constexpr auto storages = std::span(moe::all_storages).subspan(1);  // all but fp32

/// A table, and the instruction set whose table of floats reads its decoded panels.
struct Tables {
    const StorageTable* stored;
    Isa isa;
};

std::vector<Tables> tables() {
    constexpr Isa isas[] = {Isa::scalar, Isa::avx2, Isa::avx2, Isa::avx512, Isa::avx512, Isa::amx};
    std::vector<Tables> all;
    for (std::size_t i = 0; i < moe::detail::storage_kernels_count; ++i)
        if (moe::detail::supports(static_cast<moe::detail::StorageKernels>(i)))
            all.push_back({moe::detail::all_storage_tables()[i], isas[i]});
    return all;
}

/// Operations per second of one core on registers, with the best that a table's instruction set has
/// on this machine.
double peak(const Tables& t, Compute compute) {
    static std::map<std::pair<Isa, Compute>, double> known;
    double& rate = known[{t.isa, compute}];
    if (rate == 0) {
        const moe::ScopedIsa scope(t.isa);
        const machine::Loop loop = machine::fastest_loop(compute);
        const long rounds = 20000;
        double best = 1e30;
        for (int run = 0; run < 200; ++run)
            best = std::min(best, machine::timed([&] { loop.run(rounds); }));
        rate = loop.operations * static_cast<double>(rounds) / best;
    }
    return rate;
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

void report(benchmark::State& state, double bytes, double flops, double peak_flops) {
    const auto add = [&](const char* name, double per_iteration) {
        state.counters[name] = benchmark::Counter(
            per_iteration * static_cast<double>(state.iterations()), benchmark::Counter::kIsRate);
    };
    add("bytes", bytes);
    static const double read = machine::read_bandwidth(1).per_second;
    add("of_read", bytes / read);
    if (flops > 0) add("flops", flops);
    if (peak_flops > 0) add("of_peak", flops / peak_flops);
}

/// Panels in turn, each with the one after it.
class Panels {
public:
    explicit Panels(Index bytes) : bytes_(bytes), count_(pool_bytes / bytes) {}
    const std::byte* next(Index panels) {
        turn_ = ahead_of(panels);
        return pool().data() + turn_ * bytes_;
    }
    const std::byte* ahead(Index panels) const { return pool().data() + ahead_of(panels) * bytes_; }

private:
    Index ahead_of(Index panels) const { return turn_ + 2 * panels <= count_ ? turn_ + panels : 0; }
    Index bytes_, count_, turn_ = 0;
};

void decode(benchmark::State& state, Tables t, Storage storage) {
    const moe::PanelLayout layout = moe::panel_layout(storage, t.stored->panel_width);
    const Index records = moe::PanelLayout::records(k), part = 8;
    Buffer to(part * moe::record_rows * t.stored->panel_width * 4);
    Panels panels(layout.bytes(k));
    for (auto _ : state) {
        const std::byte* const panel = panels.next(1);
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
    const KernelTable<float>& floats = moe::kernels<float>(t.isa);
    const Index width = t.stored->panel_width, height = floats.tile_rows;
    const moe::PanelLayout layout = moe::panel_layout(storage, width);
    const Index tiles = (rows + height - 1) / height;
    const Index ahead_step = layout.record_bytes / moe::record_rows / 4;
    for (Index r = 0; r < moe::PanelLayout::records(k); r += part) {
        t.stored->decode(storage, part, panel + layout.scale_bytes + r * layout.record_bytes,
                         reinterpret_cast<const float*>(panel), slice);
        for (Index i = 0, tile = 0; tile < tiles; ++tile) {
            const Index here = rows / tiles + (tile < rows % tiles ? 1 : 0);
            const auto* next = reinterpret_cast<const float*>(ahead + r * layout.record_bytes);
            floats.tile(here, width, part * moe::record_rows, a + i * a_row + r * moe::record_rows,
                        a_row, 1, slice, width, c + i * c_row, c_row, r > 0,
                        {next, tile == 0 ? ahead_step : 0});
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
    Buffer bytes(rows * (k + 64));
    auto* const q = reinterpret_cast<std::int8_t*>(bytes.data());
    std::vector<float> scale(static_cast<std::size_t>(rows));
    std::vector<std::int32_t> sums(static_cast<std::size_t>(rows * records));
    for (Index i = 0; i < rows; ++i) {
        t.stored->encode_bf16(k, a.floats() + i * a_row / 4, encoded.data() + i * a_row);
        t.stored->encode_int8(k, a.floats() + i * a_row / 4, q + i * (k + 64), scale.data() + i,
                              sums.data() + i * records);
    }
    const moe::Int8Rows x{q, k + 64, scale.data(), sums.data(), records};
    Panels panels(layout.bytes(k));
    for (auto _ : state) {
        // As many columns at once as a layer takes.
        const Index together = compute == Compute::exact ? width : rows <= 64 ? 512 : 128;
        for (Index j = 0; j < columns; j += together) {
            const std::byte* const panel = panels.next(together / width);
            float* const to = c.floats() + j;
            if (compute == Compute::exact)
                exact_product(t, storage, rows, a.floats(), a_row / 4, panel, to, c_row,
                              slice.floats(), panels.ahead(together / width));
            else if (compute == Compute::bf16)
                t.stored->product_bf16(rows, together, records, encoded.data(), a_row, panel, to,
                                       c_row, panels.ahead(together / width),
                                       moe::Plan{}.bf16_tile_rows);
            else
                t.stored->product_int8(storage, rows, together, records, x, panel, to, c_row,
                                       panels.ahead(together / width),
                                       moe::Plan{}.tile_rows(storage));
        }
        benchmark::ClobberMemory();
    }
    report(state, static_cast<double>(columns / width * layout.bytes(k)),
           2.0 * static_cast<double>(rows * columns * k), peak(t, compute));
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
    benchmark::AddCustomContext("read_gb_per_s",
                                std::to_string(machine::read_bandwidth(1).per_second * 1e-9));
    pool();  // filled before anything is timed
    for (const Tables& t : tables()) {
        for (const Compute compute : {Compute::exact, Compute::bf16, Compute::int8})
            benchmark::AddCustomContext(
                std::string("peak_gops_") + moe::name(compute) + "_" + t.stored->name,
                std::to_string(peak(t, compute) * 1e-9));
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
