// SPDX-License-Identifier: MIT
// What goes wrong in real programs: gradients of another layer, workspaces of another batch, layers
// that move, calls that fail half-way. Each has a sentence or a defined result, never a wrong
// number.

#include <cstdint>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <moe/moe.hpp>
#include <moe/stats/report.hpp>

#include "seams/check.hpp"
#include "support/message.hpp"

namespace misuse_test {
namespace {

using moe::Context;
using moe::Index;
using moe::Matrix;
using moe::Workspace;
using moe::testing::random_matrix;
using support::message;

constexpr Index tokens = 6, dim = 8;

auto make(Index experts = 4, Index ffn_dim = 8, Index constants = 2) {
    return moe::Layer{moe::Config{.model_dim = dim, .seed = 3},
                      moe::LinearRouter{},
                      moe::TopK{.k = 2},
                      moe::Swiglu{.count = experts, .ffn_dim = ffn_dim},
                      moe::Constant{.count = constants},
                      moe::Shared{moe::Swiglu{.ffn_dim = ffn_dim}, moe::SharedGate::sigmoid}};
}
using Layer = decltype(make());

class Misuse : public ::testing::Test {
protected:
    void forward(const Layer& used, const Context& context = {}) {
        used.forward(x, y, ws, context);
    }
    std::string backward(const Layer& used, Layer& gradient) {
        return message<std::logic_error>([&] { used.backward(x, dy, dx, gradient, ws); });
    }
    std::string refused(Layer& gradient) {
        forward(layer);
        return message([&] { layer.backward(x, dy, dx, gradient, ws); });
    }

