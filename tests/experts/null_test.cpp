// SPDX-License-Identifier: MIT
#include <moe/experts/null.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <stdexcept>
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/copy.hpp>
#include <moe/experts/zero.hpp>
#include <moe/layer.hpp>

#include "support/expert_group.hpp"

namespace null_test {
namespace {

using moe::Index;
using moe::Matrix;
using moe::Random;
using moe::Shape;

static_assert(moe::TrainableGroup<moe::NullModule<float>>);

template <class S>
moe::NullModule<S> make(Index count) {
    Random random(1);
    return moe::Null{.count = count}.build<S>(Shape{.model_dim = 19, .output_dim = 7}, random);
}

constexpr expert_group::Extents extents{.output_dim = 7};

TEST(Null, IsNullAndFree) {
    const auto group = make<float>(2);
    EXPECT_EQ(group.num_experts(), 2);
    EXPECT_TRUE(group.facts(0).is_null);
    EXPECT_TRUE(group.facts(0).is_free);
}

TEST(Null, DoesNothingWhateverItsWeight) {
    expert_group::Batch<float> batch(extents);
    std::fill(batch.weights.begin(), batch.weights.end(), std::numeric_limits<float>::quiet_NaN());
    const auto result = expert_group::run(make<float>(4), batch);
    EXPECT_TRUE((result.y.array() == 0).all());
    EXPECT_TRUE((result.dx.array() == 0).all());
    for (std::size_t r = 0; r < batch.weights.size(); ++r)
        if (batch.owns(r)) {
            EXPECT_EQ(result.dweights[r], 0);
        }
}

TEST(Null, LeavesWhatOthersAddedAndRowsOfOthers) {
    expert_group::expect_adds<float>(make<float>(4), extents);
    expert_group::expect_adds<double>(make<double>(4), extents);
    expert_group::expect_same_bits_in_sub_ranges<float>(make<float>(4), extents);
}

TEST(Null, RefusesToBeNone) { EXPECT_THROW(make<float>(0), std::invalid_argument); }

// A whole layer: a router that hands out logits, and a gate that takes the two best experts and
// normalises over those that are not null.

struct FirstColumns {  // the logits are the first columns of x
    void forward(moe::In<double> x, moe::Out<double> logits) const {
        for (Index t = 0; t < logits.rows(); ++t)
            for (Index l = 0; l < logits.cols(); ++l) logits(t, l) = x(t, l);
    }
    void backward(moe::In<double>, moe::In<double> dlogits, moe::Out<double> dx,
                  FirstColumns&) const {
        dx.setZero();
        for (Index t = 0; t < dx.rows(); ++t)
            for (Index l = 0; l < dlogits.cols(); ++l) dx(t, l) = dlogits(t, l);
    }
};

struct TwoBest {  // softmax over the chosen experts that are not null
    void select(moe::In<double> logits, moe::Routing& routing,
                const moe::Call<double>& call) const {
        for (Index t = 0; t < logits.rows(); ++t) {
            Index first = 0, second = -1;
            for (Index e = 1; e < logits.cols(); ++e)
                if (logits(t, e) > logits(t, first))
                    second = first, first = e;
                else if (second < 0 || logits(t, e) > logits(t, second))
                    second = e;
            double sum = 0;
            const auto mass = [&](Index e) {
                const bool is_null = call.context.experts[static_cast<std::size_t>(e)].is_null;
                return is_null ? 0 : std::exp(logits(t, e));
            };
            sum = mass(first) + mass(second);
            for (const Index e : {first, second}) routing.add(t, e, sum == 0 ? 0 : mass(e) / sum);
        }
    }
    void backward(moe::In<double>, const moe::Routing& routing,
                  const moe::WeightGradients<double>& dweights, moe::Out<double> dlogits) const {
        for (Index t = 0; t < routing.num_tokens(); ++t) {
            double mean = 0;
            for (Index a = routing.first(t); a < routing.first(t + 1); ++a)
                mean += routing.weight<double>(a) * dweights[a];
            for (Index a = routing.first(t); a < routing.first(t + 1); ++a)
                dlogits(t, routing.assignments()[static_cast<std::size_t>(a)].expert) +=
                    routing.weight<double>(a) * (dweights[a] - mean);
        }
    }
};

/// y, and d(sum of y)/dx, of one token whose best experts are 0 (a copy) and 1 (`Other`).
template <class Other>
std::pair<Matrix<double>, Matrix<double>> through(const Other& other) {
    const auto layer = moe::make_layer<double>(moe::Config{.model_dim = 3}, FirstColumns{},
                                               TwoBest{}, moe::Copy{}, other);
    Matrix<double> x(1, 3), y(1, 3), dx(1, 3);
    x << 0.5, -0.25, 2;
    const Matrix<double> dy = Matrix<double>::Ones(1, 3);
    moe::Workspace<double> ws;
    auto grad = moe::zeros_like(layer);
    layer.forward(x, y, ws);
    layer.backward(x, dy, dx, grad, ws);
    return {y, dx};
}

TEST(Null, LeavesTheOthersTheirFullWeightWhereZeroShrinksTheSum) {
    const Matrix<double> x{{0.5, -0.25, 2}};
    const auto [with_null, dx_null] = through(moe::Null{});
    EXPECT_TRUE(moe::testing::compare(with_null, x, 1e-15));
    EXPECT_TRUE(moe::testing::compare(dx_null, Matrix<double>::Ones(1, 3), 1e-15));

    const double w = 1 / (1 + std::exp(-0.75));
    const auto [with_zero, dx_zero] = through(moe::Zero{});
    EXPECT_TRUE(moe::testing::compare(with_zero, Matrix<double>(w * x), 1e-15));
    // dw = sum of x, and w moves with the difference of the two logits.
    const double slope = w * (1 - w) * (0.5 - 0.25 + 2);
    EXPECT_TRUE(moe::testing::compare(dx_zero, Matrix<double>{{w + slope, w - slope, w}}, 1e-15));
}

}  // namespace
}  // namespace null_test
