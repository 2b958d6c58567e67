// SPDX-License-Identifier: MIT
#include <moe/experts/feed_forward.hpp>

#include <cmath>
#include <iterator>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/glu.hpp>
#include <moe/experts/in_bf16.hpp>
#include <moe/experts/mlp.hpp>
#include <moe/experts/swiglu.hpp>

#include "support/expert_group.hpp"
#include "support/message.hpp"
#include "support/narrow_weights.hpp"

namespace feed_forward_test {
namespace {

using moe::Index;
using moe::Isa;
using moe::Matrix;
using moe::Random;
using moe::Rows;
using moe::ScopedIsa;
using moe::Shape;
using moe::WeightView;
using moe::Workspace;
using support::message;

template <class S>
moe::FeedForwardModule<S> swiglu(Index experts, Index ffn, const expert_group::Extents& e) {
    Random random(3);
    return moe::Swiglu{.count = experts, .ffn_dim = ffn}.build<S>(
        Shape{.model_dim = e.model_dim, .output_dim = e.output_dim}, random);
}

template <class S>
moe::FeedForwardModule<S> mlp(Index experts, Index ffn, const expert_group::Extents& e) {
    Random random(4);
    auto group =
        moe::Mlp{
            .count = experts, .ffn_dim = ffn, .activation = moe::Activation::gelu, .bias = true}
            .build<S>(Shape{.model_dim = e.model_dim, .output_dim = e.output_dim}, random);
    group.up_bias.fill_normal(random, 1);
    group.down_bias.fill_normal(random, 1);
    return group;
}

template <class S>
moe::FeedForwardModule<S> glu(Index experts, Index ffn, const expert_group::Extents& e) {
    Random random(5);
    auto group =
        moe::Glu{.count = experts, .ffn_dim = ffn, .bias = true, .limit = 0.5, .up_offset = 1}
            .build<S>(Shape{.model_dim = e.model_dim, .output_dim = e.output_dim}, random);
    for (auto* bias : {&group.gate_bias, &group.up_bias, &group.down_bias})
        bias->fill_normal(random, 1);
    return group;
}

template <class S>
std::vector<dense::Expert> dense_experts(const moe::FeedForwardModule<S>& group) {
    std::vector<dense::Expert> experts;
    for (Index e = 0; e < group.num_experts(); ++e)
        experts.push_back(dense::feed_forward_of(group, e));
    return experts;
}

template <class S>
class FeedForward : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(FeedForward, Scalars);

TYPED_TEST(FeedForward, IsRightForExtentsAroundTheWidthsOfVectors) {
    using S = TypeParam;
    const Index extents[][3] = {{1, 1, 1},   {2, 1, 3},    {7, 5, 1},    {8, 15, 16},
                                {16, 17, 9}, {31, 16, 33}, {33, 31, 15}, {65, 47, 64}};
    for (const auto& [dim, ffn, out] : extents) {
        SCOPED_TRACE(std::to_string(dim) + " " + std::to_string(ffn) + " " + std::to_string(out));
        const expert_group::Extents e{.model_dim = dim, .output_dim = out, .experts = 3};
        const auto group = swiglu<S>(3, ffn, e);
        expert_group::expect_like_dense(group, dense_experts(group), expert_group::Batch<S>(e, 2));
        const auto biased = mlp<S>(3, ffn, e);
        expert_group::expect_like_dense(biased, dense_experts(biased),
                                        expert_group::Batch<S>(e, 3));
        const auto bounded = glu<S>(3, ffn, e);
        expert_group::expect_like_dense(bounded, dense_experts(bounded),
                                        expert_group::Batch<S>(e, 4));
    }
}

TYPED_TEST(FeedForward, IsRightWithMoreRowsThanABlockHolds) {
    using S = TypeParam;
    const expert_group::Extents e{.tokens = 600, .model_dim = 9, .output_dim = 6, .experts = 2};
    const auto group = swiglu<S>(2, 7, e);
    expert_group::expect_like_dense(group, dense_experts(group), expert_group::Batch<S>(e));
}

TYPED_TEST(FeedForward, IsRightWithMoreColumnsThanABlockHolds) {
    using S = TypeParam;
    const expert_group::Extents e{.tokens = 25, .model_dim = 1100, .output_dim = 270, .experts = 2};
    const auto group = swiglu<S>(2, 140, e);
    expert_group::expect_like_dense(group, dense_experts(group), expert_group::Batch<S>(e));
}

TYPED_TEST(FeedForward, WorksWithoutRows) {
    using S = TypeParam;
    const expert_group::Extents e{.tokens = 0, .experts = 3};
    const auto result = expert_group::run(mlp<S>(3, 5, e), expert_group::Batch<S>(e));
    EXPECT_EQ(result.y.rows(), 0);
    for (const S value : result.gradient) EXPECT_EQ(value, 0);
}

TYPED_TEST(FeedForward, GivesTheSameBitsOnEveryInstructionSet) {
    using S = TypeParam;
    const expert_group::Extents e{.tokens = 40, .model_dim = 37, .output_dim = 29};
    const expert_group::Batch<S> batch(e);
    for (const auto& group : {swiglu<S>(4, 41, e), mlp<S>(4, 41, e), glu<S>(4, 41, e)}) {
        ScopedIsa scalar(Isa::scalar);
        const auto expected = expert_group::run(group, batch);
        for (const Isa isa : moe::supported_isas()) {
            SCOPED_TRACE(moe::name(isa));
            ScopedIsa forced(isa);
            expert_group::expect_same_bits(expert_group::run(group, batch), expected);
        }
    }
}

TYPED_TEST(FeedForward, PackedWeightsGiveTheSameBits) {
    using S = TypeParam;
    const expert_group::Extents e{.tokens = 40, .model_dim = 37, .output_dim = 29};
    const expert_group::Batch<S> batch(e);
    for (const auto& group : {swiglu<S>(4, 41, e), mlp<S>(4, 41, e), glu<S>(4, 41, e)}) {
        const auto expected = expert_group::run(group, batch, {.forward_only = true}).y;
        for (const Isa isa : moe::supported_isas()) {
            SCOPED_TRACE(moe::name(isa));
            ScopedIsa forced(isa);
            const auto packed = group.freeze({});
            EXPECT_TRUE(moe::testing::same_bits(expert_group::run(packed, batch).y, expected));
            EXPECT_TRUE(moe::testing::same_bits(expert_group::run(packed, batch, {.split = 2}).y,
                                                expected));
            // Read by the kernels that they were packed for, whatever is in use now.
            ScopedIsa other(Isa::scalar);
            EXPECT_TRUE(moe::testing::same_bits(expert_group::run(packed, batch).y, expected));
        }
    }
}

TYPED_TEST(FeedForward, PackedWeightsTakeAboutTheSameRoom) {
    using S = TypeParam;
    const expert_group::Extents e{.model_dim = 64, .output_dim = 64};
    const auto packed = swiglu<S>(4, 96, e).freeze({});
    EXPECT_EQ(packed.bytes(), Index{4 * 3 * 64 * 96 * sizeof(S)});
    EXPECT_EQ(packed.num_experts(), 4);
    EXPECT_EQ(packed.facts(0).flops_per_row, 2 * 3 * 64 * 96);
}

TYPED_TEST(FeedForward, BoundWeightsAreReadWhereTheyLie) {
    using S = TypeParam;
    const expert_group::Extents e{.tokens = 12, .model_dim = 9, .output_dim = 6, .experts = 3};
    const expert_group::Batch<S> batch(e);
    const auto owned = swiglu<S>(3, 7, e);
    // gate and up of an expert interleaved row by row, down transposed
    std::vector<Matrix<S>> fused, downs;
    std::vector<WeightView> gates, ups, down_views;
    for (Index i = 0; i < 3; ++i) {
        Matrix<S>& both = fused.emplace_back(14, 9);
        for (Index f = 0; f < 7; ++f) {
            both.row(2 * f) = owned.gate.owned(i).view().row(f);
            both.row(2 * f + 1) = owned.up.owned(i).view().row(f);
        }
        downs.push_back(owned.down.owned(i).view().transpose());
    }
    for (std::size_t i = 0; i < 3; ++i) {
        WeightView view{.data = fused[i].data(),
                        .dtype = moe::dtype_of<S>,
                        .rows = 7,
                        .cols = 9,
                        .row_stride = 18};
        gates.push_back(view);
        view.data = fused[i].data() + 9;
        ups.push_back(view);
        down_views.push_back({.data = downs[i].data(),
                              .dtype = moe::dtype_of<S>,
                              .rows = 6,
                              .cols = 7,
                              .row_stride = 1,
                              .col_stride = 6});
    }
    auto bound = owned;
    bound.gate = moe::Weights<S>(gates);
    bound.up = moe::Weights<S>(ups);
    bound.down = moe::Weights<S>(down_views);
    expert_group::expect_same_bits(expert_group::run(bound, batch),
                                   expert_group::run(owned, batch));
    EXPECT_TRUE(moe::testing::same_bits(expert_group::run(bound.freeze({}), batch).y,
                                        expert_group::run(owned, batch).y));
    EXPECT_EQ(moe::num_parameters(bound), moe::num_parameters(owned));
    EXPECT_EQ(moe::num_parameters(moe::zeros_like(bound)), moe::num_parameters(owned));
}

/// Views of narrow weights, and the same numbers in float.
struct NarrowGroups {
    std::vector<narrow_weights::Stored> stored;
    moe::FeedForwardModule<float> narrow, wide;

