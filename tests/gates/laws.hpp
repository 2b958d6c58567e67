// SPDX-License-Identifier: MIT
#ifndef MOE_TESTS_GATES_LAWS_HPP
#define MOE_TESTS_GATES_LAWS_HPP

#include <algorithm>
#include <cstddef>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <moe/core/executor.hpp>
#include <moe/testing/compare.hpp>
#include <moe/testing/finite_difference.hpp>
#include <moe/testing/random.hpp>

#include "gates/batch.hpp"
#include "support/allocations.hpp"
#include "support/message.hpp"

/// What holds for every gate, as functions of a recipe, a batch of logits, the number of experts
/// and a context.
namespace gates_test {

// ---- what the laws and the tests look at ----

/// What a recipe says when it refuses to be built for so many experts; empty if it does not.
template <class Recipe>
std::string refusal(const Recipe& recipe, Index experts = 8) {
    return support::message([&] { build<double>(recipe, experts); });
}

/// The routing of one batch.
template <class S, class Recipe>
moe::Routing routed(const Recipe& recipe, const moe::Matrix<S>& z, Index experts,
                    const moe::Context& context) {
    auto tokens = batch<S>(recipe, experts);
    tokens.context = context;
    tokens.route(z);
    return tokens.routing;
}

/// Whether two routings hold the same choices and drops.
inline bool same_choices(const moe::Routing& a, const moe::Routing& b) {
    const auto one = a.assignments(), other = b.assignments();
    return std::equal(one.begin(), one.end(), other.begin(), other.end(),
                      [](const moe::Assignment& x, const moe::Assignment& y) {
                          return x.token == y.token && x.expert == y.expert &&
                                 x.dropped == y.dropped;
                      });
}

// ---- the laws ----

/// Central differences of sum c w, choices held; and backward adds.
/// @param scale  see GradientOptions; 0 where no derivative vanishes
template <class Recipe>
void expect_exact_gradient(const Recipe& recipe, moe::Matrix<double> z, Index experts,
                           const moe::Context& context = {}, double scale = 0) {
    auto tokens = batch<double>(recipe, experts);
    tokens.context = context;
    tokens.route(z);
    const moe::Routing plan = tokens.routing;
    auto c = derivatives<double>(plan.num_assignments());
    ASSERT_FALSE(c.empty());
    for (std::size_t a = 0; a < c.size(); ++a)  // what is dropped reaches no expert
        if (plan.assignments()[a].dropped != moe::Dropped::no) c[a] = 0;
    const bool on_input = moe::hooks::weighs_input(tokens.gate);
    moe::WeightGradients<double> dweights{c, {}};
    if (on_input) std::swap(dweights.output, dweights.input);
    const moe::Matrix<double> dz = tokens.backward(z, dweights.output, dweights.input);

    const auto before = moe::testing::random_matrix<double>(z.rows(), z.cols(), 77);
    moe::Matrix<double> added = before;
    auto grad = tokens.gate;
    moe::hooks::backward<double>(tokens.gate, z, tokens.routing, dweights, added, grad,
                                 tokens.call());
    EXPECT_TRUE(moe::testing::compare(added, before + dz, 1e-14)) << "backward adds";

    const auto loss = [&] {
        tokens.route(z);
        const auto now = tokens.routing.assignments();
        double sum = 0;
        for (std::size_t a = 0; a < std::min(c.size(), now.size()); ++a)
            if (c[a] != 0) sum += c[a] * (on_input ? now[a].input_weight : now[a].weight);
        return sum;
    };
    const auto same_branch = [&] { return same_choices(tokens.routing, plan); };
    EXPECT_TRUE(
        moe::testing::check_gradient(loss, z, dz, {.scale = scale, .same_branch = same_branch}));
}

/// Routing and gradient do not depend on who computes them.
template <class S, class Recipe>
void expect_same_bits_for_any_thread_count(const Recipe& recipe, const moe::Matrix<S>& z,
                                           Index experts, const moe::Context& context) {
    auto serial = batch<S>(recipe, experts);
    serial.context = context;
    moe::SerialExecutor one;
    serial.ws.use(one);
    serial.route(z);
    const auto c = derivatives<S>(serial.routing.num_assignments());
    const moe::Matrix<S> dz = serial.backward(z, c);
    EXPECT_TRUE((dz.array() != 0).any());
    for (const int threads : {1, 2, 3, 7}) {
        moe::ThreadPool pool(threads);
        auto other = batch<S>(recipe, experts);
        other.context = context;
        other.ws.use(pool);
        other.route(z);
        EXPECT_EQ(other.routing, serial.routing) << threads;
        EXPECT_TRUE(moe::testing::same_bits(other.backward(z, c), dz, {.allow_zeros = true}))
            << threads;
    }
}

/// reserve() takes as many bytes as workspace_bytes() says.
template <class S, class Recipe>
void expect_bytes_as_said(const Recipe& recipe, Index tokens, Index experts, int threads) {
    if (!allocations::are_counted) return;  // a sanitizer brings its own operator new
    auto drive = batch<S>(recipe, experts);
    moe::ThreadPool pool(threads);
    drive.ws.use(pool);
    const long before = allocations::bytes_asked_for.load();
    drive.gate.reserve(tokens, 2 * tokens, drive.ws);
    const long spent = allocations::bytes_asked_for.load() - before;
    const Index said =
        drive.gate.workspace_bytes(tokens, 2 * tokens, moe::Keep::everything, threads);
    EXPECT_GE(spent, said);
    EXPECT_LE(spent, said + 1024);  // the nodes of the workspace
}

/// None in a second call, nor in a first one after reserve(), which takes the bytes that the gate
/// says.
template <class S, class Recipe>
void expect_no_allocation(const Recipe& recipe, const moe::Matrix<S>& z, Index experts,
                          const moe::Context& context) {
    moe::Matrix<S> dz = moe::Matrix<S>::Zero(z.rows(), z.cols());
    const std::vector<S> c(static_cast<std::size_t>(z.rows() * experts), S(1));
    moe::SerialExecutor serial;
    for (const bool reserved : {false, true}) {
        auto drive = batch<S>(recipe, experts);
        drive.context = context;
        drive.ws.use(serial);
        auto grad = drive.gate;
        if (reserved) {
            drive.routing.reserve(z.rows(), experts, z.rows() * experts);
            drive.gate.reserve(z.rows(), z.rows() * experts, drive.ws);
        }
        const auto once = [&] {
            drive.route(z);
            const auto count = static_cast<std::size_t>(drive.routing.num_assignments());
            moe::hooks::backward<S>(drive.gate, z, drive.routing, {std::span(c).first(count), {}},
                                    dz, grad, drive.call());
        };
        EXPECT_EQ(allocations::in(once) > 0, allocations::are_counted && !reserved);
        EXPECT_EQ(allocations::in(once), 0) << reserved;
    }
    expect_bytes_as_said<S>(recipe, z.rows(), experts, 1);
}

/// Noise depends on seed, stream, step and token, and on nothing else.
template <class S, class Recipe>
void expect_noise_by_address(const Recipe& recipe, const moe::Matrix<S>& z, Index experts,
                             const moe::Context& context = {.training = true, .seed = 7}) {
    const moe::Routing whole = routed(recipe, z, experts, context);
    EXPECT_EQ(routed(recipe, z, experts, context), whole);
    moe::Context other = context;
    other.seed += 1;
    EXPECT_FALSE(routed(recipe, z, experts, other) == whole);
    other = context;
    other.stream += 1;
    EXPECT_FALSE(routed(recipe, z, experts, other) == whole);
    other = context;
    other.step += 1;
    EXPECT_FALSE(routed(recipe, z, experts, other) == whole);

    const Index half = z.rows() / 2;
    other = context;
    other.first_token += half;
    const moe::Matrix<S> rest = z.bottomRows(z.rows() - half);
    const moe::Routing second = routed(recipe, rest, experts, other);
    EXPECT_FALSE(second == routed(recipe, rest, experts, context));
    for (Index t = half; t < z.rows(); ++t) {
        const auto a = whole.of(t), b = second.of(t - half);
        EXPECT_TRUE(std::equal(a.begin(), a.end(), b.begin(), b.end(),
                               [](const moe::Assignment& x, const moe::Assignment& y) {
                                   return x.expert == y.expert && x.weight == y.weight &&
                                          x.dropped == y.dropped;
                               }))
            << t;
    }
}

/// The same whatever seed and step are.
template <class S, class Recipe>
void expect_no_noise(const Recipe& recipe, const moe::Matrix<S>& z, Index experts,
                     const moe::Context& context = {}) {
    moe::Context other = context;
    other.seed += 5;
    other.step += 5;
    EXPECT_EQ(routed(recipe, z, experts, context), routed(recipe, z, experts, other));
}

/// Nothing happens with no tokens.
template <class S, class Recipe>
void expect_no_tokens_route(const Recipe& recipe, Index experts, Index logits,
                            moe::Context context = {}) {
    for (const bool training : {false, true}) {
        context.training = training;
        auto tokens = batch<S>(recipe, experts);
        tokens.context = context;
        const moe::Matrix<S> z(0, logits);
        tokens.route(z);
        EXPECT_EQ(tokens.routing.num_assignments(), 0);
        EXPECT_EQ(tokens.backward(z, {}).rows(), 0);
    }
}

}  // namespace gates_test

#endif  // MOE_TESTS_GATES_LAWS_HPP
