// SPDX-License-Identifier: MIT
// Groups run on rows whose source and target are not the same token: rows that came from another
// process, slots that are mixtures of tokens, outputs of several tasks. And on a part of their
// experts at a time, as when the weights of the others are not there.

#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/constant.hpp>
#include <moe/experts/copy.hpp>
#include <moe/experts/each.hpp>
#include <moe/experts/mlp.hpp>
#include <moe/experts/swiglu.hpp>

#include "seams/check.hpp"
#include "support/dense_layer.hpp"

namespace foreign_rows_test {
namespace {

using moe::Call;
using moe::In;
using moe::Index;
using moe::Matrix;
using moe::Out;
using moe::Rows;
using moe::Workspace;

constexpr Index dim = 5, experts = 4, sources = 9, targets = 7;

/// Rows of `experts` experts, expert 2 without any. No expert has two rows with one target; a
/// source is read several times, also by one expert.
struct Batch {
    Matrix<double> x = moe::testing::random_matrix<double>(sources, dim, 1);
    Matrix<double> dy = moe::testing::random_matrix<double>(targets, dim, 2);
    std::vector<Index> offsets{0, 3, 5, 5, 10};
    std::vector<std::int32_t> from{8, 0, 8, 4, 1, 7, 7, 2, 0, 5};
    std::vector<std::int32_t> to{1, 6, 0, 6, 3, 0, 5, 6, 2, 1};
    std::vector<double> weights{0.5, -1, 0.25, 2, 0.75, 1.5, -0.5, 1, 0.3, 0.8};
    std::vector<double> input_weights{1, 0.5, 2, 1, -1, 0.7, 1.2, 1, 0.9, 1.1};
    std::vector<std::int64_t> ids{40, 41, 42, 43, 44, 45, 46, 47, 48, 49};