    /// Each matrix of another dtype, or all of one; expert by expert row-major, transposed, and
    /// interleaved with another matrix.
    NarrowGroups(const moe::FeedForwardModule<float>& like, moe::Dtype only) : narrow(like) {
        const auto views = [&](moe::Weights<float>& weights) {
            if (weights.count() == 0) return;
            std::vector<WeightView> result;
            const Index rows = weights.rows(), cols = weights.cols();
            for (Index e = 0; e < weights.count(); ++e) {
                const auto number = static_cast<std::uint64_t>(stored.size());
                const moe::Dtype dtype =
                    only == moe::Dtype::unknown ? narrow_weights::dtypes[number % 3] : only;
                const Index row_stride = e % 3 == 0 ? cols : e % 3 == 1 ? 1 : 2 * cols;
                stored.emplace_back(dtype, rows, cols, row_stride, e % 3 == 1 ? rows : 1,
                                    number + 20);
                result.push_back(stored.back().view);
            }
            if (only == moe::Dtype::unknown) {  // one more kind
                stored.emplace_back(moe::Dtype::bf16, rows, cols, cols, 1, 99);
                result.back() = stored.back().widened();
            }
            weights = moe::Weights<float>(result);
        };
        stored.reserve(32);
        views(narrow.gate);
        views(narrow.up);
        views(narrow.down);
        wide = narrow;
        for (moe::Weights<float>* weights : {&wide.gate, &wide.up, &wide.down}) {
            if (weights->count() == 0) continue;
            moe::Weights<float> owned(weights->count(), weights->rows(), weights->cols());
            for (Index e = 0; e < weights->count(); ++e)
                owned.owned(e).view() = values((*weights)[e]);
            *weights = owned;
        }
    }

