// SPDX-License-Identifier: MIT
#include <moe/experts/packed_feed_forward.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/glu.hpp>
#include <moe/experts/mlp.hpp>
#include <moe/experts/swiglu.hpp>

#include "support/expert_group.hpp"
#include "support/message.hpp"

namespace packed_feed_forward_test {
namespace {

using moe::Compute;
using moe::FreezeOptions;
using moe::Index;
using moe::Isa;
using moe::Matrix;
using moe::ScopedIsa;
using moe::Storage;
using moe::testing::same_bits;
using support::message;

constexpr auto& storages = moe::all_storages;
constexpr auto& computes = moe::all_computes;

using Group = moe::FeedForwardModule<float>;

Group swiglu(Index experts, Index ffn, const expert_group::Extents& e,
             moe::Activation activation = moe::Activation::silu) {
    moe::Random random(3);
    return Group(experts,
                 {.model_dim = e.model_dim,
                  .ffn_dim = ffn,
                  .output_dim = e.output_dim,
                  .activation = activation},
                 false, random);
}

Group mlp(Index experts, Index ffn, const expert_group::Extents& e,
          moe::Activation activation = moe::Activation::gelu) {
    moe::Random random(4);
    auto group = moe::Mlp{.count = experts, .ffn_dim = ffn, .activation = activation, .bias = true}
                     .build<float>({.model_dim = e.model_dim, .output_dim = e.output_dim}, random);
    group.up_bias.fill_normal(random, 1);
    group.down_bias.fill_normal(random, 1);
    return group;
}

Group glu(Index experts, Index ffn, const expert_group::Extents& e) {
    moe::Random random(5);
    auto group = moe::Glu{.count = experts,
                          .ffn_dim = ffn,
                          .activation = moe::Activation::quick_gelu,
                          .bias = true,
                          .limit = 0.75,
                          .up_offset = 1}
                     .build<float>({.model_dim = e.model_dim, .output_dim = e.output_dim}, random);
    for (auto* bias : {&group.gate_bias, &group.up_bias, &group.down_bias})
        bias->fill_normal(random, 1);
    return group;
}

/// The same group with the weights that the kernels of a frozen one see.
Group decoded(const Group& group, const FreezeOptions& options) {
    Group result = group;
    const auto frozen = group.freeze(options);
    for (Index e = 0; e < group.num_experts(); ++e) {
        if (group.shape().gated) result.gate.owned(e).view() = frozen.gate(e);
        result.up.owned(e).view() = frozen.up(e);
        result.down.owned(e).view() = frozen.down(e);
    }
    return result;
}

/// f(options) for each storage and the computes that fit it, and for some per expert.
template <class F>
void for_each_option(Index experts, F&& f) {
    for (const Compute compute : computes) {
        for (const Storage storage : storages) {
            if (!moe::fits(storage, compute)) continue;
            SCOPED_TRACE(std::string(moe::name(storage)) + " " + moe::name(compute));
            f(FreezeOptions{.storage = storage, .compute = compute});
        }
        FreezeOptions mixed{.compute = compute};
        for (Index e = 0; e < experts; ++e) {
            Storage storage = storages[(3 * e + 2) % 8];
            for (int i = 0; !moe::fits(storage, compute); ++i) storage = storages[i];
            mixed.experts.push_back(storage);
        }
        SCOPED_TRACE(std::string("mixed ") + moe::name(compute));
        f(mixed);
    }
}

template <class Frozen>
Matrix<float> run(const Frozen& group, const expert_group::Batch<float>& batch,
                  const expert_group::RunOptions& options = {}) {
    return expert_group::run(group, batch, options).y;
}

TEST(PackedFeedForward, ExactGivesTheBitsOfTheDecodedWeights) {
    const Index extents[][4] = {{1, 37, 41, 29},  {2, 61, 67, 53}, {8, 32, 64, 33},
                                {40, 33, 65, 31}, {9, 1, 1, 1},    {7, 130, 259, 131}};
    for (const auto& [tokens, dim, ffn, out] : extents) {
        SCOPED_TRACE(tokens);
        expert_group::Extents e{.tokens = tokens, .model_dim = dim, .output_dim = out};
        for (const bool weighted : {true, false}) {
            e.input_weights = weighted;
            const expert_group::Batch<float> batch(e);
            for (const Group& group : {swiglu(4, ffn, e), mlp(4, ffn, e)})
                for_each_option(4, [&](const FreezeOptions& options) {
                    if (options.compute != Compute::exact) return;
                    const Matrix<float> expected =
                        run(decoded(group, options), batch, {.forward_only = true});
                    for (const Isa isa : moe::supported_isas()) {
                        ScopedIsa forced(isa);
                        const auto frozen = group.freeze(options);
                        EXPECT_TRUE(same_bits(run(frozen, batch), expected, {.allow_zeros = true}))
                            << moe::name(isa);
                    }
                });
        }
    }
}

/// |a - b| / |b|, of all elements together.
double relative_error(const Matrix<float>& a, const dense::Matrix& b) {
    return (a.cast<double>() - b).norm() / b.norm();
}

std::vector<dense::Expert> dense_experts(const Group& group) {
    std::vector<dense::Expert> experts;
    for (Index e = 0; e < group.num_experts(); ++e)
        experts.push_back(dense::feed_forward_of(group, e));
    return experts;
}

/// What the experts give in double, with the weights that the kernels see.
dense::Matrix reference(const Group& group, const expert_group::Batch<float>& batch) {
    const expert_group::Extents& e = batch.extents;
    dense::Matrix weights = dense::Matrix::Zero(e.tokens, e.experts),
                  inputs = dense::Matrix::Ones(e.tokens, e.experts);
    batch.for_each_row([&](Index i, std::size_t r) {
        weights(batch.tokens[r], i) = batch.weights[r];
        if (e.input_weights) inputs(batch.tokens[r], i) = batch.input_weights[r];
    });
    return dense::forward(dense_experts(group), batch.x.cast<double>(), weights, e.output_dim,
                          inputs);
}

/// A row as Compute says that it is rounded before it is multiplied.
dense::detail::Vector rounded(dense::detail::Vector row, Compute compute) {
    double most = 0;
    for (const double a : row) most = std::max(most, std::fabs(a));
    for (double& a : row)
        if (compute == Compute::bf16)
            a = moe::decode_bf16(moe::detail::bf16_of(static_cast<float>(a)));
        else if (compute == Compute::int8 && most > 0)
            a = std::nearbyint(a * 127 / most) * most / 127;
    return row;
}

/// The same, with the inputs of both products rounded as compute wants it.
dense::Matrix rounded_reference(const Group& group, const expert_group::Batch<float>& batch,
                                Compute compute) {
    dense::Matrix y = dense::Matrix::Zero(batch.extents.tokens, batch.extents.output_dim);
    const std::vector<dense::Expert> experts = dense_experts(group);
    const dense::Matrix inputs = batch.x.cast<double>();
    batch.for_each_row([&](Index e, std::size_t r) {
        const dense::Expert& expert = experts[static_cast<std::size_t>(e)];
        const Index token = batch.tokens[r];
        const double input = batch.extents.input_weights ? batch.input_weights[r] : 1;
        const auto x = dense::detail::row(inputs, token, input);
        const auto h = dense::detail::hidden(expert, rounded(x, compute)).h;
        const auto out = dense::detail::affine(expert.down, rounded(h, compute), expert.down_bias);
        for (Index o = 0; o < y.cols(); ++o)
            y(token, o) += batch.weights[r] * out[static_cast<std::size_t>(o)];
    });
    return y;
}

TEST(PackedFeedForward, IsRightInDoubleWithTheDecodedWeights) {
    expert_group::Extents e{.tokens = 17, .model_dim = 130, .output_dim = 67};
    for (const bool weighted : {true, false}) {
        e.input_weights = weighted;
        const expert_group::Batch<float> batch(e);
        for (const Group& group : {swiglu(4, 141, e), mlp(4, 141, e), glu(4, 141, e)})
            for_each_option(4, [&](const FreezeOptions& options) {
                const Matrix<float> y = run(group.freeze(options), batch);
                const Group wanted = decoded(group, options);
                // An element that float puts on the other side of a tie is off by one step: in
                // bf16 2^-8 of itself, in int8 1 / 127 of the largest, in one row of some hundred.
                const double tie = options.compute == Compute::exact ? 0 : 3e-4;
                EXPECT_LT(relative_error(y, rounded_reference(wanted, batch, options.compute)),
                          1e-6 + tie);
                // Rounding to bf16 leaves 2^-8 at most. Rounding to int8 leaves max / (127 sqrt
                // 12): 0.4 % of these inputs, twice in a gated expert, and 1.3 % of hidden rows,
                // whose largest elements are six times as large as most.
                const double rounding = options.compute == Compute::exact  ? 0
                                        : options.compute == Compute::bf16 ? 1 / 256.
                                                                           : 0.02;
                EXPECT_LT(relative_error(y, reference(wanted, batch)), 1e-6 + rounding);
            });
    }
}

TEST(PackedFeedForward, HasEveryActivation) {
    const expert_group::Extents e{.tokens = 9, .model_dim = 33, .output_dim = 17};
    const expert_group::Batch<float> batch(e);
    for (const auto activation : moe::all_activations)
        for (const FreezeOptions& options :
             {FreezeOptions{}, FreezeOptions{.storage = Storage::bf16, .compute = Compute::bf16},
              FreezeOptions{.storage = Storage::int8, .compute = Compute::int8}})
            for (const Group& group : {mlp(4, 35, e, activation), swiglu(4, 35, e, activation)}) {
                EXPECT_LT(relative_error(run(group.freeze(options), batch),
                                         reference(decoded(group, options), batch)),
                          group.shape().gated ? 0.02 : 0.01)
                    << static_cast<int>(activation) << moe::name(options.compute);
            }
}

/// More hidden columns than are made at once: 512 for up to 64 rows, 128 for more.
TEST(PackedFeedForward, GivesTheSameBitsAsUnpackedWeightsInSeveralSteps) {
    const Index extents[][2] = {{110, 300}, {500, 300}, {20, 1100}};  // tokens, F
    const auto check = [&](auto scalar) {
        using S = decltype(scalar);
        for (const auto& [tokens, ffn] : extents) {
            SCOPED_TRACE(ffn);
            const expert_group::Extents e{
                .tokens = tokens, .model_dim = 7, .output_dim = 5, .experts = 1};
            const expert_group::Batch<S> batch(e);
            moe::Random random(4);
            const auto group = moe::Swiglu{.count = 1, .ffn_dim = ffn}.template build<S>(
                {.model_dim = 7, .output_dim = 5}, random);
            ASSERT_EQ(batch.rows().num_rows() > 64, tokens > 64);
            EXPECT_TRUE(same_bits(expert_group::run(group.freeze({}), batch).y,
                                  expert_group::run(group, batch).y));
        }
    };
    check(1.0f);
    check(1.0);
}

/// Backward of the experts that were frozen must not take for gate and up what is there.
TEST(PackedFeedForward, KeepsNothingForABackwardThatItDoesNotHave) {
    const expert_group::Extents e;
    const expert_group::Batch<float> batch(e);
    for (const Group& group : {swiglu(4, 35, e), mlp(4, 35, e), glu(4, 35, e)}) {
        const auto frozen = group.freeze({});
        moe::Workspace<float> ws;
        const moe::Context context;
        ASSERT_EQ(ws.keep(), moe::Keep::everything);
        Matrix<float> y = Matrix<float>::Zero(e.tokens, e.output_dim);
        frozen.forward(batch.x, batch.rows(), y, {context, ws});
        EXPECT_FALSE(ws.state<moe::detail::FeedForwardState<float>>().kept);
    }
}

TEST(PackedFeedForward, GivesTheSameBitsWhoeverComputesThem) {
    if (moe::isa() == moe::Isa::scalar) GTEST_SKIP() << "it forces every instruction set itself";
    for (const auto& [tokens, dim, ffn, out] :
         {std::array<Index, 4>{40, 37, 141, 29}, {1, 61, 67, 53}, {300, 13, 10, 17}}) {
        SCOPED_TRACE(tokens);
        const expert_group::Extents e{.tokens = tokens, .model_dim = dim, .output_dim = out};
        const expert_group::Batch<float> batch(e), other(e, 9);
        const moe::testing::CompareOptions zeros{.allow_zeros = true};
        for (const Group& group : {swiglu(4, ffn, e), mlp(4, ffn, e)})
            for_each_option(4, [&](const FreezeOptions& options) {
                ScopedIsa scalar(Isa::scalar);
                const Matrix<float> expected = run(group.freeze(options), batch);
                for (const Isa isa : moe::supported_isas()) {
                    SCOPED_TRACE(moe::name(isa));
                    ScopedIsa forced(isa);
                    const auto frozen = group.freeze(options);
                    EXPECT_TRUE(same_bits(run(frozen, batch), expected, zeros));
                    for (const Index split : {1, 2, 3})
                        EXPECT_TRUE(
                            same_bits(run(frozen, batch, {.split = split}), expected, zeros));
                    // Read by the kernels that they were packed for, whatever is in use now.
                    ScopedIsa other_isa(Isa::scalar);
                    EXPECT_TRUE(same_bits(run(frozen, batch), expected, zeros));
                }
                const auto frozen = group.freeze(options);
                for (const int threads : {1, 2, 3, 7}) {
                    if (e.tokens == 1) continue;  // not worth threads
                    moe::ThreadPool pool(threads);
                    moe::Workspace<float> ws(pool);
                    for (int call = 0; call < 2; ++call) {
                        EXPECT_TRUE(
                            same_bits(expert_group::run(frozen, batch, ws).y, expected, zeros));
                        expert_group::run(frozen, other, ws);
                    }
                }
            });
    }
}

/// Rows of x are encoded once each, or once for each row of an expert: what is cheaper.
TEST(PackedFeedForward, GivesTheSameBitsHoweverManyTokensThereAre) {
    const expert_group::Extents e{
        .tokens = 12, .model_dim = 37, .output_dim = 29, .input_weights = false};
    const expert_group::Batch<float> batch(e);
    ASSERT_GT(batch.rows().num_rows(), 12);
    const Group group = swiglu(4, 41, e);
    for_each_option(4, [&](const FreezeOptions& options) {
        const auto frozen = group.freeze(options);
        expert_group::Batch<float> more = batch;
        more.x = Matrix<float>::Constant(100, 37, std::numeric_limits<float>::quiet_NaN());
        more.x.topRows(12) = batch.x;
        EXPECT_TRUE(same_bits(run(frozen, more), run(frozen, batch)));
    });
}

/// Rows are worked on in parts of 1024 where the hidden layer is that wide.
TEST(PackedFeedForward, GivesTheSameBitsInAnyNumberOfParts) {
    if (moe::isa() == moe::Isa::scalar)
        GTEST_SKIP() << "no other cuts with scalar kernels, which take ten times as long";
    expert_group::Extents e{.tokens = 1700, .model_dim = 5, .output_dim = 6, .experts = 3};
    ASSERT_EQ(moe::detail::FeedForwardState<float>::part_rows({.ffn_dim = 1040}, 5000, 7), 1024);
    for (const bool weighted : {false, true}) {
        e.input_weights = weighted;
        const expert_group::Batch<float> batch(e);
        const Group group = swiglu(3, 1040, e);
        for (const Compute compute : {Compute::bf16, Compute::int8}) {
            const auto frozen = group.freeze(
                {.storage = compute == Compute::bf16 ? Storage::bf16 : Storage::int4_zero,
                 .compute = compute});
            const Matrix<float> whole = run(frozen, batch);
            Matrix<float> y = Matrix<float>::Zero(e.tokens, e.output_dim);
            moe::Workspace<float> ws;
            const moe::Context context;
            for (Index i = 0; i < 3; ++i)
                for (Index begin = batch.rows().begin(i); begin < batch.rows().end(i);
                     begin += 300) {
                    const std::vector<Index> offsets{begin,
                                                     std::min(begin + 300, batch.rows().end(i))};
                    moe::Rows<float> rows = batch.rows();
                    rows.offsets = offsets;
                    rows.first_expert = i;
                    frozen.forward(batch.x, rows, y, {context, ws});
                }
            EXPECT_TRUE(same_bits(y, whole));
        }
    }
}

/// A row of x that an expert is alone with is read where it was encoded.
TEST(PackedFeedForward, GivesTheSameBitsForRowsThatAreAlone) {
    const expert_group::Extents e{.tokens = 3, .model_dim = 37, .output_dim = 29};
    const auto x = moe::testing::random_matrix<float>(3, 37, 1);
    const std::vector<Index> offsets{1, 2, 3, 4, 5};
    const std::vector<std::int32_t> tokens{0, 2, 0, 1, 2};
    const std::vector<float> weights{9, .5f, -1, 2, .25f}, ones(5, 1);
    moe::Rows<float> rows{.offsets = offsets, .from = tokens, .to = tokens, .weights = weights};
    const moe::Context context;
    const Group group = swiglu(4, 41, e);
    for_each_option(4, [&](const FreezeOptions& options) {
        const auto frozen = group.freeze(options);
        moe::Workspace<float> ws;
        Matrix<float> once = Matrix<float>::Zero(3, 29), each = once;
        rows.input_weights = {};
        frozen.forward(x, rows, once, {context, ws});
        rows.input_weights = ones;
        frozen.forward(x, rows, each, {context, ws});
        EXPECT_TRUE(same_bits(once, each));
    });
}

TEST(PackedFeedForward, PacksInParallelToTheSameWeights) {
    const expert_group::Extents e{.tokens = 5, .model_dim = 300, .output_dim = 70};
    const expert_group::Batch<float> batch(e);
    const Group group = swiglu(4, 500, e);
    moe::ThreadPool pool(3);
    for_each_option(4, [&](FreezeOptions options) {
        const Matrix<float> expected = run(group.freeze(options), batch);
        options.executor = &pool;
        EXPECT_TRUE(same_bits(run(group.freeze(options), batch), expected));
    });
}

TEST(PackedFeedForward, OfAGroupThatIsNotNeededReleasesIt) {
    const expert_group::Extents e{.tokens = 5};
    const expert_group::Batch<float> batch(e);
    for_each_option(4, [&](const FreezeOptions& options) {
        Group group = mlp(4, 20, e);
        const Matrix<float> expected = run(group.freeze(options), batch);
        EXPECT_EQ(group.up.count(), 4);
        const auto frozen = std::move(group).freeze(options);
        EXPECT_TRUE(same_bits(run(frozen, batch), expected));
        EXPECT_EQ(group.up.count(), 0);
        EXPECT_EQ(group.down.count(), 0);
    });
}

TEST(PackedFeedForward, CopiesAreTheSame) {
    const expert_group::Extents e{.tokens = 5};
    const expert_group::Batch<float> batch(e);
    const Group group = swiglu(4, 20, e);
    for_each_option(4, [&](const FreezeOptions& options) {
        auto frozen = group.freeze(options);
        const Matrix<float> expected = run(frozen, batch);
        auto copy = frozen;
        EXPECT_EQ(copy.bytes(), frozen.bytes());
        frozen = moe::PackedFeedForward<float>();
        EXPECT_EQ(frozen.num_experts(), 0);
        EXPECT_TRUE(same_bits(run(copy, batch), expected));
        const auto moved = std::move(copy);
        EXPECT_TRUE(same_bits(run(moved, batch), expected));
    });
}

TEST(PackedFeedForward, WorksWithoutRows) {
    const expert_group::Extents e{.tokens = 0};
    const Group group = swiglu(4, 20, e);
    for_each_option(4, [&](const FreezeOptions& options) {
        EXPECT_EQ(run(group.freeze(options), expert_group::Batch<float>(e)).rows(), 0);
    });
}

TEST(PackedFeedForward, HasNoGateIfItsExpertsAreNotGated) {
    const auto frozen =
        mlp(2, 24, {.model_dim = 9, .output_dim = 8}).freeze({.storage = Storage::int8});
    EXPECT_EQ(frozen.up(1).rows(), 24);
    EXPECT_THROW((void)frozen.gate(1), std::invalid_argument);
    for (const Index e : {-1, 2}) {
        EXPECT_THROW((void)frozen.up(e), std::invalid_argument);
        EXPECT_THROW((void)frozen.down(e), std::invalid_argument);
        EXPECT_THROW((void)frozen.storage(e), std::invalid_argument);
    }
    EXPECT_EQ(frozen.storage(1), Storage::int8);
}

TEST(PackedFeedForward, MayHoldNoExperts) {
    const auto frozen = Group().freeze({.storage = Storage::int8, .compute = Compute::int8});
    EXPECT_EQ(frozen.num_experts(), 0);
    EXPECT_EQ(frozen.bytes(), 0);
    moe::Workspace<float> ws;
    frozen.reserve(3, 0, ws);
    EXPECT_GE(frozen.workspace_bytes(3, 0, moe::Keep::nothing, 1), 0);
}

TEST(PackedFeedForward, NotANumberStaysInItsRows) {
    const moe::testing::CompareOptions zeros{.allow_zeros = true};
    const expert_group::Extents e{.tokens = 9, .input_weights = false};
    expert_group::Batch<float> batch(e);
    const Group group = swiglu(4, 20, e);
    for_each_option(4, [&](const FreezeOptions& options) {
        const auto frozen = group.freeze(options);
        const Matrix<float> expected = run(frozen, batch);
        auto bad = batch;
        bad.x(4, 7) = std::numeric_limits<float>::quiet_NaN();
        const Matrix<float> y = run(frozen, bad);
        for (Index t = 0; t < 9; ++t)
            if (t == 4)
                EXPECT_TRUE(y.row(t).array().isNaN().all());
            else
                EXPECT_TRUE(same_bits(y.row(t), expected.row(t), zeros));
    });
}

TEST(PackedFeedForward, AllocatesNothingInTheSecondCallAndNothingAfterReserve) {
    if (!allocations::are_counted) GTEST_SKIP();
    const moe::Context context;
    for (const bool weighted : {false, true}) {
        const expert_group::Extents e{
            .tokens = 70, .model_dim = 34, .output_dim = 34, .input_weights = weighted};
        const expert_group::Batch<float> batch(e);
        const Group group = swiglu(4, 300, e);
        moe::ThreadPool pool(2);
        for_each_option(4, [&](const FreezeOptions& options) {
            const auto frozen = group.freeze(options);
            Matrix<float> y = Matrix<float>::Zero(e.tokens, e.output_dim);
            const Index rows = batch.rows().num_rows();
            moe::Workspace<float> ws(pool), fresh(pool);
            const auto call = [&](moe::Workspace<float>& in) {
                frozen.forward(batch.x, batch.rows(), y, {context, in});
            };
            call(ws);
            EXPECT_EQ(allocations::in([&] { call(ws); }), 0);

            fresh.keep(moe::Keep::nothing);
            const long before = allocations::bytes_asked_for.load();
            frozen.reserve(e.tokens, static_cast<Index>(batch.weights.size()), fresh);
            const long used = allocations::bytes_asked_for.load() - before;
            EXPECT_EQ(allocations::in([&] { call(fresh); }), 0);
            const long said = frozen.workspace_bytes(
                e.tokens, static_cast<Index>(batch.weights.size()), moe::Keep::nothing, 2);
            EXPECT_LE(used, said + 4096);
            EXPECT_GE(used, said / 2) << rows;
        });
    }
}

TEST(PackedFeedForward, TakesTheRoomOfItsStorage) {
    const expert_group::Extents e{.model_dim = 256, .output_dim = 256};
    const Index weights = 4 * 3 * 256 * 512;
    const Group group = swiglu(4, 512, e);
    const auto bits = [&](Storage storage) {
        const auto frozen = group.freeze({.storage = storage});
        EXPECT_EQ(frozen.num_experts(), 4);
        EXPECT_EQ(frozen.facts(0).flops_per_row, 2 * 3 * 256 * 512);
        return 8 * static_cast<double>(frozen.bytes()) / static_cast<double>(weights);
    };
    EXPECT_EQ(bits(Storage::fp32), 32);
    EXPECT_EQ(bits(Storage::bf16), 16);
    EXPECT_EQ(bits(Storage::f16), 16);
    EXPECT_EQ(bits(Storage::int8_block), 8.5);
    EXPECT_EQ(bits(Storage::int4), 4.5);
    EXPECT_EQ(bits(Storage::int4_zero), 4.75);
    const double scales = 32 * (2 / 256. + 1 / 512.) / 3;  // a float for 256 or 512 weights
    EXPECT_NEAR(bits(Storage::int8), 8 + scales, 1e-9);
    EXPECT_NEAR(bits(Storage::ternary), 2 + scales, 1e-9);
}

TEST(PackedFeedForward, RefusesOptionsThatDoNotFit) {
    const expert_group::Extents e;
    const Group group = swiglu(4, 20, e);
    const auto said = [&](const FreezeOptions& options) {
        return message([&] { group.freeze(options); });
    };
    EXPECT_EQ(
        said({.storage = Storage::f16, .compute = Compute::int8}),
        "moe::freeze: compute int8 does not multiply weights stored as f16, as those of "
        "expert 0 are to be; store them as int8, int8_block, int4, int4_zero or ternary, or use "
        "Compute::exact (shared experts have FreezeOptions::storage)");
    EXPECT_EQ(said({.compute = Compute::bf16,
                    .experts = {Storage::bf16, Storage::bf16, Storage::int8, Storage::bf16}}),
              "moe::freeze: compute bf16 does not multiply weights stored as int8, as those of "
              "expert 2 are to be; store them as bf16, or use Compute::exact "
              "(shared experts have FreezeOptions::storage)");
    EXPECT_EQ(said({.experts = {Storage::bf16, Storage::int8}}),
              "moe::freeze: FreezeOptions::experts has 2 entries, this group has 4 experts; give "
              "each one entry, or leave it empty and set storage");
    EXPECT_EQ(said({.storage = static_cast<Storage>(8)}),
              "moe::freeze: the storage is 8, which is none of moe::Storage");
    EXPECT_EQ(said({.compute = static_cast<Compute>(-1)}),
              "moe::freeze: compute is -1, which is none of moe::Compute");
    moe::Random random(3);
    const auto wide = moe::Swiglu{.count = 2, .ffn_dim = 3}.build<double>(
        {.model_dim = 4, .output_dim = 4}, random);
    EXPECT_EQ(message([&] { wide.freeze({}); }), "");
    EXPECT_EQ(message([&] { wide.freeze({.storage = Storage::bf16}); }),
              "moe::freeze: storage bf16 and compute exact are for layers of float; one of double "
              "keeps its weights: leave storage fp32 and compute exact");
}

TEST(PackedFeedForward, RefusesWeightsThatCannotBeStored) {
    const expert_group::Extents e;
    const Group group = swiglu(4, 20, e);
    Group bad = group;
    bad.down.owned(3).view()(5, 17) = std::numeric_limits<float>::infinity();
    for (const Storage storage : storages) {
        const std::string expected =
            storage == Storage::fp32
                ? ""
                : std::string("moe::freeze: down of expert 3: weight [5, 17] is inf, ") +
                      moe::name(storage) +
                      " holds finite weights only; mend it, or store the expert as fp32, which "
                      "keeps every bit (Compute::exact only)";
        Group copy = bad;
        EXPECT_EQ(message([&] { std::move(copy).freeze({.storage = storage}); }), expected);
        EXPECT_EQ(copy.up.count(), storage == Storage::fp32 ? 0 : 4) << "unchanged";
    }
    bad = group;
    bad.gate.owned(1).view()(0, 2) = -70000;
    EXPECT_EQ(message([&] { bad.freeze({.storage = Storage::f16}); }),
              "moe::freeze: gate of expert 1: weight [0, 2] is -70000, f16 holds weights up to "
              "65504; store the expert as bf16 or fp32 (not with Compute::int8), see "
              "FreezeOptions::experts");
    EXPECT_EQ(
        message([&] {
            bad.freeze({.experts = {Storage::f16, Storage::bf16, Storage::f16, Storage::f16}});
        }),
        "");
}

}  // namespace
}  // namespace packed_feed_forward_test
