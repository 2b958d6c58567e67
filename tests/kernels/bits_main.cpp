// SPDX-License-Identifier: MIT
// Prints lines of kernel, type, instruction set, and a hash of the bits it gives for fixed input.
//
// Builds with different flags (none, -march=native, -O3) must print the same, and so must all
// instruction sets but for their name. Double is listed where it promises bits: products and sums.
//
//     bits [word]    only lines that contain the word

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include <moe/kernels/dispatch.hpp>
#include <moe/kernels/product.hpp>
#include <moe/kernels/storage_dispatch.hpp>
#include <moe/kernels/stored_product.hpp>

#include "numbers.hpp"

namespace {

using kernel_test::Bits;
using kernel_test::Numbers;
using moe::Activation;
using moe::Compute;
using moe::Index;
using moe::Isa;
using moe::KernelTable;
using moe::Storage;

/// FNV-1a over the bits; every NaN counts the same, as its sign depends on the instruction.
class Hash {
public:
    template <class S>
    void add(Index n, const S* x) {
        for (Index i = 0; i < n; ++i) {
            const auto bits = x[i] != x[i] ? Bits<S>{1} : std::bit_cast<Bits<S>>(x[i]);
            for (std::size_t byte = 0; byte < sizeof(S); ++byte)
                value_ = (value_ ^ ((bits >> (8 * byte)) & 0xFFU)) * 0x100000001B3U;
        }
    }
    unsigned long long value() const { return value_; }

private:
    std::uint64_t value_ = 0xCBF29CE484222325U;
};

const char* only = "";

void print(const char* kernel, const char* type, Isa isa, const Hash& hash) {
    char line[128];
    std::snprintf(line, sizeof line, "%-28s %s %-7s %016llx", kernel, type, moe::name(isa),
                  hash.value());
    if (std::strstr(line, only) != nullptr) std::puts(line);
}

template <class S>
void products_and_sums(Isa isa, const char* type) {
    const KernelTable<S>& t = moe::kernels<S>(isa);
    Numbers random(1);
    const Index rows = 29, cols = 71, k = 601;
    std::vector<S> a(static_cast<std::size_t>(rows * k)), b(static_cast<std::size_t>(k * cols));
    std::vector<S> c(static_cast<std::size_t>(rows * cols));
    std::vector<S> scratch(static_cast<std::size_t>(moe::product_scratch(t, cols)));
    random.fill(rows * k, a.data());
    random.fill(k * cols, b.data());
    random.fill(rows * cols, c.data());
    Hash by_rows, by_columns, few_by_rows, few_by_columns, packed_row, dot, sum, axpy;
    moe::product(t, rows, cols, k, {a.data(), k, 1}, {b.data(), cols, 1}, c.data(), cols, true,
                 scratch.data());
    by_rows.add(rows * cols, c.data());
    moe::product(t, rows, cols, k, {a.data(), 1, rows}, {b.data(), 1, k}, c.data(), cols, false,
                 scratch.data());
    by_columns.add(rows * cols, c.data());
    for (Index few = 1; few < 9; ++few) {
        moe::product(t, few, cols, k, {a.data(), k, 1}, {b.data(), cols, 1}, c.data(), cols, true,
                     scratch.data());
        few_by_rows.add(few * cols, c.data());
        moe::product(t, few, cols, k, {a.data(), k, 1}, {b.data(), 1, k}, c.data(), cols, true,
                     scratch.data());
        few_by_columns.add(few * cols, c.data());
    }
    moe::PackedMatrix<S> packed;
    packed.pack(t, {b.data(), cols, 1}, k, cols);
    moe::detail::fetcher_in_use = moe::detail::Fetcher::processor;  // several panels at once
    moe::product(t, 1, cols, k, {a.data(), k, 1}, packed.view(), c.data(), cols, false);
    packed_row.add(cols, c.data());
    for (Index n = 0; n < 100; ++n) {
        const S d = t.dot(n * n, a.data(), b.data()), s = t.sum(n * n, b.data());
        dot.add(1, &d);
        sum.add(1, &s);
        t.axpy(n, S(0.37), a.data() + n, c.data());
    }
    axpy.add(rows * cols, c.data());
    print("product/rows", type, isa, by_rows);
    print("product/columns", type, isa, by_columns);
    print("product/few_rows", type, isa, few_by_rows);
    print("product/few_rows_columns", type, isa, few_by_columns);
    print("product/packed_row", type, isa, packed_row);
    print("dot", type, isa, dot);
    print("sum", type, isa, sum);
    print("axpy", type, isa, axpy);
}

/// Weights of each narrow type, in all the ways that they are read: bits at random, but for NaN and
/// infinities.
void narrow_products(Isa isa) {
    const KernelTable<float>& t = moe::kernels<float>(isa);
    const Index cols = 71, k = 601;
    Numbers random(4);
    std::vector<std::uint16_t> w(static_cast<std::size_t>(k * cols));
    for (std::uint16_t& bits : w) bits = static_cast<std::uint16_t>(random.bits() & 0xBFBFU);
    std::vector<float> a(static_cast<std::size_t>(20 * k)), c(static_cast<std::size_t>(20 * cols));
    std::vector<float> scales(static_cast<std::size_t>(cols));
    std::vector<float> scratch(static_cast<std::size_t>(moe::product_scratch(t, cols)));
    random.fill(20 * k, a.data());
    random.fill(cols, scales.data());
    const auto& tables = moe::detail::all_narrow_tables<std::int8_t>();
    for (const moe::Dtype dtype : {moe::Dtype::bf16, moe::Dtype::f16, moe::Dtype::i8}) {
        moe::NarrowStrided b{.data = reinterpret_cast<const std::byte*>(w.data()),
                             .row_stride = 0,
                             .col_stride = 0,
                             .scales = scales.data(),
                             .scale_row = 0,
                             .scale_col = 1,
                             .kernels = &tables[static_cast<std::size_t>(isa)]->of(dtype)};
        Hash hash;
        for (const bool by_rows : {false, true}) {
            b.row_stride = by_rows ? cols : 1;
            b.col_stride = by_rows ? 1 : k;
            for (const Index rows : {1, 2, 3, 4, 5, 6, 7, 8, 20}) {
                moe::product(t, rows, cols, k, {a.data(), k, 1}, b, c.data(), cols, false,
                             scratch.data());
                hash.add(rows * cols, c.data());
            }
        }
        print("product/narrow", moe::dtype_name(dtype), isa, hash);
    }
}

/// Weights of each storage, in all the ways that they are multiplied.
void stored_products(Isa isa) {
    const Index rows = 35, cols = 71, k = 2101;  // more than one chunk of integer sums
    Numbers random(5);
    std::vector<float> w(static_cast<std::size_t>(k * cols)), a(static_cast<std::size_t>(rows * k));
    std::vector<float> c(static_cast<std::size_t>(rows * cols)), scales(std::size_t{rows});
    random.fill(k * cols, w.data());
    random.fill(rows * k, a.data());
    const KernelTable<float>& t = moe::kernels<float>(isa);
    std::vector<float> scratch(static_cast<std::size_t>(moe::product_scratch(t, cols)));
    for (const Storage storage : moe::all_storages) {
        if (storage == Storage::fp32) continue;
        moe::StoredMatrix b;
        b.pack(storage, moe::storage_kernels(isa), {w.data(), 1, k}, k, cols);
        for (const Compute compute : moe::all_computes) {
            if (!moe::fits(storage, compute)) continue;
            const moe::detail::RowEncoding encoding{b.table(), compute, k};
            std::vector<std::byte> bytes(static_cast<std::size_t>(rows * encoding.stride()));
            const moe::detail::EncodedRows encoded{bytes.data(), scales.data()};
            for (Index i = 0; i < rows && compute != Compute::exact; ++i)
                encoding.encode(a.data() + i * k, encoded.from(i, encoding.stride()));
            Hash hash;
            for (const Index some : {1, 2, 3, 5, 16, 17, 33, 35}) {
                if (compute == Compute::exact)
                    moe::product(t, some, cols, k, {a.data(), k, 1}, b, 0, c.data(), cols, false,
                                 scratch.data());
                else
                    encoding.multiply(some, cols, encoded, b, 0, c.data(), cols, nullptr);
                hash.add(some * cols, c.data());
            }
            print(("product/stored/" + std::string(moe::name(compute))).c_str(), moe::name(storage),
                  isa, hash);
        }
    }
}

std::vector<float> awkward() {
    Numbers random(2);
    std::vector<float> x;
    const float inf = std::numeric_limits<float>::infinity();
    for (const float a :
         {0.0f, 1e-45f, 1e-38f, 1e-20f, 20.0f, 87.5f, 88.72f, 103.9f, 104.0f, 1e20f, 3e38f, inf}) {
        x.push_back(a);
        x.push_back(-a);
    }
    x.push_back(std::numeric_limits<float>::quiet_NaN());
    for (const double width : {0.001, 1.0, 10.0, 110.0})
        for (int i = 0; i < 5000; ++i)
            x.push_back(static_cast<float>(random.uniform(-width, width)));
    return x;
}

void elementwise(Isa isa) {
    const KernelTable<float>& t = moe::kernels<float>(isa);
    const std::vector<float> x = awkward();
    const auto n = static_cast<Index>(x.size());
    Numbers random(3);
    std::vector<float> u(x.size()), d(x.size()), y(x.size()), z(x.size());
    random.fill(n, u.data());
    random.fill(n, d.data());

    Hash sigmoid, softmax, log_sum_exp, scale, top_k;
    t.sigmoid(n, x.data(), y.data());
    sigmoid.add(n, y.data());
    t.scale(n, 0.7f, x.data(), y.data());
    scale.add(n, y.data());
    for (Index from = 25, width = 1; from + width <= n; from += width, width += 3) {
        t.softmax(width, x.data() + from, y.data());
        softmax.add(width, y.data());
        const float e = t.log_sum_exp(width, x.data() + from);
        log_sum_exp.add(1, &e);
        std::int32_t best[16];
        const Index found = t.top_k(width, x.data() + from, 16, best);
        for (Index i = 0; i < found; ++i) {
            const auto index = static_cast<float>(best[i]);
            top_k.add(1, &index);
        }
    }
    print("sigmoid", "f32", isa, sigmoid);
    print("scale", "f32", isa, scale);
    print("softmax", "f32", isa, softmax);
    print("log_sum_exp", "f32", isa, log_sum_exp);
    print("top_k", "f32", isa, top_k);

    const std::pair<Activation, std::string> activations[] = {
        {Activation::relu, "relu"}, {Activation::relu_squared, "relu_squared"},
        {Activation::gelu, "gelu"}, {Activation::gelu_tanh, "gelu_tanh"},
        {Activation::silu, "silu"}, {Activation::quick_gelu, "quick_gelu"}};
    for (const auto& [act, name] : activations) {
        Hash value, slope, gate, gate_backward;
        t.activate(act, n, x.data(), y.data());
        value.add(n, y.data());
        t.activate_backward(act, n, x.data(), d.data(), y.data());
        slope.add(n, y.data());
        t.gate(act, n, x.data(), u.data(), y.data());
        gate.add(n, y.data());
        t.gate_up(act, n / 32 * 16, x.data(), y.data());
        gate.add(n / 32 * 16, y.data());
        t.gate_backward(act, n, x.data(), u.data(), d.data(), y.data(), z.data());
        gate_backward.add(n, y.data());
        gate_backward.add(n, z.data());
        print(("activate/" + name).c_str(), "f32", isa, value);
        print(("activate_backward/" + name).c_str(), "f32", isa, slope);
        print(("gate/" + name).c_str(), "f32", isa, gate);
        print(("gate_backward/" + name).c_str(), "f32", isa, gate_backward);
    }
}

}  // namespace

int main(int argc, char** argv) {
    if (argc > 1) only = argv[1];
    for (const Isa isa : moe::supported_isas()) {
        products_and_sums<float>(isa, "f32");
        products_and_sums<double>(isa, "f64");
        elementwise(isa);
        narrow_products(isa);
        stored_products(isa);
    }
    return 0;
}