    Layer layer = make();
    Layer grad = moe::zeros_like(layer);
    Workspace<float> ws;
    Matrix<float> x = random_matrix<float>(tokens, dim, 1),
                  dy = random_matrix<float>(tokens, dim, 2);
    Matrix<float> y{tokens, dim}, dx{tokens, dim};
};

const char* const another_batch =
    "moe::Layer::backward: the workspace does not hold this batch: call forward() of the same "
    "layer with the same x and context first";

TEST_F(Misuse, AGradientOfAnotherLayerIsRefused) {
    Layer narrow = moe::zeros_like(make(4, 7)), few = moe::zeros_like(make(2)),
          lone = moe::zeros_like(make(4, 8, 1));
    EXPECT_NE(refused(narrow).find("make it with zeros_like(layer)"), std::string::npos);
    EXPECT_NE(refused(few).find("2 experts"), std::string::npos) << refused(few);
    EXPECT_NE(refused(lone).find("make it with zeros_like(layer)"), std::string::npos);
    EXPECT_EQ(refused(layer),
              "moe::Layer::backward: grad is the layer itself; make a gradient with "
              "zeros_like(layer)");
    EXPECT_NO_THROW(refused(grad));
}

struct Half {  // an expert with an Eigen matrix, so that its gradient is lent
    Eigen::RowVectorXf scale;
    void forward(moe::In<float> x, moe::Out<float> y) const { y = x * scale.asDiagonal(); }
    void backward(moe::In<float> x, moe::In<float> dy, moe::Out<float> dx, Half& grad) const {
        dx = dy * scale.asDiagonal();
        grad.scale += x.cwiseProduct(dy).colwise().sum();
    }
    void visit_parameters(auto&& visit) { visit("scale", scale); }
};

TEST_F(Misuse, AGradientOfAnotherSizeIsRefusedForUsersExpertsAndRouters) {
    const auto of = [](Index width, Index count) {
        return moe::Layer{moe::Config{.model_dim = width}, moe::LinearRouter{}, moe::TopK{.k = 1},
                          moe::experts(count, Half{Eigen::RowVectorXf::Ones(width)})};
    };
    const auto layer8 = of(dim, 3);
    auto narrow = moe::zeros_like(of(dim - 1, 3)), few = moe::zeros_like(of(dim, 2));
    layer8.forward(x, y, ws);
    EXPECT_EQ(message([&] { layer8.backward(x, dy, dx, narrow, ws); }),
              "moe::Layer::backward: grad is of another layer: its scale has 7 elements, the "
              "layer's has 8; make it with zeros_like(layer)");
    EXPECT_EQ(message([&] { layer8.backward(x, dy, dx, few, ws); }),
              "moe::Layer::backward: grad is of another layer: a group has 2 experts, the layer's "
              "has 3; make it with zeros_like(layer)");
}

TEST_F(Misuse, OutputsMustNotLieInInputs) {
    EXPECT_EQ(message([&] { layer.forward(x, x, ws); }),
              "moe::Layer::forward: y shares memory with x, which is read while y is written; give "
              "it a matrix of its own");
    forward(layer);
    EXPECT_EQ(message([&] { layer.backward(x, dy, dy, grad, ws); }),
              "moe::Layer::backward: dx shares memory with dy, which is read while dx is written; "
              "give it a matrix of its own");
    EXPECT_EQ(message([&] { layer.backward(x, dy, x, grad, ws); }),
              "moe::Layer::backward: dx shares memory with x, which is read while dx is written; "
              "give it a matrix of its own");
    Matrix<float> wide = random_matrix<float>(tokens, 2 * dim, 4);  // side by side is fine
    EXPECT_NO_THROW(layer.forward(wide.leftCols(dim), wide.rightCols(dim), ws));
}

TEST_F(Misuse, ALayerKnowsItsWorkspaceWhereverItMoves) {
    forward(layer);
    std::vector<Layer> network;
    network.push_back(std::move(layer));
    network.emplace_back(make());  // the vector moves them
    network.front().backward(x, dy, dx, grad, ws);
    const Matrix<float> expected = dx;
    network.front().forward(x, y, ws);
    network.front().backward(x, dy, dx, grad, ws);
    EXPECT_TRUE(moe::testing::same_bits(dx, expected));
}

TEST_F(Misuse, ALayerThatTookThePlaceOfAnotherDoesNotKnowItsWorkspace) {
    Layer other = make(4, 16), other_grad = moe::zeros_like(other);
    forward(layer);
    std::swap(layer, other);  // same address, other extents
    EXPECT_EQ(backward(layer, other_grad), another_batch);
    std::swap(layer, other);
    EXPECT_NO_THROW(layer.backward(x, dy, dx, grad, ws));
    forward(layer);
    layer = other;
    EXPECT_EQ(backward(layer, other_grad), another_batch);
    EXPECT_NE(moe::report(ws).size(), 0u);  // what forward left does not need the layer
}

/// Throws when told to, after it has started.
struct Fragile {
    const bool* fails;
    void forward(moe::In<float> x, moe::Out<float> y) const {
        if (fails != nullptr && *fails) throw std::runtime_error("no");
        y = x;
    }
    void backward(moe::In<float>, moe::In<float> dy, moe::Out<float> dx, Fragile&) const {
        dx = dy;
    }
};

TEST_F(Misuse, AForwardThatFailedLeavesNothingForBackward) {
    bool fails = true;
    const moe::Layer fragile{moe::Config{.model_dim = dim}, moe::LinearRouter{}, moe::TopK{.k = 3},
                             moe::experts(2, Fragile{&fails}), moe::Swiglu{.ffn_dim = 4}};
    auto gradient = moe::zeros_like(fragile);
    const auto run = [&] { fragile.backward(x, dy, dx, gradient, ws); };
    EXPECT_THROW(fragile.forward(x, y, ws), std::runtime_error);
    EXPECT_EQ(message<std::logic_error>(run), another_batch);
    fails = false;
    fragile.forward(x, y, ws);
    EXPECT_NO_THROW(run());
    fails = true;
    EXPECT_THROW(fragile.forward(x, y, ws), std::runtime_error);
    EXPECT_EQ(message<std::logic_error>(run), another_batch) << "of the call before";
}

TEST_F(Misuse, AChangedRowIsAnotherBatch) {
    forward(layer);
    x.row(3) *= 2;
    EXPECT_EQ(backward(layer, grad), another_batch);
    x.row(3) /= 2;
    EXPECT_NO_THROW(layer.backward(x, dy, dx, grad, ws));
    forward(layer);
    ws.edit_routing().set_weight(0, 0.25);
    EXPECT_EQ(backward(layer, grad), another_batch) << "y was made with another weight";
}

TEST_F(Misuse, ContextGradientsMayBeGivenToBackwardAlone) {
    const std::vector<double> offset(6, 0.25), multiplier{1, 2, 1, 0.5, 1, 3};
    std::vector<double> doffset(6), dmultiplier(6), doffset2(6), dmultiplier2(6);
    moe::ContextGradients early{doffset, dmultiplier, {}}, late{doffset2, dmultiplier2, {}};
    Context context{.logit_offset = offset, .gate_multiplier = multiplier, .gradients = &early};
    forward(layer, context);
    layer.backward(x, dy, dx, grad, ws, context);
    context.gradients = nullptr;
    forward(layer, context);
    context.gradients = &late;
    layer.backward(x, dy, dx, grad, ws, context);
    EXPECT_EQ(doffset, doffset2);
    EXPECT_EQ(dmultiplier, dmultiplier2);
    EXPECT_NE(dmultiplier, std::vector<double>(6));
    std::vector<double> small(2);
    late.gate_multiplier = small;
    forward(layer, Context{.logit_offset = offset, .gate_multiplier = multiplier});
    EXPECT_EQ(message([&] { layer.backward(x, dy, dx, grad, ws, context); }),
              "moe::Context: gradients->gate_multiplier has 2 entries, it wants 6, one per expert");
}

TEST_F(Misuse, HalvesTakeTheContextOfTheRoute) {
    const std::vector<std::uint8_t> padding{0, 0, 1, 0, 1, 0};
    const Context context{.padding = padding};
    forward(layer, context);
    const Matrix<float> expected = y;
    layer.route(x, ws, context);
    layer.apply(x, y, ws);
    EXPECT_TRUE(moe::testing::same_bits(y, expected));
    EXPECT_EQ(y.row(2).norm(), 0) << "no shared expert either";
    layer.apply_backward(x, dy, dx, grad, ws);
    layer.route_backward(x, dx, grad, ws);
    const Matrix<float> halves = dx;
    forward(layer, context);
    layer.backward(x, dy, dx, grad, ws, context);
    EXPECT_TRUE(moe::testing::same_bits(dx, halves));
}

TEST_F(Misuse, GroupsThatWereReplacedMustFit) {
    layer.bank().group<0>() = make(3).bank().group<0>();
    EXPECT_EQ(message([&] { forward(layer); }),
              "moe::Layer::forward: the groups have 5 experts, the layer was made for 6; make "
              "another with Layer::of_modules");
}

TEST_F(Misuse, ModulesOfOtherExtentsAreRefused) {
    const auto with = [](auto router, auto gate) {
        return message([&] {
            moe::Layer{moe::Config{.model_dim = dim}, router, gate,
                       moe::Swiglu{.count = 4, .ffn_dim = 4}};
        });
    };
    moe::Random random(1);
    const auto router = moe::LinearRouter{}.build<float>(
        {.model_dim = dim, .num_experts = 16, .output_dim = dim, .num_logits = 16}, random);
    const auto gate = moe::TopK{.k = 1}.build<float>({.num_experts = 3}, random);
    const auto top_p = moe::TopP{}.build<float>({.num_experts = 3}, random);
    EXPECT_EQ(with(router, moe::TopK{.k = 1}),
              "moe::LinearRouter: weight is [16, 8], the layer wants [4, 8]: logits per token, "
              "model_dim");
    EXPECT_EQ(
        with(moe::LinearRouter{}, gate),
        "moe::TopK: the gate was built for 3 experts, the layer has 4; build it again from its "
        "recipe");
    EXPECT_EQ(
        with(moe::LinearRouter{}, top_p),
        "moe::TopP: the gate was built for 3 experts, the layer has 4; build it again from its "
        "recipe");
}

TEST_F(Misuse, ALayerGrowsByMakingItOfItsModules) {
    auto groups = layer.bank().groups();
    std::get<1>(groups).mix.emplace_back(2, dim);
    std::get<1>(groups).value.emplace_back(1, dim);
    auto router = layer.router();
    router.weight = moe::Parameter<float>(7, dim);
    router.weight.view().topRows(6) = layer.router().weight.view();
    EXPECT_NE(message([&] {
                  Layer::of_modules(layer.config(), layer.router(), layer.gate(), groups);
              }).find("7"),
              std::string::npos);
    const auto gate = moe::TopKModule<float>(layer.gate().settings(), 7);
    const Matrix<float> before = layer(x);
    std::vector<std::uint8_t> allowed(tokens * 7, 1);
    for (Index t = 0; t < tokens; ++t) allowed[static_cast<std::size_t>(7 * t + 6)] = 0;
    layer = Layer::of_modules(layer.config(), router, gate, groups);
    EXPECT_EQ(layer.num_experts(), 7);
    EXPECT_TRUE(moe::testing::same_bits(layer(x, {.allowed = allowed}), before));
}

/// A gate that does not look at logits: tokens go round the experts.
struct Hash {
    void select(moe::In<float> logits, moe::Routing& routing) const {
        for (Index t = 0; t < logits.rows(); ++t) {
            routing.add(t, t % routing.num_experts(), 0.75);
            routing.add(t, (t + 1) % routing.num_experts(), 0.25);
        }
    }
};

TEST_F(Misuse, MasksHoldForGatesThatDoNotReadLogits) {
    const moe::Layer hashed{moe::Config{.model_dim = dim}, moe::LinearRouter{}, Hash{},
                            moe::Swiglu{.count = 3, .ffn_dim = 4}};
    const std::vector<std::uint8_t> padding{0, 1, 0, 0, 0, 0};
    std::vector<std::uint8_t> allowed(tokens * 3, 1);
    allowed[3 * 4 + 2] = 0;  // token 4 wants experts 1 and 2
    hashed.forward(x, y, ws, {.padding = padding, .allowed = allowed});
    EXPECT_TRUE(ws.routing().of(1).empty());
    EXPECT_EQ(y.row(1).norm(), 0);
    ASSERT_EQ(ws.routing().of(4).size(), 1u);
    EXPECT_EQ(ws.routing().of(4)[0].expert, 1);
    EXPECT_EQ(ws.routing().of(0).size(), 2u);
    const moe::Routing plan = ws.routing();
    hashed.forward(x, y, ws);
    hashed.reweigh(x, ws.routing(), ws, {.padding = padding, .allowed = allowed});
    EXPECT_EQ(ws.routing(), plan);
}

TEST_F(Misuse, AMultiplierIsAppliedOnceHoweverOftenAPlanIsReplayed) {
    const moe::Layer hashed{moe::Config{.model_dim = dim}, moe::LinearRouter{}, Hash{},
                            moe::Swiglu{.count = 3, .ffn_dim = 4}};
    const std::vector<double> multiplier{3, 3, 3};
    const Matrix<float> plain = hashed(x);
    const Context context{.gate_multiplier = multiplier};
    hashed.forward(x, y, ws, context);
    for (int replay = 0; replay < 2; ++replay) {
        hashed.reweigh(x, ws.routing(), ws, context);
        hashed.apply(x, y, ws, context);
    }
    EXPECT_TRUE(moe::testing::compare(y, Matrix<float>(3 * plain), 1e-5));
    EXPECT_EQ(ws.routing().of(0)[0].weight, 0.75) << "the gate's own";
}

TEST_F(Misuse, AMultiplierMeetsAssignmentsThatWereAddedLater) {
    const std::vector<double> multiplier{1, 1, 1, 1, 5, 1};
    const Context context{.gate_multiplier = multiplier};
    layer.route(x, ws, context);
    layer.apply(x, y, ws, context);
    const Matrix<float> before = y;
    moe::Routing& plan = ws.edit_routing();
    Index token = 0;
    while (!plan.tokens_of(4).empty() && plan.tokens_of(4)[0] == token) ++token;
    plan.add(token, 4, 0.5);
    plan.group();
    layer.apply(x, y, ws, context);
    const Matrix<float> added = y - before;
    std::vector<std::uint8_t> only(tokens * 6, 0);
    only[static_cast<std::size_t>(6 * token + 4)] = 1;
    layer.route(x, ws, {.allowed = only});
    layer.apply(x, y, ws);  // that expert alone with weight 1, and the shared expert
    const Matrix<float> alone = y;
    ws.edit_routing().set_weight(0, 3.5);
    layer.apply(x, y, ws);
    EXPECT_TRUE(moe::testing::compare(Matrix<float>(added.row(token)),
                                      Matrix<float>((y - alone).row(token)), 1e-4));
    EXPECT_GT(added.row(token).norm(), 0.1f);
}

/// A gate of more logits than experts whose module says so.
struct Twice {
    template <class S>
    struct Module {
        Index num_logits(Index experts) const { return 2 * experts; }
        void select(moe::In<S> logits, moe::Routing& routing) const {
            for (Index t = 0; t < logits.rows(); ++t) routing.add(t, t % routing.num_experts());
        }
    };
    template <class S>
    Module<S> build(const moe::Shape&, moe::Random&) const {
        return {};
    }
};

TEST_F(Misuse, TheGateAsItIsBuiltSaysHowManyLogitsItWants) {
    const moe::Layer twice{moe::Config{.model_dim = dim}, moe::LinearRouter{}, Twice{},
                           moe::Swiglu{.count = 3, .ffn_dim = 4}};
    EXPECT_EQ(twice.head().num_logits(), 6);
    EXPECT_EQ(twice.router().weight.rows(), 6);
    const auto frozen = moe::freeze(twice);
    EXPECT_EQ(frozen.head().num_logits(), 6);
    EXPECT_TRUE(moe::testing::same_bits(frozen(x), twice(x)));
    std::vector<std::uint8_t> allowed(tokens * 3, 1);
    allowed[0] = 0;
    twice.forward(x, y, ws, {.allowed = allowed});  // masked after the choice
    EXPECT_TRUE(ws.routing().of(0).empty());
    EXPECT_EQ(ws.routing().of(3).size(), 1u);
}

struct ForwardOnly {  // a router for inference
    void forward(moe::In<float>, moe::Out<float> logits) const { logits.setOnes(); }
};

TEST_F(Misuse, ARouterWithoutBackwardIsGoodForInference) {
    const moe::Layer layer1{moe::Config{.model_dim = dim}, ForwardOnly{}, moe::TopK{.k = 1},
                            moe::Copy{.count = 2}};
    EXPECT_TRUE(moe::testing::same_bits(layer1(x), x));
}

}  // namespace
}  // namespace misuse_test