    const Matrix<float>& values(const WeightView& view) const {
        for (const auto& one : stored)
            if (view.data == one.bytes.data() || view.data == one.values.data()) return one.values;
        throw std::logic_error("a view of other memory");
    }
};

constexpr moe::Dtype narrow_or_mixed[] = {moe::Dtype::bf16, moe::Dtype::f16, moe::Dtype::i8,
                                          moe::Dtype::unknown};

TEST(FeedForwardExperts, ReadNarrowWeightsWhereTheyLie) {
    for (const Index tokens : {1, 7, 12, 40}) {
        const expert_group::Extents e{.tokens = tokens, .model_dim = 37, .output_dim = 29};
        const expert_group::Batch<float> batch(e);
        Random random(5);
        const auto bf16 = moe::InBf16{moe::Swiglu{.count = 4, .ffn_dim = 67}}.build<float>(
            {.model_dim = 37, .output_dim = 29}, random);
        for (const auto& like : {swiglu<float>(4, 67, e), mlp<float>(4, 67, e), bf16})
            for (const moe::Dtype dtype : narrow_or_mixed) {
                const NarrowGroups groups(like, dtype);
                ASSERT_TRUE(groups.narrow.up.is_bound() && !groups.wide.up.is_bound());
                for (const Isa isa : moe::supported_isas()) {
                    SCOPED_TRACE(std::string(moe::name(isa)) + " " + moe::dtype_name(dtype) + " " +
                                 std::to_string(tokens));
                    ScopedIsa forced(isa);
                    const auto expected = expert_group::run(groups.wide, batch);
                    expert_group::expect_same_bits(expert_group::run(groups.narrow, batch),
                                                   expected);
                    EXPECT_FALSE(
                        moe::testing::same_bits(expert_group::run(like, batch).y, expected.y));
                }
            }
    }
}

TEST(FeedForwardExperts, FreezeNarrowWeights) {
    const expert_group::Extents e{.tokens = 12, .model_dim = 70, .output_dim = 29};
    const expert_group::Batch<float> batch(e);
    for (const auto& like : {swiglu<float>(4, 67, e), mlp<float>(4, 67, e)})
        for (const moe::Dtype dtype : narrow_or_mixed) {
            const NarrowGroups groups(like, dtype);
            for (const moe::Storage storage :
                 {moe::Storage::fp32, moe::Storage::bf16, moe::Storage::f16, moe::Storage::int8,
                  moe::Storage::int8_block, moe::Storage::int4, moe::Storage::int4_zero,
                  moe::Storage::ternary})
                for (const Isa isa : {Isa::scalar, moe::best_isa()}) {
                    SCOPED_TRACE(std::string(moe::name(isa)) + " " + moe::dtype_name(dtype) + " " +
                                 moe::name(storage));
                    ScopedIsa forced(isa);
                    const moe::FreezeOptions options{.storage = storage};
                    const auto narrow = groups.narrow.freeze(options);
                    const auto wide = groups.wide.freeze(options);
                    for (Index i = 0; i < 4; ++i) {
                        const auto same = [&](const auto& a, const auto& b) {
                            return moe::testing::same_bits(a, b, {.allow_zeros = true});
                        };
                        if (like.shape().gated) {
                            EXPECT_TRUE(same(narrow.gate(i), wide.gate(i)));
                        }
                        EXPECT_TRUE(same(narrow.up(i), wide.up(i)));
                        EXPECT_TRUE(same(narrow.down(i), wide.down(i)));
                    }
                    EXPECT_TRUE(moe::testing::same_bits(expert_group::run(narrow, batch).y,
                                                        expert_group::run(wide, batch).y));
                    auto moved = groups.narrow;
                    EXPECT_TRUE(moe::testing::same_bits(
                        expert_group::run(std::move(moved).freeze(options), batch).y,
                        expert_group::run(wide, batch).y));
                }
        }
}

TEST(FeedForwardExperts, HaveGradientsInFloatWhereTheirWeightsAreNarrow) {
    const expert_group::Extents e{.tokens = 12, .model_dim = 9, .output_dim = 6};
    const auto like = swiglu<float>(4, 7, e);
    const NarrowGroups groups(like, moe::Dtype::unknown);
    EXPECT_EQ(moe::num_parameters(groups.narrow), moe::num_parameters(like));
    auto grad = moe::zeros_like(groups.narrow);
    EXPECT_EQ(moe::num_parameters(grad), moe::num_parameters(like));
    for (Index i = 0; i < 4; ++i) EXPECT_EQ(grad.up[i].dtype, moe::Dtype::f32);
}

TEST(FeedForwardExperts, ReadNarrowWeightsWithAnyThreadCount) {
    const expert_group::Extents e{.tokens = 120, .model_dim = 33, .output_dim = 18};
    const NarrowGroups groups(swiglu<float>(4, 40, e), moe::Dtype::unknown);
    expert_group::expect_same_bits_for_any_thread_count<float>(groups.narrow, e);
    expert_group::expect_no_allocation_in_the_second_call<float>(groups.narrow, e);
}

TEST(FeedForwardExperts, GiveTheSameBitsForAnyThreadCountInDouble) {
    const expert_group::Extents e{.tokens = 120, .model_dim = 33, .output_dim = 18};
    expert_group::expect_same_bits_for_any_thread_count<double>(mlp<double>(4, 40, e), e);
}

TEST(FeedForwardExperts, DoNotDependOnWhatTheWorkspaceHeld) {
    const expert_group::Extents e{.tokens = 12, .model_dim = 9, .output_dim = 6};
    const auto group = mlp<float>(4, 7, e);
    expert_group::Extents larger = e;
    larger.tokens = 50;
    moe::SerialExecutor serial;
    Workspace<float> ws(serial);
    const expert_group::Batch<float> batch(e), other(larger, 4);
    const auto expected = expert_group::run(group, batch);
    expert_group::run(group, other, ws);
    expert_group::expect_same_bits(expert_group::run(group, batch, ws), expected);
    ws.keep(moe::Keep::nothing);
    const auto y = expert_group::run(group, batch, ws, {.forward_only = true}).y;
    EXPECT_TRUE(moe::testing::same_bits(y, expected.y));
}

static_assert(std::is_same_v<moe::FeedForwardModule<double>::Scalar, double>);
static_assert(std::is_same_v<moe::PackedFeedForward<float>::Scalar, float>);
static_assert(moe::FeedForwardModule<float>::skips_empty_gradients);

constexpr moe::FeedForwardShape plain_shape{.model_dim = 9,
                                            .ffn_dim = 7,
                                            .output_dim = 6,
                                            .activation = moe::Activation::relu,
                                            .gated = false};

TEST(FeedForwardExperts, RefuseBoundsWhereThereIsNoGate) {
    Random random(1);
    for (const auto& [limit, offset] : {std::pair{7.0, 0.0}, {HUGE_VAL, 1.0}}) {
        moe::FeedForwardShape shape = plain_shape;
        shape.limit = limit;
        shape.up_offset = offset;
        EXPECT_EQ(message([&] { moe::FeedForwardModule<float>(2, shape, true, random); }),
                  "moe::FeedForwardModule: limit and up_offset are for gated experts; leave them, "
                  "or set gated");
        shape.gated = true;
        EXPECT_NO_THROW(moe::FeedForwardModule<float>(2, shape, true, random));
    }
}

TEST(FeedForwardExperts, RefuseAnActivationThatIsNone) {
    Random random(1);
    moe::FeedForwardShape shape = plain_shape;
    for (const int number : {-1, static_cast<int>(std::size(moe::all_activations))}) {
        shape.activation = static_cast<moe::Activation>(number);
        EXPECT_EQ(message([&] { moe::FeedForwardModule<float>(2, shape, false, random); }),
                  "moe::FeedForwardModule: activation is " + std::to_string(number) +
                      ", which is none of moe::Activation");
    }
}

/// The members are public: what was put there is looked at before it is used.
TEST(FeedForwardExperts, RefuseMatricesOfOtherExtents) {
    using Weights = moe::Weights<float>;
    const expert_group::Extents e{.tokens = 5, .model_dim = 9, .output_dim = 6, .experts = 3};
    const expert_group::Batch<float> batch(e);
    const auto gated = swiglu<float>(3, 7, e), biased = mlp<float>(3, 7, e);
    const auto expect_refused = [&](const auto& group, const std::string& sentence) {
        EXPECT_EQ(message([&] { expert_group::run(group, batch); }), sentence);
        EXPECT_EQ(message([&] { group.freeze({}); }), sentence);
    };
    const auto sentence = [](const std::string& found, const std::string& wanted) {
        return "moe::FeedForwardModule: " + found + ", these experts need " + wanted +
               ", one for each expert of Swiglu or Mlp";
    };
    auto group = gated;
    group.gate = Weights(2, 7, 9);
    expect_refused(group, sentence("gate holds 2 matrices [7, 9]", "3 of [7, 9]"));
    group = gated;
    group.gate = {};
    expect_refused(group, sentence("gate holds 0 matrices [0, 0]", "3 of [7, 9]"));
    group = gated;
    group.up = Weights(3, 9, 7);
    expect_refused(group, sentence("up holds 3 matrices [9, 7]", "3 of [7, 9]"));
    group = gated;
    group.down = Weights(3, 6, 8);
    expect_refused(group, sentence("down holds 3 matrices [6, 8]", "3 of [6, 7]"));
    group = biased;
    group.up_bias = Weights(3, 7, 1);
    expect_refused(group, sentence("up_bias holds 3 matrices [7, 1]", "3 of [1, 7]"));
    group = biased;
    group.down_bias = Weights(1, 1, 6);
    expect_refused(group, sentence("down_bias holds 1 matrices [1, 6]", "3 of [1, 6]"));
    group = biased;
    group.gate = Weights(3, 7, 9);
    expect_refused(group, sentence("gate holds 3 matrices [7, 9]", "0 of [7, 9]"));
    group = biased;
    group.gate_bias = Weights(3, 1, 7);
    expect_refused(group,
                   "moe::FeedForwardModule: experts without a gate have no gate_bias; assign {} to "
                   "it, or use moe::Glu");
    group = gated;
    group.gate_bias = Weights(3, 1, 6);
    expect_refused(group, sentence("gate_bias holds 3 matrices [1, 6]", "3 of [1, 7]"));
    group = biased;
    group.down_bias = {};
    EXPECT_EQ(message([&] { expert_group::run(group, batch); }), "") << "a bias may be left out";
}

TEST(FeedForwardExperts, RefuseBiasesWhoseElementsLieApart) {
    const expert_group::Extents e{.tokens = 5, .model_dim = 9, .output_dim = 6, .experts = 3};
    auto group = mlp<float>(3, 7, e);
    const std::vector<float> memory(14);
    const WeightView apart{.data = memory.data(),
                           .dtype = moe::Dtype::f32,
                           .rows = 1,
                           .cols = 7,
                           .row_stride = 1,
                           .col_stride = 2};
    group.up_bias = moe::Weights<float>(std::vector<WeightView>(3, apart));
    const auto run = [&] { expert_group::run(group, expert_group::Batch<float>(e)); };
    EXPECT_EQ(message(run),
              "moe::FeedForwardModule: a view in up_bias has a col_stride other than 1; "
              "copy the bias into a row and view that");
    WeightView row = apart;
    row.col_stride = 1;
    group.up_bias = moe::Weights<float>(std::vector<WeightView>(3, row));
    EXPECT_EQ(message(run), "");
}

TEST(FeedForwardExperts, RefuseBiasesOfAnotherType) {
    const expert_group::Extents e{.tokens = 5, .model_dim = 9, .output_dim = 6, .experts = 3};
    auto group = mlp<float>(3, 7, e);
    const std::vector<float> memory(7, 1.0f);
    const WeightView row{
        .data = memory.data(), .dtype = moe::Dtype::f32, .rows = 1, .cols = 7, .row_stride = 7};
    std::vector<WeightView> rows(3, row);
    for (const moe::Dtype dtype : narrow_weights::dtypes) {
        rows[1].dtype = dtype;
        rows[1].scales = dtype == moe::Dtype::i8 ? memory.data() : nullptr;
        group.up_bias = moe::Weights<float>(rows);
        const std::string sentence = std::string(
                                         "moe::FeedForwardModule: up_bias of expert 1 "
                                         "holds ") +
                                     moe::dtype_name(dtype) +
                                     ", biases are read as F32 only; convert it and view the copy";
        EXPECT_EQ(message([&] { expert_group::run(group, expert_group::Batch<float>(e)); }),
                  sentence);
        EXPECT_EQ(message([&] { group.freeze({}); }), sentence);
    }
}

}  // namespace
}  // namespace feed_forward_test
