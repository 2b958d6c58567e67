// SPDX-License-Identifier: MIT
#include <moe/experts/each.hpp>

#include <atomic>
#include <cmath>
#include <cstddef>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/copy.hpp>
#include <moe/experts/shared.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/layer.hpp>
#include <moe/testing/gradient_check.hpp>

#include "support/expert_group.hpp"
#include "support/message.hpp"
#include "support/users_parts.hpp"

namespace each_test {
namespace {

using moe::In;
using moe::Index;
using moe::Matrix;
using moe::Out;
using moe::Random;
using moe::Shape;
using support::message;

/// down max(up x, 0)^2, as a user would write it: it counts on every matrix of grad being there.
template <class S>
struct Squared {
    Matrix<S> up, down;  // [F, D], [O, F]

    void forward(In<S> x, Out<S> y) const {
        y = (x * up.transpose()).cwiseMax(S(0)).array().square().matrix() * down.transpose();
    }
    void backward(In<S> x, In<S> dy, Out<S> dx, Squared& grad) const {
        const Matrix<S> positive = (x * up.transpose()).cwiseMax(S(0));
        const Matrix<S> h = positive.array().square();
        const Matrix<S> da = (dy * down).array() * 2 * positive.array();
        grad.down += dy.transpose() * h;
        grad.up += da.transpose() * x;
        dx = da * up;
    }
    void visit_parameters(auto&& visit) { visit("up", up), visit("down", down); }
};

/// Builds a Squared, for layers of any shape.
struct SquaredRecipe {
    Index ffn_dim = 5;

    template <class S>
    Squared<S> build(const Shape& shape, Random& random) const {
        return {random.normal<S>(ffn_dim, shape.model_dim, 0.5),
                random.normal<S>(shape.output_dim, ffn_dim, 0.5)};
    }
};

template <class S>
auto make(Index count, Index model_dim = 19, Index output_dim = 19) {
    Random random(4);
    return moe::experts(count, SquaredRecipe{})
        .template build<S>(Shape{.model_dim = model_dim, .output_dim = output_dim}, random);
}

template <class S>
class EachExpert : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(EachExpert, Scalars);

TYPED_TEST(EachExpert, GetsRowsOfItsOwn) {
    using S = TypeParam;
    for (const Index output_dim : {19, 7})
        for (const bool input_weights : {false, true}) {
            const auto group = make<S>(4, 19, output_dim);
            std::vector<dense::Expert> experts;
            for (Index e = 0; e < 4; ++e)
                experts.push_back(dense::mlp(moe::Activation::relu_squared,
                                             group.expert(e).up.template cast<double>(),
                                             group.expert(e).down.template cast<double>()));
            const expert_group::Extents extents{.output_dim = output_dim,
                                                .input_weights = input_weights};
            expert_group::expect_like_dense(group, experts, expert_group::Batch<S>(extents));
        }
}

TYPED_TEST(EachExpert, IsAddedInAscendingOrder) {
    using S = TypeParam;
    expert_group::expect_adds<S>(make<S>(4), {});
    expert_group::expect_same_bits_in_sub_ranges<S>(make<S>(4), {});
}

TYPED_TEST(EachExpert, HasTheSameBitsForAnyNumberOfThreads) {
    using S = TypeParam;
    expert_group::expect_same_bits_for_any_thread_count<S>(
        make<S>(5, 300, 300), {.tokens = 600, .model_dim = 300, .output_dim = 300, .experts = 5});
}

TYPED_TEST(EachExpert, NeverSeesAnUnwantedGradient) {
    // Squared would write past the end of an empty matrix.
    expert_group::expect_gradients_may_be_left_out<TypeParam>(make<TypeParam>(4), {});
}

TYPED_TEST(EachExpert, DoesNothingWithoutTokens) {
    const expert_group::Batch<TypeParam> batch({.tokens = 0});
    const auto result = expert_group::run(make<TypeParam>(4), batch);
    EXPECT_EQ(result.y.rows(), 0);
    for (const TypeParam g : result.gradient) EXPECT_EQ(g, 0);
}

TEST(Each, HasExactGradients) {
    expert_group::expect_exact_gradients(make<double>(4, 19, 7), {.tokens = 6, .output_dim = 7});
    expert_group::expect_exact_gradients(make<double>(4), {.tokens = 6, .input_weights = false});
}

TEST(Each, BuildsEveryCopyOfARecipeWithNumbersOfItsOwn) {
    const auto group = make<double>(3);
    EXPECT_NE(group.expert(0).up(0, 0), group.expert(1).up(0, 0));
    EXPECT_NE(group.expert(1).up(0, 0), group.expert(2).up(0, 0));
    EXPECT_EQ(make<double>(3).expert(2).up(0, 0), group.expert(2).up(0, 0));
    EXPECT_EQ(make<double>(5).expert(2).up(0, 0), group.expert(2).up(0, 0));
}

TEST(Each, CountsTwoOperationsPerParameterUnlessToldOtherwise) {
    EXPECT_EQ(make<float>(2, 19, 7).facts(1).flops_per_row, 2 * (5 * 19 + 7 * 5));

    struct Told {
        void forward(In<float> x, Out<float> y) const { y = x; }
        double flops_per_row() const { return 123; }
    };
    Random random(1);
    EXPECT_EQ(moe::experts(1, Told{}).build<float>(Shape{}, random).facts(0).flops_per_row, 123);
}

TEST(Each, NamesParametersByExpert) {
    std::vector<std::string> names;
    const auto group = make<float>(2);
    moe::visit_parameters(
        group, [&](std::string_view name, const auto&, moe::Role) { names.emplace_back(name); });
    EXPECT_EQ(names, (std::vector<std::string>{"0.up", "0.down", "1.up", "1.down"}));
}

TEST(Each, RefusesToBeNone) {
    EXPECT_THROW(moe::experts(0, SquaredRecipe{}), std::invalid_argument);
    Random random(1);
    EXPECT_THROW(moe::each(std::vector<SquaredRecipe>{}).build<float>(Shape{}, random),
                 std::invalid_argument);
}

// ---- experts that are objects, not recipes ----

struct Times {  // y = factor x, one object for each factor
    float factor;

