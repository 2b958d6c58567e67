// SPDX-License-Identifier: MIT
#include <moe/experts/glu.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/swiglu.hpp>

#include "support/expert_group.hpp"
#include "support/message.hpp"

namespace glu_test {
namespace {

using moe::Activation;
using moe::Index;
using moe::testing::same_bits;
using Recipe = moe::Glu;

constexpr Index dim = 19, out = 7, count = 4;
constexpr expert_group::Extents extents{.output_dim = out};
constexpr double infinity = std::numeric_limits<double>::infinity();

/// gpt-oss with a bound that these small inputs exceed.
constexpr Recipe bounded{.count = count,
                         .ffn_dim = 23,
                         .activation = Activation::quick_gelu,
                         .bias = true,
                         .limit = 0.4,
                         .up_offset = 1};

/// Biases are not 0, as they are after training.
template <class S>
moe::FeedForwardModule<S> make(const Recipe& recipe) {
    moe::Random random(3);
    auto group = recipe.build<S>({.model_dim = dim, .output_dim = out}, random);
    for (auto* bias : {&group.gate_bias, &group.up_bias, &group.down_bias})
        bias->fill_normal(random, 0.3);
    return group;
}

std::vector<dense::Expert> dense_experts(const moe::FeedForwardModule<double>& group) {
    std::vector<dense::Expert> experts;
    for (Index e = 0; e < count; ++e) experts.push_back(dense::feed_forward_of(group, e));
    return experts;
}

/// With and without each of biases, bound and offset; GEGLU and ReGLU among them.
std::vector<Recipe> recipes() {
    std::vector<Recipe> all{bounded};
    for (const Activation activation : moe::all_activations)
        all.push_back({.count = count, .ffn_dim = 23, .activation = activation});
    all.push_back({.count = count, .ffn_dim = 23, .bias = true});
    all.push_back({.count = count, .ffn_dim = 23, .limit = 0.3});
    all.push_back({.count = count, .ffn_dim = 140, .up_offset = -0.5});
    return all;
}

TEST(Glu, GivesTheDenseResultAndItsGradients) {
    const expert_group::Batch<double> batch(extents);
    for (const Recipe& recipe : recipes()) {
        SCOPED_TRACE(std::to_string(static_cast<int>(recipe.activation)) +
                     (recipe.bias ? " biased" : "") + " within " + std::to_string(recipe.limit));
        const auto group = make<double>(recipe);
        expert_group::expect_like_dense(group, dense_experts(group), batch);
    }
}

/// Every matrix, x, weights and weights of inputs, with values on both sides of each bound.
TEST(Glu, HasExactGradients) {
    const expert_group::Extents few{.tokens = 5, .output_dim = out};
    const auto group = make<double>(bounded);
    const expert_group::Batch<double> batch(few, 3);
    int sides[5] = {};  // of the bounds of g and u
    batch.for_each_row([&](Index e, std::size_t r) {
        const auto hidden = dense::detail::hidden(
            dense::feed_forward_of(group, e),
            dense::detail::row(batch.x, batch.tokens[r], batch.input_weights[r]));
        for (std::size_t f = 0; f < hidden.up.size(); ++f) {
            ++sides[hidden.gate[f] > 0.4];
            ++sides[hidden.up[f] < -0.4 ? 2 : hidden.up[f] > 0.4 ? 4 : 3];
        }
    });
    for (const int side : sides) EXPECT_GT(side, 20);
    expert_group::expect_exact_gradients(group, few);
}

/// One expert of one input 1, so that gate and up are the lists of g and u.
template <class S>
moe::FeedForwardModule<S> listed(Recipe recipe, const std::vector<S>& g, const std::vector<S>& u) {
    moe::Random random(1);
    const auto n = static_cast<Index>(g.size());
    recipe.count = 1;
    recipe.ffn_dim = n;
    auto group = recipe.build<S>({.model_dim = 1, .output_dim = n}, random);
    std::copy(g.begin(), g.end(), group.gate.owned(0).data());
    std::copy(u.begin(), u.end(), group.up.owned(0).data());
    group.down.owned(0).view().setIdentity();
    return group;
}

template <class S>
expert_group::Batch<S> one_token(Index n) {
    expert_group::Batch<S> batch(
        {.tokens = 1, .model_dim = 1, .output_dim = n, .experts = 1, .input_weights = false});
    batch.x << 1;
    batch.dy.setOnes();
    batch.offsets = {0, 1};
    batch.tokens = {0};
    batch.weights = {1};
    return batch;
}

constexpr Recipe gpt_oss{
    .activation = Activation::quick_gelu, .bias = true, .limit = 7, .up_offset = 1};

TEST(Glu, HasThePublishedValuesOfGptOss) {
    const std::array<double, 4> published{.2627913, 17.4998828, -.5147310, -17.8915721};
    const auto check = [&](auto scalar, double tolerance) {
        using S = decltype(scalar);
        const auto group = listed<S>(gpt_oss, {S(0.5), 8, -2, 3}, {S(-0.25), S(1.5), 9, -10});
        const auto batch = one_token<S>(4);
        for (const auto& y :
             {expert_group::run(group, batch).y, expert_group::run(group.freeze({}), batch).y})
            for (Index i = 0; i < 4; ++i)
                EXPECT_NEAR(y(0, i), published[static_cast<std::size_t>(i)], tolerance) << i;
    };
    check(1.0, 5e-8);
    check(1.0f, 2e-6);
}

/// y = act(g') u' and dy = 1: the gradients at gate and up are u' act'(g') and act(g').
TEST(Glu, PassesGradientsAtTheBoundAndNoneBeyond) {
    const double above = std::nextafter(7.0, 8.0), nan = std::nan("");
    const std::vector<double> g{7, above, -1e9, 1, 1, 1, 1, nan, 1},
        u{2, 2, 2, 7, -7, above, -above, 2, nan};
    const auto group = listed<double>(gpt_oss, g, u);
    const auto got = expert_group::run(group, one_token<double>(9));
    const auto slope = [](double a) { return dense::activation_slope(Activation::quick_gelu, a); };
    const auto act = [](double a) { return dense::activate(Activation::quick_gelu, a); };
    const std::vector<double> dgate{3 * slope(7),
                                    0,
                                    3 * slope(-1e9),
                                    8 * slope(1),
                                    -6 * slope(1),
                                    8 * slope(1),
                                    -6 * slope(1),
                                    0,
                                    nan};
    const std::vector<double> dup{act(7), act(7), act(-1e9), act(1), act(1), 0, 0, nan, 0};
    for (std::size_t i = 0; i < 9; ++i) {
        if (std::isnan(g[i]) || std::isnan(u[i])) {
            EXPECT_TRUE(std::isnan(got.y(0, static_cast<Index>(i))));
        }
        const auto expect_equal = [&](double a, double b) {
            EXPECT_TRUE(std::isnan(b) ? std::isnan(a) : std::abs(a - b) <= 1e-14 * std::abs(b))
                << i << ": " << a << ", not " << b;
        };
        expect_equal(got.gradient[i], dgate[i]);
        expect_equal(got.gradient[9 + i], dup[i]);
        // d(gate_bias) and d(up_bias) come after gate, up and the 81 of down.
        expect_equal(got.gradient[99 + i], dgate[i]);
        expect_equal(got.gradient[108 + i], dup[i]);
    }
}

TEST(Glu, BoundsInfinitiesAndPassesNanThrough) {
    const float inf = std::numeric_limits<float>::infinity(), nan = std::nanf("");
    const auto y = [](float g, float u) {
        auto group = listed<float>(gpt_oss, {0}, {0});
        group.gate_bias.owned(0).view()(0, 0) = g;
        group.up_bias.owned(0).view()(0, 0) = u;
        const auto batch = one_token<float>(1);
        const auto found = expert_group::run(group, batch).y;
        const auto frozen = expert_group::run(group.freeze({}), batch).y;
        EXPECT_TRUE(same_bits(frozen, found, {.allow_zeros = true})) << g << " " << u;
        return double(found(0, 0));
    };
    const auto act = [](double a) { return dense::activate(Activation::quick_gelu, a); };
    EXPECT_NEAR(y(inf, 1), act(7) * 2, 1e-5);
    EXPECT_EQ(y(-inf, 1), 0);
    EXPECT_NEAR(y(1, inf), act(1) * 8, 1e-5);
    EXPECT_NEAR(y(1, -inf), act(1) * -6, 1e-5);
    EXPECT_TRUE(std::isnan(y(nan, 1)));
    EXPECT_TRUE(std::isnan(y(1, nan)));
}

TEST(Glu, WithoutBiasesAndBoundsHasTheBitsOfSwiglu) {
    moe::Random random(3);
    const auto swiglu = moe::Swiglu{.count = count, .ffn_dim = 23}.build<float>(
        {.model_dim = dim, .output_dim = out}, random);
    const expert_group::Batch<float> batch(extents);
    const auto expected = expert_group::run(swiglu, batch);
    // Nor does a bound that nothing reaches change a bit.
    for (const double limit : {infinity, 1e30, 1e300}) {
        SCOPED_TRACE(limit);
        const auto group = make<float>({.count = count, .ffn_dim = 23, .limit = limit});
        expert_group::expect_same_bits(expert_group::run(group, batch), expected);
        EXPECT_TRUE(same_bits(expert_group::run(group.freeze({}), batch).y, expected.y));
    }
}

/// Steps of 16 columns that are whole and not, and more of them than are made at once.
TEST(Glu, GivesTheSameBitsFrozenWhicheverBiasesThereAre) {
    for (const auto& [tokens, ffn] :
         {std::array<Index, 2>{11, 23}, {11, 16}, {110, 300}, {20, 1100}}) {
        const expert_group::Batch<float> batch({.tokens = tokens, .output_dim = out});
        for (int biases = ffn == 23 ? 0 : 7; biases < 8; ++biases) {
            SCOPED_TRACE(std::to_string(ffn) + " " + std::to_string(biases));
            Recipe recipe = bounded;
            recipe.ffn_dim = ffn;
            auto group = make<float>(recipe);
            if ((biases & 1) == 0) group.gate_bias = {};
            if ((biases & 2) == 0) group.up_bias = {};
            if ((biases & 4) == 0) group.down_bias = {};
            const auto expected = expert_group::run(group, batch, {.forward_only = true}).y;
            for (const moe::Isa isa : moe::supported_isas()) {
                const moe::ScopedIsa forced(isa);
                const auto frozen = group.freeze({});
                for (const Index split : {0, 1})
                    EXPECT_TRUE(
                        same_bits(expert_group::run(frozen, batch, {.split = split}).y, expected))
                        << moe::name(isa);
            }
            EXPECT_TRUE(
                same_bits(expert_group::run(std::move(group).freeze({}), batch).y, expected));
        }
    }
}

/// What is frozen as bf16 or int8 is that of the weights that its kernels see.
TEST(Glu, GivesTheBitsOfTheDecodedWeights) {
    const expert_group::Batch<float> batch(extents);
    const auto group = make<float>(bounded);
    for (const moe::Storage storage :
         {moe::Storage::bf16, moe::Storage::int8, moe::Storage::int4}) {
        const auto frozen = group.freeze({.storage = storage});
        auto decoded = group;
        for (Index e = 0; e < count; ++e) {
            decoded.gate.owned(e).view() = frozen.gate(e);
            decoded.up.owned(e).view() = frozen.up(e);
            decoded.down.owned(e).view() = frozen.down(e);
        }
        EXPECT_TRUE(same_bits(expert_group::run(frozen, batch).y,
                              expert_group::run(decoded, batch, {.forward_only = true}).y))
            << moe::name(storage);
    }
}

TEST(Glu, GivesTheSameBitsInLowPrecisionWhoeverComputesThem) {
    const expert_group::Batch<float> batch({.tokens = 40, .output_dim = out});
    Recipe recipe = bounded;
    recipe.ffn_dim = 141;
    const auto group = make<float>(recipe);
    for (const moe::FreezeOptions& options :
         {moe::FreezeOptions{.storage = moe::Storage::bf16, .compute = moe::Compute::bf16},
          moe::FreezeOptions{.storage = moe::Storage::int8, .compute = moe::Compute::int8}}) {
        SCOPED_TRACE(moe::name(options.compute));
        const auto frozen = group.freeze(options);
        const auto expected = expert_group::run(frozen, batch).y;
        EXPECT_TRUE(same_bits(expert_group::run(frozen, batch, {.split = 1}).y, expected));
        for (const moe::Isa isa : moe::supported_isas()) {
            const moe::ScopedIsa forced(isa);
            EXPECT_TRUE(same_bits(expert_group::run(group.freeze(options), batch).y, expected))
                << moe::name(isa);
        }
        for (const int threads : {2, 3}) {
            moe::ThreadPool pool(threads);
            moe::Workspace<float> ws(pool);
            EXPECT_TRUE(same_bits(expert_group::run(frozen, batch, ws).y, expected)) << threads;
        }
    }
}

TEST(Glu, GivesTheSameBitsWhateverIsKeptOrWhoeverOwnsItsBiases) {
    const expert_group::Batch<float> batch(extents);
    const auto group = make<float>(bounded);
    const auto expected = expert_group::run(group, batch);
    moe::Workspace<float> ws;
    ws.keep(moe::Keep::recompute);
    expert_group::expect_same_bits(expert_group::run(group, batch, ws), expected);

    auto viewing = group;
    for (auto bias :
         {&moe::FeedForwardModule<float>::gate_bias, &moe::FeedForwardModule<float>::up_bias}) {
        std::vector<moe::WeightView> views;
        for (Index e = 0; e < count; ++e) views.push_back((group.*bias)[e]);
        viewing.*bias = moe::Weights<float>(views);
    }
    const auto viewed = expert_group::run(viewing, batch);
    EXPECT_TRUE(same_bits(viewed.y, expected.y));
    EXPECT_TRUE(same_bits(viewed.dx, expected.dx));
    EXPECT_TRUE(same_bits(moe::zeros_like(viewing).gate_bias.owned(0).view(),
                          moe::Matrix<float>::Zero(1, 23), {.allow_zeros = true}));
    EXPECT_TRUE(same_bits(expert_group::run(viewing.freeze({}), batch).y, expected.y));
}

TEST(Glu, DoesWhatGroupsDo) {
    const auto group = make<float>(bounded);
    expert_group::expect_same_bits_for_any_thread_count<float>(group,
                                                               {.tokens = 120, .output_dim = out});
    expert_group::expect_same_bits_in_sub_ranges<float>(group, extents);
    expert_group::expect_adds<float>(group, extents);
    expert_group::expect_gradients_may_be_left_out<float>(group, extents);
    expert_group::expect_no_allocation_in_the_second_call<float>(group, extents);
}

TEST(Glu, NamesItsParameters) {
    std::vector<std::string> names;
    const auto group = make<float>({.count = 1, .ffn_dim = 3, .bias = true});
    moe::visit_parameters(group, [&](std::string_view name, const auto& matrix, moe::Role) {
        names.push_back(std::string(name) + " " + std::to_string(matrix.rows()) + "x" +
                        std::to_string(matrix.cols()));
    });
    EXPECT_EQ(names,
              (std::vector<std::string>{"0.gate 3x19", "0.up 3x19", "0.down 7x3", "0.gate_bias 1x3",
                                        "0.up_bias 1x3", "0.down_bias 1x7"}));
    EXPECT_EQ(group.facts(0).flops_per_row, 2 * 3 * (2 * 19 + 7));
    moe::Random random(1);
    const auto fresh = bounded.build<float>({.model_dim = 2, .output_dim = 2}, random);
    EXPECT_TRUE((fresh.gate_bias.owned(1).view().array() == 0).all());
}

TEST(Glu, RefusesSettingsThatAreOutOfRange) {
    const auto message = [](const Recipe& recipe) {
        return support::message([&] { make<float>(recipe); });
    };
    EXPECT_EQ(message({.count = 0, .ffn_dim = 4}), "moe::Glu: count is 0, it must be >= 1");
    EXPECT_EQ(message({.count = 2}), "moe::Glu: ffn_dim is 0, it must be >= 1; it has no default");
    for (const double limit : {0.0, -1.0, -infinity, std::nan("")})
        EXPECT_TRUE(message({.ffn_dim = 4, .limit = limit})
                        .ends_with(", it must be > 0; leave it infinite for no bounds"))
            << limit;
    EXPECT_EQ(message({.ffn_dim = 4, .limit = -7}),
              "moe::Glu: limit is -7, it must be > 0; leave it infinite for no bounds");
    for (const double offset : {infinity, -1e39, std::nan("")})
        EXPECT_TRUE(
            message({.ffn_dim = 4, .up_offset = offset}).starts_with("moe::Glu: up_offset is "))
            << offset;
    EXPECT_NE(message({.ffn_dim = 4, .activation = static_cast<Activation>(99)})
                  .find("none of moe::Activation"),
              std::string::npos);
}

}  // namespace
}  // namespace glu_test
