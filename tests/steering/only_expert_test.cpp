// SPDX-License-Identifier: MIT
#include <moe/steering/only_expert.hpp>

#include <cmath>
#include <cstddef>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>

#include <moe/core/parameters.hpp>
#include <moe/experts/mlp.hpp>
#include <moe/experts/shared.hpp>
#include <moe/gates/keep_any.hpp>
#include <moe/layer.hpp>
#include <moe/routers/linear.hpp>
#include <moe/testing/compare.hpp>
#include <moe/testing/random.hpp>

#include "support/message.hpp"

namespace only_expert_test {
namespace {

using moe::Index;
using moe::OnlyExpert;
using Matrix = moe::Matrix<double>;
using moe::testing::same_bits;

constexpr Index dim = 4, experts = 12, tokens = 40;

/// With a gate that has parameters of its own, and a shared expert.
auto make() {
    return moe::make_layer<double>(moe::Config{.model_dim = dim, .seed = 3},
                                   moe::LinearRouter{.bias = true}, moe::KeepAny{moe::TopK{.k = 4}},
                                   moe::Mlp{.count = experts, .ffn_dim = 3, .bias = true},
                                   moe::Shared{moe::Mlp{.ffn_dim = 3}});
}
using Layer = decltype(make());

std::map<std::string, std::vector<double>> values_of(const Layer& layer) {
    std::map<std::string, std::vector<double>> values;
    moe::visit_parameters(layer, [&](std::string_view name, const auto& matrix, moe::Role) {
        values[std::string(name)].assign(matrix.data(), matrix.data() + matrix.size());
    });
    return values;
}

TEST(OnlyExpert, WantsNamesOfItsRouterAndOfOneExpert) {
    const OnlyExpert wanted{1};
    for (const std::string_view name :
         {"router.weight", "router.bias", "experts.1.up", "experts.1.expert.down"})
        EXPECT_TRUE(wanted(name)) << std::string(name);
    for (const std::string_view name :
         {"experts.0.up", "experts.10.up", "experts.11.up", "experts.-1.up", "experts.1",
          "experts.1x.up", "experts.", "experts..up", "experts. 1.up", "shared.1.up",
          "gate.mask_weight", "routers.weight", "router", "", "experts.99999999999999999999.up"})
        EXPECT_FALSE(wanted(name)) << std::string(name);
    EXPECT_TRUE(OnlyExpert{10}("experts.10.up"));
    const OnlyExpert alone{.expert = 1, .with_router = false};
    EXPECT_FALSE(alone("router.weight"));
    EXPECT_TRUE(alone("experts.1.up"));
}

TEST(OnlyExpert, TrainsThatExpertAndTheRouterAndMovesNothingElse) {
    for (const bool with_router : {true, false}) {
        Layer layer = make();
        const auto before = values_of(layer);
        const auto x = moe::testing::random_matrix<double>(tokens, dim, 5, 2);
        const auto target = moe::testing::random_matrix<double>(tokens, dim, 6);
        Layer grad = moe::zeros_like(layer, moe::only_expert(layer, 1, with_router));
        moe::Workspace<double> ws;
        Matrix y(tokens, dim), dx(tokens, dim);
        for (int step = 0; step < 3; ++step) {
            layer.forward(x, y, ws, {.training = true});
            moe::set_zero(grad);
            layer.backward(x, y - target, dx, grad, ws, {.training = true});
            moe::for_each_parameter(
                layer, grad, [](std::string_view, std::span<double> w, std::span<double> dw) {
                    for (std::size_t i = 0; i < w.size(); ++i) w[i] = std::fma(-0.01, dw[i], w[i]);
                });
        }
        std::size_t moved = 0;
        for (const auto& [name, values] : values_of(layer)) {
            const bool may_move =
                name.starts_with("experts.1.") || (with_router && name.starts_with("router."));
            EXPECT_EQ(!same_bits(values, before.at(name), {.allow_zeros = true}), may_move) << name;
            moved += may_move ? 1 : 0;
        }
        EXPECT_EQ(moved, with_router ? 6u : 4u);
    }
}

TEST(OnlyExpert, HasTheGradientsOfAllAndTheWholeOfDx) {
    const Layer layer = make();
    const auto x = moe::testing::random_matrix<double>(tokens, dim, 5, 2);
    const auto dy = moe::testing::random_matrix<double>(tokens, dim, 6);
    moe::Workspace<double> ws;
    Matrix y(tokens, dim), dx(tokens, dim), dx_of_all(tokens, dim);
    Layer grad = moe::zeros_like(layer, moe::only_expert(layer, 11)), all = moe::zeros_like(layer);
    layer.forward(x, y, ws, {.training = true});
    layer.backward(x, dy, dx, grad, ws, {.training = true});
    layer.forward(x, y, ws, {.training = true});
    layer.backward(x, dy, dx_of_all, all, ws, {.training = true});
    EXPECT_TRUE(same_bits(dx, dx_of_all));
    const auto wanted = values_of(grad), whole = values_of(all);
    for (const auto& [name, values] : wanted) {
        if (name.starts_with("router.") || name.starts_with("experts.11.")) {
            EXPECT_TRUE(same_bits(values, whole.at(name), {.allow_zeros = true})) << name;
            EXPECT_FALSE(values.empty()) << name;
        } else {
            EXPECT_TRUE(values.empty()) << name;
        }
    }
}

TEST(OnlyExpert, MustBeThere) {
    const Layer layer = make();
    EXPECT_EQ(support::message([&] { moe::only_expert(layer, 12); }),
              "moe::only_expert: there is no expert 12, the layer has 12");
    EXPECT_NE(support::message([&] { moe::only_expert(layer, -1); }), "");
}

}  // namespace
}  // namespace only_expert_test