    void forward(In<float> x, Out<float> y) const { y = factor * x; }
    void backward(In<float>, In<float> dy, Out<float> dx, Times&) const { dx = factor * dy; }
};

TEST(Each, TakesInstancesWithValuesOfTheirOwn) {
    Random random(1);
    const auto group = moe::each(std::vector<Times>{{2}, {3}, {5}}).build<float>(Shape{}, random);
    const expert_group::Batch<float> batch({.experts = 3, .input_weights = false});
    Matrix<float> y = Matrix<float>::Zero(11, 19);
    batch.for_each_row([&](Index e, std::size_t r) {
        const float factor[] = {2, 3, 5};
        y.row(batch.tokens[r]) += batch.weights[r] * factor[e] * batch.x.row(batch.tokens[r]);
    });
    EXPECT_TRUE(moe::testing::compare(expert_group::run(group, batch).y, y, 1e-6));
}

TEST(Each, OfTheIdentityOutputsTheBitsOfACopy) {
    Random random(1);
    const Shape shape{.model_dim = 19, .output_dim = 19};
    const auto group = moe::experts(4, Times{1}).build<float>(shape, random);
    const auto copy = moe::Copy{.count = 4}.build<float>(shape, random);
    const expert_group::Batch<float> batch({.input_weights = false});
    const auto through_each = expert_group::run(group, batch);
    const auto copied = expert_group::run(copy, batch);
    EXPECT_TRUE(moe::testing::same_bits(through_each.y, copied.y));
    EXPECT_TRUE(moe::testing::compare(through_each.dx, copied.dx, 1e-6));
}

TEST(Each, SpreadsExpertsOfUnknownCostOverThreads) {
    class Counting final : public moe::Executor {
    public:
        int concurrency() const override { return 2; }
        void run(Index tasks, moe::TaskRef task) override {
            ++runs;
            for (Index i = 0; i < tasks; ++i) task(i, 0);
        }
        int runs = 0;
    } executor;
    moe::Workspace<float> ws(executor);
    Random random(1);
    const auto group = moe::experts(4, Times{2}).build<float>(Shape{}, random);
    const expert_group::Batch<float> few({.tokens = 3}), many({.tokens = 1000});
    expert_group::run(group, few, ws);
    EXPECT_EQ(executor.runs, 0);
    expert_group::run(group, many, ws, {.forward_only = true});
    EXPECT_GE(executor.runs, 1);
}

struct Remembers {  // keeps its own state between forward and backward, in its own node
    struct State {
        Matrix<float> squares;
    };
    void forward(In<float> x, Out<float> y, const moe::Call<float>& call) const {
        call.ws.state<State>().squares = x.array().square();
        y = call.ws.state<State>().squares * float(call.context.step);
    }
    void backward(In<float> x, In<float> dy, Out<float> dx, Remembers&,
                  const moe::Call<float>& call) const {
        const Matrix<float>& squares = call.ws.find<State>()->squares;
        if (!(squares.array() == x.array().square()).all())
            throw std::runtime_error("the state is another expert's");
        dx = 2 * float(call.context.step) * (dy.array() * x.array()).matrix();
    }
};

TEST(Each, GivesEachExpertAWorkspaceNode) {
    Random random(1);
    const auto group = moe::experts(3, Remembers{}).build<float>(Shape{}, random);
    const expert_group::Batch<float> batch({.experts = 3, .input_weights = false});
    moe::ThreadPool pool(3);
    moe::Workspace<float> ws(pool);
    const moe::Context context{.step = 4};
    const moe::Call<float> call{context, ws};
    Matrix<float> y = Matrix<float>::Zero(11, 19), dx = y, expected = y;
    std::vector<float> dweights(batch.weights.size());
    auto grad = group;
    // By sub-ranges: an expert's node is its own, whichever range it is in.
    for (const auto& rows : {batch.rows().experts(0, 1), batch.rows().experts(1, 3)})
        group.forward(batch.x, rows, y, call);
    for (const auto& rows : {batch.rows().experts(0, 1), batch.rows().experts(1, 3)})
        group.backward(batch.x, rows, batch.dy, dx, {.weights = dweights}, grad, call);
    batch.for_each_row([&](Index, std::size_t r) {
        const Index t = batch.tokens[r];
        expected.row(t) +=
            8 * batch.weights[r] * (batch.dy.row(t).array() * batch.x.row(t).array()).matrix();
    });
    EXPECT_TRUE(moe::testing::compare(dx, expected, 1e-6));
}

struct Throws {
    int number;

