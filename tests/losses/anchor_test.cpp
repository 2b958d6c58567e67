// SPDX-License-Identifier: MIT
#include <moe/losses/anchor.hpp>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "losses/laws.hpp"
#include "support/message.hpp"

namespace anchor_loss_test {
namespace {

using moe::Index;
using moe::Loss;
using moe::Matrix;

const std::vector<double> shares{0.25, 0, 0.125, 0.125, 0, 0.5, 0, 0};

loss_laws::Forms to_expert(Index expert) {
    return {[expert](auto z, const auto& plan, const auto& context, double weight, auto dz) {
                return moe::anchor_loss(z, plan, context, expert, weight, dz);
            },
            [expert](auto& ws, double weight) { return moe::anchor_loss(ws, expert, weight); }};
}
loss_laws::Forms to_shares(const std::vector<double>& target) {
    return {[target](auto z, const auto& plan, const auto& context, double weight, auto dz) {
                return moe::anchor_loss(z, plan, context, target, weight, dz);
            },
            [target](auto& ws, double weight) { return moe::anchor_loss(ws, target, weight); }};
}

template <class S>
class AnchorLoss : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(AnchorLoss, Scalars);

TYPED_TEST(AnchorLoss, OfThreeToOneIsWorkedOutByHand) {
    // p = (1/4, 3/4), a = (1, 0): p - a = (-3/4, 3/4), value 9/8. sum p (p - a) = 3/8, so
    // dz0 = 2 * 1/4 (-3/4 - 3/8) = -9/16 and dz1 = 2 * 3/4 (3/4 - 3/8) = 9/16
    using S = TypeParam;
    Matrix<S> logits(1, 2), dlogits = Matrix<S>::Zero(1, 2);
    logits << S(0), S(std::log(3.0));
    const Loss loss =
        moe::anchor_loss(logits, example::routing(2, {{1}}), {}, Index(0), 2.0, dlogits);
    EXPECT_STREQ(loss.name, "anchor");
    EXPECT_NEAR(loss.value, 9.0 / 8, 1e-6);
    EXPECT_NEAR(dlogits(0, 0), -2 * 9.0 / 16, 1e-6);
    EXPECT_NEAR(dlogits(0, 1), 2 * 9.0 / 16, 1e-6);
}

TEST(AnchorLoss, AgreesWithItsFormula) {
    const Matrix<double> logits = example::logits<double>();
    double expert = 0, target = 0;
    for (Index t = 0; t < 4; ++t) {
        double total = 0;
        for (Index e = 0; e < 8; ++e) total += std::exp(logits(t, e));
        for (Index e = 0; e < 8; ++e) {
            const double p = std::exp(logits(t, e)) / total;
            expert += std::pow(p - (e == 3 ? 1 : 0), 2) / 4;
            target += std::pow(p - shares[static_cast<std::size_t>(e)], 2) / 4;
        }
    }
    Matrix<double> dlogits = Matrix<double>::Zero(4, 8);
    EXPECT_NEAR(to_expert(3)(logits, example::two_best(), {}, 1.0, dlogits), expert, 1e-14);
    EXPECT_NEAR(to_shares(shares)(logits, example::two_best(), {}, 1.0, dlogits), target, 1e-14);
}

TEST(AnchorLoss, OfAnExpertIsThatOfAllSharesForIt) {
    const std::vector<double> one{0, 0, 0, 1, 0, 0, 0, 0};
    Matrix<double> of_expert = Matrix<double>::Zero(4, 8), of_shares = of_expert;
    EXPECT_EQ(to_expert(3)(example::logits<double>(), example::two_best(), {}, 1.0, of_expert),
              to_shares(one)(example::logits<double>(), example::two_best(), {}, 1.0, of_shares));
    EXPECT_EQ(of_expert, of_shares);
}

TYPED_TEST(AnchorLoss, LiesBetweenZeroAndTwo) {
    using S = TypeParam;
    Matrix<S> logits = Matrix<S>::Constant(2, 5, S(3)), dlogits = Matrix<S>::Zero(2, 5);
    const auto plan = example::routing(5, {{0}, {0}});
    EXPECT_NEAR(moe::anchor_loss(logits, plan, {}, Index(2), 1.0, dlogits), 4.0 / 5, 1e-6);
    EXPECT_NEAR(moe::anchor_loss(logits, plan, {}, std::vector<double>(5, 0.2), 1.0, dlogits), 0,
                1e-12);
    logits.col(2).setConstant(S(5000));
    dlogits.setZero();
    EXPECT_EQ(moe::anchor_loss(logits, plan, {}, Index(2), 1.0, dlogits).value, 0);
    EXPECT_EQ(moe::anchor_loss(logits, plan, {}, Index(0), 1.0, dlogits).value, 2);
    EXPECT_EQ(dlogits, (Matrix<S>::Zero(2, 5)));  // it holds, it does not teach
}

TEST(AnchorLoss, IsZeroWhereThereIsOneExpert) {
    Matrix<double> dlogits = Matrix<double>::Zero(3, 1);
    EXPECT_EQ(moe::anchor_loss(Matrix<double>::Constant(3, 1, 2),
                               example::routing(1, {{0}, {0}, {0}}), {}, 0, 1.0, dlogits)
                  .value,
              0);
    EXPECT_TRUE((dlogits.array() == 0).all());
}

TEST(AnchorLoss, KeepsTheLawsOfLosses) {
    loss_laws::expect_all(to_expert(0));
    loss_laws::expect_all(to_expert(7));
    loss_laws::expect_all(to_shares(shares));
}

TEST(AnchorLoss, RefusesWhatIsNoAnchor) {
    const Matrix<double> before = moe::testing::random_matrix<double>(4, 8, 1);
    const auto message = [&](const loss_laws::Forms& loss) {
        Matrix<double> dlogits = before;
        moe::Workspace<double> ws;
        example::fill(ws, example::logits<double>(), example::two_best());
        const std::string found = support::message(
            [&] { loss(example::logits<double>(), example::two_best(), {}, 1.0, dlogits); });
        EXPECT_EQ(support::message([&] { loss.short_form(ws, 1.0); }), found);
        EXPECT_EQ(dlogits, before);
        return found;
    };
    EXPECT_EQ(message(to_expert(8)),
              "moe::anchor_loss: expert is 8, it must be in [0, 8), the logits of a token");
    EXPECT_NE(message(to_expert(-1)), "");
    EXPECT_EQ(message(to_shares({0.5, 0.5})),
              "moe::anchor_loss: target has 2 entries, a token has 8 logits; give one share per "
              "expert");
    EXPECT_NE(message(to_shares({})), "");
    EXPECT_EQ(message(to_shares({2, -1, 0, 0, 0, 0, 0, 0})),
              "moe::anchor_loss: an entry of target is -1, it must be finite and >= 0");
    EXPECT_NE(message(to_shares({std::numeric_limits<double>::quiet_NaN(), 1, 0, 0, 0, 0, 0, 0})),
              "");
    EXPECT_EQ(message(to_shares({1, 1, 0, 0, 0, 0, 0, 0})),
              "moe::anchor_loss: target sums to 2, it must sum to 1; divide by the sum");
}

}  // namespace
}  // namespace anchor_loss_test
