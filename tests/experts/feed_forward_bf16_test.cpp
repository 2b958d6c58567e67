// SPDX-License-Identifier: MIT
#include <moe/experts/feed_forward_bf16.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

#include <gtest/gtest.h>

#include <moe/testing/compare.hpp>

#include "bf16_reference.hpp"
#include "support/expert_group.hpp"

namespace feed_forward_bf16_test {
namespace {

using bf16_reference::Double;
using bf16_reference::Product;
using bf16_reference::rounded;
using moe::Index;
using moe::Isa;
using moe::Matrix;
using moe::ScopedIsa;
using moe::Workspace;
using moe::testing::CompareOptions;
using moe::testing::same_bits;
using Group = moe::FeedForwardModule<float>;
using Batch = expert_group::Batch<float>;

constexpr CompareOptions zeros{.allow_zeros = true};  // tokens without experts
constexpr bf16_reference::Extents odd{37, 41, 29, 40};

/// y of all experts from what forward kept of g and u, and each of those from x.
void expect_right(const Group& group, const Batch& batch) {
    moe::SerialExecutor serial;
    Workspace<float> ws(serial);
    const auto got = expert_group::run(group, batch, ws, {.forward_only = true});
    const auto& state = ws.state<moe::detail::FeedForwardBf16State<float>>().plain;
    const moe::KernelTable<float>& table = moe::kernels<float>();
    const Index ffn = group.shape().ffn_dim;
    Double y = Double::Zero(got.y.rows(), got.y.cols()), size = y, bound = y;
    for (Index e = 0; e < group.num_experts(); ++e) {
        const bf16_reference::Rows rows(batch, e);
        if (rows.x.rows() == 0) continue;
        const auto kept = [&](const moe::Buffer<float>& of) -> Matrix<float> {
            Matrix<float> found(rows.x.rows(), ffn);
            for (Index i = 0; i < found.rows(); ++i)
                std::copy_n(of.data() + state.kept_at(rows.first + i), ffn, &found(i, 0));
            return found;
        };
        const Matrix<float> u = kept(state.up);
        Product up(rounded(rows.x), rounded(group.up.owned(e).view()).transpose());
        if (group.up_bias.count() > 0)
            up.add_to_rows(group.up_bias.owned(e).view().cast<double>().row(0));
        EXPECT_TRUE(compare_within(u, up.value, up.bound, zeros)) << "u of expert " << e;
        Matrix<float> h(u.rows(), ffn);
        if (group.shape().gated) {
            const Matrix<float> g = kept(state.gate);
            Product gate(rounded(rows.x), rounded(group.gate.owned(e).view()).transpose());
            if (group.gate_bias.count() > 0)
                gate.add_to_rows(group.gate_bias.owned(e).view().cast<double>().row(0));
            EXPECT_TRUE(compare_within(g, gate.value, gate.bound, zeros)) << "g of expert " << e;
            const auto limit = static_cast<float>(group.shape().limit),
                       offset = static_cast<float>(group.shape().up_offset);
            const Matrix<float> near_g = g.cwiseMin(limit),
                                near_u = u.cwiseMax(-limit).cwiseMin(limit).array() + offset;
            table.gate(group.shape().activation, h.size(), near_g.data(), near_u.data(), h.data());
        } else {
            table.activate(group.shape().activation, h.size(), u.data(), h.data());
        }
        Product down(rounded(h), rounded(group.down.owned(e).view()).transpose());
        if (group.down_bias.count() > 0)
            down.add_to_rows(group.down_bias.owned(e).view().cast<double>().row(0));
        down.scale_rows(rows.weights);
        for (Index i = 0; i < h.rows(); ++i) {
            const Index to = batch.tokens[static_cast<std::size_t>(rows.first + i)];
            y.row(to) += down.value.row(i);
            size.row(to) += down.value.row(i).cwiseAbs();
            bound.row(to) += down.bound.row(i);
        }
    }
    bound += size * (static_cast<double>(group.num_experts()) * 0x1p-24);  // one sum per expert
    EXPECT_TRUE(compare_within(got.y, y, bound, zeros)) << "y";
}

TEST(FeedForwardBf16, IsRightForExtentsAroundTheWidthsOfVectors) {
    bf16_reference::each_case(expect_right);
}

TEST(FeedForwardBf16, IsRightWithMoreRowsAndColumnsThanABlockHolds) {
    const bf16_reference::Extents e{70, 300, 270, 400};
    const Batch batch(bf16_reference::batch_of(e, true));
    expect_right(bf16_reference::glu(e), batch);
    expect_right(bf16_reference::mlp(e), batch);
}

TEST(FeedForwardBf16, HasTheBitsOfTheSameWeightsFrozen) {
    bf16_reference::each_case([](const Group& group, const Batch& batch) {
        const auto frozen =
            group.freeze({.storage = moe::Storage::bf16, .compute = moe::Compute::bf16});
        EXPECT_EQ(frozen.compute(), moe::Compute::bf16);
        EXPECT_TRUE(same_bits(expert_group::run(group, batch, {.forward_only = true}).y,
                              expert_group::run(frozen, batch).y, zeros));
    });
}

TEST(FeedForwardBf16, FreezesAsTheOptionsSay) {
    const Batch batch(bf16_reference::batch_of(odd, false));
    const auto frozen = bf16_reference::swiglu(odd).freeze({});
    EXPECT_EQ(frozen.compute(), moe::Compute::exact);
    const Group exact = bf16_reference::swiglu(odd, moe::Compute::exact);
    EXPECT_TRUE(same_bits(expert_group::run(frozen, batch).y,
                          expert_group::run(exact, batch, {.forward_only = true}).y, zeros));
}

TEST(FeedForwardBf16, PassesOnNanAndTurnsWhatIsTooLargeIntoInfinity) {
    const bf16_reference::Extents e{3, 2, 2, 1};
    Batch batch(bf16_reference::batch_of(e, false));
    batch.offsets = {0, 1, 1, 1, 1}, batch.tokens = {0}, batch.weights = {1};
    const auto y = [&](float weight) {
        Group group = bf16_reference::mlp(e);
        group.down.owned(0).view()(0, 0) = weight;
        group.up_bias.owned(0).view().setConstant(3);  // h is above 0
        group.up.owned(0).view().setZero();
        return expert_group::run(group, batch, {.forward_only = true}).y;
    };
    EXPECT_TRUE(std::isnan(y(std::numeric_limits<float>::quiet_NaN())(0, 0)));
    EXPECT_TRUE(std::isfinite(y(1)(0, 0)));
    EXPECT_EQ(y(std::numeric_limits<float>::max())(0, 0), std::numeric_limits<float>::infinity());
    EXPECT_TRUE(std::isfinite(y(std::numeric_limits<float>::quiet_NaN())(0, 1)));
}

}  // namespace
}  // namespace feed_forward_bf16_test