    void forward(In<float> x, Out<float> y) const {
        if (number == 1 || number == 3)
            throw std::runtime_error("expert " + std::to_string(number));
        y = x;
    }
    void backward(In<float>, In<float>, Out<float>, Throws&) const {
        throw std::runtime_error("backward of expert " + std::to_string(number));
    }
    double flops_per_row() const { return 1e9; }  // worth threads
};

TEST(Each, HandsOnTheExceptionOfTheFirstExpertThatThrew) {
    Random random(1);
    const auto group =
        moe::each(std::vector<Throws>{{0}, {1}, {2}, {3}}).build<float>(Shape{}, random);
    const auto quiet = moe::each(std::vector<Throws>{{0}, {2}}).build<float>(Shape{}, random);
    const expert_group::Batch<float> batch({}), two({.experts = 2});
    for (const int threads : {1, 4}) {
        moe::ThreadPool pool(threads);
        moe::Workspace<float> ws(pool);
        for (int again = 0; again < 5; ++again) {
            EXPECT_EQ(message<std::runtime_error>([&] { expert_group::run(group, batch, ws); }),
                      "expert 1");
            EXPECT_EQ(message<std::runtime_error>([&] { expert_group::run(quiet, two, ws); }),
                      "backward of expert 0");
        }
    }
}

struct OneWay {  // for inference only
    void forward(In<float> x, Out<float> y) const { y = 2 * x; }
};

TEST(Each, TakesExpertsWithoutBackwardForInference) {
    using Module = moe::EachModule<float, OneWay>;
    static_assert(moe::ExpertGroup<Module> && !moe::TrainableGroup<Module>);
    static_assert(moe::TrainableGroup<moe::EachModule<float, Times>>);
    Random random(1);
    const auto group = moe::experts(4, OneWay{}).build<float>(Shape{}, random);
    const expert_group::Batch<float> batch({.input_weights = false});
    const auto twice = moe::experts(4, Times{2}).build<float>(Shape{}, random);
    EXPECT_TRUE(moe::testing::same_bits(expert_group::run(group, batch).y,
                                        expert_group::run(twice, batch).y));
}

struct Fussy {  // an expert that must not see an empty batch, and fits one shape only
    void forward(In<float> x, Out<float> y) const {
        if (x.rows() == 0) throw std::runtime_error("no rows");
        y = x;
    }
    void check(const Shape& shape) const {
        if (shape.model_dim != 19) moe::detail::fail("Fussy: not ", shape.model_dim);
    }
};

TEST(Each, DoesNotCallExpertsWithoutRowsAndAsksThemAboutTheShape) {
    Random random(1);
    const auto group = moe::experts(4, Fussy{}).build<float>(Shape{}, random);
    const expert_group::Batch<float> batch({});
    ASSERT_EQ(batch.rows().size(2), 0);
    EXPECT_NO_THROW(expert_group::run(group, batch));
    EXPECT_NO_THROW(group.check({.model_dim = 19, .output_dim = 19}));
    EXPECT_THROW(group.check({.model_dim = 8, .output_dim = 8}), std::invalid_argument);
}

/// One weight that moves, one that does not, and one that a call changes.
struct Roles {
    Matrix<double> scale = Matrix<double>::Constant(1, 19, 2), fixed = scale, seen = scale;

