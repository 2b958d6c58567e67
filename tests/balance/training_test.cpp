// SPDX-License-Identifier: MIT
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>

#include <moe/balance/inverse_step.hpp>
#include <moe/balance/load_sum.hpp>
#include <moe/balance/quantile.hpp>
#include <moe/balance/selection_bias.hpp>
#include <moe/core/random.hpp>
#include <moe/experts/each.hpp>
#include <moe/experts/mlp.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/gates/top_p.hpp>
#include <moe/head.hpp>
#include <moe/layer.hpp>
#include <moe/losses/entropy.hpp>
#include <moe/losses/load_balance.hpp>
#include <moe/routers/linear.hpp>
#include <moe/testing/random.hpp>

/// Balance end to end: small layers that are trained, and what becomes of load and loss.
namespace training_test {
namespace {

using moe::Index;
using moe::Matrix;

constexpr Index dim = 8, experts = 8, tokens = 128, steps = 400, last_steps = 100;

/// Tokens of eight clusters, each 0.6 times as frequent as the one before, with a task of its own:
/// the wave of A_c x that falls and rises between -1 and 1 in straight lines. Whoever learns the
/// first cluster well is right most of the time, so a router that is left alone sends nearly
/// everything to few experts.
class Clusters {
public:
    Clusters() {
        moe::Random random(1);
        centre_ = random.normal<float>(experts, dim, 1.5);
        task_ = random.normal<float>(experts * dim, dim, 0.3);
    }

    /// @param x, target  [tokens, dim] written
    void batch(std::uint64_t step, Matrix<float>& x, Matrix<float>& target) const {
        const moe::CounterRandom random(7, 0, step);
        for (Index t = 0; t < tokens; ++t) {
            const Index c = cluster(random.uniform(t, dim));
            for (Index d = 0; d < dim; ++d)
                x(t, d) = std::fma(0.5F, static_cast<float>(random.normal(t, d)), centre_(c, d));
            for (Index d = 0; d < dim; ++d) {
                float sum = 0;
                for (Index i = 0; i < dim; ++i) sum = std::fma(task_(c * dim + d, i), x(t, i), sum);
                target(t, d) = std::abs(sum - 4 * std::floor(sum / 4 + 0.5F)) - 1;
            }
        }
    }

private:
    static Index cluster(double u) {
        double all = 0, part = 1;
        for (Index c = 0; c < experts; ++c, part *= 0.6) all += part;
        part = 1;
        for (Index c = 0; c < experts - 1; ++c, part *= 0.6)
            if ((u -= part / all) < 0) return c;
        return experts - 1;
    }

