// SPDX-License-Identifier: MIT
#ifndef MOE_TESTS_EXPERTS_MANY_ROWS_HPP
#define MOE_TESTS_EXPERTS_MANY_ROWS_HPP

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>

#include <moe/core/concepts.hpp>
#include <moe/core/parameters.hpp>
#include <moe/experts/feed_forward.hpp>
#include <moe/testing/compare.hpp>
#include <moe/testing/random.hpp>

/// Steps of feed-forward experts on more rows than a part has.
namespace many_rows {

using moe::Index;
using moe::Matrix;

/// What one step leaves: y, dx, gradients of weights, inputs and parameters.
template <class S>
struct Step {
    Matrix<S> y, dx;
    std::vector<S> dweights, dinputs;
    std::vector<Matrix<S>> parameters;

    /// The first that has other bits, or nothing.
    std::string difference(const Step& other) const {
        const auto same = [](std::span<const S> a, std::span<const S> b) {
            return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
        };
        if (!moe::testing::same_bits(y, other.y)) return "y";
        if (!moe::testing::same_bits(dx, other.dx)) return "dx";
        if (!same(dweights, other.dweights)) return "gradient of weights";
        if (!same(dinputs, other.dinputs)) return "gradient of input weights";
        if (parameters.size() != other.parameters.size()) return "number of parameters";
        for (std::size_t i = 0; i < parameters.size(); ++i)
            if (!moe::testing::same_bits(parameters[i], other.parameters[i],
                                         {.allow_zeros = true}))  // an expert without rows
                return "gradient of parameter " + std::to_string(i);
        return "";
    }
};

/// 2100 rows, more than two parts, of five experts: one has more than a part, one has none. Tokens
/// are narrow: what is cut here is rows.
template <class S, class Recipe>
class ManyRows {
public:
    explicit ManyRows(const Recipe& recipe) {
        moe::Random random(3);
        group_ = recipe.template build<S>({.model_dim = dim, .output_dim = dim}, random);
        const Index sizes[] = {100, 0, 1600, 350, 50};
        for (const Index size : sizes) {
            for (Index i = 0; i < size; ++i)
                tokens_.push_back(static_cast<std::int32_t>(1600 * i / size));
            offsets_.push_back(offsets_.back() + size);
        }
        for (std::size_t r = 0; r < tokens_.size(); ++r) {
            weights_.push_back(static_cast<S>(r % 7) - S(2.5));
            inputs_.push_back(static_cast<S>(r % 5) / 2 - S(.75));
        }
    }

    /// @param together  experts of one call
    Step<S> step(moe::Keep keep, int threads, Index together = 5) const {
        moe::Workspace<S> ws;
        ws.threads(threads).keep(keep);
        Step<S> step{.y = Matrix<S>::Zero(1600, dim),
                     .dx = Matrix<S>::Zero(1600, dim),
                     .dweights = std::vector<S>(weights_.size()),
                     .dinputs = std::vector<S>(weights_.size()),
                     .parameters = {}};
        const moe::Rows<S> rows{.offsets = offsets_,
                                .from = tokens_,
                                .to = tokens_,
                                .weights = weights_,
                                .input_weights = inputs_};
        const auto in_calls = [&](auto&& call) {
            for (Index e = 0; e < 5; e += together)
                call(rows.experts(e, std::min<Index>(5, e + together)));
        };
        const moe::Context context;
        in_calls([&](const moe::Rows<S>& some) {
            group_.forward(x_, some, step.y, {context, ws});
        });
        auto grad = moe::zeros_like(group_);
        in_calls([&](const moe::Rows<S>& some) {
            group_.backward(x_, some, dy_, step.dx,
                            {.weights = step.dweights, .input_weights = step.dinputs}, grad,
                            {context, ws});
        });
        moe::visit_parameters(grad, [&](std::string_view, const auto& matrix, moe::Role) {
            step.parameters.emplace_back(matrix.view());
        });
        return step;
    }

private:
    static constexpr Index dim = 3;

    moe::FeedForwardModule<S> group_;
    std::vector<Index> offsets_{0};
    std::vector<std::int32_t> tokens_;
    std::vector<S> weights_, inputs_;
    Matrix<S> x_ = moe::testing::random_matrix<S>(1600, dim, 1),
              dy_ = moe::testing::random_matrix<S>(1600, dim, 2);
};

template <class S, class Recipe>
void expect_the_same_bits(const Recipe& recipe, const std::vector<int>& team_sizes) {
    const ManyRows<S, Recipe> rows(recipe);
    const Step<S> step = rows.step(moe::Keep::everything, 1);
    EXPECT_EQ(step.difference(Step<S>{}), "y");
    EXPECT_TRUE(step.dx.allFinite() && step.dx.norm() > 0);
    for (const int threads : team_sizes) {
        EXPECT_EQ(step.difference(rows.step(moe::Keep::everything, threads)), "") << threads;
        EXPECT_EQ(step.difference(rows.step(moe::Keep::recompute, threads)), "") << threads;
    }
    // Each call with one or two experts: its rows are cut into other parts.
    EXPECT_EQ(step.difference(rows.step(moe::Keep::everything, 2, 1)), "");
    EXPECT_EQ(step.difference(rows.step(moe::Keep::recompute, 1, 2)), "");
}

}  // namespace many_rows

#endif  // MOE_TESTS_EXPERTS_MANY_ROWS_HPP