    void forward(In<double> x, Out<double> y) const { y = x * (scale + fixed).row(0).asDiagonal(); }
    void backward(In<double> x, In<double> dy, Out<double> dx, Roles& grad) const {
        dx = dy * (scale + fixed).row(0).asDiagonal();
        const Matrix<double> sum = (x.array() * dy.array()).matrix().colwise().sum();
        grad.scale += sum;
        grad.fixed += sum;  // for whoever wants it
        grad.seen(0, 0) += 1;
    }
    void visit_parameters(auto&& visit) {
        visit("scale", scale);
        visit("fixed", fixed, moe::Role::frozen);
        visit("seen", seen, moe::Role::state);
    }
};

TEST(Each, KeepsGradientsOfFixedParametersEmpty) {
    Random random(1);
    const auto group = moe::experts(4, Roles{}).build<double>(Shape{}, random);
    expert_group::expect_exact_gradients(group, {.tokens = 5});
    expert_group::expect_adds<double>(group, {});
}

// ---- as the documentation shows it ----

using users::RoundRobin;
using users::ScaleShift;

TEST(Each, TrainsAUsersExpertInAUsersLayer) {
    const ScaleShift identity{Eigen::RowVectorXf::Ones(64), Eigen::RowVectorXf::Zero(64)};
    EXPECT_TRUE(moe::testing::check_gradients(identity, {.rows = 5, .columns = 64}));
    moe::Layer layer{moe::Config{.model_dim = 64}, RoundRobin{}, moe::TopK{.k = 1},
                     moe::experts(4, identity)};

    const Matrix<float> x = moe::testing::random_matrix<float>(32, 64, 1);
    const Matrix<float> target = 3 * x + Matrix<float>::Ones(32, 64);
    Matrix<float> y(32, 64), dx(32, 64);
    auto grad = moe::zeros_like(layer);
    moe::Workspace<float> ws;
    float first_loss = 0, loss = 0;
    for (int step = 0; step < 60; ++step) {
        layer.forward(x, y, ws);
        loss = (y - target).squaredNorm() / 32;
        if (step == 0) first_loss = loss;
        const Matrix<float> dy = (y - target) / 32;
        layer.backward(x, dy, dx, grad, ws);
        moe::for_each_parameter(layer, grad, [](auto, std::span<float> w, std::span<float> g) {
            for (std::size_t i = 0; i < w.size(); ++i) w[i] -= 2.0f * std::exchange(g[i], 0.0f);
        });
    }
    EXPECT_GT(first_loss, 50);
    EXPECT_LT(loss, 0.02f * first_loss);
    const Matrix<float> dy = (y - target) / 32;
    layer.forward(x, y, ws);
    Matrix<float> only_dx(32, 64);
    layer.backward(x, dy, dx, grad, ws);
    layer.forward(x, y, ws);
    layer.backward(x, dy, only_dx, moe::no_gradient, ws);
    EXPECT_TRUE(moe::testing::same_bits(only_dx, dx));
}

TEST(Each, WorksAsASharedExpert) {
    Random random(1);
    const Shape shape{.model_dim = 19, .output_dim = 19};
    const auto group =
        moe::Shared{moe::experts(2, SquaredRecipe{}), moe::SharedGate::sigmoid}.build<double>(
            shape, random);
    expert_group::expect_exact_gradients(group, {.tokens = 4, .experts = 0});
}

}  // namespace
}  // namespace each_test
