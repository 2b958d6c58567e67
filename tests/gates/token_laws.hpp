// SPDX-License-Identifier: MIT
#ifndef MOE_TESTS_GATES_TOKEN_LAWS_HPP
#define MOE_TESTS_GATES_TOKEN_LAWS_HPP

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include <gtest/gtest.h>

#include <moe/testing/compare.hpp>
#include <moe/testing/random.hpp>

#include "gates/batch.hpp"
#include "gates/laws.hpp"

/// What holds besides for every gate whose tokens choose for themselves, whatever its rule.
namespace gates_test {

using Experts = std::vector<Index>;

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

/// The gradient at the logits agrees with central differences of a sum of the weights.
template <class Recipe>
void expect_gradient(const Recipe& recipe, const moe::Matrix<double>& z,
                     const moe::Context& context = {}) {
    expect_exact_gradient(recipe, z, z.cols(), context);
}

/// 1, 2, 3 and 7 threads give the same routing and gradient.
template <class S, class Recipe>
void expect_same_bits_for_any_thread_count(const Recipe& recipe, const moe::Context& context = {}) {
    const auto z = moe::testing::random_matrix<S>(2200, 37, 3, 4);
    expect_same_bits_for_any_thread_count<S>(recipe, z, 37, context);
}

/// A second call allocates nothing, and neither does a first one after reserve().
template <class S, class Recipe>
void expect_no_allocation(const Recipe& recipe, const moe::Context& context = {}) {
    expect_no_allocation<S>(recipe, moe::testing::random_matrix<S>(300, 64, 3, 4), 64, context);
}

/// reserve() takes as many bytes as workspace_bytes() says.
template <class Recipe>
void expect_bytes_as_said(const Recipe& recipe) {
    expect_bytes_as_said<float>(recipe, 3000, 64, 3);
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
    const auto c = derivatives<S>(first.routing.num_assignments());
    std::vector<S> moved_c(c.size());
    for (Index t = 0; t < 40; ++t) {
        ASSERT_EQ(first.experts_of(t), second.experts_of(moved(t)));
        EXPECT_EQ(first.weights_of(t), second.weights_of(moved(t)));
        std::copy_n(c.begin() + first.routing.first(t), first.routing.of(t).size(),
                    moved_c.begin() + second.routing.first(moved(t)));
    }
    const moe::Matrix<S> dz = first.backward(z, c), other_dz = second.backward(other, moved_c);
    for (Index t = 0; t < 40; ++t) EXPECT_EQ(other_dz.row(moved(t)), dz.row(t));
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

#endif  // MOE_TESTS_GATES_TOKEN_LAWS_HPP
