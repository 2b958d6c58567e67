// SPDX-License-Identifier: MIT
#ifndef MOE_TESTS_SUPPORT_EXPERT_GROUP_HPP
#define MOE_TESTS_SUPPORT_EXPERT_GROUP_HPP

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include <gtest/gtest.h>

#include <moe/core/concepts.hpp>
#include <moe/core/parameters.hpp>
#include <moe/testing/compare.hpp>
#include <moe/testing/finite_difference.hpp>
#include <moe/testing/random.hpp>

#include "support/allocations.hpp"
#include "support/dense_layer.hpp"

/// What every expert group must do, as functions that a test of one calls.

namespace expert_group {

using moe::Index;
using moe::Matrix;
using moe::Rows;
using moe::Workspace;

struct Extents {
    Index tokens = 11;
    Index model_dim = 19;
    Index output_dim = 19;
    Index experts = 4;  ///< 0: a shared group, which gets every token
    bool input_weights = true;
};

/// Tokens, and rows for a group: expert e works on about two tokens in three, expert 2 on none, odd
/// experts in falling order. The rows lie within longer arrays, other groups' rows before and
/// after.
template <class S>
struct Batch {
    Extents extents;
    Matrix<S> x, dy;  // [T, D], [T, O]
    std::vector<Index> offsets;
    std::vector<std::int32_t> tokens;
    std::vector<S> weights, input_weights;

    explicit Batch(const Extents& e, std::uint64_t seed = 1)
        : extents(e),
          x(moe::testing::random_matrix<S>(e.tokens, e.model_dim, 10 * seed)),
          dy(moe::testing::random_matrix<S>(e.tokens, e.output_dim, 10 * seed + 1)),
          tokens(before, 0) {
        std::uint64_t draw = 0;
        offsets.push_back(before);
        for (Index i = 0; i < std::max<Index>(e.experts, 1); ++i) {
            for (Index t = 0; t < e.tokens; ++t)
                if (e.experts == 0 ||
                    (i != 2 && moe::testing::random_value(10 * seed + 2, draw++) > -0.33))
                    tokens.push_back(static_cast<std::int32_t>(t));
            if (i % 2 == 1) std::reverse(tokens.begin() + offsets.back(), tokens.end());
            offsets.push_back(static_cast<Index>(tokens.size()));
        }
        tokens.resize(tokens.size() + after, 0);
        for (std::size_t r = 0; r < tokens.size(); ++r) {
            weights.push_back(static_cast<S>(moe::testing::random_value(10 * seed + 3, r)));
            if (e.input_weights)
                input_weights.push_back(
                    static_cast<S>(moe::testing::random_value(10 * seed + 4, r)));
        }
    }

    Rows<S> rows() const {
        return {.offsets = offsets,
                .from = tokens,
                .to = tokens,
                .weights = weights,
                .input_weights = input_weights};
    }
    bool owns(std::size_t r) const {
        return static_cast<Index>(r) >= offsets.front() && static_cast<Index>(r) < offsets.back();
    }
    /// f(e, r) for every row
    void for_each_row(auto&& f) const {
        for (std::size_t e = 0; e + 1 < offsets.size(); ++e)
            for (Index r = offsets[e]; r < offsets[e + 1]; ++r)
                f(static_cast<Index>(e), static_cast<std::size_t>(r));
    }

