// SPDX-License-Identifier: MIT
#include <moe/experts/in_bf16.hpp>

#include <stdexcept>
#include <string>

#include <gtest/gtest.h>

#include <moe/experts/mlp.hpp>
#include <moe/experts/shared.hpp>
#include <moe/experts/swiglu.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/layer.hpp>
#include <moe/routers/linear.hpp>

#include "support/message.hpp"

namespace in_bf16_test {
namespace {

using support::message;

TEST(InBf16, SaysHowItsExpertsMultiplyAndKeepsTheirWeights) {
    const moe::Shape shape{.model_dim = 4, .output_dim = 5};
    const moe::Swiglu experts{.count = 2, .ffn_dim = 3};
    moe::Random random(1), same(1);
    const auto exact = experts.build<float>(shape, random);
    const auto bf16 = moe::InBf16{experts}.build<float>(shape, same);
    EXPECT_EQ(exact.compute(), moe::Compute::exact);
    EXPECT_EQ(bf16.compute(), moe::Compute::bf16);
    for (moe::Index e = 0; e < 2; ++e)
        EXPECT_EQ(bf16.up.owned(e).view(), exact.up.owned(e).view()) << e;
    EXPECT_EQ(moe::FeedForwardModule<float>(bf16).compute(), moe::Compute::bf16) << "a copy";
}

TEST(InBf16, StandsWhereOtherRecipesDo) {
    const moe::Layer layer{moe::Config{.model_dim = 8}, moe::LinearRouter{}, moe::TopK{.k = 1},
                           moe::InBf16{moe::Swiglu{.count = 2, .ffn_dim = 3}},
                           moe::Shared{moe::InBf16{moe::Mlp{.ffn_dim = 3}}}};
    EXPECT_EQ(layer.bank().group<0>().compute(), moe::Compute::bf16);
    EXPECT_EQ(layer.bank().group<1>().experts().compute(), moe::Compute::bf16);
}

TEST(InBf16, RefusesLayersOfDoubleAndWhatItsRecipeRefuses) {
    moe::Random random(1);
    const moe::Shape shape{.model_dim = 4, .output_dim = 4};
    EXPECT_EQ(message([&] { moe::InBf16{moe::Mlp{.ffn_dim = 3}}.build<double>(shape, random); }),
              "moe::InBf16: products in bf16 are for layers of float, this one is of double; leave "
              "InBf16 out");
    EXPECT_EQ(message([&] { moe::InBf16{moe::Swiglu{}}.build<float>(shape, random); }),
              "moe::Swiglu: ffn_dim is 0, it must be >= 1; it has no default");
}

}  // namespace
}  // namespace in_bf16_test
