// SPDX-License-Identifier: MIT
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include <moe/compose/slot_shares.hpp>
#include <moe/testing/finite_difference.hpp>
#include <moe/testing/random.hpp>

namespace {

using moe::Index;
using moe::Matrix;
using moe::testing::random_matrix;

constexpr Index tokens = 7, slots = 4;

struct Shares {
    std::vector<Index> offsets{0, 3, 3, 7};
    Matrix<double> logits = random_matrix<double>(tokens, slots, 1, 2);
    moe::SerialExecutor serial;
    moe::detail::SlotShares<double> shares;

    moe::detail::Sequences sequences() const { return {offsets, tokens}; }
    void forward() {
        shares.resize(tokens, slots);
        std::copy_n(logits.data(), logits.size(), shares.combine.data());
        shares.forward(sequences(), serial, [](Index, Index, double logit) { return logit; });
    }
};

TEST(SlotShares, AreSoftmaxesOverSlotsAndOverTheTokensOfASequence) {
    Shares test;
    test.forward();
    for (Index t = 0; t < tokens; ++t)
        for (Index p = 0; p < slots; ++p) {
            double row = 0, column = 0;
            for (Index i = 0; i < slots; ++i) row += std::exp(test.logits(t, i));
            for (Index i = t < 3 ? 0 : 3; i < (t < 3 ? 3 : 7); ++i)
                column += std::exp(test.logits(i, p));
            const double value = std::exp(test.logits(t, p));
            EXPECT_NEAR(test.shares.combine[t * slots + p], value / row, 1e-15);
            EXPECT_NEAR(test.shares.dispatch[p * tokens + t], value / column, 1e-15);
        }
}

TEST(SlotShares, GradientsAreExact) {
    Shares test;
    const auto of_combine = random_matrix<double>(tokens, slots, 2);
    const auto of_dispatch = random_matrix<double>(slots, tokens, 3);
    const auto loss = [&] {
        test.forward();
        double sum = 0;
        for (Index i = 0; i < tokens * slots; ++i)
            sum += test.shares.combine[i] * of_combine.data()[i] +
                   test.shares.dispatch[i] * of_dispatch.data()[i];
        return sum;
    };
    loss();
    test.shares.resize_gradients();
    std::copy_n(of_combine.data(), of_combine.size(), test.shares.dcombine.data());
    std::copy_n(of_dispatch.data(), of_dispatch.size(), test.shares.ddispatch.data());
    test.shares.backward(test.sequences(), test.serial);
    const Matrix<double> claim =
        Eigen::Map<Matrix<double>>(test.shares.dcombine.data(), tokens, slots);
    EXPECT_TRUE(moe::testing::check_gradient(loss, test.logits, claim));
}

TEST(SlotShares, OfWhatIsMaskedAreZero) {
    Shares test;
    constexpr double none = -std::numeric_limits<double>::infinity();
    test.logits.row(4).setConstant(none);                              // a token
    test.logits(0, 1) = test.logits(1, 1) = test.logits(2, 1) = none;  // a slot of a sequence
    test.forward();
    for (Index p = 0; p < slots; ++p) {
        EXPECT_EQ(test.shares.combine[4 * slots + p], 0);
        EXPECT_EQ(test.shares.dispatch[p * tokens + 4], 0);
    }
    for (Index t = 0; t < 3; ++t) {
        EXPECT_EQ(test.shares.combine[t * slots + 1], 0);
        EXPECT_EQ(test.shares.dispatch[1 * tokens + t], 0);
    }
}

}  // namespace
