// SPDX-License-Identifier: MIT
// One result, whoever computes it: bit for bit the same output, dx and parameter gradients for any
// number of threads, any executor, any instruction set, and whatever the workspace held.

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/constant.hpp>
#include <moe/experts/copy.hpp>
#include <moe/experts/each.hpp>
#include <moe/experts/mlp.hpp>
#include <moe/experts/shared.hpp>
#include <moe/experts/swiglu.hpp>
#include <moe/experts/zero.hpp>
#include <moe/frozen.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/gates/top_p.hpp>
#include <moe/kernels/dispatch.hpp>
#include <moe/losses/load_balance.hpp>
#include <moe/routers/linear.hpp>

#include "seams/check.hpp"

namespace bits_test {
namespace {

using moe::Index;
using moe::Matrix;
using moe::Workspace;
using moe::testing::random_matrix;
using moe::testing::same_bits;

constexpr Index tokens = 83, dim = 45;  // worth threads, and not a multiple of anything

/// y = scale * x
struct Scale {
    moe::Parameter<float> scale{1, dim};
    void forward(moe::In<float> x, moe::Out<float> y) const {
        for (Index t = 0; t < x.rows(); ++t)
            for (Index d = 0; d < dim; ++d) y(t, d) = scale(0, d) * x(t, d);
    }
    void backward(moe::In<float> x, moe::In<float> dy, moe::Out<float> dx, Scale& grad) const {
        for (Index t = 0; t < x.rows(); ++t)
            for (Index d = 0; d < dim; ++d) {
                dx(t, d) = scale(0, d) * dy(t, d);
                grad.scale(0, d) = std::fma(x(t, d), dy(t, d), grad.scale(0, d));
            }
    }
    void visit_parameters(auto&& visit) { visit("scale", scale); }
};

template <class Gate>
auto make(const Gate& gate) {
    Scale own;
    own.scale.view().setConstant(0.75f);
    return moe::Layer{
        moe::Config{.model_dim = dim, .input_scale = 2, .seed = 6},
        moe::LinearRouter{.bias = true},
        gate,
        moe::Swiglu{.count = 4, .ffn_dim = 77},
        moe::Mlp{.count = 2, .ffn_dim = 50, .activation = moe::Activation::gelu, .bias = true},
        moe::Zero{},
        moe::Copy{},
        moe::Constant{.count = 2},
        moe::experts(2, own),
        moe::Shared{moe::Swiglu{.count = 2, .ffn_dim = 40}, moe::SharedGate::sigmoid}};
}
const moe::TopK top3{.k = 3};
const moe::TopP most{.p = 0.7};
const moe::TopK llama{.k = 2,
                      .score = moe::Score::sigmoid,
                      .normalize = moe::Normalize::none,
                      .placement = moe::Placement::input};

struct Result {
    Matrix<float> y{tokens, dim}, dx{tokens, dim};
    std::vector<float> gradient;
    moe::Routing routing;
};

template <class Layer>
Result run(const Layer& layer, Workspace<float>& ws) {
    const auto x = random_matrix<float>(tokens, dim, 1), dy = random_matrix<float>(tokens, dim, 2);
    Result result;
    Layer grad = moe::zeros_like(layer);
    layer.forward(x, result.y, ws);
    moe::load_balance_loss(ws, 0.01);
    layer.backward(x, dy, result.dx, grad, ws);
    result.gradient = seams::values_of<float>(grad);
    result.routing = ws.routing();
    return result;
}
template <class Layer>
Result run_serially(const Layer& layer) {
    moe::SerialExecutor serial;
    Workspace<float> ws(serial);
    return run(layer, ws);
}

void expect_same(const Result& a, const Result& b) {
    EXPECT_TRUE(same_bits(a.y, b.y)) << "y";
    EXPECT_TRUE(same_bits(a.dx, b.dx)) << "dx";
    EXPECT_TRUE(same_bits(a.gradient, b.gradient)) << "gradient";
    EXPECT_TRUE(a.routing == b.routing);
}

template <class Layer>
void expect_same_with(const Layer& layer, moe::Executor& executor, const Result& expected) {
    Workspace<float> ws(executor);
    expect_same(run(layer, ws), expected);
    expect_same(run(layer, ws), expected);  // and again in a workspace that has been used
}

template <class Layer>
void expect_same_for_any_executor(const Layer& layer) {
    const Result expected = run_serially(layer);
    Workspace<float> standard;
    expect_same(run(layer, standard), expected);
    for (const int threads : {1, 2, 3, 7}) {
        SCOPED_TRACE(threads);
        moe::ThreadPool pool(threads);
        expect_same_with(layer, pool, expected);
        Workspace<float> own;
        own.threads(threads);
        expect_same(run(layer, own), expected);
#if defined(_OPENMP)
        moe::OpenMpExecutor team(threads);
        expect_same_with(layer, team, expected);
#endif
    }
}

TEST(Bits, DoNotDependOnThreadsWithTopK) { expect_same_for_any_executor(make(top3)); }
TEST(Bits, DoNotDependOnThreadsWithTopP) { expect_same_for_any_executor(make(most)); }
TEST(Bits, DoNotDependOnThreadsWithInputWeights) { expect_same_for_any_executor(make(llama)); }

template <class Layer>
void expect_same_on_every_instruction_set(const Layer& layer) {
    Result expected;
    {
        moe::ScopedIsa scalar(moe::Isa::scalar);
        expected = run_serially(layer);
    }
    const auto x = random_matrix<float>(tokens, dim, 1);
    for (const moe::Isa isa : moe::supported_isas()) {
        SCOPED_TRACE(moe::name(isa));
        moe::ScopedIsa forced(isa);
        expect_same(run_serially(layer), expected);
        // Packed weights: for the instruction set in use, and still so when it is another.
        const auto frozen = moe::freeze(layer);
        EXPECT_TRUE(same_bits(frozen(x), expected.y));
        moe::ScopedIsa other(moe::Isa::scalar);
        EXPECT_TRUE(same_bits(frozen(x), expected.y));
    }
}

TEST(Bits, DoNotDependOnTheInstructionSet) {
    expect_same_on_every_instruction_set(make(top3));
    expect_same_on_every_instruction_set(make(most));
    expect_same_on_every_instruction_set(make(llama));
}

TEST(Bits, DoNotDependOnWhatTheWorkspaceHeld) {
    const auto layer = make(top3);
    const Result expected = run_serially(layer);
    const auto frozen = moe::freeze(layer);
    moe::SerialExecutor serial;
    Workspace<float> ws(serial);
    for (const Index other : {200, 3, 0, 84}) {
        SCOPED_TRACE(other);
        const auto x = random_matrix<float>(other, dim, 5);
        Matrix<float> y(other, dim), dx(other, dim);
        layer.forward(x, y, ws);
        layer.backward(x, y, dx, moe::no_gradient, ws);
        expect_same(run(layer, ws), expected);
        frozen.forward(x, y, ws);
        expect_same(run(layer, ws), expected);
        layer.forward(x, y, ws, {.dial = {.k = 9}});
        expect_same(run(layer, ws), expected);
        // Not a number leaves no trace.
        const Matrix<float> bad = Matrix<float>::Constant(other, dim, std::nanf(""));
        layer.forward(bad, y, ws);
        layer.backward(bad, y, dx, moe::no_gradient, ws);
        expect_same(run(layer, ws), expected);
    }
}

TEST(Bits, DoNotDependOnKeeping) {
    const auto layer = make(top3);
    const Result expected = run_serially(layer);
    Workspace<float> ws;
    ws.keep(moe::Keep::nothing);
    Matrix<float> y(tokens, dim);
    layer.forward(random_matrix<float>(tokens, dim, 1), y, ws);
    EXPECT_TRUE(same_bits(y, expected.y));
}

TEST(Bits, DoNotDependOnComputingAgainWhatWasNotKept) {
    const auto expect_same_if_recomputed = [](const auto& layer) {
        const Result expected = run_serially(layer);
        for (const int threads : {1, 3}) {
            Workspace<float> ws;
            ws.threads(threads).keep(moe::Keep::recompute);
            expect_same(run(layer, ws), expected);
            ws.keep(moe::Keep::everything);
            expect_same(run(layer, ws), expected);
            ws.keep(moe::Keep::recompute);
            expect_same(run(layer, ws), expected);
        }
    };
    expect_same_if_recomputed(make(top3));
    expect_same_if_recomputed(make(most));
    expect_same_if_recomputed(make(llama));
}

/// What counts is what forward was told, not what the workspace is told since.
TEST(Bits, DoNotDependOnWhatIsKeptFromTheNextForwardPassOn) {
    const auto layer = make(top3);
    const auto x = random_matrix<float>(tokens, dim, 1), dy = random_matrix<float>(tokens, dim, 2);
    Matrix<float> y(tokens, dim), dx[2] = {{tokens, dim}, {tokens, dim}};
    std::vector<float> gradients[2];
    for (const int i : {0, 1}) {
        Workspace<float> ws;
        auto grad = moe::zeros_like(layer);
        ws.keep(i == 0 ? moe::Keep::everything : moe::Keep::recompute);
        layer.forward(x, y, ws);
        ws.keep(i == 0 ? moe::Keep::recompute : moe::Keep::everything);
        layer.backward(x, dy, dx[i], grad, ws);
        gradients[i] = seams::values_of<float>(grad);
    }
    EXPECT_TRUE(same_bits(dx[0], dx[1]));
    EXPECT_TRUE(same_bits(gradients[0], gradients[1]));
}

TEST(Bits, AreTheSameFromManyThreadsWithAWorkspaceEach) {
    const auto layer = make(top3);
    const Result expected = run_serially(layer);
    std::vector<Result> results(3);
    std::vector<std::thread> threads;
    for (Result& result : results)
        threads.emplace_back([&layer, &result] { result = run_serially(layer); });
    for (std::thread& thread : threads) thread.join();
    for (const Result& result : results) expect_same(result, expected);
}

TEST(Bits, OfWeightsInOneSpanAreTheSame) {
    auto layer = make(top3);
    const Result expected = run_serially(layer);
    moe::flatten(layer);
    expect_same(run_serially(layer), expected);
}

}  // namespace
}  // namespace bits_test
