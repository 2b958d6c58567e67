// SPDX-License-Identifier: MIT
#ifndef MOE_TESTS_GATES_BATCH_HPP
#define MOE_TESTS_GATES_BATCH_HPP

#include <initializer_list>
#include <span>
#include <utility>
#include <vector>

#include <moe/core/concepts.hpp>
#include <moe/core/hooks.hpp>
#include <moe/core/random.hpp>
#include <moe/core/routing.hpp>
#include <moe/core/workspace.hpp>
#include <moe/testing/random.hpp>

/// What tests of gates share: a batch driven through a gate as a head does it.
namespace gates_test {

using moe::Index;

template <class S>
moe::Matrix<S> rows(std::initializer_list<std::initializer_list<double>> values) {
    moe::Matrix<S> matrix(static_cast<Index>(values.size()),
                          values.size() == 0 ? 0 : static_cast<Index>(values.begin()->size()));
    Index t = 0;
    for (const auto& row : values) {
        Index e = 0;
        for (const double value : row) matrix(t, e++) = static_cast<S>(value);
        ++t;
    }
    return matrix;
}

/// Four tokens, eight experts; no ties.
template <class S>
moe::Matrix<S> golden_logits() {
    return rows<S>({{1.2, -0.3, 0.8, 0.1, -1.5, 2.0, 0.4, -0.7},
                    {0.0, 0.5, -0.5, 1.0, -1.0, 0.25, -0.25, 0.75},
                    {3.0, -2.0, -1.0, -3.0, -2.5, -1.5, -0.5, -4.0},
                    {0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8}});
}
inline constexpr double golden_bias[8] = {-0.30, 0.20, 0.05, -0.10, 0.40, -0.25, 0.00, 0.10};

template <class S, class Recipe>
auto build(const Recipe& recipe, Index experts) {
    moe::Random random(1, 1);
    const moe::Shape shape{
        .model_dim = 4, .num_experts = experts, .output_dim = 4, .num_logits = experts};
    return recipe.template build<S>(shape, random);
}

/// A gate with its workspace, context and last routing.
template <class S, class Gate>
struct Batch {
    Gate gate;
    moe::Context context{};
    moe::Workspace<S> ws{};
    moe::Routing routing{};

    explicit Batch(Gate module) : gate(std::move(module)) {}

    moe::Call<S> call() { return {context, ws}; }

    void select(moe::In<S> logits) {
        Index experts = logits.cols();
        if constexpr (requires { gate.num_experts(); }) experts = gate.num_experts();
        routing.reset(logits.rows(), experts);
        moe::hooks::select<S>(gate, logits, routing, call());
        routing.group();
    }
    void weigh(moe::In<S> logits) { moe::hooks::weigh<S>(gate, logits, routing, call()); }
    void route(moe::In<S> logits) {
        select(logits);
        weigh(logits);
    }
    /// Gradient at the logits of the loss with these derivatives at the weights.
    moe::Matrix<S> backward(moe::In<S> logits, std::span<const S> output,
                            std::span<const S> input = {}) {
        moe::Matrix<S> dlogits = moe::Matrix<S>::Zero(logits.rows(), logits.cols());
        Gate grad = gate;
        moe::hooks::backward<S>(gate, logits, routing, {output, input}, dlogits, grad, call());
        return dlogits;
    }

    std::vector<Index> experts_of(Index token) const {
        std::vector<Index> experts;
        for (const moe::Assignment& a : routing.of(token)) experts.push_back(a.expert);
        return experts;
    }
    std::vector<double> weights_of(Index token) const {
        std::vector<double> weights;
        for (const moe::Assignment& a : routing.of(token)) weights.push_back(a.weight);
        return weights;
    }
};

template <class S, class Recipe>
auto batch(const Recipe& recipe, Index experts) {
    auto gate = build<S>(recipe, experts);
    return Batch<S, decltype(gate)>(std::move(gate));
}

/// Derivatives for a loss: random, never 0.
template <class S>
std::vector<S> derivatives(Index count, unsigned seed = 3) {
    std::vector<S> values;
    for (Index a = 0; a < count; ++a)
        values.push_back(
            static_cast<S>(moe::testing::random_value(seed, static_cast<unsigned>(a))));
    return values;
}

}  // namespace gates_test

#endif  // MOE_TESTS_GATES_BATCH_HPP
