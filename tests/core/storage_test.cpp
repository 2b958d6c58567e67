// SPDX-License-Identifier: MIT
#include <moe/core/storage.hpp>

#include <string>

#include <gtest/gtest.h>

namespace storage_test {
namespace {

using moe::Compute;
using moe::Storage;

constexpr auto& storages = moe::all_storages;

TEST(Storage, HasTheNameOfItsEnumerator) {
    std::string names;
    for (const Storage storage : storages) names += std::string(moe::name(storage)) + " ";
    EXPECT_EQ(names, "fp32 bf16 f16 int8 int8_block int4 int4_zero ternary ");
    for (const Compute compute : moe::all_computes) names += std::string(moe::name(compute)) + " ";
    EXPECT_EQ(names, "fp32 bf16 f16 int8 int8_block int4 int4_zero ternary exact bf16 int8 ");
}

TEST(Storage, HasNoNameIfItIsNone) {
    EXPECT_EQ(moe::name(static_cast<Storage>(8)), nullptr);
    EXPECT_EQ(moe::name(static_cast<Storage>(-1)), nullptr);
    EXPECT_EQ(moe::name(static_cast<Compute>(3)), nullptr);
}

TEST(Storage, SaysWhatItsWeightsAre) {
    for (const Storage storage : storages) {
        const bool plain =
            storage == Storage::fp32 || storage == Storage::bf16 || storage == Storage::f16;
        EXPECT_EQ(moe::is_coded(storage), !plain) << moe::name(storage);
        const bool per_output = storage == Storage::int8 || storage == Storage::ternary;
        EXPECT_EQ(moe::has_block_scales(storage), !plain && !per_output) << moe::name(storage);
    }
}

TEST(Storage, FitsExactAndOneOther) {
    for (const Storage storage : storages) {
        EXPECT_TRUE(moe::fits(storage, Compute::exact));
        EXPECT_EQ(moe::fits(storage, Compute::bf16), storage == Storage::bf16);
        EXPECT_EQ(moe::fits(storage, Compute::int8), moe::is_coded(storage));
    }
}

}  // namespace
}  // namespace storage_test
