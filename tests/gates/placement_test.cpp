// SPDX-License-Identifier: MIT
#include <moe/gates/placement.hpp>

#include <stdexcept>
#include <vector>

#include <gtest/gtest.h>

#include "support/message.hpp"

namespace {

using moe::Placement;
using moe::detail::gradients_at;

class GradientsAt : public testing::Test {
protected:
    GradientsAt() {
        routing.reset(2, 3);
        routing.add(0, 1);
        routing.add(1, 2);
    }
    auto at(Placement placement, const moe::WeightGradients<double>& dweights,
            moe::Index cols = 3) {
        moe::Matrix<double> dlogits(2, cols);
        return gradients_at<double>(placement, dweights, routing, logits, dlogits);
    }

    moe::Routing routing;
    const moe::Matrix<double> logits{2, 3};
    const std::vector<double> two{1, 2}, three{1, 2, 3};
};

TEST_F(GradientsAt, AreThoseOfTheSideThatIsWeighed) {
    EXPECT_EQ(at(Placement::output, {two, {}}).data(), two.data());
    EXPECT_EQ(at(Placement::output, {two, three}).data(), two.data());
    EXPECT_EQ(at(Placement::input, {{}, two}).data(), two.data());
}

TEST_F(GradientsAt, AreOnePerAssignment) {
    EXPECT_EQ(support::message<std::logic_error>([&] {
                  at(Placement::output, {{}, two});
              }),
              "moe: a gate that weighs outputs got 0 gradients for 2 assignments; a gate around it "
              "must say weighs_input() as it does");
    EXPECT_EQ(support::message<std::logic_error>([&] {
                  at(Placement::input, {two, three});
              }),
              "moe: a gate that weighs inputs got 3 gradients for 2 assignments; a gate around it "
              "must say weighs_input() as it does");
}

TEST_F(GradientsAt, GoToLogitsOfTheSameExtent) {
    EXPECT_EQ(support::message([&] {
                  at(Placement::output, {two, {}}, 2);
              }),
              "moe: a gate's dlogits is [2, 2], its logits are [2, 3]");
}

}  // namespace
