// SPDX-License-Identifier: MIT
#include <moe/frozen.hpp>

#include <stdexcept>
#include <type_traits>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/constant.hpp>
#include <moe/experts/copy.hpp>
#include <moe/experts/each.hpp>
#include <moe/experts/mlp.hpp>
#include <moe/experts/shared.hpp>
#include <moe/experts/swiglu.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/gates/top_p.hpp>
#include <moe/routers/linear.hpp>

#include "seams/check.hpp"

namespace {

using moe::Index;
using moe::Matrix;
using moe::Workspace;
using moe::testing::random_matrix;
using moe::testing::same_bits;

constexpr Index tokens = 21, dim = 37;

/// y = scale * x, for inference only
struct Scale {
    float scale = 1;
    void forward(moe::In<float> x, moe::Out<float> y) const { y = scale * x; }
};

auto make(std::uint64_t seed = 1) {
    return moe::Layer{
        moe::Config{.model_dim = dim, .seed = seed},
        moe::LinearRouter{.bias = true},
        moe::TopK{.k = 3},
        moe::Swiglu{.count = 3, .ffn_dim = 41},
        moe::Mlp{.count = 2, .ffn_dim = 19, .activation = moe::Activation::gelu, .bias = true},
        moe::Copy{},
        moe::Constant{},
        moe::experts(2, Scale{0.5f}),
        moe::Shared{moe::Swiglu{.ffn_dim = 23}, moe::SharedGate::sigmoid}};
}
using Layer = decltype(make());
using Frozen = decltype(moe::freeze(std::declval<const Layer&>()));

Matrix<float> batch(Index rows = tokens) { return random_matrix<float>(rows, dim, 1); }

TEST(Frozen, GivesTheSameBits) {
    const Layer layer = make();
    const auto frozen = moe::freeze(layer);
    for (const Index rows : {21, 1, 300, 0})
        EXPECT_TRUE(same_bits(frozen(batch(rows)), layer(batch(rows)))) << rows;
    EXPECT_EQ(frozen.num_experts(), layer.num_experts());
    EXPECT_EQ(frozen.model_dim(), dim);
    EXPECT_EQ(frozen.output_dim(), dim);
    EXPECT_EQ(frozen.config().seed, 1u);
}

TEST(Frozen, GivesTheSameRoutingAndLogits) {
    const Layer layer = make();
    const auto frozen = moe::freeze(layer);
    Workspace<float> ws, other;
    Matrix<float> y(tokens, dim), again(tokens, dim);
    layer.forward(batch(), y, ws);
    frozen.forward(batch(), again, other);
    EXPECT_TRUE(same_bits(other.logits(), ws.logits()));
    EXPECT_TRUE(other.routing() == ws.routing());
    frozen.reweigh(batch(), ws.routing(), other);
    frozen.apply(batch(), again, other);
    EXPECT_TRUE(same_bits(again, y));
}

TEST(Frozen, HasAsManyParametersAsTheLayer) {
    auto layer = moe::Layer{moe::Config{.model_dim = 8}, moe::LinearRouter{}, moe::TopK{.k = 1},
                            moe::Swiglu{.count = 3, .ffn_dim = 4}, moe::Constant{}};
    const moe::Index count = moe::num_parameters(layer);
    EXPECT_EQ(count, 4 * 8 + 3 * 3 * 4 * 8 + 3 * 8);
    EXPECT_EQ(moe::num_parameters(moe::freeze(layer)), count);
    EXPECT_EQ(moe::num_parameters(moe::freeze(std::move(layer))), count);
}

TEST(Frozen, DoesNotFollowTheLayer) {
    Layer layer = make();
    const Matrix<float> before = layer(batch());
    const auto frozen = moe::freeze(layer);
    moe::for_each_parameter(layer,
                            [](auto, std::span<float> w) { std::fill(w.begin(), w.end(), 0.f); });
    EXPECT_TRUE(same_bits(frozen(batch()), before));
    EXPECT_FALSE(same_bits(layer(batch()), before, {.allow_zeros = true}));
}

TEST(Frozen, MadeOfALayerThatIsNotNeededAnyMore) {
    Layer layer = make();
    const Matrix<float> expected = layer(batch());
    const auto frozen = moe::freeze(std::move(layer));
    EXPECT_TRUE(same_bits(frozen(batch()), expected));
    EXPECT_EQ(layer.bank().group<0>().gate.count(), 0) << "the originals are released";
    static_assert(std::is_same_v<std::remove_cv_t<decltype(frozen)>, Frozen>);
}

TEST(Frozen, CopiesAndMovesAreTheSameLayer) {
    const Layer layer = make();
    auto frozen = moe::freeze(layer);
    const auto copy = frozen;
    const auto moved = std::move(frozen);
    EXPECT_TRUE(same_bits(copy(batch()), layer(batch())));
    EXPECT_TRUE(same_bits(moved(batch()), layer(batch())));
}

TEST(Frozen, TakesTheContextOfTheLayer) {
    const Layer layer = make();
    const auto frozen = moe::freeze(layer);
    std::vector<std::uint8_t> padding(tokens, 0);
    padding[3] = 1;
    const std::vector<double> offset(9, 0.5), multiplier{1, 2, 0.5, 0, 1, -1, 1, 1, 3};
    const moe::Context context{.padding = padding,
                               .logit_offset = offset,
                               .gate_multiplier = multiplier,
                               .dial = {.k = 2}};
    EXPECT_TRUE(same_bits(frozen(batch(), context), layer(batch(), context)));
}

TEST(Frozen, LeavesTheKeepSettingAsItWas) {
    const auto frozen = moe::freeze(make());
    Matrix<float> y(tokens, dim), bad(tokens, dim + 1);
    for (const moe::Keep keep : {moe::Keep::everything, moe::Keep::nothing}) {
        Workspace<float> ws;
        ws.keep(keep);
        frozen.forward(batch(), y, ws);
        EXPECT_EQ(ws.keep(), keep);
        EXPECT_THROW(frozen.forward(batch(), bad, ws), std::invalid_argument);
        EXPECT_EQ(ws.keep(), keep);
    }
}

TEST(Frozen, SaysTheSameErrors) {
    const auto frozen = moe::freeze(make());
    try {
        frozen(random_matrix<float>(3, dim + 1, 1));
        FAIL() << "nothing was thrown";
    } catch (const std::invalid_argument& error) {
        EXPECT_STREQ(error.what(), "moe::Layer::forward: x has 38 columns, model_dim is 37");
    }
}

TEST(Frozen, WorksForDouble) {
    const auto layer =
        moe::make_layer<double>(moe::Config{.model_dim = dim}, moe::LinearRouter{},
                                moe::TopP{.p = 0.6}, moe::Swiglu{.count = 4, .ffn_dim = 9});
    const auto x = random_matrix<double>(tokens, dim, 1);
    EXPECT_TRUE(same_bits(moe::freeze(layer)(x), layer(x)));
}

}  // namespace
