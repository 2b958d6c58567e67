// SPDX-License-Identifier: MIT
#include <moe/compose/frozen_soft_moe.hpp>

#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <type_traits>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/constant.hpp>
#include <moe/experts/copy.hpp>
#include <moe/experts/each.hpp>
#include <moe/experts/mlp.hpp>
#include <moe/experts/swiglu.hpp>

#include "seams/check.hpp"
#include "support/allocations.hpp"
#include "support/message.hpp"

namespace {

using moe::Compute;
using moe::Index;
using moe::Keep;
using moe::Matrix;
using moe::Storage;
using moe::Workspace;
using moe::testing::random_matrix;
using moe::testing::same_bits;
using support::message;

constexpr Index dim = 37, tokens = 21;

/// y = scale * x, for inference only
struct Scale {
    float scale = 1;
    void forward(moe::In<float> x, moe::Out<float> y) const { y = scale * x; }
};

auto make() {
    return moe::SoftMoe{
        moe::Config{.model_dim = dim, .seed = 3},
        moe::SoftSlots{.slots_per_expert = 2, .scale = 1.5},
        moe::Swiglu{.count = 3, .ffn_dim = 41},
        moe::Mlp{.count = 2, .ffn_dim = 19, .activation = moe::Activation::gelu, .bias = true},
        moe::Copy{},
        moe::Constant{},
        moe::experts(2, Scale{0.5f})};
}
using Layer = decltype(make());

Matrix<float> batch(Index rows = tokens) { return random_matrix<float>(rows, dim, 1); }

TEST(FrozenSoftMoe, GivesTheSameBits) {
    const Layer layer = make();
    const auto frozen = moe::freeze(layer);
    static_assert(std::is_same_v<std::remove_const_t<decltype(frozen)>, moe::Frozen<Layer>>);
    for (const Index rows : {21, 1, 300, 0})
        EXPECT_TRUE(same_bits(frozen(batch(rows)), layer(batch(rows)))) << rows;
    EXPECT_EQ(frozen.num_experts(), 9);
    EXPECT_EQ(frozen.num_slots(), 18);
    EXPECT_EQ(frozen.model_dim(), dim);
    EXPECT_EQ(frozen.output_dim(), dim);
    EXPECT_EQ(moe::num_parameters(frozen), moe::num_parameters(layer));
}

TEST(FrozenSoftMoe, TakesTheContextOfTheLayerAndShowsItsMixtures) {
    const Layer layer = make();
    const auto frozen = moe::freeze(layer);
    std::vector<std::uint8_t> padding(tokens, 0), allowed(9, 1);
    padding[3] = 1, allowed[4] = 0;
    const std::vector<Index> offsets{0, 8, tokens};
    const std::vector<double> multiplier{1, 2, 0.5, 0, 1, -1, 1, 1, 3};
    const moe::Context context{.padding = padding,
                               .sequence_offsets = offsets,
                               .allowed = allowed,
                               .gate_multiplier = multiplier};
    Workspace<float> ws, frozen_ws;
    Matrix<float> y(tokens, dim), frozen_y(tokens, dim);
    layer.forward(batch(), y, ws, context);
    frozen.forward(batch(), frozen_y, frozen_ws, context);
    EXPECT_TRUE(same_bits(frozen_y, y));
    EXPECT_TRUE(same_bits(Matrix<float>(frozen.dispatch(frozen_ws)),
                          Matrix<float>(layer.dispatch(ws)), {.allow_zeros = true}));
    EXPECT_TRUE(same_bits(Matrix<float>(frozen.combine(frozen_ws)),
                          Matrix<float>(layer.combine(ws)), {.allow_zeros = true}));
}

TEST(FrozenSoftMoe, DoesNotFollowTheLayer) {
    Layer layer = make();
    const Matrix<float> before = layer(batch());
    const auto frozen = moe::freeze(layer);
    moe::for_each_parameter(layer,
                            [](auto, std::span<float> w) { std::fill(w.begin(), w.end(), 0.f); });
    EXPECT_TRUE(same_bits(frozen(batch()), before));
    EXPECT_FALSE(same_bits(layer(batch()), before, {.allow_zeros = true}));
}

TEST(FrozenSoftMoe, OfALayerThatIsNotNeededAnyMoreIsTheSameAndReleasesIt) {
    for (const moe::FreezeOptions& options :
         {moe::FreezeOptions{}, moe::FreezeOptions{.storage = Storage::int8}}) {
        Layer layer = make();
        const Matrix<float> expected = moe::freeze(layer, options)(batch());
        const Index count = moe::num_parameters(layer);
        const auto frozen = moe::freeze(std::move(layer), options);
        EXPECT_TRUE(same_bits(frozen(batch()), expected));
        EXPECT_EQ(moe::num_parameters(frozen), count);
        EXPECT_EQ(layer.bank().group<0>().up.count(), 0);
        EXPECT_EQ(layer.bank().group<1>().down.count(), 0);
    }
}

TEST(FrozenSoftMoe, WithStoredWeightsGivesTheBitsOfALayerWithTheRoundedOnes) {
    const Layer layer = make();
    for (const Storage storage : {Storage::bf16, Storage::f16, Storage::int8, Storage::int8_block,
                                  Storage::int4, Storage::int4_zero, Storage::ternary}) {
        SCOPED_TRACE(moe::name(storage));
        const auto frozen = moe::freeze(layer, {.storage = storage});
        Layer rounded = layer;
        const auto replace = [](auto& group, const auto& packed) {
            for (Index e = 0; e < group.num_experts(); ++e) {
                if (group.shape().gated) group.gate.owned(e).view() = packed.gate(e);
                group.up.owned(e).view() = packed.up(e);
                group.down.owned(e).view() = packed.down(e);
            }
        };
        replace(rounded.bank().group<0>(), frozen.bank().group<0>());
        replace(rounded.bank().group<1>(), frozen.bank().group<1>());
        EXPECT_TRUE(same_bits(frozen(batch()), rounded(batch())));
        EXPECT_FALSE(same_bits(frozen(batch()), layer(batch())));
    }
}

TEST(FrozenSoftMoe, StorageMayDifferPerExpert) {
    const auto frozen = moe::freeze(
        make(),
        {.experts = {Storage::int8, Storage::fp32, Storage::int4, Storage::ternary, Storage::bf16,
                     Storage::fp32, Storage::fp32, Storage::fp32, Storage::fp32}});
    EXPECT_EQ(frozen.bank().group<0>().storage(2), Storage::int4);
    EXPECT_EQ(frozen.bank().group<1>().storage(0), Storage::ternary);
}

TEST(FrozenSoftMoe, HasTheSameBitsForAnyNumberOfThreads) {
    for (const moe::FreezeOptions& options :
         {moe::FreezeOptions{},
          moe::FreezeOptions{.storage = Storage::int8, .compute = Compute::int8}}) {
        const auto frozen = moe::freeze(make(), options);
        const Matrix<float> expected = frozen(batch(200));
        for (const int threads : {1, 2, 3}) {
            Workspace<float> ws;
            ws.threads(threads);
            Matrix<float> y(200, dim);
            frozen.forward(batch(200), y, ws);
            EXPECT_TRUE(same_bits(y, expected)) << threads;
        }
    }
}

template <class L>
constexpr bool has_backward = requires(const L& layer, L& grad, Matrix<float>& m,
                                       Workspace<float>& ws) {
    layer.backward(m, m, m, grad, ws);
};
static_assert(has_backward<Layer> && !has_backward<moe::Frozen<Layer>>);

TEST(FrozenSoftMoe, KeepsNothingAndLeavesTheSettingAsItWas) {
    const auto frozen = moe::freeze(make());
    Matrix<float> y(tokens, dim), bad(tokens, dim + 1);
    for (const Keep keep : {Keep::everything, Keep::nothing}) {
        Workspace<float> ws;
        ws.keep(keep);
        frozen.forward(batch(), y, ws);
        EXPECT_EQ(ws.keep(), keep);
        EXPECT_NE(message([&] { frozen.forward(batch(), bad, ws); }).find("moe::SoftMoe::forward"),
                  std::string::npos);
        EXPECT_EQ(ws.keep(), keep);
    }
}

TEST(FrozenSoftMoe, RefusesBeforeAnythingIsReleased) {
    Layer layer = make();
    const Matrix<float> before = layer(batch());
    EXPECT_NE(message([&] {
                  moe::freeze(std::move(layer), {.experts = {Storage::bf16}});
              }).find("FreezeOptions::experts has 1 entries, the layer has 9 experts"),
              std::string::npos);
    EXPECT_NE(message([&] {
                  moe::freeze(layer, {.experts = {Storage::bf16}});
              }).find("FreezeOptions::experts has 1 entries"),
              std::string::npos);
    // The last of the experts with weights are the ones that do not fit.
    std::vector<Storage> last(9, Storage::int8);
    last[4] = Storage::f16;
    EXPECT_NE(message([&] {
                  moe::freeze(std::move(layer), {.compute = Compute::int8, .experts = last});
              }).find("those of expert 4 are to be"),
              std::string::npos);
    EXPECT_TRUE(same_bits(layer(batch()), before)) << "as it was";
    layer.bank().group<1>().down.owned(1).view()(3, 4) = std::nanf("");
    EXPECT_NE(message([&] {
                  moe::freeze(std::move(layer), {.storage = Storage::int8});
              }).find("down of expert 4"),
              std::string::npos);
    EXPECT_EQ(layer.bank().group<0>().up.count(), 3);
}

TEST(FrozenSoftMoe, OfDoubleGivesTheSameBitsAndRefusesOtherStorage) {
    const auto layer = moe::make_soft_moe<double>(moe::Config{.model_dim = dim}, moe::SoftSlots{},
                                                  moe::Swiglu{.count = 4, .ffn_dim = 9});
    const auto x = random_matrix<double>(tokens, dim, 1);
    EXPECT_TRUE(same_bits(moe::freeze(layer)(x), layer(x)));
    EXPECT_NE(message([&] { moe::freeze(layer, {.storage = Storage::bf16}); }).find("double"),
              std::string::npos);
}

TEST(FrozenSoftMoe, AllocatesNothingInTheSecondCallOrAfterReserveAndSaysHowMuchThatIs) {
    if (!allocations::are_counted) GTEST_SKIP() << "a sanitizer brings its own operator new";
    const moe::SoftMoe layer{moe::Config{.model_dim = dim}, moe::SoftSlots{.slots_per_expert = 2},
                             moe::Swiglu{.count = 5, .ffn_dim = 41}};
    const auto x = batch();
    Matrix<float> y(tokens, dim);
    for (const moe::FreezeOptions& options :
         {moe::FreezeOptions{},
          moe::FreezeOptions{.storage = Storage::int8, .compute = Compute::int8}}) {
        const auto frozen = moe::freeze(layer, options);
        Workspace<float> ws, fresh;
        frozen.forward(x, y, ws);
        EXPECT_EQ(allocations::in([&] { frozen.forward(x, y, ws); }), 0);
        fresh.threads(2);
        const long before = allocations::bytes_asked_for.load();
        fresh.reserve(frozen, tokens, 10);
        const long spent = allocations::bytes_asked_for.load() - before;
        const Index said = frozen.workspace_bytes(tokens, 10, Keep::everything, 2);
        EXPECT_GE(spent, said);
        EXPECT_LE(spent, said + 8192);
        EXPECT_EQ(allocations::in([&] { frozen.forward(x, y, fresh); }), 0);
    }
}

}  // namespace
