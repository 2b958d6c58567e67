// SPDX-License-Identifier: MIT
#include <moe/compose/output_lengths.hpp>

#include <cmath>
#include <cstdint>
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/copy.hpp>
#include <moe/experts/shared.hpp>
#include <moe/experts/swiglu.hpp>
#include <moe/experts/zero.hpp>
#include <moe/testing/compare.hpp>
#include <moe/testing/random.hpp>

#include "support/allocations.hpp"

namespace {

using moe::Buffer;
using moe::Context;
using moe::Index;
using moe::Matrix;
using moe::Workspace;
using moe::testing::random_matrix;

constexpr Index dim = 6, experts = 5;

/// Three of Swiglu, a shared one, which answers nobody in particular, Copy and Zero.
auto make(double input_scale = 1) {
    return moe::Bank<double, moe::Swiglu, moe::Shared<moe::Swiglu>, moe::Copy, moe::Zero>(
        {.model_dim = dim, .input_scale = input_scale, .seed = 3},
        moe::Swiglu{.count = 3, .ffn_dim = 4}, moe::Shared{moe::Swiglu{.ffn_dim = 3}}, moe::Copy{},
        moe::Zero{});
}

/// [T, E] of all that is told, -1 where nothing is.
template <class Bank>
Matrix<double> lengths(const Bank& bank, const Matrix<double>& x, Workspace<double>& ws,
                       const Context& context = {}) {
    Matrix<double> result = Matrix<double>::Constant(x.rows(), experts, -1);
    Buffer<double> outputs;
    moe::detail::OutputLengths<double> of;
    of.for_each(bank, x, outputs, ws, bank.with_facts(context),
                [&](Index t, Index e, double length) {
                    EXPECT_EQ(result(t, e), -1) << "told twice";
                    result(t, e) = length;
                });
    return result;
}

TEST(OutputLengths, AreThoseOfWhatTheBankAppliesWithWeightOne) {
    for (const double scale : {1.0, 1.5}) {
        const auto bank = make(scale);
        const auto x = random_matrix<double>(7, dim, 1);
        Workspace<double> ws, other;
        const Matrix<double> found = lengths(bank, x, ws);
        Matrix<double> shared(7, dim), y(7, dim), wanted(7, experts);
        moe::Routing routing;
        routing.reset(7, experts);
        routing.group();
        bank.apply(x, routing, shared, other);
        for (Index e = 0; e < experts; ++e) {
            routing.reset(7, experts);
            for (Index t = 0; t < 7; ++t) routing.add(t, e);
            routing.group();
            bank.apply(x, routing, y, other);
            for (Index t = 0; t < 7; ++t) {
                double square = 0;
                for (Index d = 0; d < dim; ++d) square += std::pow(y(t, d) - shared(t, d), 2);
                wanted(t, e) = std::sqrt(square);
            }
        }
        EXPECT_TRUE(moe::testing::compare(found, wanted, 1e-13));
        EXPECT_NEAR(found(2, 3), scale * x.row(2).norm(), 1e-14) << "Copy";
        EXPECT_EQ(found(2, 4), 0) << "Zero";
    }
}

TEST(OutputLengths, OfPaddingAreNotAsked) {
    const auto bank = make();
    Matrix<double> x = random_matrix<double>(4, dim, 1);
    const std::vector<std::uint8_t> padding{0, 1, 0, 1}, all(4, 1);
    x.row(1).setConstant(NAN);
    Workspace<double> ws;
    const Matrix<double> found = lengths(bank, x, ws, {.padding = padding});
    for (Index e = 0; e < experts; ++e) {
        EXPECT_EQ(found(1, e), -1);
        EXPECT_EQ(found(3, e), -1);
        EXPECT_GE(found(0, e), 0);
        EXPECT_GE(found(2, e), 0);
    }
    EXPECT_TRUE((lengths(bank, x, ws, {.padding = all}).array() == -1).all());
    EXPECT_EQ(lengths(bank, Matrix<double>(0, dim), ws).rows(), 0);
}

/// An expert at a time, then two, then all: each is told once, and the same.
TEST(OutputLengths, DoNotDependOnTheBlocks) {
    const auto bank = make();
    const auto x = random_matrix<double>(4097, dim, 1);
    Workspace<double> ws;
    const Matrix<double> found = lengths(bank, x, ws);
    EXPECT_TRUE((found.array() >= 0).all());
    for (const Index rows : {2048, 1365, 10}) {
        const Matrix<double> part = x.topRows(rows);
        EXPECT_TRUE(
            moe::testing::same_bits(lengths(bank, part, ws), Matrix<double>(found.topRows(rows))))
            << rows;
    }
}

TEST(OutputLengths, SayHowManyBytesTheyReserve) {
    if (!allocations::are_counted) GTEST_SKIP() << "a sanitizer brings its own operator new";
    using Lengths = moe::detail::OutputLengths<double>;
    EXPECT_EQ(Lengths::most_rows(10, 5), 50);
    EXPECT_EQ(Lengths::most_rows(1000, 5), 4096);
    EXPECT_EQ(Lengths::most_rows(5000, 5), 5000);
    for (const Index tokens : {0, 10, 5000})
        for (const double scale : {1.0, 0.5}) {
            Lengths lengths;
            const long before = allocations::bytes_asked_for.load();
            lengths.reserve(tokens, 5, scale);
            EXPECT_EQ(allocations::bytes_asked_for.load() - before,
                      Lengths::bytes(tokens, 5, scale));
        }
}

}  // namespace
