// SPDX-License-Identifier: MIT
// Kernels for stored weights against what the machine can do, all measured here.
//
//   decode/...   stored panels to float panels; `bytes` are those stored
//   product/...  rows times a matrix [2048, 1024], as a layer multiplies them; matrices in turn,
//                256 MB of them, so that they come from memory. `of_read` is the rate at which
//                stored bytes come as a share of what one core reads, `of_peak` operations as a
//                share of what it does on registers.
//   encode/...   rows of 2048 activations: elements per second

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <benchmark/benchmark.h>

#include <moe/core/random.hpp>
#include <moe/kernels/storage_dispatch.hpp>
#include <moe/kernels/stored_product.hpp>

#include "machine.hpp"

namespace {

using moe::Compute;
using moe::Index;
using moe::Isa;
using moe::KernelTable;
using moe::Storage;
using moe::StorageTable;
using moe::StoredMatrix;

constexpr Index k = 2048, columns = 1024, pool_bytes = 256 << 20;
constexpr auto storages = std::span(moe::all_storages).subspan(1);  // all but fp32

/// A table, and the instruction set whose table of floats reads its decoded panels.
struct Tables {
    const StorageTable* stored;
    Isa isa;
};

Isa isa_of(moe::detail::StorageKernels kernels) {
    switch (kernels) {
        case moe::detail::StorageKernels::scalar:
            break;
        case moe::detail::StorageKernels::avx2:
        case moe::detail::StorageKernels::avx2_vnni:
            return Isa::avx2;
        case moe::detail::StorageKernels::avx512:
        case moe::detail::StorageKernels::avx512_vnni:
            return Isa::avx512;
        case moe::detail::StorageKernels::amx:
            return Isa::amx;
    }
    return Isa::scalar;
}

std::vector<Tables> tables() {
    std::vector<Tables> all;
    for (std::size_t i = 0; i < moe::detail::storage_kernels_count; ++i)
        if (const auto kernels = static_cast<moe::detail::StorageKernels>(i);
            moe::detail::supports(kernels))
            all.push_back({moe::detail::all_storage_tables()[i], isa_of(kernels)});
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

/// Aligned memory full of ordinary numbers.
class Buffer {
public:
    explicit Buffer(Index floats) {
        memory_.resize(floats);
        for (Index i = 0; i < floats; ++i) data()[i] = static_cast<float>(i * 37 % 101 - 50);
    }
    float* data() { return memory_.data(); }
    std::byte* bytes() { return reinterpret_cast<std::byte*>(data()); }

private:
    moe::Buffer<float> memory_;
};

/// Matrices [k, columns] that do not fit the caches together. Those made last are kept for the next
/// benchmark.
class Matrices {
public:
    static const Matrices& of(const Tables& t, Storage storage) {
        static Matrices kept;
        if (kept.all_.empty() || kept[0].table() != t.stored || kept[0].storage() != storage) {
            kept.all_.clear();
            const auto weights = moe::Random(1).normal<float>(columns, k, 0.02f);
            StoredMatrix first;
            first.pack(storage, *t.stored, {weights.data(), 1, k}, k, columns);
            kept.all_.assign(static_cast<std::size_t>(pool_bytes / first.bytes()), first);
        }
        return kept;
    }
    /// They follow one another again and again.
    const StoredMatrix& operator[](std::size_t i) const { return all_[i % all_.size()]; }

private:
    std::vector<StoredMatrix> all_;
};

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

void decode(benchmark::State& state, Tables t, Storage storage) {
    const Matrices& matrices = Matrices::of(t, storage);
    const moe::PanelLayout layout = matrices[0].layout();
    const Index records = matrices[0].records(), panels = matrices[0].panels(), part = 8;
    Buffer to(part * moe::record_rows * t.stored->panel_width);
    Index turn = 0;
    for (auto _ : state) {
        const std::byte* const panel =
            matrices[static_cast<std::size_t>(turn / panels)].panel(turn % panels);
        for (Index r = 0; r < records; r += part)
            t.stored->decode(storage, part, panel + layout.scale_bytes + r * layout.record_bytes,
                             reinterpret_cast<const float*>(panel), to.data());
        benchmark::ClobberMemory();
        ++turn;
    }
    report(state, static_cast<double>(layout.bytes(k)), 0, 0);
}

void product(benchmark::State& state, Tables t, Storage storage, Compute compute, Index rows) {
    const KernelTable<float>& floats = moe::kernels<float>(t.isa);
    const Matrices& matrices = Matrices::of(t, storage);
    const Index width = t.stored->panel_width, a_row = k + 16;
    // As many columns at once as a layer takes.
    const Index together = rows <= 64 ? 512 : 128;
    Buffer a(rows * a_row), c(rows * columns), scratch(moe::product_scratch(floats, together));
    const moe::detail::RowEncoding encoding{t.stored, compute, k};
    Buffer encoded(rows * encoding.stride() / 4), scales(rows);
    const moe::detail::EncodedRows x{encoded.bytes(), scales.data()};
    for (Index i = 0; i < rows && compute != Compute::exact; ++i)
        encoding.encode(a.data() + i * a_row, x.from(i, encoding.stride()));
    std::size_t turn = 0;
    for (auto _ : state) {
        const StoredMatrix &b = matrices[turn], &next = matrices[++turn];
        for (Index j = 0; j < columns; j += together) {
            const Index panel = j / width, after = (j + together) / width;
            if (compute == Compute::exact)
                moe::product(floats, rows, together, k, {a.data(), a_row, 1}, b, panel,
                             c.data() + j, columns, false, scratch.data());
            else
                encoding.multiply(rows, together, x, b, panel, c.data() + j, columns,
                                  after < b.panels() ? b.panel(after) : next.panel(0));
        }
        benchmark::ClobberMemory();
    }
    report(state, static_cast<double>(matrices[0].bytes()),
           2.0 * static_cast<double>(rows * columns * k), peak(t, compute));
}

void encode(benchmark::State& state, Tables t, Compute compute) {
    Buffer x(k), to(k);
    float scale = 0;
    std::int32_t sums[k / moe::record_rows];
    for (auto _ : state) {
        if (compute == Compute::bf16)
            t.stored->encode_bf16(k, x.data(), to.bytes());
        else
            t.stored->encode_int8(k, x.data(), reinterpret_cast<std::int8_t*>(to.bytes()), &scale,
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
