// SPDX-License-Identifier: MIT
#include <moe/any_layer.hpp>

#include <cstddef>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/constant.hpp>
#include <moe/experts/copy.hpp>
#include <moe/experts/each.hpp>
#include <moe/experts/shared.hpp>
#include <moe/experts/swiglu.hpp>
#include <moe/experts/zero.hpp>
#include <moe/frozen.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/io/save.hpp>
#include <moe/routers/linear.hpp>
#include <moe/testing/compare.hpp>
#include <moe/testing/gradient_check.hpp>
#include <moe/testing/random.hpp>

#include "support/message.hpp"

namespace any_layer_test {
namespace {

using moe::AnyLayer;
using moe::Index;
using moe::Matrix;
using moe::testing::random_matrix;
using moe::testing::same_bits;

constexpr Index dim = 6;

template <class S>
auto plain(Index k = 2) {
    return moe::make_layer<S>(moe::Config{.model_dim = dim, .seed = 9}, moe::LinearRouter{},
                              moe::TopK{.k = k}, moe::Swiglu{.count = 3, .ffn_dim = 4},
                              moe::Constant{.count = 2});
}
template <class S>
auto other() {
    return moe::make_layer<S>(moe::Config{.model_dim = dim}, moe::LinearRouter{}, moe::TopK{.k = 1},
                              moe::Copy{}, moe::Zero{},
                              moe::Shared{moe::Swiglu{.count = 2, .ffn_dim = 3}});
}

template <class S>
class AnyLayerTyped : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(AnyLayerTyped, Scalars);

TYPED_TEST(AnyLayerTyped, HasTheBitsOfTheLayerInside) {
    using S = TypeParam;
    auto layer = plain<S>();
    const AnyLayer<S> any = layer;
    EXPECT_EQ(any.num_experts(), 5);
    EXPECT_EQ(any.model_dim(), dim);
    EXPECT_EQ(any.output_dim(), dim);
    EXPECT_TRUE(any.is_trainable());
    const Matrix<S> x = random_matrix<S>(7, dim, 1), dy = random_matrix<S>(7, dim, 2);
    EXPECT_TRUE(same_bits(any(x), layer(x)));

    Matrix<S> y(7, dim), dx(7, dim), any_y(7, dim), any_dx(7, dim);
    moe::Workspace<S> ws, any_ws;
    auto grad = moe::zeros_like(layer);
    AnyLayer<S> any_grad = moe::zeros_like(any);
    layer.forward(x, y, ws);
    layer.backward(x, dy, dx, grad, ws);
    any.forward(x, any_y, any_ws);
    any.backward(x, dy, any_dx, any_grad, any_ws);
    EXPECT_TRUE(same_bits(any_y, y));
    EXPECT_TRUE(same_bits(any_dx, dx));
    std::vector<S> values(static_cast<std::size_t>(moe::num_parameters(layer)));
    std::vector<S> any_values(values);
    moe::copy_parameters(grad, std::span<S>(values));
    moe::copy_parameters(any_grad, std::span<S>(any_values));
    EXPECT_TRUE(same_bits(any_values, values));

    // Without parameter gradients, said in either way.
    AnyLayer<S> none;
    for (int way = 0; way < 2; ++way) {
        any_dx.setZero();
        any.forward(x, any_y, any_ws);
        if (way == 0)
            any.backward(x, dy, any_dx, moe::no_gradient, any_ws);
        else
            any.backward(x, dy, any_dx, none, any_ws);
        EXPECT_TRUE(same_bits(any_dx, dx));
    }
}

TYPED_TEST(AnyLayerTyped, HasTheHalvesOfItsCalls) {
    using S = TypeParam;
    const AnyLayer<S> any = plain<S>();
    const Matrix<S> x = random_matrix<S>(7, dim, 1), dy = random_matrix<S>(7, dim, 2);
    Matrix<S> y(7, dim), dx(7, dim), halves_y(7, dim), halves_dx(7, dim);
    moe::Workspace<S> ws, halves_ws;
    any.reserve(7, 14, ws);
    AnyLayer<S> grad = any.zeros_like(), halves_grad = any.zeros_like();
    any.forward(x, y, ws);
    any.backward(x, dy, dx, grad, ws);

    any.route(x, halves_ws);
    any.apply(x, halves_y, halves_ws);
    any.apply_backward(x, dy, halves_dx, halves_grad, halves_ws);
    any.route_backward(x, halves_dx, halves_grad, halves_ws);
    EXPECT_TRUE(same_bits(halves_y, y));
    EXPECT_TRUE(same_bits(halves_dx, dx));

    const moe::Routing plan = halves_ws.routing();
    any.reweigh(x, plan, halves_ws);
    EXPECT_EQ(halves_ws.routing(), plan);
}

TYPED_TEST(AnyLayerTyped, ShowsParametersUnderTheirNames) {
    using S = TypeParam;
    auto layer = plain<S>();
    AnyLayer<S> any = layer;
    const auto listed = [](auto& from) {
        std::vector<std::string> all;
        moe::visit_parameters(from, [&](std::string_view name, auto& matrix, moe::Role role) {
            all.push_back(std::string(name) + " " + std::to_string(matrix.rows()) + "x" +
                          std::to_string(matrix.cols()) +
                          (role == moe::Role::trainable ? "" : " fixed"));
        });
        return all;
    };
    EXPECT_EQ(listed(any), listed(layer));
    EXPECT_EQ(listed(std::as_const(any)), listed(layer));
    EXPECT_GT(listed(any).size(), 10u);
    EXPECT_EQ(moe::num_parameters(any), moe::num_parameters(layer));
}

TYPED_TEST(AnyLayerTyped, IsMovedByADescentStep) {
    using S = TypeParam;
    auto layer = plain<S>();
    AnyLayer<S> any = layer;
    AnyLayer<S> grad = moe::zeros_like(any);
    const Matrix<S> x = random_matrix<S>(7, dim, 1), dy = random_matrix<S>(7, dim, 2);
    Matrix<S> y(7, dim), dx(7, dim);
    moe::Workspace<S> ws;
    any.forward(x, y, ws);
    any.backward(x, dy, dx, grad, ws);
    int visited = 0;
    moe::for_each_parameter(any, grad, [&](auto, std::span<S> w, std::span<S> g) {
        ++visited;
        for (std::size_t i = 0; i < w.size(); ++i) w[i] -= S(0.01) * g[i];
    });
    EXPECT_GT(visited, 10);
    const Matrix<S> after = any(x);
    double before_loss = 0, after_loss = 0;
    for (Index i = 0; i < y.size(); ++i) {
        before_loss += double{y.data()[i]} * double{dy.data()[i]};
        after_loss += double{after.data()[i]} * double{dy.data()[i]};
    }
    EXPECT_LT(after_loss, before_loss);
    EXPECT_TRUE(same_bits(layer(x), y)) << "a copy has parameters of its own";
}

TYPED_TEST(AnyLayerTyped, LeavesOutGradientsByName) {
    using S = TypeParam;
    const AnyLayer<S> any = plain<S>();
    AnyLayer<S> grad = moe::zeros_like(
        any, [](std::string_view name) { return name.find("experts.") == std::string_view::npos; });
    Index elements = 0;
    moe::visit_parameters(grad, [&](std::string_view name, auto& matrix, moe::Role) {
        elements += matrix.size();
        if (name.find("experts.") == 0) {
            EXPECT_EQ(matrix.size(), 0) << std::string(name);
        }
    });
    EXPECT_GT(elements, 0);
    EXPECT_LT(elements, moe::num_parameters(any));
}

TYPED_TEST(AnyLayerTyped, CopiesAndFlattensItsParameters) {
    using S = TypeParam;
    AnyLayer<S> any = plain<S>();
    const auto count = static_cast<std::size_t>(moe::num_parameters(any));
    const Matrix<S> x = random_matrix<S>(3, dim, 1);
    const Matrix<S> y = any(x);
    std::vector<S> copied(count), memory(count);
    moe::copy_parameters(any, std::span<S>(copied));

    const std::span<S> flat = moe::flatten(any, std::span<S>(memory));
    EXPECT_EQ(flat.data(), memory.data());
    EXPECT_TRUE(same_bits(flat, copied));
    EXPECT_TRUE(same_bits(any(x), y));
    for (S& value : memory) value *= S(0.5);
    EXPECT_FALSE(same_bits(any(x), y));
    moe::copy_parameters(std::span<const S>(copied), any);
    EXPECT_TRUE(same_bits(any(x), y));
    EXPECT_TRUE(same_bits(memory, copied));

    AnyLayer<S> owner = any;
    const std::span<S> owned = moe::flatten(owner);
    EXPECT_TRUE(same_bits(owned, copied));
    EXPECT_NE(owned.data(), memory.data());
    EXPECT_TRUE(same_bits(owner(x), y));
}

TEST(AnyLayer, PassesTheGradientCheckOfLayers) {
    const AnyLayer<double> any = plain<double>();
    EXPECT_TRUE(moe::testing::check_gradients(any, {.rows = 5, .columns = dim}));
}

TEST(AnyLayer, IsAValue) {
    static_assert(std::is_nothrow_move_constructible_v<AnyLayer<float>>);
    std::vector<AnyLayer<float>> network;
    network.push_back(plain<float>());
    network.push_back(other<float>());
    const Matrix<float> x = random_matrix<float>(4, dim, 1);
    const Matrix<float> y = network[1](network[0](x));
    std::vector<AnyLayer<float>> copy = network;
    network[0] = network[1];  // frees the first layer
    EXPECT_TRUE(same_bits(copy[1](copy[0](x)), y));
    EXPECT_FALSE(same_bits(network[1](network[0](x)), y));
    network.clear();
    AnyLayer<float> moved = std::move(copy[0]);
    EXPECT_TRUE(same_bits(copy[1](moved(x)), y));
}

TEST(AnyLayer, GivesBackTheLayerInside) {
    AnyLayer<float> any = plain<float>();
    using Plain = decltype(plain<float>());
    ASSERT_NE(any.get<Plain>(), nullptr);
    EXPECT_EQ(any.get<Plain>()->num_experts(), 5);
    EXPECT_EQ(any.get<decltype(other<float>())>(), nullptr);
    EXPECT_NE(std::as_const(any).get<Plain>(), nullptr);
    EXPECT_EQ(AnyLayer<float>().get<Plain>(), nullptr);
}

TEST(AnyLayer, RefusesAGradientOfAnotherLayer) {
    const AnyLayer<float> any = plain<float>();
    AnyLayer<float> grad = moe::zeros_like(AnyLayer<float>(other<float>()));
    const Matrix<float> x = random_matrix<float>(4, dim, 1);
    Matrix<float> y(4, dim), dx(4, dim);
    moe::Workspace<float> ws;
    any.forward(x, y, ws);
    EXPECT_THROW(any.backward(x, x, dx, grad, ws), std::invalid_argument);
}

TEST(AnyLayer, RefusesToBackpropagateWhatItDidNotSee) {
    const AnyLayer<float> any = plain<float>();
    const Matrix<float> x = random_matrix<float>(4, dim, 1),
                        unseen = random_matrix<float>(4, dim, 2);
    Matrix<float> y(4, dim), dx(4, dim);
    moe::Workspace<float> ws;
    any.forward(x, y, ws);
    EXPECT_THROW(any.backward(unseen, x, dx, moe::no_gradient, ws), std::logic_error);
}

TEST(AnyLayer, SaysThatItHoldsNothing) {
    AnyLayer<float> none;
    EXPECT_FALSE(none.has_value());
    EXPECT_TRUE(AnyLayer<float>(other<float>()).has_value());
    EXPECT_THROW(none.num_experts(), std::logic_error);
    EXPECT_THROW(none(Matrix<float>(1, dim)), std::logic_error);
    EXPECT_FALSE(moe::zeros_like(none).has_value());
    EXPECT_EQ(moe::num_parameters(none), 0);
}

TEST(AnyLayer, HoldsFrozenLayersForInference) {
    const auto layer = plain<float>();
    const AnyLayer<float> any = moe::freeze(layer);
    const Matrix<float> x = random_matrix<float>(5, dim, 1);
    Matrix<float> y(5, dim), dx(5, dim);
    moe::Workspace<float> ws;
    any.forward(x, y, ws);
    EXPECT_TRUE(same_bits(y, layer(x)));
    EXPECT_TRUE(same_bits(any(x), y));
    EXPECT_FALSE(any.is_trainable());
    EXPECT_THROW(any.backward(x, x, dx, moe::no_gradient, ws), std::logic_error);
}

struct OneWay {
    void forward(moe::In<float> x, moe::Out<float> y) const { y = 2 * x; }
};

TEST(AnyLayer, ShowsAndCountsMatricesThatItOnlyViews) {
    auto layer = plain<float>();
    const auto owner = layer;
    const Index all = num_parameters(layer);
    auto& group = layer.bank().group<0>();
    std::vector<moe::WeightView> views;
    for (Index e = 0; e < 3; ++e) views.push_back(owner.bank().group<0>().up[e]);
    group.up = moe::Weights<float>(views);
    AnyLayer<float> any = layer;
    EXPECT_EQ(num_parameters(layer), all);
    EXPECT_EQ(num_parameters(any), all);
    EXPECT_EQ(num_parameters(AnyLayer<float>(moe::freeze(layer))), all);
    EXPECT_EQ(num_parameters(AnyLayer<float>()), 0);

    std::vector<std::string> bound;
    moe::detail::visit_weights(any, [&](const std::string& name, const auto& weights, Index) {
        if (weights.is_bound()) bound.push_back(name);
    });
    EXPECT_EQ(bound, std::vector<std::string>{"experts.#.up"});

    const moe::Names names("", {{"router.weight", "router"},
                                {"experts.#.gate", "#.gate"},
                                {"experts.#.up", "#.up"},
                                {"experts.#.down", "#.down"},
                                {"experts.#.mix", "#.mix"},
                                {"experts.#.value", "#.value"}});
    const auto saved = [&](const AnyLayer<float>& from) {
        moe::SafetensorsWriter writer;
        moe::save(from, names, writer);
        return writer.bytes();
    };
    EXPECT_EQ(saved(any), saved(owner));
    EXPECT_NE(support::message([&] { saved(moe::freeze(layer)); }).find("moe::save_frozen"),
              std::string::npos);
}

TEST(AnyLayer, HoldsLayersWhoseExpertsHaveNoBackward) {
    const AnyLayer<float> any = moe::Layer{moe::Config{.model_dim = dim}, moe::LinearRouter{},
                                           moe::TopK{.k = 1}, moe::experts(3, OneWay{})};
    EXPECT_FALSE(any.is_trainable());
    const Matrix<float> x = random_matrix<float>(4, dim, 1);
    EXPECT_TRUE(moe::testing::compare(any(x), Matrix<float>(2 * x), 1e-6));
    Matrix<float> dx(4, dim);
    moe::Workspace<float> ws;
    EXPECT_EQ(
        support::message<std::logic_error>([&] { any.backward(x, x, dx, moe::no_gradient, ws); }),
        "moe::AnyLayer: the layer inside has no backward(); it is for inference only");
}

TEST(AnyLayer, TakesColumnMajorCallersAndNoTokens) {
    const AnyLayer<double> any = plain<double>();
    const Matrix<double> x = random_matrix<double>(5, dim, 1);
    const Eigen::MatrixXd columns = x.transpose();
    Eigen::MatrixXd out(dim, 5);
    moe::Workspace<double> ws;
    any.forward(columns.transpose(), out.transpose(), ws);
    EXPECT_TRUE(same_bits(Matrix<double>(out.transpose()), any(x)));
    EXPECT_EQ(any(Matrix<double>(0, dim)).rows(), 0);
}

}  // namespace
}  // namespace any_layer_test
