// SPDX-License-Identifier: MIT
#include <moe/core/freeze.hpp>

#include <type_traits>

#include <gtest/gtest.h>

namespace {

struct Packed {
    int weight;
    moe::Storage storage;
};

// Prepares something for inference.
struct Packs {
    int weight;
    Packed freeze(const moe::FreezeOptions& options) const {
        return {.weight = 2 * weight, .storage = options.storage};
    }
};

struct Plain {
    int weight;
};

// Has a function of that name which is not meant.
struct Cools {
    int degrees;
    void freeze() { degrees = -1; }
};

TEST(Freeze, DefaultsKeepEveryBit) {
    EXPECT_EQ(moe::FreezeOptions{}.storage, moe::Storage::fp32);
    EXPECT_EQ(moe::FreezeOptions{}.compute, moe::Compute::exact);
}

TEST(Freeze, APartThatCanIsAsked) {
    static_assert(std::is_same_v<moe::detail::frozen_t<Packs>, Packed>);
    const Packs part{3};
    EXPECT_EQ(moe::detail::frozen(part, {}).weight, 6);
    EXPECT_EQ(moe::detail::frozen(part, {}).storage, moe::Storage::fp32);
    EXPECT_EQ(part.weight, 3);
}

TEST(Freeze, OtherPartsAreCopied) {
    static_assert(std::is_same_v<moe::detail::frozen_t<Plain>, Plain>);
    static_assert(std::is_same_v<moe::detail::frozen_t<Cools>, Cools>);
    EXPECT_EQ(moe::detail::frozen(Plain{3}, {}).weight, 3);
    EXPECT_EQ(moe::detail::frozen(Cools{20}, {}).degrees, 20);
}

}  // namespace
