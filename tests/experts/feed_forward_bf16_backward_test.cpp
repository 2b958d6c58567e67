// SPDX-License-Identifier: MIT
#include <moe/experts/feed_forward_bf16_backward.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/shared.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/layer.hpp>
#include <moe/routers/linear.hpp>
#include <moe/testing/compare.hpp>

#include "bf16_reference.hpp"
#include "many_rows.hpp"
#include "support/dense_layer.hpp"
#include "support/expert_group.hpp"

namespace feed_forward_bf16_backward_test {
namespace {

using bf16_reference::Double;
using bf16_reference::Product;
using bf16_reference::rounded;
using moe::Compute;
using moe::Index;
using moe::Matrix;
using moe::Workspace;
using moe::testing::compare_within;
using moe::testing::CompareOptions;
using moe::testing::same_bits;
using Batch = expert_group::Batch<float>;
using Group = moe::FeedForwardModule<float>;

constexpr CompareOptions zeros{.allow_zeros = true};  // tokens and experts without rows
constexpr bf16_reference::Extents odd{37, 41, 29, 40};

/// Each stage against double, from what the stage before left in float: g, u, h, dg and du. The
/// bounds are those of bf16_reference::Product; the polynomials of activations count with 2^-20.
void expect_right(const Group& group, const Batch& batch) {
    moe::SerialExecutor serial;
    Workspace<float> ws(serial);
    const auto got = expert_group::run(group, batch, ws);
    const auto& state = ws.state<moe::detail::FeedForwardBf16State<float>>().plain;
    const moe::FeedForwardShape& shape = group.shape();
    const Index ffn = shape.ffn_dim, dim = shape.model_dim, base = batch.offsets.front();
    Double dx = Double::Zero(got.dx.rows(), dim), dx_size = dx, dx_bound = dx;
    std::vector<double> gradient, gradient_bound;  // in visiting order
    const auto add = [&](const Double& value, const Double& bound) {
        gradient.insert(gradient.end(), value.data(), value.data() + value.size());
        gradient_bound.insert(gradient_bound.end(), bound.data(), bound.data() + bound.size());
    };
    const auto add_product = [&](const Product& sum) {
        add(sum.value, sum.bound + sum.value.cwiseAbs() * 0x1p-24);
    };
    for (Index e = 0; e < group.num_experts(); ++e) {
        const bf16_reference::Rows rows(batch, e);
        const Index n = rows.x.rows();
        const auto left = [&](const moe::Buffer<float>& of, Index first) -> Matrix<float> {
            Matrix<float> found(n, ffn);
            for (Index i = 0; i < n; ++i)
                std::copy_n(of.data() + (first + i) * state.stride, ffn, &found(i, 0));
            return found;
        };
        const Matrix<float> u = left(state.up, rows.first);
        const Matrix<float> g = shape.gated ? left(state.gate, rows.first) : u;
        const Matrix<float> h = left(state.hidden, rows.first - base);
        const Matrix<float> du = left(state.dup, rows.first - base);
        const Matrix<float> dg = shape.gated ? left(state.dgate, rows.first - base) : du;

        // dA, d(w), dg and du
        const Product da(rounded(rows.dy), rounded(group.down.owned(e).view()));
        for (Index i = 0; i < n; ++i) {
            double dweight = 0, bound = 0;
            for (Index f = 0; f < ffn; ++f) {
                const double w = rows.weights(i), dh = w * da.value(i, f);
                const double off = std::abs(w) * da.bound(i, f) + std::abs(dh) * 0x1p-20;
                const double gate = std::min(double(g(i, f)), shape.gated ? shape.limit : HUGE_VAL);
                const double up = std::clamp(double(u(i, f)), -shape.limit, shape.limit);
                const bool gate_passes = double(g(i, f)) == gate, up_passes = double(u(i, f)) == up;
                const double slope =
                    gate_passes ? dense::activation_slope(shape.activation, gate) : 0;
                const double act = up_passes ? dense::activate(shape.activation, gate) : 0;
                // Where a slope is the difference of two terms, it is as precise as those.
                const double terms = std::abs(slope) + 1;
                const double factor = shape.gated ? up + shape.up_offset : 1;
                ASSERT_LE(std::abs((shape.gated ? dg : du)(i, f) - dh * factor * slope),
                          off * std::abs(factor) * terms + 1e-37)
                    << "dg of expert " << e << " row " << i;
                if (shape.gated) {
                    ASSERT_LE(std::abs(du(i, f) - dh * act), off * (std::abs(act) + 0x1p-20))
                        << "du of expert " << e << " row " << i;
                }
                dweight += da.value(i, f) * double(h(i, f));
                bound += da.bound(i, f) * std::abs(double(h(i, f))) +
                         std::abs(da.value(i, f) * double(h(i, f))) *
                             (static_cast<double>(ffn) / 16 + 8) * 0x1p-24;
            }
            for (Index o = 0; o < shape.output_dim && group.down_bias.count() > 0; ++o) {
                const double term =
                    double(rows.dy(i, o)) * double(group.down_bias.owned(e).view()(0, o));
                dweight += term;
                bound +=
                    std::abs(term) * (static_cast<double>(shape.output_dim) / 16 + 8) * 0x1p-24;
            }
            const float found = got.dweights[static_cast<std::size_t>(rows.first + i)];
            ASSERT_LE(std::abs(found - dweight), bound + std::abs(dweight) * 0x1p-24 + 1e-37)
                << "d(weight) of expert " << e << " row " << i;
        }

        // dx: one sum over F of gate and of up
        Double both(n, shape.gated ? 2 * ffn : ffn), matrices(both.cols(), dim);
        if (shape.gated) {
            both << rounded(dg), rounded(du);
            matrices << rounded(group.gate.owned(e).view()), rounded(group.up.owned(e).view());
        } else {
            both = rounded(du), matrices = rounded(group.up.owned(e).view());
        }
        Product back(both, matrices);
        back.bound *= 1 + 64.0 / static_cast<double>(both.cols() + 32 * 17);  // padding between
        for (Index i = 0; i < n && batch.extents.input_weights; ++i) {
            const auto row = static_cast<std::size_t>(rows.first + i);
            double dinput = 0, bound = 0;
            for (Index d = 0; d < dim; ++d) {
                const double x = double(batch.x(batch.tokens[row], d));
                dinput += back.value(i, d) * x;
                bound += std::abs(x) *
                         (back.bound(i, d) + std::abs(back.value(i, d)) * (12 + 8) * 0x1p-24);
            }
            ASSERT_LE(std::abs(got.dinput_weights[row] - dinput), bound + 1e-37);
        }
        back.scale_rows(rows.input_weights);
        for (Index i = 0; i < n; ++i) {
            const Index to = batch.tokens[static_cast<std::size_t>(rows.first + i)];
            dx.row(to) += back.value.row(i);
            dx_size.row(to) += back.value.row(i).cwiseAbs();
            dx_bound.row(to) += back.bound.row(i);
        }

        // gradients, in float what is multiplied by the weight before it is rounded
        const Matrix<float> wdy = rows.weights.cast<float>().asDiagonal() * rows.dy;
        const Double x = rounded(rows.x);
        if (shape.gated) add_product(Product(rounded(dg).transpose(), x));
        add_product(Product(rounded(du).transpose(), x));
        add_product(Product(rounded(wdy).transpose(), rounded(h)));
        const auto add_bias = [&](const moe::Weights<float>& bias, const Double& terms) {
            if (bias.count() == 0) return;
            add(terms.colwise().sum(),
                terms.cwiseAbs().colwise().sum() * (static_cast<double>(n + 1) * 0x1p-24));
        };
        add_bias(group.gate_bias, dg.cast<double>());
        add_bias(group.up_bias, du.cast<double>());
        add_bias(group.down_bias, rows.weights.asDiagonal() * rows.dy.cast<double>());
    }
    dx_bound += dx_size * (static_cast<double>(group.num_experts()) * 0x1p-24);
    EXPECT_TRUE(compare_within(got.dx, dx, dx_bound, zeros)) << "dx";
    EXPECT_TRUE(compare_within(got.gradient, gradient, gradient_bound, zeros)) << "gradient";
}

TEST(FeedForwardBf16Backward, IsRightForExtentsAroundTheWidthsOfVectors) {
    bf16_reference::each_case(expect_right);
}

TEST(FeedForwardBf16Backward, IsRightWithMoreRowsAndColumnsThanABlockHolds) {
    const bf16_reference::Extents e{70, 300, 270, 400};
    const Batch batch(bf16_reference::batch_of(e, true));
    expect_right(bf16_reference::swiglu(e), batch);
    expect_right(bf16_reference::mlp(e), batch);
}

TEST(FeedForwardBf16Backward, IsNearTheExactOne) {
    const bf16_reference::Extents e{96, 128, 80, 60};
    const Batch batch(bf16_reference::batch_of(e, true));
    for (const bool gated : {false, true}) {
        const auto of = [&](Compute compute) {
            return expert_group::run(
                gated ? bf16_reference::swiglu(e, compute) : bf16_reference::mlp(e, compute),
                batch);
        };
        const auto exact = of(Compute::exact), bf16 = of(Compute::bf16);
        using moe::testing::compare;
        EXPECT_TRUE(compare(bf16.y, exact.y, 0x1p-7, zeros)) << "y";
        EXPECT_FALSE(compare(bf16.y, exact.y, 1e-5, zeros)) << "nothing was rounded";
        EXPECT_TRUE(compare(bf16.dx, exact.dx, 0x1p-7, zeros)) << "dx";
        EXPECT_TRUE(compare(bf16.gradient, exact.gradient, 0x1p-7, zeros)) << "gradient";
        EXPECT_FALSE(compare(bf16.gradient, exact.gradient, 1e-5, zeros)) << "nothing was rounded";
        const auto own = [&](const std::vector<float>& values) {
            return std::vector<float>(values.begin() + Batch::before, values.end() - Batch::after);
        };
        EXPECT_TRUE(compare(own(bf16.dweights), own(exact.dweights), 0x1p-7));
        EXPECT_TRUE(compare(own(bf16.dinput_weights), own(exact.dinput_weights), 0x1p-7));
    }
}

TEST(FeedForwardBf16Backward, HasTheSameBitsOnEveryInstructionSet) {
    bf16_reference::each_case([](const Group& group, const Batch& batch) {
        moe::ScopedIsa scalar(moe::Isa::scalar);
        const auto expected = expert_group::run(group, batch);
        for (const moe::Isa isa : moe::supported_isas()) {
            SCOPED_TRACE(moe::name(isa));
            moe::ScopedIsa forced(isa);
            expert_group::expect_same_bits(expert_group::run(group, batch), expected);
        }
    });
}

TEST(FeedForwardBf16Backward, HasTheSameBitsForAnyThreadCountAndInADirtyWorkspace) {
    const expert_group::Extents e{.tokens = 120, .model_dim = 133, .output_dim = 70};
    for (const auto& group :
         {bf16_reference::swiglu({133, 200, 70, 0}), bf16_reference::glu({133, 200, 70, 0})})
        expert_group::expect_same_bits_for_any_thread_count<float>(group, e);
}

TEST(FeedForwardBf16Backward, HasTheSameBitsHoweverRowsAreCutAndWhateverIsKept) {
    if (moe::isa() == moe::Isa::scalar)
        GTEST_SKIP() << "no other cuts with scalar kernels, which take ten times as long";
    using State = moe::detail::FeedForwardBf16State<float>;
    const moe::FeedForwardShape shape{.ffn_dim = 520};
    ASSERT_LT(State::part_rows(shape, 9999, 7), State::part_rows(shape, 9999, 9));
    ASSERT_LT(State::part_rows(shape, 9999, 7), 1600) << "one expert is cut";
    many_rows::expect_the_same_bits<float>(moe::InBf16{moe::Swiglu{.count = 5, .ffn_dim = 520}},
                                           {9});
}

TEST(FeedForwardBf16Backward, DoesWhatGroupsDo) {
    const expert_group::Extents e = bf16_reference::batch_of(odd, true);
    for (const auto& group :
         {bf16_reference::swiglu(odd), bf16_reference::mlp(odd), bf16_reference::glu(odd)}) {
        expert_group::expect_same_bits_in_sub_ranges<float>(group, e);
        expert_group::expect_adds<float>(group, e);
        expert_group::expect_gradients_may_be_left_out<float>(group, e);
    }
}

TEST(FeedForwardBf16Backward, AllocatesNothingInTheSecondCall) {
    expert_group::expect_no_allocation_in_the_second_call<float>(
        bf16_reference::mlp(odd), bf16_reference::batch_of(odd, true));
}

TEST(FeedForwardBf16Backward, AllocatesNothingAfterReserve) {
    if (!allocations::are_counted) GTEST_SKIP() << "a sanitizer allocates here";
    const Batch batch(bf16_reference::batch_of(odd, true));
    const Group group = bf16_reference::swiglu(odd);
    for (const moe::Keep keep : {moe::Keep::everything, moe::Keep::recompute}) {
        moe::ThreadPool pool(3);
        Workspace<float> ws(pool);
        ws.keep(keep);
        const auto size = static_cast<Index>(batch.weights.size());
        group.reserve(batch.extents.tokens, size, ws);
        const long before = allocations::bytes_asked_for.load();
        expert_group::run(group, batch, ws);
        const long used = allocations::bytes_asked_for.load() - before;
        const long again = allocations::bytes_asked_for.load();
        expert_group::run(group, batch, ws);
        EXPECT_EQ(used, allocations::bytes_asked_for.load() - again) << "only what run() makes";
        EXPECT_GT(group.workspace_bytes(batch.extents.tokens, size, keep, 3), 0);
    }
}

TEST(FeedForwardBf16Backward, KeepsNoRowsBesidesAPartIfItRecomputes) {
    const Batch batch(bf16_reference::batch_of(odd, false));
    const Group group = bf16_reference::swiglu(odd);
    for (const moe::Keep keep : {moe::Keep::nothing, moe::Keep::recompute}) {
        Workspace<float> ws;
        ws.keep(keep);
        expert_group::run(group, batch, ws, {.forward_only = true});
        const auto& plain = ws.state<moe::detail::FeedForwardBf16State<float>>().plain;
        EXPECT_EQ(plain.gate.bytes() + plain.up.bytes(), 0);
    }
}

/// Weights that are views of any strides give the bits of owned ones.
TEST(FeedForwardBf16Backward, ReadsWeightsWhereTheyLie) {
    const Batch batch(bf16_reference::batch_of(odd, true));
    const Group owned = bf16_reference::swiglu(odd);
    Group bound = owned;
    std::vector<Matrix<float>> kept;
    kept.reserve(12);
    const auto view = [&](const moe::Weights<float>& weights, bool transposed) {
        std::vector<moe::WeightView> views;
        for (Index e = 0; e < weights.count(); ++e) {
            const auto from = weights.owned(e).view();
            Matrix<float>& copy = kept.emplace_back(transposed ? from.cols() : 2 * from.rows(),
                                                    transposed ? from.rows() : 2 * from.cols());
            copy.setConstant(std::numeric_limits<float>::quiet_NaN());
            for (Index i = 0; i < from.rows(); ++i)
                for (Index j = 0; j < from.cols(); ++j)
                    (transposed ? copy(j, i) : copy(2 * i, 2 * j)) = from(i, j);
            views.push_back({.data = copy.data(),
                             .dtype = moe::Dtype::f32,
                             .rows = from.rows(),
                             .cols = from.cols(),
                             .row_stride = transposed ? 1 : 4 * from.cols(),
                             .col_stride = transposed ? from.rows() : 2});
        }
        return moe::Weights<float>(views);
    };
    bound.gate = view(owned.gate, true);
    bound.up = view(owned.up, false);
    bound.down = view(owned.down, true);
    expert_group::expect_same_bits(expert_group::run(bound, batch),
                                   expert_group::run(owned, batch));
}

/// A layer with shared experts learns as it does with exact products.
TEST(FeedForwardBf16Backward, TrainsALayer) {
    const auto loss_after = [](int steps, const auto& experts, const auto& shared) {
        moe::Layer layer{moe::Config{.model_dim = 24, .seed = 5}, moe::LinearRouter{},
                         moe::TopK{.k = 2}, experts, moe::Shared{shared}};
        const auto x = moe::testing::random_matrix<float>(64, 24, 1),
                   target = moe::testing::random_matrix<float>(64, 24, 2);
        Matrix<float> y(64, 24), dx(64, 24);
        auto grad = moe::zeros_like(layer);
        Workspace<float> ws;
        for (int step = 0; step < steps; ++step) {
            layer.forward(x, y, ws);
            const Matrix<float> dy = (y - target) / 64;
            layer.backward(x, dy, dx, grad, ws);
            moe::for_each_parameter(layer, grad, [](auto, std::span<float> w, std::span<float> g) {
                for (std::size_t i = 0; i < w.size(); ++i) w[i] -= 0.3f * std::exchange(g[i], 0.f);
            });
        }
        return (layer(x) - target).squaredNorm();
    };
    const moe::Swiglu experts{.count = 4, .ffn_dim = 40};
    const moe::Mlp shared{.ffn_dim = 30, .bias = true};
    const float before = loss_after(0, experts, shared), exact = loss_after(60, experts, shared),
                bf16 = loss_after(60, moe::InBf16{experts}, moe::InBf16{shared});
    EXPECT_LT(exact, before / 2);
    EXPECT_NEAR(bf16, exact, 0.02f * exact);
    EXPECT_NE(bf16, exact);
}

}  // namespace
}  // namespace feed_forward_bf16_backward_test
