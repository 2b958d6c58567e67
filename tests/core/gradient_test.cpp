// SPDX-License-Identifier: MIT
#include <moe/core/gradient.hpp>

#include <string_view>

#include <gtest/gtest.h>

#include <moe/core/parameters.hpp>

#include "support/allocations.hpp"

namespace gradient_test {
namespace {

using moe::Parameter;
using moe::Role;
using moe::detail::WholeGradient;

/// A part that adds 1 to every value of its gradient, wanted or not.
struct Part {
    Parameter<float> weight{2, 3}, bias{1, 3}, base{1, 2};

    static void backward(Part& grad) {
        grad.weight.view().array() += 1;
        grad.bias.view().array() += 1;
        grad.base.view().array() += 1;
    }
    void visit_parameters(auto&& visit) {
        visit("weight", weight);
        if (!bias.empty()) visit("bias", bias);
        visit("base", base, Role::frozen);
    }
};

Part gradient(const Part& part, std::string_view unwanted = "") {
    return moe::zeros_like(part, [&](std::string_view name) { return name != unwanted; });
}

TEST(WholeGradient, IsTheOneThatWasGivenIfNothingIsMissing) {
    Part part, grad;
    WholeGradient<Part> whole;
    whole.lend(part, &grad, [&](Part& lent) { EXPECT_EQ(&lent, &grad); });
}

TEST(WholeGradient, TakesThePlaceOfWhatIsMissing) {
    const Part part;
    WholeGradient<Part> whole;
    for (int round = 1; round <= 3; ++round) {
        Part all = gradient(part), no_bias = gradient(part, "bias"),
             no_weight = gradient(part, "weight");
        all.weight.view().setConstant(5);
        no_bias.weight.view().setConstant(6);
        no_weight.bias.view().setConstant(7);
        for (Part* grad : {&all, &no_bias, &no_weight}) whole.lend(part, grad, Part::backward);
        EXPECT_TRUE((all.weight.view().array() == 6).all());
        EXPECT_TRUE((all.bias.view().array() == 1).all());
        EXPECT_TRUE((no_bias.weight.view().array() == 7).all());
        EXPECT_TRUE((no_weight.bias.view().array() == 8).all());
        EXPECT_TRUE(all.base.empty() && no_bias.bias.empty() && no_weight.weight.empty());
    }
}

TEST(WholeGradient, NeedsNoneAtAll) {
    const Part part;
    WholeGradient<Part> whole;
    int calls = 0;
    whole.lend(part, nullptr, [&](Part& lent) {
        EXPECT_EQ(lent.base.size(), 2);
        Part::backward(lent);
        ++calls;
    });
    Part nothing;
    nothing.weight = {}, nothing.bias = {}, nothing.base = {};
    whole.lend(part, &nothing, [&](Part& lent) {
        EXPECT_NE(&lent, &nothing);
        EXPECT_TRUE((lent.weight.view().array() == 0).all()) << "cleared";
        ++calls;
    });
    EXPECT_EQ(calls, 2);
}

TEST(WholeGradient, FollowsThePart) {
    Part part;
    WholeGradient<Part> whole;
    whole.lend(part, nullptr, Part::backward);
    part.weight = Parameter<float>(4, 5);
    whole.lend(part, nullptr, [](Part& lent) { EXPECT_EQ(lent.weight.rows(), 4); });
}

TEST(WholeGradient, AllocatesNothingFromTheSecondTimeOn) {
    const Part part;
    WholeGradient<Part> whole;
    Part grad = gradient(part, "weight");
    const auto lend = [&] {
        whole.lend(part, &grad, Part::backward);
        whole.lend(part, nullptr, Part::backward);
    };
    lend();
    EXPECT_EQ(allocations::in(lend), 0);
}

/// A part that asks for itself.
struct Careful {
    static constexpr bool skips_empty_gradients = true;
    Parameter<float> weight{2, 3};
    void visit_parameters(auto&& visit) { visit("weight", weight); }
};

TEST(WholeGradient, GoesAsItIsToAPartThatAsks) {
    const Careful part;
    Careful grad;
    grad.weight = {};
    WholeGradient<Careful> whole;
    whole.lend(part, &grad, [&](Careful& lent) { EXPECT_EQ(&lent, &grad); });
}

}  // namespace
}  // namespace gradient_test
