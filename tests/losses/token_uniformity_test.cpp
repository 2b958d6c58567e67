// SPDX-License-Identifier: MIT
#include <moe/losses/token_uniformity.hpp>

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "losses/laws.hpp"
#include "support/message.hpp"

namespace token_uniformity_loss_test {
namespace {

using moe::Index;
using moe::Loss;
using moe::Matrix;

loss_laws::Forms make(const moe::TokenUniformity& options) {
    return {[options](auto z, const auto& plan, const auto& context, double weight, auto dz) {
                return moe::token_uniformity_loss(z, plan, context, weight, dz, options);
            },
            [options](auto& ws, double weight) {
                return moe::token_uniformity_loss(ws, weight, options);
            }};
}
const loss_laws::Forms forms = make({}), per_sequence = make({.per_sequence = true});

template <class S>
class TokenUniformityLoss : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(TokenUniformityLoss, Scalars);

TYPED_TEST(TokenUniformityLoss, OfTwoTokensAndTwoExpertsIsWorkedOutByHand) {
    // Columns: (1/4, 3/4) and (1/2, 1/2), so u = (3/8, 5/8) and the value 2 (9 + 25) / 64 = 17/16.
    // g = 2 u: (3/4, 5/4). Column 0: sum p g = 9/8, dz = 1/4 (3/4 - 9/8) = -3/32 and 3/32;
    // column 1: sum 1, dz = 1/2 (3/4 - 1) = -1/8 and 1/8
    using S = TypeParam;
    Matrix<S> logits(2, 2), dlogits = Matrix<S>::Zero(2, 2);
    logits << S(0), S(4), S(std::log(3.0)), S(4);
    const Loss loss =
        moe::token_uniformity_loss(logits, example::routing(2, {{0}, {1}}), {}, 2.0, dlogits);
    EXPECT_STREQ(loss.name, "token_uniformity");
    EXPECT_NEAR(loss.value, 17.0 / 16, 1e-6);
    EXPECT_NEAR(dlogits(0, 0), -2 * 3.0 / 32, 1e-6);
    EXPECT_NEAR(dlogits(1, 0), 2 * 3.0 / 32, 1e-6);
    EXPECT_NEAR(dlogits(0, 1), -2 * 1.0 / 8, 1e-6);
    EXPECT_NEAR(dlogits(1, 1), 2 * 1.0 / 8, 1e-6);
}

TEST(TokenUniformityLoss, AgreesWithItsFormula) {
    const auto logits = moe::testing::random_matrix<double>(19, 5, 4, 2);
    const auto plan = example::routing(5, std::vector<std::vector<Index>>(19));
    double value = 0;
    for (Index t = 0; t < 19; ++t) {
        double u = 0;
        for (Index e = 0; e < 5; ++e) {
            double total = 0;
            for (Index s = 0; s < 19; ++s) total += std::exp(logits(s, e));
            u += std::exp(logits(t, e)) / total / 5;
        }
        value += 19 * u * u;
    }
    Matrix<double> dlogits = Matrix<double>::Zero(19, 5);
    EXPECT_NEAR(forms(logits, plan, {}, 1.0, dlogits), value, 1e-13);
    const auto loss = [](auto&&... arguments) { return forms.long_form(arguments...); };
    EXPECT_TRUE(example::check(loss, logits, plan));
}

TEST(TokenUniformityLoss, KeepsTheLawsOfLosses) {
    loss_laws::expect_nothing_of_no_tokens(forms);
    loss_laws::expect_no_padding_seen(forms);
    loss_laws::expect_weight_times_the_gradient(forms);
    loss_laws::expect_the_short_form(forms);
    loss_laws::expect_wider_rows(forms);
    loss_laws::expect_exact_gradients(forms);
    loss_laws::expect_no_care_for_a_constant(forms);
}

TEST(TokenUniformityLoss, PerSequenceIsTheMeanOfTheirValues) {
    const auto logits = moe::testing::random_matrix<double>(9, 5, 4, 2);
    const std::vector<Index> offsets{0, 3, 3, 4, 9};  // none, and one of padding only
    const std::vector<std::uint8_t> padding{0, 0, 0, 1, 0, 0, 1, 0, 0};
    moe::Context context;
    context.sequence_offsets = offsets;
    context.padding = padding;
    const auto plan = example::routing(5, std::vector<std::vector<Index>>(9));
    Matrix<double> dlogits = Matrix<double>::Zero(9, 5), first = Matrix<double>::Zero(3, 5);
    Matrix<double> last = Matrix<double>::Zero(5, 5);
    const auto three = example::routing(5, {{}, {}, {}}),
               five = example::routing(5, {{}, {}, {}, {}, {}});
    moe::Context of_last;
    of_last.padding = context.padding.subspan(4);
    const double a = forms(logits.topRows(3), three, {}, 0.15, first);
    const double b = forms(logits.bottomRows(5), five, of_last, 0.15, last);
    EXPECT_EQ(per_sequence(logits, plan, context, 0.3, dlogits), (a + b) / 2);
    EXPECT_EQ(dlogits.topRows(3), first);
    EXPECT_TRUE((dlogits.row(3).array() == 0).all());
    EXPECT_EQ(dlogits.bottomRows(5), last);
    const auto loss = [](auto&&... arguments) { return per_sequence.long_form(arguments...); };
    EXPECT_TRUE(example::check(loss, logits, plan, context));

    moe::Workspace<double> ws;
    example::fill(ws, logits, plan, context);
    per_sequence.short_form(ws, 0.3);
    EXPECT_EQ(Matrix<double>(ws.dlogits()), dlogits);
    EXPECT_EQ(allocations::in([&] { per_sequence.short_form(ws, 0.3); }), 0);
    const std::string found =
        support::message([&] { per_sequence(logits, plan, {}, 1.0, dlogits); });
    EXPECT_EQ(found.substr(0, 61), "moe::TokenUniformity: per_sequence: sequence_offsets must asc")
        << found;
}

TYPED_TEST(TokenUniformityLoss, LiesBetweenOneAndTheTokens) {
    using S = TypeParam;
    Matrix<S> logits(4, 3), dlogits = Matrix<S>::Zero(4, 3);
    logits.rowwise() = moe::testing::random_matrix<S>(1, 3, 1).row(0);
    const auto plan = example::routing(3, {{}, {}, {}, {}});
    EXPECT_NEAR(moe::token_uniformity_loss(logits, plan, {}, 1.0, dlogits), 1, 1e-6);
    EXPECT_NEAR(dlogits.cwiseAbs().maxCoeff(), 0, 1e-7);
    logits.row(2).setConstant(S(5000));
    dlogits.setZero();
    EXPECT_EQ(moe::token_uniformity_loss(logits, plan, {}, 1.0, dlogits).value, 4);
    EXPECT_TRUE((dlogits.array() == 0).all());
    // two experts that want all tokens alike, and one that wants one: u = (2/12 .. 6/12)
    logits.setZero();
    logits(2, 1) = S(5000);
    EXPECT_NEAR(moe::token_uniformity_loss(logits, plan, {}, 1.0, dlogits),
                4 * (3 * 4.0 / 144 + 36.0 / 144), 1e-6);
}

TEST(TokenUniformityLoss, OfOneTokenIsOneWithoutGradient) {
    Matrix<double> dlogits = Matrix<double>::Zero(1, 3);
    EXPECT_NEAR(forms(moe::testing::random_matrix<double>(1, 3, 1), example::routing(3, {{0}}), {},
                      1.0, dlogits),
                1, 1e-15);
    EXPECT_NEAR(dlogits.cwiseAbs().maxCoeff(), 0, 1e-15);
}

TEST(TokenUniformityLoss, LeavesOutAnExpertThatIsMaskedForAll) {
    const Matrix<double> plain = example::logits<double>();
    Matrix<double> masked(4, 9), dmasked = Matrix<double>::Zero(4, 9);
    Matrix<double> dplain = Matrix<double>::Zero(4, 8);
    masked << plain.leftCols(3), Matrix<double>::Constant(4, 1, example::minus_infinity),
        plain.rightCols(5);
    const auto plan = example::routing(9, {{0}, {0}, {0}, {0}});
    EXPECT_EQ(forms(masked, plan, {}, 1.0, dmasked),
              forms(plain, example::two_best(), {}, 1.0, dplain));
    EXPECT_TRUE((dmasked.col(3).array() == 0).all());
    EXPECT_EQ(dmasked.leftCols(3), dplain.leftCols(3));
    EXPECT_EQ(dmasked.rightCols(5), dplain.rightCols(5));
}

TEST(TokenUniformityLoss, DoesNotCareForAConstantOfAnExpert) {
    Matrix<double> logits = example::logits<double>(), dlogits = Matrix<double>::Zero(4, 8);
    const double value = forms(logits, example::two_best(), {}, 1.0, dlogits);
    Matrix<double> shifted = Matrix<double>::Zero(4, 8);
    logits.col(5).array() += 64;
    EXPECT_NEAR(forms(logits, example::two_best(), {}, 1.0, shifted), value, 1e-12);
    EXPECT_TRUE(moe::testing::compare(shifted, dlogits, 1e-12));
    for (Index e = 0; e < 8; ++e) EXPECT_NEAR(dlogits.col(e).sum(), 0, 1e-15);
}

TEST(TokenUniformityLoss, ShowsNaNInAllTokens) {
    Matrix<double> logits = example::logits<double>(), dlogits = Matrix<double>::Zero(4, 8);
    logits(1, 3) = std::numeric_limits<double>::quiet_NaN();
    EXPECT_TRUE(std::isnan(forms(logits, example::two_best(), {}, 1.0, dlogits)));
    EXPECT_TRUE(dlogits.array().isNaN().all());
}

}  // namespace
}  // namespace token_uniformity_loss_test
