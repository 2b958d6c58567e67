// SPDX-License-Identifier: MIT
#include <moe/frozen.hpp>

#include <cmath>
#include <iterator>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/constant.hpp>
#include <moe/experts/copy.hpp>
#include <moe/experts/each.hpp>
#include <moe/experts/mlp.hpp>
#include <moe/experts/shared.hpp>
#include <moe/experts/swiglu.hpp>
#include <moe/gates/expert_choice.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/gates/top_p.hpp>
#include <moe/routers/linear.hpp>
#include <moe/stats/memory.hpp>

#include "seams/check.hpp"
#include "support/allocations.hpp"
#include "support/message.hpp"

namespace frozen_test {
namespace {

using moe::Index;
using moe::Matrix;
using moe::Workspace;
using moe::testing::random_matrix;
using moe::testing::same_bits;

constexpr Index tokens = 21, dim = 37;

/// y = scale * x, for inference only
struct Scale {
    float scale = 1;
    void forward(moe::In<float> x, moe::Out<float> y) const { y = scale * x; }
};

auto make(std::uint64_t seed = 1) {
    return moe::Layer{
        moe::Config{.model_dim = dim, .seed = seed},
        moe::LinearRouter{.bias = true},
        moe::TopK{.k = 3},
        moe::Swiglu{.count = 3, .ffn_dim = 41},
        moe::Mlp{.count = 2, .ffn_dim = 19, .activation = moe::Activation::gelu, .bias = true},
        moe::Copy{},
        moe::Constant{},
        moe::experts(2, Scale{0.5f}),
        moe::Shared{moe::Swiglu{.ffn_dim = 23}, moe::SharedGate::sigmoid}};
}
using Layer = decltype(make());
using Frozen = decltype(moe::freeze(std::declval<const Layer&>()));

Matrix<float> batch(Index rows = tokens) { return random_matrix<float>(rows, dim, 1); }

TEST(Frozen, GivesTheSameBits) {
    const Layer layer = make();
    const auto frozen = moe::freeze(layer);
    for (const Index rows : {21, 1, 300, 0})
        EXPECT_TRUE(same_bits(frozen(batch(rows)), layer(batch(rows)))) << rows;
    EXPECT_EQ(frozen.num_experts(), layer.num_experts());
    static_assert(std::is_same_v<std::remove_const_t<decltype(frozen)>, moe::Frozen<Layer>>);
    EXPECT_EQ(frozen.model_dim(), dim);
    EXPECT_EQ(frozen.output_dim(), dim);
    EXPECT_EQ(frozen.config().seed, 1u);
}

TEST(Frozen, GivesTheSameRoutingAndLogits) {
    const Layer layer = make();
    const auto frozen = moe::freeze(layer);
    Workspace<float> ws, other;
    Matrix<float> y(tokens, dim), again(tokens, dim);
    layer.forward(batch(), y, ws);
    frozen.forward(batch(), again, other);
    EXPECT_TRUE(same_bits(other.logits(), ws.logits()));
    EXPECT_TRUE(other.routing() == ws.routing());
    frozen.reweigh(batch(), ws.routing(), other);
    frozen.apply(batch(), again, other);
    EXPECT_TRUE(same_bits(again, y));
}

TEST(Frozen, IsAsCausalAsTheLayer) {
    EXPECT_TRUE(moe::freeze(make()).is_causal());
    const moe::Layer layer{moe::Config{.model_dim = 8}, moe::LinearRouter{},
                           moe::ExpertChoice{.capacity_factor = 1}, moe::Copy{.count = 3}};
    EXPECT_FALSE(layer.is_causal());
    EXPECT_FALSE(moe::freeze(layer).is_causal());
}

TEST(Frozen, HasAsManyParametersAsTheLayer) {
    auto layer = moe::Layer{moe::Config{.model_dim = 8}, moe::LinearRouter{}, moe::TopK{.k = 1},
                            moe::Swiglu{.count = 3, .ffn_dim = 4}, moe::Constant{}};
    const moe::Index count = moe::num_parameters(layer);
    EXPECT_EQ(count, 4 * 8 + 3 * 3 * 4 * 8 + 3 * 8);
    EXPECT_EQ(moe::num_parameters(moe::freeze(layer)), count);
    EXPECT_EQ(moe::num_parameters(moe::freeze(std::move(layer))), count);
}

TEST(Frozen, DoesNotFollowTheLayer) {
    Layer layer = make();
    const Matrix<float> before = layer(batch());
    const auto frozen = moe::freeze(layer);
    moe::for_each_parameter(layer,
                            [](auto, std::span<float> w) { std::fill(w.begin(), w.end(), 0.f); });
    EXPECT_TRUE(same_bits(frozen(batch()), before));
    EXPECT_FALSE(same_bits(layer(batch()), before, {.allow_zeros = true}));
}

void expect_released(Layer& layer) {
    const auto expect_empty = [](const auto& experts, const char* name) {
        EXPECT_EQ(experts.gate.count(), 0) << name;
        EXPECT_EQ(experts.up.count(), 0) << name;
        EXPECT_EQ(experts.down.count(), 0) << name;
    };
    expect_empty(layer.bank().group<0>(), "Swiglu");
    expect_empty(layer.bank().group<1>(), "Mlp");
    expect_empty(layer.bank().group<5>().experts(), "Shared");
}

TEST(Frozen, MadeOfALayerThatIsNotNeededAnyMore) {
    Layer layer = make();
    const Matrix<float> expected = layer(batch());
    const auto frozen = moe::freeze(std::move(layer));
    EXPECT_TRUE(same_bits(frozen(batch()), expected));
    expect_released(layer);
    static_assert(std::is_same_v<std::remove_cv_t<decltype(frozen)>, Frozen>);
}

/// A layer that is given up loses its groups in any case: that they release one matrix after the
/// other shows only here.
TEST(Frozen, GroupsThatAreNotNeededAnyMoreReleaseTheirMatrices) {
    Layer layer = make();
    const moe::FreezeOptions options;
    std::move(layer.bank().group<0>()).freeze(options);
    std::move(layer.bank().group<1>()).freeze(options);
    std::move(layer.bank().group<5>()).freeze(options);
    expect_released(layer);
}

TEST(Frozen, CopiesAndMovesAreTheSameLayer) {
    const Layer layer = make();
    auto frozen = moe::freeze(layer);
    const auto copy = frozen;
    const auto moved = std::move(frozen);
    EXPECT_TRUE(same_bits(copy(batch()), layer(batch())));
    EXPECT_TRUE(same_bits(moved(batch()), layer(batch())));
}

TEST(Frozen, TakesTheContextOfTheLayer) {
    const Layer layer = make();
    const auto frozen = moe::freeze(layer);
    std::vector<std::uint8_t> padding(tokens, 0);
    padding[3] = 1;
    const std::vector<double> offset(9, 0.5), multiplier{1, 2, 0.5, 0, 1, -1, 1, 1, 3};
    const moe::Context context{.padding = padding,
                               .logit_offset = offset,
                               .gate_multiplier = multiplier,
                               .dial = {.k = 2}};
    EXPECT_TRUE(same_bits(frozen(batch(), context), layer(batch(), context)));
}

TEST(Frozen, LeavesTheKeepSettingAsItWas) {
    const auto frozen = moe::freeze(make());
    Matrix<float> y(tokens, dim), bad(tokens, dim + 1);
    for (const moe::Keep keep : {moe::Keep::everything, moe::Keep::nothing}) {
        Workspace<float> ws;
        ws.keep(keep);
        frozen.forward(batch(), y, ws);
        EXPECT_EQ(ws.keep(), keep);
        EXPECT_THROW(frozen.forward(batch(), bad, ws), std::invalid_argument);
        EXPECT_EQ(ws.keep(), keep);
    }
}

TEST(Frozen, SaysTheSameErrors) {
    const auto frozen = moe::freeze(make());
    EXPECT_EQ(support::message([&] { frozen(random_matrix<float>(3, dim + 1, 1)); }),
              "moe::Layer::forward: x has 38 columns, model_dim is 37; a token is a row of x");
}

TEST(Frozen, WorksForDouble) {
    const auto layer =
        moe::make_layer<double>(moe::Config{.model_dim = dim}, moe::LinearRouter{},
                                moe::TopP{.p = 0.6}, moe::Swiglu{.count = 4, .ffn_dim = 9});
    const auto x = random_matrix<double>(tokens, dim, 1);
    EXPECT_TRUE(same_bits(moe::freeze(layer)(x), layer(x)));
}

using moe::Compute;
using moe::Storage;
using support::message;

const moe::FreezeOptions stored[] = {{.storage = Storage::bf16},
                                     {.storage = Storage::int8},
                                     {.storage = Storage::int4_zero},
                                     {.storage = Storage::bf16, .compute = Compute::bf16},
                                     {.storage = Storage::int8, .compute = Compute::int8},
                                     {.storage = Storage::int4, .compute = Compute::int8}};

/// The layer with the weights that the kernels of a frozen one see.
Layer decoded(const Layer& layer, const Frozen& frozen) {
    Layer result = layer;
    const auto replace = [](auto& group, const auto& packed) {
        for (Index e = 0; e < group.num_experts(); ++e) {
            if (group.shape().gated) group.gate.owned(e).view() = packed.gate(e);
            group.up.owned(e).view() = packed.up(e);
            group.down.owned(e).view() = packed.down(e);
        }
    };
    replace(result.bank().group<0>(), frozen.bank().group<0>());
    replace(result.bank().group<1>(), frozen.bank().group<1>());
    replace(result.bank().group<5>().experts(), frozen.bank().group<5>().experts());
    return result;
}

double distance(const Matrix<float>& a, const Matrix<float>& b) {
    return (a - b).cast<double>().norm() / b.cast<double>().norm();
}

TEST(FrozenStorage, ExactGivesTheBitsOfALayerWithTheRoundedWeights) {
    const Layer layer = make();
    for (const Storage storage : {Storage::bf16, Storage::f16, Storage::int8, Storage::int8_block,
                                  Storage::int4, Storage::int4_zero, Storage::ternary}) {
        SCOPED_TRACE(moe::name(storage));
        const auto frozen = moe::freeze(layer, {.storage = storage});
        const Layer rounded = decoded(layer, frozen);
        for (const Index rows : {21, 1, 300, 0})
            EXPECT_TRUE(same_bits(frozen(batch(rows)), rounded(batch(rows)))) << rows;
        EXPECT_GT(distance(frozen(batch()), layer(batch())), 1e-5);
        EXPECT_EQ(moe::num_parameters(frozen), moe::num_parameters(layer));
    }
}

TEST(FrozenStorage, RoundsInputsToo) {
    const Layer layer = make();
    for (const moe::FreezeOptions& options : stored) {
        const auto frozen = moe::freeze(layer, options);
        const double off = distance(frozen(batch()), decoded(layer, frozen)(batch()));
        EXPECT_LT(off, 0.02);
        EXPECT_EQ(off < 1e-6, options.compute == Compute::exact) << off;
    }
}

TEST(FrozenStorage, MayDifferPerExpert) {
    const Layer layer = make();
    // Three of Swiglu, two of Mlp, Copy, Constant, two users' own; then a shared one.
    const moe::FreezeOptions options{
        .storage = Storage::f16,
        .experts = {Storage::int8, Storage::fp32, Storage::int4, Storage::ternary, Storage::bf16,
                    Storage::int8, Storage::int8, Storage::int8, Storage::int8}};
    const auto frozen = moe::freeze(layer, options);
    const auto& gated = frozen.bank().group<0>();
    const auto& plain = frozen.bank().group<1>();
    EXPECT_EQ(gated.storage(0), Storage::int8);
    EXPECT_EQ(gated.storage(1), Storage::fp32);
    EXPECT_EQ(gated.packed_down().storage(2), Storage::int4);
    EXPECT_EQ(plain.storage(0), Storage::ternary);
    EXPECT_EQ(plain.packed_down().storage(1), Storage::bf16);
    EXPECT_EQ(frozen.bank().group<5>().experts().storage(0), Storage::f16);
    EXPECT_TRUE(same_bits(frozen(batch()), decoded(layer, frozen)(batch())));
}

TEST(FrozenStorage, OfALayerThatIsNotNeededAnyMoreIsTheSame) {
    std::vector<moe::FreezeOptions> all(std::begin(stored), std::end(stored));
    all.push_back(
        {.experts = {Storage::int8, Storage::fp32, Storage::int4, Storage::ternary, Storage::bf16,
                     Storage::f16, Storage::f16, Storage::f16, Storage::f16}});
    for (const moe::FreezeOptions& options : all) {
        Layer layer = make();
        const auto expected = moe::freeze(layer, options)(batch());
        EXPECT_TRUE(same_bits(moe::freeze(std::move(layer), options)(batch()), expected));
        EXPECT_EQ(layer.bank().group<1>().up.count(), 0) << "the originals are released";
    }
}

TEST(FrozenStorage, GivesTheSameBitsWithAnyExecutor) {
    const Layer layer = make();
    for (const moe::FreezeOptions& options : stored) {
        const auto frozen = moe::freeze(layer, options);
        const auto x = batch(200);
        const auto run = [&](moe::Executor& executor) {
            Workspace<float> ws(executor);
            Matrix<float> y(200, dim);
            frozen.forward(x, y, ws);
            return y;
        };
        moe::SerialExecutor serial;
        const Matrix<float> expected = run(serial);
        for (const int threads : {2, 3, 7}) {
            moe::ThreadPool pool(threads);
            EXPECT_TRUE(same_bits(run(pool), expected)) << threads;
#if defined(_OPENMP)
            moe::OpenMpExecutor team(threads);
            EXPECT_TRUE(same_bits(run(team), expected)) << threads;
#endif
        }
    }
}

/// Half of the batch, and one token, give the rows that they have in the whole.
TEST(FrozenStorage, GivesEachTokenTheSameBitsInAnyBatch) {
    const Layer layer = make();
    for (const moe::FreezeOptions& options : stored) {
        const auto frozen = moe::freeze(layer, options);
        const Matrix<float> x = batch(), y = frozen(x);
        EXPECT_TRUE(same_bits(frozen(x.topRows(10)), y.topRows(10)));
        EXPECT_TRUE(same_bits(frozen(x.bottomRows(11)), y.bottomRows(11)));
        for (const Index t : {0, 7, 20}) EXPECT_TRUE(same_bits(frozen(x.row(t)), y.row(t)));
    }
}

TEST(FrozenStorage, RefusesBeforeAnythingIsReleased) {
    Layer layer = make();
    const Matrix<float> before = layer(batch());
    EXPECT_EQ(message([&] { moe::freeze(std::move(layer), {.experts = {Storage::bf16}}); }),
              "moe::freeze: FreezeOptions::experts has 1 entries, the layer has 9 experts; give "
              "each one entry, or leave it empty and set storage");
    EXPECT_NE(message([&] {
                  moe::freeze(std::move(layer),
                              {.storage = Storage::bf16, .compute = Compute::int8});
              }),
              "");
    // The shared group is the last one, and has the storage of the layer.
    const std::vector<Storage> eight_bits(9, Storage::int8);
    EXPECT_EQ(message([&] {
                  moe::freeze(std::move(layer), {.compute = Compute::int8, .experts = eight_bits});
              }),
              "moe::freeze: compute int8 does not multiply weights stored as fp32, as those of "
              "shared expert 0 are to be; store them as int8, int8_block, int4, int4_zero or "
              "ternary, or use "
              "Compute::exact (shared experts have FreezeOptions::storage)");
    EXPECT_TRUE(same_bits(layer(batch()), before)) << "as it was";
    layer.bank().group<5>().experts().down.owned(0).view()(3, 4) = std::nanf("");
    for (const bool moved : {false, true})
        EXPECT_NE(message([&] {
                      if (moved)
                          moe::freeze(std::move(layer), {.storage = Storage::int8});
                      else
                          moe::freeze(layer, {.storage = Storage::int8});
                  }).find("down of shared expert 0: weight [3, 4] is nan"),
                  std::string::npos);
    EXPECT_EQ(layer.bank().group<0>().up.count(), 3);
}

TEST(FrozenStorage, RefusesTheLowestExpertForAnyExecutor) {
    Layer layer = make();
    for (const Index e : {2, 1}) layer.bank().group<0>().up.owned(e).view()(0, 0) = HUGE_VALF;
    moe::ThreadPool pool(3);
    for (moe::Executor* executor :
         {static_cast<moe::Executor*>(nullptr), static_cast<moe::Executor*>(&pool)})
        EXPECT_NE(message([&] {
                      moe::freeze(layer, {.storage = Storage::bf16, .executor = executor});
                  }).find("up of expert 1: weight [0, 0] is inf"),
                  std::string::npos);
}

TEST(FrozenStorage, IsForFloat) {
    const auto layer =
        moe::make_layer<double>(moe::Config{.model_dim = dim}, moe::LinearRouter{},
                                moe::TopK{.k = 2}, moe::Swiglu{.count = 4, .ffn_dim = 9});
    EXPECT_NE(message([&] { moe::freeze(layer, {.storage = Storage::bf16}); }).find("double"),
              std::string::npos);
}

TEST(FrozenStorage, CountsInTheMemoryBudget) {
    const Layer layer = make();
    const auto packed = [&](const moe::FreezeOptions& options) {
        return moe::memory_budget(moe::freeze(layer, options), 100, 300, moe::Keep::nothing, 2);
    };
    const auto whole = packed({}), half = packed({.storage = Storage::bf16});
    EXPECT_LT(half.packed, whole.packed);
    const auto small = packed({.storage = Storage::int8, .compute = Compute::int8});
    EXPECT_LT(small.packed, half.packed);
    EXPECT_GT(small.experts, 0);
}

TEST(FrozenStorage, AllocatesNothingInTheSecondCallOrAfterReserve) {
    if (!allocations::are_counted) GTEST_SKIP();
    const auto layer =
        moe::Layer{moe::Config{.model_dim = dim}, moe::LinearRouter{}, moe::TopK{.k = 3},
                   moe::Swiglu{.count = 5, .ffn_dim = 41},
                   moe::Shared{moe::Swiglu{.count = 2, .ffn_dim = 23}, moe::SharedGate::sigmoid}};
    const auto x = batch();
    Matrix<float> y(tokens, dim);
    for (const moe::FreezeOptions& options : stored) {
        const auto frozen = moe::freeze(layer, options);
        Workspace<float> ws, fresh;
        frozen.forward(x, y, ws);
        EXPECT_EQ(allocations::in([&] { frozen.forward(x, y, ws); }), 0);
        fresh.reserve(frozen, tokens, 3 * tokens);
        EXPECT_EQ(allocations::in([&] { frozen.forward(x, y, fresh); }), 0);
    }
}

}  // namespace
}  // namespace frozen_test