    static constexpr std::size_t before = 3, after = 2;
};

template <class S>
struct Result {
    Matrix<S> y, dx;
    std::vector<S> dweights, dinput_weights;  // NaN where not written
    std::vector<S> gradient;                  // all parameters, in visiting order
};

struct RunOptions {
    /// forward and backward run on experts [0, split) and then on the others; 0: on all at once.
    Index split = 0;
    /// What y, dx and the gradient hold before, times a random matrix.
    double start = 0;
    bool forward_only = false;
};

template <class S, class Part>
std::vector<S> values_of(const Part& part) {
    std::vector<S> values;
    moe::visit_parameters(part, [&](std::string_view, const auto& matrix, moe::Role) {
        values.insert(values.end(), matrix.data(), matrix.data() + matrix.size());
    });
    return values;
}

template <class S, class Group>
Result<S> run(const Group& group, const Batch<S>& batch, Workspace<S>& ws,
              RunOptions options = {}) {
    const moe::Context context;
    const moe::Call<S> call{context, ws};
    const Extents& e = batch.extents;
    const S nan = std::numeric_limits<S>::quiet_NaN();
    Result<S> result;
    result.y = Matrix<S>::Zero(e.tokens, e.output_dim);
    result.dx = Matrix<S>::Zero(e.tokens, e.model_dim);
    if (options.start != 0) {
        result.y = moe::testing::random_matrix<S>(e.tokens, e.output_dim, 71, options.start);
        result.dx = moe::testing::random_matrix<S>(e.tokens, e.model_dim, 72, options.start);
    }
    result.dweights.assign(batch.weights.size(), nan);
    result.dinput_weights.assign(batch.weights.size(), nan);

    std::vector<Rows<S>> parts{batch.rows()};
    if (options.split > 0)
        parts = {batch.rows().experts(0, options.split),
                 batch.rows().experts(options.split, batch.rows().num_experts())};
    for (const Rows<S>& rows : parts) group.forward(batch.x, rows, result.y, call);
    if constexpr (moe::TrainableGroup<Group, S>) {
        if (options.forward_only) return result;
        Group grad = moe::zeros_like(group);
        std::uint64_t draw = 0;
        moe::visit_parameters(grad, [&](std::string_view, auto& matrix, moe::Role) {
            for (Index i = 0; i < matrix.size() && options.start != 0; ++i)
                matrix.data()[i] =
                    static_cast<S>(options.start * moe::testing::random_value(73, draw++));
        });
        for (const Rows<S>& rows : parts)
            group.backward(batch.x, rows, batch.dy, result.dx,
                           {.weights = result.dweights, .input_weights = result.dinput_weights},
                           grad, call);
        result.gradient = values_of<S>(grad);
    }
    return result;
}

template <class S, class Group>
Result<S> run(const Group& group, const Batch<S>& batch, RunOptions options = {}) {
    moe::SerialExecutor serial;
    Workspace<S> ws(serial);
    return run(group, batch, ws, options);
}

template <class S>
void expect_same_bits(const Result<S>& a, const Result<S>& b) {
    using moe::testing::same_bits;
    const moe::testing::CompareOptions zeros{.allow_zeros = true};
    EXPECT_TRUE(same_bits(a.y, b.y, zeros)) << "y";
    EXPECT_TRUE(same_bits(a.dx, b.dx, zeros)) << "dx";
    EXPECT_TRUE(same_bits(a.dweights, b.dweights, zeros)) << "dweights";
    EXPECT_TRUE(same_bits(a.dinput_weights, b.dinput_weights, zeros)) << "dinput_weights";
    EXPECT_TRUE(same_bits(a.gradient, b.gradient, zeros)) << "gradient";
}

template <class S>
double tolerance() {
    return std::is_same_v<S, float> ? 3e-6 : 1e-14;
}

/// Compares forward and backward with the same experts in double, each evaluated for every token.
template <class S, class Group>
void expect_like_dense(const Group& group, const std::vector<dense::Expert>& experts,
                       const Batch<S>& batch, const moe::testing::CompareOptions& options = {}) {
    using moe::testing::compare;
    const Extents& e = batch.extents;
    const Index columns = std::max<Index>(e.experts, 1);
    dense::Matrix weights = dense::Matrix::Zero(e.tokens, columns),
                  input_weights(e.tokens, columns);
    input_weights.setOnes();
    batch.for_each_row([&](Index i, std::size_t r) {
        weights(batch.tokens[r], i) = batch.weights[r];
        if (e.input_weights) input_weights(batch.tokens[r], i) = batch.input_weights[r];
    });
    const dense::Matrix x = batch.x.template cast<double>(), dy = batch.dy.template cast<double>();
    const dense::Matrix y = dense::forward(experts, x, weights, e.output_dim, input_weights);
    const dense::Gradients wanted = dense::backward(experts, x, weights, dy, input_weights);

    const Result<S> got = run(group, batch);
    EXPECT_TRUE(compare(got.y, y, tolerance<S>(), options)) << "y";
    EXPECT_TRUE(compare(got.dx, wanted.dx, tolerance<S>(), options)) << "dx";
    std::vector<double> dweights, dinput, expected_dweights, expected_dinput;
    batch.for_each_row([&](Index i, std::size_t r) {
        dweights.push_back(got.dweights[r]);
        dinput.push_back(got.dinput_weights[r]);
        expected_dweights.push_back(wanted.dweights(batch.tokens[r], i));
        expected_dinput.push_back(wanted.dinput_weights(batch.tokens[r], i));
    });
    EXPECT_TRUE(compare(dweights, expected_dweights, tolerance<S>(), options)) << "dweights";
    EXPECT_TRUE(compare(dinput, expected_dinput, tolerance<S>(), options)) << "dinput_weights";

    std::vector<double> gradient;  // in visiting order, as values_of() has it
    for (dense::Expert expert : wanted.experts)
        expert.visit([&](std::string_view, const dense::Matrix& matrix) {
            gradient.insert(gradient.end(), matrix.data(), matrix.data() + matrix.size());
        });
    ASSERT_EQ(got.gradient.size(), gradient.size());
    if (!gradient.empty()) {
        EXPECT_TRUE(compare(got.gradient, gradient, tolerance<S>(), options)) << "gradient";
    }
}

/// Central differences of the sum of dy * y, at x, weights, input weights and every parameter.
template <class Group>
void expect_exact_gradients(Group group, const Extents& extents,
                            const moe::testing::GradientOptions& options = {}) {
    using moe::testing::check_gradient;
    Batch<double> batch(extents, 3);
    const auto loss = [&] {
        const Matrix<double> y = run(group, batch, {.forward_only = true}).y;
        double sum = 0;
        for (Index i = 0; i < y.size(); ++i) sum += y.data()[i] * batch.dy.data()[i];
        return sum;
    };
    Result<double> got = run(group, batch);
    EXPECT_TRUE(check_gradient(loss, batch.x, got.dx, options)) << "dx";
    const auto own = [&](std::vector<double>& values) {
        return std::span(values).subspan(batch.before, values.size() - batch.before - batch.after);
    };
    EXPECT_TRUE(check_gradient(loss, own(batch.weights), own(got.dweights), options)) << "dweights";
    if (extents.input_weights) {
        EXPECT_TRUE(
            check_gradient(loss, own(batch.input_weights), own(got.dinput_weights), options))
            << "dinput_weights";
    }

    std::size_t at = 0;
    moe::visit_parameters(group, [&](std::string_view name, auto& matrix, moe::Role role) {
        const auto size = static_cast<std::size_t>(matrix.size());
        if (role == moe::Role::trainable) {
            // An expert without rows has a gradient of zeros.
            moe::testing::GradientOptions own_options = options;
            const Index e = std::stoi(std::string(name));
            if (e < extents.experts && batch.rows().size(e) == 0) own_options.scale = 1;
            EXPECT_TRUE(check_gradient(loss, std::span<double>(matrix.data(), size),
                                       std::span(got.gradient).subspan(at, size), own_options))
                << std::string(name);
            at += size;
        }
    });
    EXPECT_EQ(at, got.gradient.size());
}

/// 1, 2, 3 and 7 threads, on a batch large enough to be worth them.
template <class S, class Group>
void expect_same_bits_for_any_thread_count(const Group& group, const Extents& extents) {
    const Batch<S> batch(extents, 5);
    const Result<S> expected = run(group, batch);
    EXPECT_TRUE(moe::testing::same_bits(expected.y, run(group, batch).y, {.allow_zeros = true}));
    for (const int threads : {1, 2, 3, 7}) {
        SCOPED_TRACE(threads);
        moe::ThreadPool pool(threads);
        Workspace<S> ws(pool);
        expect_same_bits(run(group, batch, ws), expected);
        expect_same_bits(run(group, batch, ws), expected);  // the workspace is dirty now
    }
}

template <class S, class Group>
void expect_same_bits_in_sub_ranges(const Group& group, const Extents& extents) {
    const Batch<S> batch(extents, 6);
    const Result<S> expected = run(group, batch);
    for (Index split = 1; split < batch.rows().num_experts(); ++split) {
        SCOPED_TRACE(split);
        expect_same_bits(run(group, batch, {.split = split}), expected);
    }
}

/// y, dx and parameter gradients are added to; gradients of weights are written, own rows only.
template <class S, class Group>
void expect_adds(const Group& group, const Extents& extents) {
    using moe::testing::compare;
    const Batch<S> batch(extents, 7);
    const Result<S> plain = run(group, batch), added = run(group, batch, {.start = 4});
    const moe::testing::CompareOptions zeros{.allow_zeros = true};
    const Matrix<S> y =
        plain.y + moe::testing::random_matrix<S>(extents.tokens, extents.output_dim, 71, 4);
    const Matrix<S> dx =
        plain.dx + moe::testing::random_matrix<S>(extents.tokens, extents.model_dim, 72, 4);
    EXPECT_TRUE(compare(added.y, y, tolerance<S>(), zeros)) << "y";
    EXPECT_TRUE(compare(added.dx, dx, tolerance<S>(), zeros)) << "dx";
    std::vector<S> gradient = plain.gradient;
    for (std::size_t i = 0; i < gradient.size(); ++i)
        gradient[i] += static_cast<S>(4 * moe::testing::random_value(73, i));
    EXPECT_TRUE(compare(added.gradient, gradient, tolerance<S>(), zeros)) << "gradient";
    EXPECT_TRUE(moe::testing::same_bits(added.dweights, plain.dweights, zeros));
    for (std::size_t r = 0; r < plain.dweights.size(); ++r) {
        EXPECT_EQ(std::isfinite(plain.dweights[r]), batch.owns(r)) << r;
        EXPECT_EQ(std::isfinite(plain.dinput_weights[r]), batch.owns(r)) << r;
    }
}

/// Everything but parameter gradients is the same if those are not wanted, all or some of them.
template <class S, class Group>
void expect_gradients_may_be_left_out(const Group& group, const Extents& extents) {
    using moe::testing::same_bits;
    const moe::testing::CompareOptions zeros{.allow_zeros = true};
    const Batch<S> batch(extents, 8);
    const moe::Context context;
    Workspace<S> ws;
    const moe::Call<S> call{context, ws};
    const Result<S> expected = run(group, batch, ws);
    const auto backward = [&](Group& grad, std::span<S> dinput) {
        Matrix<S> dx = Matrix<S>::Zero(extents.tokens, extents.model_dim);
        std::vector<S> dweights(batch.weights.size(), std::numeric_limits<S>::quiet_NaN());
        group.backward(batch.x, batch.rows(), batch.dy, dx,
                       {.weights = dweights, .input_weights = dinput}, grad, call);
        EXPECT_TRUE(same_bits(dx, expected.dx, zeros));
        EXPECT_TRUE(same_bits(dweights, expected.dweights, zeros));
    };
    Group none{};
    backward(none, {});

    std::vector<std::string> names;
    moe::visit_parameters(
        group, [&](std::string_view name, const auto&, moe::Role) { names.emplace_back(name); });
    for (const std::string& left_out : names) {
        SCOPED_TRACE(left_out);
        Group grad =
            moe::zeros_like(group, [&](std::string_view name) { return name != left_out; });
        backward(grad, {});
        std::size_t at = 0;
        moe::visit_parameters(group, [&](std::string_view name, const auto& matrix, moe::Role) {
            const auto size = static_cast<std::size_t>(matrix.size());
            moe::visit_parameters(grad, [&](std::string_view other, const auto& g, moe::Role) {
                if (other != name) return;
                if (name == left_out)
                    EXPECT_EQ(g.size(), 0);
                else
                    EXPECT_TRUE(same_bits(std::span(g.data(), size),
                                          std::span(expected.gradient).subspan(at, size), zeros));
            });
            at += size;
        });
    }
}

/// The second call of the same size allocates nothing, and neither does a smaller one.
template <class S, class Group>
void expect_no_allocation_in_the_second_call(const Group& group, const Extents& extents) {
    const Batch<S> batch(extents, 9);
    moe::SerialExecutor serial;
    Workspace<S> ws(serial);
    const moe::Context context;
    const moe::Call<S> call{context, ws};
    Matrix<S> y = Matrix<S>::Zero(extents.tokens, extents.output_dim);
    Matrix<S> dx = Matrix<S>::Zero(extents.tokens, extents.model_dim);
    std::vector<S> dweights(batch.weights.size()), dinput(batch.weights.size());
    Group grad = moe::zeros_like(group);
    const auto both = [&] {
        group.forward(batch.x, batch.rows(), y, call);
        group.backward(batch.x, batch.rows(), batch.dy, dx,
                       {.weights = dweights, .input_weights = dinput}, grad, call);
    };
    both();
    if (!allocations::are_counted) GTEST_SKIP() << "a sanitizer allocates here";
    EXPECT_EQ(allocations::in(both), 0);
}

}  // namespace expert_group

#endif  // MOE_TESTS_SUPPORT_EXPERT_GROUP_HPP
