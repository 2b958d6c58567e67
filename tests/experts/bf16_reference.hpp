// SPDX-License-Identifier: MIT
#ifndef MOE_TESTS_EXPERTS_BF16_REFERENCE_HPP
#define MOE_TESTS_EXPERTS_BF16_REFERENCE_HPP

#include <cmath>

#include <moe/core/types.hpp>
#include <moe/experts/glu.hpp>
#include <moe/experts/in_bf16.hpp>
#include <moe/experts/mlp.hpp>
#include <moe/experts/swiglu.hpp>
#include <moe/kernels/storage_reference.hpp>

#include "support/expert_group.hpp"

/// Products of operands rounded to bf16, in double, and how far off a float may be.
namespace bf16_reference {

using moe::Index;
using moe::Matrix;
using Double = Matrix<double>;

/// Each element rounded to bf16.
template <class M>
Double rounded(const M& matrix) {
    Double result(matrix.rows(), matrix.cols());
    for (Index i = 0; i < matrix.rows(); ++i)
        for (Index j = 0; j < matrix.cols(); ++j)
            result(i, j) = double(moe::exact::round_to_bf16(matrix(i, j)));
    return result;
}

/// A product and the most that its kernel may be off, element by element.
///
/// A product of two bf16 is exact in float. Its chain has 16 sums, each rounded to within 2^-24 of
/// itself, then come the sum of two chains and one sum for each 32 of k. No partial sum is larger
/// than the sum of the magnitudes, up to those roundings, for which one sum more is counted. What
/// is flushed is below 2^-126 each time.
struct Product {
    Double value, bound;

    Product(const Double& a, const Double& b) : value(a.lazyProduct(b)) {
        const double sums = 16 + 1 + std::ceil(static_cast<double>(a.cols()) / 32) + 1;
        bound = a.cwiseAbs().lazyProduct(b.cwiseAbs()) * (sums * 0x1p-24);
        bound.array() += static_cast<double>(a.cols() + 1) * 0x1p-125;
    }
    /// Each row i times factors(i), and that rounded to within 2^-24.
    void scale_rows(const Eigen::VectorXd& factors) {
        value = factors.asDiagonal() * value;
        bound = factors.cwiseAbs().asDiagonal() * bound + value.cwiseAbs() * 0x1p-24;
    }
    /// Adds a row to each, rounded.
    void add_to_rows(const Eigen::RowVectorXd& row) {
        value.rowwise() += row;
        bound += value.cwiseAbs() * 0x1p-24 + bound * 0x1p-24;
    }
};

/// The experts under test: of primes, of ones, around the widths of vectors.
struct Extents {
    Index dim, ffn, out, tokens;
};
inline constexpr Extents extents[] = {{1, 1, 1, 1},    {1, 17, 1, 2},     {17, 1, 17, 5},
                                      {37, 41, 29, 3}, {64, 128, 64, 40}, {65, 63, 127, 70},
                                      {129, 67, 31, 1}};

inline expert_group::Extents batch_of(const Extents& e, bool input_weights) {
    return {.tokens = e.tokens,
            .model_dim = e.dim,
            .output_dim = e.out,
            .experts = 4,
            .input_weights = input_weights};
}

inline moe::FeedForwardModule<float> swiglu(const Extents& e,
                                            moe::Compute compute = moe::Compute::bf16) {
    moe::Random random(3);
    const moe::Shape shape{.model_dim = e.dim, .output_dim = e.out};
    const moe::Swiglu experts{.count = 4, .ffn_dim = e.ffn};
    return compute == moe::Compute::bf16 ? moe::InBf16{experts}.build<float>(shape, random)
                                         : experts.build<float>(shape, random);
}

inline moe::FeedForwardModule<float> mlp(const Extents& e,
                                         moe::Compute compute = moe::Compute::bf16) {
    moe::Random random(4);
    const moe::Shape shape{.model_dim = e.dim, .output_dim = e.out};
    const moe::Mlp experts{
        .count = 4, .ffn_dim = e.ffn, .activation = moe::Activation::gelu, .bias = true};
    auto group = compute == moe::Compute::bf16 ? moe::InBf16{experts}.build<float>(shape, random)
                                               : experts.build<float>(shape, random);
    group.up_bias.fill_normal(random, 1);
    group.down_bias.fill_normal(random, 1);
    return group;
}

/// Gated, with biases and bounds that a part of the values exceeds.
inline moe::FeedForwardModule<float> glu(const Extents& e) {
    moe::Random random(5);
    auto group = moe::InBf16{moe::Glu{.count = 4,
                                      .ffn_dim = e.ffn,
                                      .activation = moe::Activation::quick_gelu,
                                      .bias = true,
                                      .limit = 0.75,
                                      .up_offset = 1}}
                     .build<float>({.model_dim = e.dim, .output_dim = e.out}, random);
    for (auto* bias : {&group.gate_bias, &group.up_bias, &group.down_bias})
        bias->fill_normal(random, 1);
    return group;
}

/// f(group, batch) for gated and plain experts of all extents, with and without input weights.
template <class F>
void each_case(const F& f) {
    for (const Extents& e : extents)
        for (const bool input_weights : {false, true}) {
            SCOPED_TRACE(std::to_string(e.dim) + " " + std::to_string(e.ffn) + " " +
                         std::to_string(e.out) + " with " + std::to_string(e.tokens) + " tokens");
            const expert_group::Batch<float> batch(batch_of(e, input_weights));
            f(swiglu(e), batch);
            f(mlp(e), batch);
            f(glu(e), batch);
        }
}

/// Rows of one expert.
struct Rows {
    Matrix<float> x, dy;                     // [n, D] times input weights, [n, O]
    Eigen::VectorXd weights, input_weights;  // [n]
    Index first;                             // number of the first one

    Rows(const expert_group::Batch<float>& batch, Index e) {
        const moe::Rows<float> rows = batch.rows();
        first = rows.begin(e);
        const Index n = rows.size(e);
        x.resize(n, batch.x.cols()), dy.resize(n, batch.dy.cols());
        weights.resize(n), input_weights.resize(n);
        for (Index i = 0; i < n; ++i) {
            const auto row = static_cast<std::size_t>(first + i);
            const float factor = rows.input_weight(first + i);
            x.row(i) = factor * batch.x.row(rows.from[row]);
            dy.row(i) = batch.dy.row(rows.to[row]);
            weights(i) = double(rows.weights[row]);
            input_weights(i) = double(factor);
        }
    }
};

}  // namespace bf16_reference

#endif  // MOE_TESTS_EXPERTS_BF16_REFERENCE_HPP