    Matrix<float> centre_;  // [clusters, dim]
    Matrix<float> task_;    // [clusters * dim, dim] A_c
};

/// Of the last steps of a training.
struct Outcome {
    double violation;  // MaxVio of their loads
    double loss;       // mean squared error of the task
};

using Layer = moe::Layer<float, moe::LinearRouter, moe::TopK, moe::Mlp>;
using Balance = std::function<void(Layer&, const moe::Workspace<float>&)>;

/// Trains by gradient descent; balance(layer, ws) follows every step.
Outcome train(const Balance& balance, bool biases_logits = false) {
    const Clusters clusters;
    Layer layer{moe::Config{.model_dim = dim, .seed = 4}, moe::LinearRouter{},
                moe::TopK{.k = 1,
                          .score = moe::Score::sigmoid,
                          .normalize = moe::Normalize::none,
                          .selection_bias = true,
                          .biases_logits = biases_logits},
                moe::Mlp{.count = experts, .ffn_dim = 4}};
    auto grad = moe::zeros_like(layer);
    moe::Workspace<float> ws;
    Matrix<float> x(tokens, dim), target(tokens, dim), y(tokens, dim), dx(tokens, dim);
    moe::LoadSum load(experts);
    double loss = 0;
    for (Index step = 0; step < steps; ++step) {
        clusters.batch(static_cast<std::uint64_t>(step), x, target);
        layer.forward(x, y, ws);
        const Matrix<float> dy = (y - target) / static_cast<float>(tokens);
        if (step >= steps - last_steps) {
            load.add(ws.routing());
            loss += static_cast<double>(dy.squaredNorm() * static_cast<float>(tokens)) / last_steps;
        }
        moe::set_zero(grad);
        layer.backward(x, dy, dx, grad, ws);
        moe::for_each_parameter(layer, grad,
                                [](std::string_view, std::span<float> w, std::span<float> dw) {
                                    for (std::size_t i = 0; i < w.size(); ++i)
                                        w[i] = std::fma(-0.1F, dw[i], w[i]);
                                });
        balance(layer, ws);
    }
    return {moe::max_violation(load.counts()), loss};
}

/// With a controller of a bias on scores.
template <class Controller>
Outcome train_with(Controller controller) {
    return train([&controller](Layer& layer, const moe::Workspace<float>& ws) {
        moe::update_bias(layer, ws.routing(), controller);
    });
}

void record(const std::string& name, const Outcome& outcome) {
    testing::Test::RecordProperty(name + "_violation", std::to_string(outcome.violation));
    testing::Test::RecordProperty(name + "_loss", std::to_string(outcome.loss));
}

TEST(BalanceInTraining, EveryControllerBalancesASkewedStreamAndTheTaskDoesNotSuffer) {
    const Outcome alone = train([](Layer&, const moe::Workspace<float>&) {});
    record("alone", alone);
    EXPECT_GT(alone.violation, 2);
    moe::QuantileUpdate quantile;
    const auto move_by_quantile = [&quantile](Layer& layer, const moe::Workspace<float>& ws) {
        quantile.add(layer, ws, 1);
        quantile.update(layer);
    };
    const struct {
        const char* name;
        Outcome outcome;
    } balanced[] = {
        {"sign", train_with(moe::SignUpdate{.rate = 4e-3})},
        {"proportional", train_with(moe::ProportionalUpdate{.rate = 1e-2})},
        {"inverse_step", train_with(moe::InverseStepUpdate{.rate = 3})},
        {"quantile", train(move_by_quantile, true)},
    };
    for (const auto& [name, outcome] : balanced) {
        record(name, outcome);
        EXPECT_LT(outcome.violation, 0.1) << name;
        EXPECT_LT(outcome.loss, 1.01 * alone.loss) << name;
    }
    const Outcome swapped = train_with(moe::SignUpdate{.rate = -4e-3});
    record("swapped", swapped);
    EXPECT_GT(swapped.violation, alone.violation + 0.5);
}

TEST(BalanceInTraining, WeightsForFixedScoresDoNotDependOnTheBias) {
    moe::Head head{moe::Config{.model_dim = dim, .seed = 3}, moe::LinearRouter{},
                   moe::TopK{.k = 2,
                             .score = moe::Score::sigmoid,
                             .normalize = moe::Normalize::none,
                             .selection_bias = true},
                   std::vector<moe::ExpertFacts>(experts)};
    const auto x = moe::testing::random_matrix<float>(tokens, dim, 5, 2);
    moe::Workspace<float> ws;
    Matrix<double> weight = Matrix<double>::Constant(tokens, experts, -1);
    Index seen = 0, repeated = 0;
    for (int step = 0; step < 40; ++step) {  // while the bias moves, other experts are chosen
        head.route(x, ws);
        for (const moe::Assignment& a : ws.routing().assignments()) {
            double& before = weight(a.token, a.expert);
            if (before == -1) {
                before = a.weight;
                ++seen;
            }
            EXPECT_EQ(a.weight, before);
            ++repeated;
        }
        moe::update_bias(head, ws.routing(), moe::SignUpdate{.rate = 0.02});
    }
    EXPECT_GT(seen, 2 * tokens + 20);
    EXPECT_GT(repeated, 2 * seen);
    const moe::Routing plan = ws.routing();
    moe::selection_bias<float>(head)[0] = 9;
    head.reweigh(x, plan, ws);
    EXPECT_EQ(ws.routing(), plan);
}

// ---- how many experts a top-p gate takes ----

/// Knows the answer 0 up to an error of its own. The errors of all eight sum to 0, and they are as
/// large as the token is hard, which its first element says.
struct Opinion {
    void forward(moe::In<float> x, moe::Out<float> y, const moe::Call<float>& call) const {
        for (Index t = 0; t < x.rows(); ++t)
            for (Index d = 0; d < dim; ++d) y(t, d) = x(t, 0) * error(call.expert, d);
    }
    void backward(moe::In<float>, moe::In<float> dy, moe::Out<float> dx, Opinion&,
                  const moe::Call<float>& call) const {
        dx.setZero();
        for (Index t = 0; t < dy.rows(); ++t)
            for (Index d = 0; d < dim; ++d)
                dx(t, 0) = std::fma(dy(t, d), error(call.expert, d), dx(t, 0));
    }
    static float error(Index expert, Index d) { return (d == expert ? 1.0F : 0.0F) - 1.0F / 8; }
};

struct ExpertsPerToken {
    double at_first = 0, easy = 0, hard = 0;
};

/// Trains the router of a top-p layer of Opinions on tokens of which every second one is hard, with
/// balance and entropy losses. The more experts, the smaller the error.
ExpertsPerToken train_top_p(double balance, double entropy) {
    constexpr Index half = tokens / 2, most_steps = 300, measured = 50;
    moe::Layer layer{moe::Config{.model_dim = dim, .seed = 1}, moe::LinearRouter{},
                     moe::TopP{.p = 0.9}, moe::experts(experts, Opinion{})};
    auto grad = moe::zeros_like(layer);
    moe::Workspace<float> ws;
    Matrix<float> x(half, dim), y(half, dim), dx(half, dim);
    ExpertsPerToken result;
    for (Index step = 0; step < most_steps; ++step) {
        const moe::CounterRandom random(9, 0, static_cast<std::uint64_t>(step));
        for (Index t = 0; t < half; ++t) {
            x(t, 0) = t % 2 != 0 ? 1.0F : 0.1F;
            x(t, 1) = t % 2 != 0 ? 0.0F : 1.0F;
            for (Index d = 2; d < dim; ++d) x(t, d) = static_cast<float>(random.normal(t, d));
        }
        layer.forward(x, y, ws);
        const Matrix<float> dy = y / static_cast<float>(half);
        for (Index t = 0; t < half; ++t) {
            const auto count = static_cast<double>(ws.routing().of(t).size());
            if (step == 0) result.at_first += count / half;
            if (step >= most_steps - measured)
                (t % 2 != 0 ? result.hard : result.easy) += count / (measured * half / 2);
        }
        moe::load_balance_loss(ws, balance);
        moe::entropy_loss(ws, entropy);
        moe::set_zero(grad);
        layer.backward(x, dy, dx, grad, ws);
        moe::for_each_parameter(layer, grad,
                                [](std::string_view, std::span<float> w, std::span<float> dw) {
                                    for (std::size_t i = 0; i < w.size(); ++i)
                                        w[i] = std::fma(-4.0F, dw[i], w[i]);
                                });
    }
    return result;
}

TEST(TopPInTraining, SpendsAllExpertsOnEveryTokenUnderABalanceLossAlone) {
    const ExpertsPerToken spent = train_top_p(0.01, 0);
    EXPECT_LT(spent.at_first, 6.5);
    EXPECT_GT(spent.easy, 7.5);
    EXPECT_GT(spent.hard, 7.5);
    RecordProperty("at_first", std::to_string(spent.at_first));
    RecordProperty("easy", std::to_string(spent.easy));
    RecordProperty("hard", std::to_string(spent.hard));
}

TEST(TopPInTraining, SpendsFewerExpertsOnEasyTokensThanOnHardOnesWithAnEntropyLoss) {
    const ExpertsPerToken spent = train_top_p(0.01, 0.03);
    EXPECT_LT(spent.easy, 3);
    EXPECT_GT(spent.hard, 6);
    RecordProperty("easy", std::to_string(spent.easy));
    RecordProperty("hard", std::to_string(spent.hard));
}

}  // namespace
}  // namespace training_test