    Rows<double> rows() const {
        return {.offsets = offsets,
                .from = from,
                .to = to,
                .weights = weights,
                .input_weights = input_weights,
                .ids = ids};
    }
};

struct Result {
    Matrix<double> y = Matrix<double>::Zero(targets, dim);
    Matrix<double> dx = Matrix<double>::Zero(sources, dim);
    std::vector<double> dweights, dinput, gradient;
};

template <class Group>
Result run(const Group& group, const Batch& batch, bool piecewise = false) {
    Result result;
    const double nan = std::numeric_limits<double>::quiet_NaN();
    result.dweights.assign(batch.weights.size(), nan);
    result.dinput.assign(batch.weights.size(), nan);
    const moe::Context context;
    Workspace<double> ws;
    const Call<double> call{context, ws};
    std::vector<Rows<double>> parts{batch.rows()};
    if (piecewise) {
        parts.clear();
        for (Index e = 0; e < experts; ++e) parts.push_back(batch.rows().experts(e, e + 1));
    }
    for (const auto& rows : parts) group.forward(batch.x, rows, result.y, call);
    Group grad = moe::zeros_like(group);
    for (const auto& rows : parts)
        group.backward(batch.x, rows, batch.dy, result.dx,
                       {.weights = result.dweights, .input_weights = result.dinput}, grad, call);
    result.gradient = seams::values_of<double>(grad);
    return result;
}

/// y = scale * x
struct Scale {
    moe::Parameter<double> scale{1, dim};
    explicit Scale(std::uint64_t seed = 1) {
        scale.view() = moe::testing::random_matrix<double>(1, dim, seed);
    }
    void forward(In<double> x, Out<double> y) const { y = x * scale.view().row(0).asDiagonal(); }
    void backward(In<double> x, In<double> dy, Out<double> dx, Scale& grad) const {
        dx = dy * scale.view().row(0).asDiagonal();
        grad.scale.view() += x.cwiseProduct(dy).colwise().sum();
    }
    void visit_parameters(auto&& visit) { visit("scale", scale); }
};

template <class Recipe>
auto build(const Recipe& recipe) {
    moe::Random random(3);
    return moe::detail::built<Recipe, double>(
        recipe,
        {.model_dim = dim, .num_experts = experts, .output_dim = dim, .num_logits = experts},
        random);
}

template <class Group>
void expect_exact(Group group, bool has_parameters = true) {
    Batch batch;
    const auto loss = [&] {
        Matrix<double> y = Matrix<double>::Zero(targets, dim);
        const moe::Context context;
        Workspace<double> ws;
        group.forward(batch.x, batch.rows(), y, {context, ws});
        return seams::weighted_sum(y, batch.dy);
    };
    const Result result = run(group, batch);
    EXPECT_TRUE(moe::testing::check_gradient(loss, batch.x, result.dx));
    EXPECT_TRUE(moe::testing::check_gradient(loss, batch.weights, result.dweights));
    EXPECT_TRUE(moe::testing::check_gradient(loss, batch.input_weights, result.dinput));
    EXPECT_TRUE((result.dx.row(3).array() == 0).all()) << "nobody reads row 3";
    EXPECT_TRUE((result.y.row(4).array() == 0).all()) << "nobody writes row 4";
    if (!has_parameters) return;
    Group grad = moe::zeros_like(group);
    std::size_t at = 0;
    moe::visit_parameters(grad, [&](auto, auto& matrix, moe::Role) {
        std::copy_n(&result.gradient[at], matrix.size(), matrix.data());
        at += static_cast<std::size_t>(matrix.size());
    });
    seams::expect_parameter_gradients(loss, group, grad, seams::options());
}

template <class Group>
void expect_same_bits_piece_by_piece(const Group& group) {
    using moe::testing::same_bits;
    const Batch batch;
    const Result whole = run(group, batch), pieces = run(group, batch, true);
    EXPECT_TRUE(same_bits(pieces.y, whole.y));
    EXPECT_TRUE(same_bits(pieces.dx, whole.dx));
    EXPECT_TRUE(same_bits(pieces.dweights, whole.dweights));
    EXPECT_TRUE(same_bits(pieces.dinput, whole.dinput));
    EXPECT_TRUE(same_bits(pieces.gradient, whole.gradient));
}

const moe::Swiglu swiglu{.count = experts, .ffn_dim = 4};
const moe::Mlp mlp{
    .count = experts, .ffn_dim = 4, .activation = moe::Activation::gelu_tanh, .bias = true};
const moe::Constant constants{.count = experts};
const moe::Copy copies{.count = experts};
Scale scale(int seed) { return Scale(static_cast<std::uint64_t>(seed)); }
const auto scales = moe::each(std::vector<Scale>{scale(1), scale(2), scale(3), scale(4)});

TEST(ForeignRows, FeedForwardExpertsGiveTheDenseResult) {
    const Batch batch;
    const auto group = build(swiglu);
    Matrix<double> expected = Matrix<double>::Zero(targets, dim);
    const Rows<double> rows = batch.rows();
    for (Index e = 0; e < experts; ++e)
        for (Index r = rows.begin(e); r < rows.end(e); ++r) {
            const auto i = static_cast<std::size_t>(r);
            const auto out = dense::detail::expert_forward(
                dense::feed_forward_of(group, e),
                dense::detail::row(batch.x, batch.from[i], batch.input_weights[i]), dim);
            for (Index d = 0; d < dim; ++d)
                expected(batch.to[i], d) += batch.weights[i] * out[static_cast<std::size_t>(d)];
        }
    EXPECT_TRUE(moe::testing::compare(run(group, batch).y, expected, 1e-14));
}

TEST(ForeignRows, GradientsOfFeedForwardExpertsAreExact) {
    expect_exact(build(swiglu));
    expect_exact(build(mlp));
}
TEST(ForeignRows, GradientsOfFreeExpertsAreExact) {
    expect_exact(build(constants));
    expect_exact(build(copies), false);
}
TEST(ForeignRows, GradientsOfTheUsersExpertsAreExact) { expect_exact(build(scales)); }

TEST(ForeignRows, AscendingSubRangesOfExpertsGiveTheSameBits) {
    expect_same_bits_piece_by_piece(build(constants));
    expect_same_bits_piece_by_piece(build(copies));
    expect_same_bits_piece_by_piece(build(scales));
}
TEST(ForeignRows, AscendingSubRangesOfFeedForwardExpertsGiveTheSameBits) {
    expect_same_bits_piece_by_piece(build(swiglu));
    expect_same_bits_piece_by_piece(build(mlp));
}

}  // namespace
}  // namespace foreign_rows_test
