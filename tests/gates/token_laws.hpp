// SPDX-License-Identifier: MIT
#ifndef TESTS_GATES_TOKEN_LAWS_HPP
#define TESTS_GATES_TOKEN_LAWS_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <numeric>
#include <span>
#include <stdexcept>
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

/// What every gate whose tokens choose for themselves must do, whatever its rule.
namespace gates_test {

using Experts = std::vector<Index>;

/// What a recipe says when it refuses to be built for so many experts; empty if it does not.
template <class Recipe>
std::string refusal(const Recipe& recipe, Index experts = 8) {
    try {
        build<double>(recipe, experts);
    } catch (const std::invalid_argument& error) {
        return error.what();
    }
    return {};
}

/// The experts of each token, in slot order.
template <class S, class Recipe>
std::vector<Experts> chosen(const Recipe& recipe, const moe::Matrix<S>& z,
                            const moe::Context& context = {}) {
    auto tokens = batch<S>(recipe, z.cols());
    tokens.context = context;
    tokens.route(z);
    std::vector<Experts> experts;
    for (Index t = 0; t < z.rows(); ++t) experts.push_back(tokens.experts_of(t));
    return experts;
}

/// Whether two routings name the same experts in the same slots.
inline bool same_experts(const moe::Routing& a, const moe::Routing& b) {
    const auto x = a.assignments(), y = b.assignments();
    return std::equal(x.begin(), x.end(), y.begin(), y.end(),
                      [](const moe::Assignment& one, const moe::Assignment& other) {
                          return one.token == other.token && one.expert == other.expert;
                      });
}

/// The gradient at the logits agrees with central differences of a sum of the weights.
/// @param z  moved and put back
template <class Recipe>
void expect_gradient(const Recipe& recipe, moe::Matrix<double> z,
                     const moe::Context& context = {}) {
    auto tokens = batch<double>(recipe, z.cols());
    tokens.context = context;
    tokens.route(z);
    const bool on_input = moe::hooks::weighs_input(tokens.gate);
    const moe::Routing plan = tokens.routing;
    const auto c = derivatives<double>(plan.num_assignments());
    const std::span<const double> given(c), none;
    const moe::Matrix<double> dz =
        tokens.backward(z, on_input ? none : given, on_input ? given : none);
    const auto loss = [&] {
        tokens.route(z);
        const auto all = tokens.routing.assignments();
        double sum = 0;
        for (std::size_t a = 0; a < std::min(c.size(), all.size()); ++a)
            sum += c[a] * (on_input ? all[a].input_weight : all[a].weight);
        return sum;
    };
    const auto same_branch = [&] { return same_experts(plan, tokens.routing); };
    EXPECT_TRUE(moe::testing::check_gradient(loss, z, dz, {.same_branch = same_branch}));
}

/// 1, 2, 3 and 7 threads give the same routing and gradient.
template <class S, class Recipe>
void expect_same_bits_for_any_thread_count(const Recipe& recipe, const moe::Context& context = {}) {
    const moe::Matrix<S> z = moe::testing::random_matrix<S>(2200, 37, 3, 4);
    auto serial = batch<S>(recipe, 37);
    serial.context = context;
    moe::SerialExecutor one;
    serial.ws.use(one);
    serial.route(z);
    const auto c = derivatives<S>(serial.routing.num_assignments());
    const moe::Matrix<S> dz = serial.backward(z, c);
    for (const int threads : {2, 3, 7}) {
        moe::ThreadPool pool(threads);
        auto other = batch<S>(recipe, 37);
        other.context = context;
        other.ws.use(pool);
        other.route(z);
        EXPECT_EQ(other.routing, serial.routing) << threads;
        EXPECT_TRUE(moe::testing::same_bits(other.backward(z, c), dz, {.allow_zeros = true}))
            << threads;
    }
}

/// A second call allocates nothing, and neither does a first one after reserve().
template <class S, class Recipe>
void expect_no_allocation(const Recipe& recipe, const moe::Context& context = {}) {
    constexpr Index tokens = 300, experts = 64;
    const moe::Matrix<S> z = moe::testing::random_matrix<S>(tokens, experts, 3, 4);
    const moe::Matrix<S> fewer = z.topRows(100);
    const std::vector<S> c(static_cast<std::size_t>(tokens * experts), S(1));
    moe::Matrix<S> dz = moe::Matrix<S>::Zero(tokens, experts);
    moe::SerialExecutor serial;
    for (const bool reserved : {false, true}) {
        auto drive = batch<S>(recipe, experts);
        drive.context = context;
        drive.ws.use(serial);
        auto grad = drive.gate;
        const auto once = [&](const moe::Matrix<S>& logits) {
            drive.route(logits);
            const auto count = static_cast<std::size_t>(drive.routing.num_assignments());
            drive.gate.backward(logits, drive.routing, {std::span(c).first(count), {}},
                                dz.topRows(logits.rows()), grad, drive.call());
        };
        if (reserved) {
            drive.routing.reserve(tokens, experts, tokens * experts);
            drive.gate.reserve(tokens, tokens * experts, drive.ws);
        }
        const long first = allocations::in([&] { once(z); });
        EXPECT_EQ(first > 0, allocations::are_counted && !reserved);
        EXPECT_EQ(allocations::in([&] { once(z), once(fewer); }), 0);
    }
}

/// reserve() takes as many bytes as workspace_bytes() says.
template <class Recipe>
void expect_bytes_as_said(const Recipe& recipe) {
    if (!allocations::are_counted) return;  // a sanitizer brings its own operator new
    auto drive = batch<float>(recipe, 64);
    moe::ThreadPool pool(3);
    drive.ws.use(pool);
    const long before = allocations::bytes_asked_for.load();
    drive.gate.reserve(3000, 6000, drive.ws);
    const long spent = allocations::bytes_asked_for.load() - before;
    const Index said = drive.gate.workspace_bytes(3000, 6000, moe::Keep::everything, 3);
    EXPECT_GE(spent, said);
    EXPECT_LE(spent, said + 1024);  // the nodes of the workspace
}

/// A batch in another order is routed, weighed and differentiated in that order.
template <class S, class Recipe>
void expect_token_permutation(const Recipe& recipe, const moe::Context& context = {}) {
    const moe::Matrix<S> z = moe::testing::random_matrix<S>(40, 12, 8, 2);
    const auto moved = [](Index t) { return (t * 7 + 3) % 40; };
    moe::Matrix<S> other(40, 12);
    for (Index t = 0; t < 40; ++t) other.row(moved(t)) = z.row(t);
    auto first = batch<S>(recipe, 12), second = batch<S>(recipe, 12);
    first.context = second.context = context;
    first.route(z);
    second.route(other);
    for (Index t = 0; t < 40; ++t) {
        EXPECT_EQ(first.experts_of(t), second.experts_of(moved(t)));
        EXPECT_EQ(first.weights_of(t), second.weights_of(moved(t)));
    }
}

/// No tokens; all logits -inf but two, and all; finite gradients whatever the masks.
template <class S, class Recipe>
void expect_masks_are_respected(const Recipe& recipe, const moe::Context& context = {}) {
    constexpr S dead = -std::numeric_limits<S>::infinity();
    auto tokens = batch<S>(recipe, 20);
    tokens.context = context;
    const moe::Matrix<S> nothing(0, 20);
    tokens.route(nothing);
    EXPECT_EQ(tokens.routing.num_assignments(), 0);
    EXPECT_EQ(tokens.backward(nothing, {}).rows(), 0);

    moe::Matrix<S> z = moe::Matrix<S>::Constant(3, 20, dead);
    z(0, 7) = S(1);
    z(0, 9) = S(1.5);
    z.row(2) = moe::testing::random_matrix<S>(1, 20, 4, 2);
    z(2, 3) = dead;
    tokens.route(z);
    for (const Index expert : tokens.experts_of(0)) EXPECT_TRUE(expert == 7 || expert == 9);
    EXPECT_TRUE(tokens.experts_of(1).empty());
    for (const Index expert : tokens.experts_of(2)) EXPECT_NE(expert, 3);
    for (const moe::Assignment& a : tokens.routing.assignments())
        EXPECT_TRUE(std::isfinite(a.weight));
    const moe::Matrix<S> dz = tokens.backward(z, derivatives<S>(tokens.routing.num_assignments()));
    EXPECT_TRUE(dz.allFinite());
    EXPECT_EQ(dz(2, 3), 0);
    for (Index e = 0; e < 20; ++e) {
        EXPECT_EQ(dz(1, e), 0);
        EXPECT_TRUE(dz(0, e) == 0 || e == 7 || e == 9);
    }
}

/// A NaN shows in its own row and in no other.
template <class S, class Recipe>
void expect_a_nan_shows(const Recipe& recipe, const moe::Context& context = {}) {
    moe::Matrix<S> z = golden_logits<S>();
    auto clean = batch<S>(recipe, 8), tokens = batch<S>(recipe, 8);
    clean.context = tokens.context = context;
    clean.route(z);
    z(0, 4) = std::numeric_limits<S>::quiet_NaN();
    z.row(2).fill(std::numeric_limits<S>::quiet_NaN());
    tokens.route(z);
    for (const Index t : {0, 2}) {
        EXPECT_FALSE(tokens.experts_of(t).empty());
        for (const moe::Assignment& a : tokens.routing.of(t))
            EXPECT_TRUE(std::isnan(a.weight) || std::isnan(a.input_weight));
    }
    for (const Index t : {1, 3}) {
        EXPECT_EQ(tokens.experts_of(t), clean.experts_of(t));
        EXPECT_EQ(tokens.weights_of(t), clean.weights_of(t));
    }
    const moe::Matrix<S> dz = tokens.backward(z, derivatives<S>(tokens.routing.num_assignments()));
    EXPECT_TRUE(dz.row(0).array().isNaN().all());
    EXPECT_TRUE(dz.row(1).allFinite() && dz.row(3).allFinite());
}

/// One expert, and no experts.
template <class S, class Recipe>
void expect_one_expert_works(const Recipe& recipe, const moe::Context& context = {}) {
    const moe::Matrix<S> z = rows<S>({{2}, {-3}});
    auto tokens = batch<S>(recipe, 1);
    tokens.context = context;
    tokens.route(z);
    EXPECT_EQ(tokens.experts_of(0), (Experts{0}));
    EXPECT_NE(refusal(recipe, 0), "");
}

/// All of the above that need nothing but the recipe.
template <class S, class Recipe>
void expect_token_laws(const Recipe& recipe, const moe::Context& context = {}) {
    expect_same_bits_for_any_thread_count<S>(recipe, context);
    expect_no_allocation<S>(recipe, context);
    expect_masks_are_respected<S>(recipe, context);
    expect_a_nan_shows<S>(recipe, context);
}

}  // namespace gates_test

#endif  // TESTS_GATES_TOKEN_LAWS_HPP
