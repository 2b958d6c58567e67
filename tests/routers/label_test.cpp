// SPDX-License-Identifier: MIT
#include <moe/routers/label.hpp>

#include <cstdint>
#include <vector>

#include <gtest/gtest.h>

#include "routers/decided.hpp"
#include "support/message.hpp"

namespace {

using decided::Chosen;
using moe::Context;
using moe::Index;
using moe::Matrix;
using support::message;

Context with(const std::vector<std::int32_t>& labels) {
    Context context;
    context.token_groups = labels;
    return context;
}

const std::vector<std::int32_t> labels{2, 0, -1, 3, 2};
const Chosen experts_of_labels{{2}, {0}, {}, {3}, {2}};

template <class S>
class LabelRouter : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(LabelRouter, Scalars);

TYPED_TEST(LabelRouter, GivesEveryTokenTheExpertOfItsLabel) {
    using S = TypeParam;
    const auto router = decided::build<S>(moe::LabelRouter{}, 4);
    EXPECT_EQ(decided::chosen_in(decided::logits_of<S>(router, 5, 4, with(labels))),
              experts_of_labels);
}

TYPED_TEST(LabelRouter, MakesALayerOfJustThoseExperts) {
    decided::expect_layer_takes<TypeParam>(moe::LabelRouter{}, 4, 1, with(labels),
                                           experts_of_labels);
    const std::vector<std::int32_t> one{0, -1};
    decided::expect_layer_takes<TypeParam>(moe::LabelRouter{}, 1, 1, with(one), {{0}, {}});
}

TYPED_TEST(LabelRouter, GivesOneExpertWhateverTheGateWants) {
    // k = E: experts at -inf are not taken.
    decided::expect_layer_takes<TypeParam>(moe::LabelRouter{}, 4, 4, with(labels),
                                           experts_of_labels);
}

TEST(LabelRouterModule, GradientsOfALayerAreExact) {
    decided::expect_layer_gradients(moe::LabelRouter{}, 4, 1, 5, with(labels));
}

TYPED_TEST(LabelRouter, LeavesPaddingUnroutedWhateverItsLabelIs) {
    const std::vector<std::int32_t> some{77, 1, -9};
    const std::vector<std::uint8_t> padding{1, 0, 1};
    Context context = with(some);
    context.padding = padding;
    decided::expect_layer_takes<TypeParam>(moe::LabelRouter{}, 3, 1, context, {{}, {1}, {}});
}

TEST(LabelRouterModule, SaysWhichLabelIsOutOfRange) {
    const auto router = decided::build<float>(moe::LabelRouter{}, 4);
    const auto forward = [&](std::vector<std::int32_t> given) {
        return message([&] { decided::logits_of<float>(router, 2, 4, with(given)); });
    };
    EXPECT_EQ(forward({1, 4}),
              "moe::LabelRouter: token_groups[1] is 4, it must be an expert in [0, 4), or -1 for "
              "none");
    EXPECT_EQ(forward({-2, 0}),
              "moe::LabelRouter: token_groups[0] is -2, it must be an expert in [0, 4), or -1 for "
              "none");
    EXPECT_EQ(forward({}),
              "moe::LabelRouter: token_groups has 0 entries, the batch has 2 tokens; set "
              "Context::token_groups");
}

}  // namespace
