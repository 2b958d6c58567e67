// SPDX-License-Identifier: MIT
// The parallel parts run on an executor of the user's own.

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/each.hpp>
#include <moe/experts/swiglu.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/layer.hpp>
#include <moe/routers/linear.hpp>

#include "seams/check.hpp"

namespace user_executor_test {
namespace {

using moe::Index;
using moe::Matrix;
using moe::Workspace;

constexpr Index tokens = 96, dim = 48, experts = 4;

/// Starts its threads for every call, gives tasks out from the last to the first, and numbers its
/// workers as it likes.
class Backwards final : public moe::Executor {
public:
    explicit Backwards(int workers) : workers_(workers) {}
    int concurrency() const override { return workers_; }
    void run(Index tasks, moe::TaskRef task) override {
        ++runs;
        std::atomic<Index> left{tasks};
        std::vector<std::thread> threads;
        for (int worker = 0; worker < workers_; ++worker)
            threads.emplace_back([&, worker] {
                for (Index i = --left; i >= 0; i = --left) task(i, workers_ - 1 - worker);
            });
        for (std::thread& thread : threads) thread.join();
    }
    int runs = 0;

private:
    int workers_;
};

auto make() {
    return moe::Layer{moe::Config{.model_dim = dim, .seed = 1}, moe::LinearRouter{},
                      moe::TopK{.k = 2}, moe::Swiglu{.count = experts, .ffn_dim = 64}};
}
using Layer = decltype(make());

struct Results {
    Matrix<float> y{tokens, dim}, dx{tokens, dim};
    std::vector<float> gradient;
};

Results run(const Layer& layer, moe::Executor& executor) {
    const auto x = moe::testing::random_matrix<float>(tokens, dim, 1);
    const auto dy = moe::testing::random_matrix<float>(tokens, dim, 2);
    Results results;
    Workspace<float> ws(executor);
    Layer grad = moe::zeros_like(layer);
    layer.forward(x, results.y, ws);
    layer.backward(x, dy, results.dx, grad, ws);
    results.gradient = seams::values_of<float>(grad);
    return results;
}

TEST(UserExecutor, GivesTheSameBits) {
    const Layer layer = make();
    moe::SerialExecutor serial;
    const Results expected = run(layer, serial);
    for (const int workers : {2, 5}) {
        Backwards executor(workers);
        const Results results = run(layer, executor);
        EXPECT_GE(executor.runs, 4) << "the example should be worth threads";
        EXPECT_TRUE(moe::testing::same_bits(results.y, expected.y));
        EXPECT_TRUE(moe::testing::same_bits(results.dx, expected.dx));
        EXPECT_TRUE(moe::testing::same_bits(results.gradient, expected.gradient));
    }
}

TEST(UserExecutor, MayChangeBetweenForwardAndBackward) {
    const Layer layer = make();
    const auto x = moe::testing::random_matrix<float>(tokens, dim, 1);
    const auto dy = moe::testing::random_matrix<float>(tokens, dim, 2);
    moe::SerialExecutor serial;
    const Results expected = run(layer, serial);
    Backwards two(2), six(6);
    Workspace<float> ws(two);
    Matrix<float> y(tokens, dim), dx(tokens, dim);
    Layer grad = moe::zeros_like(layer);
    layer.forward(x, y, ws);
    ws.use(six);
    layer.backward(x, dy, dx, grad, ws);
    EXPECT_TRUE(moe::testing::same_bits(dx, expected.dx));
    EXPECT_TRUE(moe::testing::same_bits(seams::values_of<float>(grad), expected.gradient));
}

TEST(UserExecutor, IsLeftAloneWhereWorkIsNotWorthIt) {
    const moe::Layer layer{moe::Config{.model_dim = 8}, moe::LinearRouter{}, moe::TopK{.k = 1},
                           moe::Swiglu{.count = 2, .ffn_dim = 8}};
    Backwards executor(2);
    Workspace<float> ws(executor);
    Matrix<float> y(3, 8);
    layer.forward(moe::testing::random_matrix<float>(3, 8, 1), y, ws);
    EXPECT_EQ(executor.runs, 0);
}

/// An expert that does not like some of its tokens.
struct Picky {
    float limit = 0;
    void forward(moe::In<float> x, moe::Out<float> y) const {
        if (x(0, 0) > limit) throw std::runtime_error("too much");
        y = x;
    }
    void backward(moe::In<float>, moe::In<float> dy, moe::Out<float> dx, Picky&) const { dx = dy; }
    double flops_per_row() const { return 1e6; }
};

TEST(UserExecutor, AnExceptionOfAnExpertArrivesAtTheCaller) {
    moe::Layer layer{moe::Config{.model_dim = dim}, moe::LinearRouter{}, moe::TopK{.k = 2},
                     moe::each(std::vector<Picky>{{9}, {9}, {9}, {9}})};
    const auto x = moe::testing::random_matrix<float>(tokens, dim, 1);
    Matrix<float> y(tokens, dim), expected(tokens, dim);
    Backwards executor(3);
    Workspace<float> ws(executor);
    layer.forward(x, expected, ws);
    layer.bank().group<0>().expert(2).limit = -9;
    EXPECT_THROW(layer.forward(x, y, ws), std::runtime_error);
    EXPECT_GT(executor.runs, 0);
    // The layer and the workspace can be used again.
    layer.bank().group<0>().expert(2).limit = 9;
    layer.forward(x, y, ws);
    EXPECT_TRUE(moe::testing::same_bits(y, expected));
}

}  // namespace
}  // namespace user_executor_test
