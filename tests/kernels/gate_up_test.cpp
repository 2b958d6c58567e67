// SPDX-License-Identifier: MIT
#include <moe/kernels/gate_up.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <moe/kernels/dispatch.hpp>
#include <moe/kernels/product.hpp>
#include <moe/kernels/storage_dispatch.hpp>
#include <moe/kernels/stored_matrix.hpp>

#include "guarded.hpp"
#include "numbers.hpp"

namespace {

using kernel_test::Numbers;
using kernel_test::same;
using moe::GateUp;
using moe::Index;
using moe::Matrix;
using moe::Strided;

/// [k, gate_up_columns] with 16 columns of gate, 16 of up, and so on, and zeros that fill up.
template <class S>
Matrix<S> alternating(const Matrix<S>& gate, const Matrix<S>& up) {
    Matrix<S> result =
        Matrix<S>::Zero(gate.rows(), static_cast<Index>((gate.cols() + 15) / 16 * 32));
    for (Index j = 0; j < gate.cols(); ++j) {
        result.col(j / 16 * 32 + j % 16) = gate.col(j);
        result.col(j / 16 * 32 + 16 + j % 16) = up.col(j);
    }
    return result;
}

template <class S>
Matrix<S> numbers(Index rows, Index cols, std::uint64_t seed) {
    Matrix<S> result(rows, cols);
    Numbers random(seed);
    random.fill(result.size(), result.data());
    return result;
}

template <class S>
class GateUpOf : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(GateUpOf, Scalars, );

TYPED_TEST(GateUpOf, IsPackedAsTheMatrixOfTheirColumnsAlternating) {
    using S = TypeParam;
    for (const moe::Isa isa : moe::supported_isas()) {
        SCOPED_TRACE(moe::name(isa));
        const auto& table = moe::kernels<S>(isa);
        for (const Index columns : {1, 15, 16, 17, 33, 48, 61})
            for (const Index k : {1, 16, 37}) {
                const Matrix<S> gate = numbers<S>(k, columns, 1), up = numbers<S>(k, columns, 2);
                const Matrix<S> both = alternating(gate, up);
                ASSERT_EQ(moe::gate_up_columns(columns), both.cols());
                moe::PackedMatrix<S> got, want;
                want.pack(table, {both.data(), both.cols(), 1}, k, both.cols());
                got.resize(table, k, both.cols());
                const Matrix<S> lying = up.transpose();  // [out, in], as checkpoints have it
                const GateUp b{&table, Strided<S>{gate.data(), columns, 1},
                               Strided<S>{lying.data(), 1, k}, columns};
                for (Index j = 0; j < got.panels(); ++j) got.pack(b, j, j + 1);
                ASSERT_TRUE(same(got.panels() * k * table.panel_width, got.panel(0), want.panel(0)))
                    << k << " by " << columns;
            }
    }
}

TEST(GateUp, HasTheBitsOfTwoProductsAndTheirActivation) {
    using S = float;
    for (const moe::Isa isa : moe::supported_isas()) {
        SCOPED_TRACE(moe::name(isa));
        const auto& table = moe::kernels<S>(isa);
        const Index rows = 5, k = 41, columns = 83, both = moe::gate_up_columns(columns);
        const Matrix<S> x = numbers<S>(rows, k, 3);
        const Matrix<S> gate = numbers<S>(k, columns, 1), up = numbers<S>(k, columns, 2);
        moe::PackedMatrix<S> packed_gate, packed_up, packed;
        packed_gate.pack(table, {gate.data(), columns, 1}, k, columns);
        packed_up.pack(table, {up.data(), columns, 1}, k, columns);
        packed.resize(table, k, both);
        packed.pack(GateUp{&table, Strided<S>{gate.data(), columns, 1},
                           Strided<S>{up.data(), columns, 1}, columns},
                    0, packed.panels());
        Matrix<S> g(rows, columns), u(rows, columns), gu(rows, both), want(1, columns),
            got(1, columns);
        const Strided<S> a{x.data(), k, 1};
        moe::product(table, rows, columns, k, a, packed_gate.view(), g.data(), columns, false);
        moe::product(table, rows, columns, k, a, packed_up.view(), u.data(), columns, false);
        moe::product(table, rows, both, k, a, packed.view(), gu.data(), both, false);
        for (const moe::Activation act : moe::all_activations)
            for (Index i = 0; i < rows; ++i) {
                table.gate(act, columns, g.row(i).data(), u.row(i).data(), want.data());
                table.gate_up(act, columns, gu.row(i).data(), got.data());
                ASSERT_TRUE(same(columns, got.data(), want.data()));
                EXPECT_GT(want.cwiseAbs().maxCoeff(), 0.1f);
            }
    }
}

TEST(GateUp, IsStoredAsTheMatrixOfTheirColumnsAlternating) {
    const Index k = 70, columns = 37;
    const Matrix<float> gate = numbers<float>(k, columns, 1), up = numbers<float>(k, columns, 2);
    const Matrix<float> both = alternating(gate, up);
    for (const moe::Isa isa : moe::supported_isas())
        for (const moe::Storage storage : moe::all_storages) {
            if (storage == moe::Storage::fp32) continue;
            SCOPED_TRACE(std::string(moe::name(isa)) + " " + moe::name(storage));
            const auto& table = moe::storage_kernels(isa);
            moe::StoredMatrix got, want;
            want.pack(storage, table, {both.data(), both.cols(), 1}, k, both.cols());
            got.resize(storage, table, k, both.cols());
            got.pack(GateUp{&moe::kernels<float>(isa), Strided<float>{gate.data(), columns, 1},
                            Strided<float>{up.data(), columns, 1}, columns},
                     0, got.panels());
            ASSERT_EQ(got.bytes(), want.bytes());
            EXPECT_EQ(
                std::memcmp(got.panel(0), want.panel(0), static_cast<std::size_t>(got.bytes())), 0);
        }
}

/// bf16 in a checkpoint: the upper halves of floats.
TEST(GateUp, TakesNarrowElements) {
    const Index k = 19, columns = 21;
    Matrix<float> gate = numbers<float>(k, columns, 1);
    const Matrix<float> up = numbers<float>(k, columns, 2);
    std::vector<std::uint16_t> narrow(static_cast<std::size_t>(gate.size()));
    for (Index i = 0; i < gate.size(); ++i) {
        const auto bits = std::bit_cast<std::uint32_t>(gate.data()[i]);
        narrow[static_cast<std::size_t>(i)] = static_cast<std::uint16_t>(bits >> 16);
        gate.data()[i] = std::bit_cast<float>(bits & 0xffff0000U);
    }
    for (const moe::Isa isa : moe::supported_isas()) {
        SCOPED_TRACE(moe::name(isa));
        const auto& table = moe::kernels<float>(isa);
        const Strided<float> plain_up{up.data(), columns, 1};
        const moe::NarrowStrided b{
            reinterpret_cast<const std::byte*>(narrow.data()),
            columns,
            1,
            nullptr,
            0,
            0,
            &moe::detail::all_narrow_tables<std::int8_t>()[static_cast<std::size_t>(isa)]->of(
                moe::Dtype::bf16)};
        moe::PackedMatrix<float> got, want;
        got.resize(table, k, moe::gate_up_columns(columns));
        want.resize(table, k, moe::gate_up_columns(columns));
        want.pack(GateUp{&table, Strided<float>{gate.data(), columns, 1}, plain_up, columns}, 0,
                  want.panels());
        got.pack(GateUp{&table, b, plain_up, columns}, 0, got.panels());
        EXPECT_TRUE(same(got.panels() * k * table.panel_width, got.panel(0), want.panel(0)));
    }
}

}  // namespace
