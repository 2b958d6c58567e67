// SPDX-License-Identifier: MIT
#include <moe/experts/frozen_weights.hpp>

#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <moe/testing/compare.hpp>
#include <moe/testing/random.hpp>

namespace frozen_weights_test {
namespace {

using moe::Index;
using moe::Storage;
using moe::testing::same_bits;

moe::Weights<float> weights(Index count, Index rows, Index cols) {
    moe::Weights<float> result(count, rows, cols);
    moe::Random random(5);
    result.fill_normal(random, 1);
    return result;
}

TEST(FrozenWeights, DecodeToWhatWasPacked) {
    const auto original = weights(3, 37, 41);
    const moe::FrozenWeights<float> frozen(
        original, {.experts = {Storage::fp32, Storage::int8, Storage::bf16}});
    EXPECT_EQ(frozen.count(), 3);
    EXPECT_TRUE(same_bits(frozen.decode(0), original.owned(0).view()));
    for (const Index e : {1, 2}) {
        moe::StoredMatrix matrix;
        matrix.pack(e == 1 ? Storage::int8 : Storage::bf16, *frozen.stored(e).table(),
                    {original.owned(e).data(), 1, 41}, 41, 37);
        EXPECT_TRUE(same_bits(frozen.decode(e), matrix.decode().transpose()));
        EXPECT_FALSE(same_bits(frozen.decode(e), original.owned(e).view()));
    }
    moe::Weights<double> wide(2, 5, 7);
    moe::Random random(6);
    wide.fill_normal(random, 1);
    const moe::FrozenWeights<double> packed(wide, {});
    EXPECT_TRUE(same_bits(packed.decode(1), wide.owned(1).view()));
}

/// One matrix, and one product, of gate and up: what each gives is the same as alone.
TEST(FrozenWeights, OfGateAndUpDecodeToBothAsEachAlone) {
    for (const Index rows : {37, 48}) {
        const auto gate = weights(3, rows, 41);
        auto up = weights(3, rows, 41);
        moe::Random random(7);
        up.fill_normal(random, 2);
        const moe::FreezeOptions options{.experts = {Storage::fp32, Storage::int8, Storage::bf16}};
        const moe::FrozenWeights<float> both(gate, up, options), gate_alone(gate, options),
            up_alone(up, options);
        EXPECT_EQ(both.count(), 3);
        for (const Index e : {0, 1, 2}) {
            EXPECT_EQ(both.storage(e), options.of(e));
            EXPECT_TRUE(same_bits(both.decode(e).topRows(rows), gate_alone.decode(e)));
            EXPECT_TRUE(same_bits(both.decode(e).bottomRows(rows), up_alone.decode(e)));
        }
    }
    const auto gate = weights(2, 64, 128), up = weights(2, 64, 128);
    const moe::FrozenWeights<float> both(gate, up, {.storage = Storage::int4});
    EXPECT_EQ(both.bytes(), 2 * 2 * 64 * 128 * 9 / 16);
    EXPECT_TRUE(both.is_gate_up());
    const auto narrow = weights(1, 17, 128);  // 32 columns of each
    EXPECT_EQ(moe::FrozenWeights<float>(narrow, narrow, {.storage = Storage::int4}).bytes(),
              2 * 32 * 128 * 9 / 16);
}

TEST(FrozenWeights, SayWhatTheyHold) {
    const auto original = weights(2, 64, 128);
    const moe::FrozenWeights<float> frozen(original, {.experts = {Storage::fp32, Storage::int4}});
    EXPECT_EQ(frozen.bytes(), 64 * 128 * 4 + 64 * 128 * 9 / 16);
    EXPECT_EQ(moe::FrozenWeights<float>().count(), 0);
    EXPECT_EQ(moe::FrozenWeights<float>().bytes(), 0);
    EXPECT_EQ(frozen.transposed(0).stored, nullptr);
    EXPECT_EQ(frozen.transposed(1).stored, &frozen.stored(1));
}

}  // namespace
}  // namespace frozen_weights_test
