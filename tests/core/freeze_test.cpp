// SPDX-License-Identifier: MIT
#include <moe/core/freeze.hpp>

#include <stdexcept>
#include <type_traits>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "support/message.hpp"

namespace freeze_test {
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

// Gives up what it holds.
struct Moves {
    int weight;
    Packed freeze(const moe::FreezeOptions&) const& { return {.weight = weight, .storage = {}}; }
    Packed freeze(const moe::FreezeOptions&) && {
        return {.weight = std::exchange(weight, 0), .storage = {}};
    }
};

TEST(Freeze, APartThatIsNotNeededMayBeTakenApart) {
    Moves part{5};
    EXPECT_EQ(moe::detail::frozen(part, {}).weight, 5);
    EXPECT_EQ(part.weight, 5);
    EXPECT_EQ(moe::detail::frozen(std::move(part), {}).weight, 5);
    EXPECT_EQ(part.weight, 0);  // NOLINT(bugprone-use-after-move)
    EXPECT_EQ(moe::detail::frozen(Plain{3}, {}).weight, 3);
}

// Refuses.
struct Refuses {
    void check_freeze(const moe::FreezeOptions&) const { moe::detail::fail("no"); }
};

TEST(Freeze, APartIsAskedWhetherItRefuses) {
    EXPECT_THROW(moe::detail::check_freeze(Refuses{}, {}), std::invalid_argument);
    EXPECT_NO_THROW(moe::detail::check_freeze(Plain{3}, {}));
}

using moe::Storage;

TEST(FreezeOptions, GiveEachExpertItsStorage) {
    moe::FreezeOptions options{.storage = Storage::int8};
    EXPECT_EQ(options.of(0), Storage::int8);
    EXPECT_EQ(options.of(7), Storage::int8);
    options.experts = {Storage::bf16, Storage::int4};
    EXPECT_EQ(options.of(0), Storage::bf16);
    EXPECT_EQ(options.of(1), Storage::int4);
}

TEST(FreezeOptions, AreCutForGroupsInTheirOrder) {
    moe::FreezeOptions options{.storage = Storage::int8, .compute = moe::Compute::int8};
    options.experts = {Storage::bf16, Storage::int4, Storage::f16};
    moe::Index first = 0;
    const auto one = moe::detail::next_options(options, first, 1);
    EXPECT_EQ(one.experts, std::vector<Storage>{Storage::bf16});
    EXPECT_EQ(one.storage, Storage::int8);
    EXPECT_EQ(one.compute, moe::Compute::int8);
    EXPECT_EQ(one.name_of(0), "expert 0");
    const auto shared = moe::detail::next_options(options, first, 0);
    EXPECT_TRUE(shared.experts.empty());
    EXPECT_EQ(shared.name_of(1), "shared expert 1");
    const auto two = moe::detail::next_options(options, first, 2);
    EXPECT_EQ(two.experts, (std::vector<Storage>{Storage::int4, Storage::f16}));
    EXPECT_EQ(two.name_of(1), "expert 2");
    options.experts.clear();
    EXPECT_TRUE(moe::detail::next_options(options, first, 5).experts.empty());
    EXPECT_EQ(first, 8);
}

TEST(FreezeOptions, AreEnumeratorsAlsoWhereNobodyReadsThem) {
    const auto refusal = [](const moe::FreezeOptions& options) {
        return support::message([&] { moe::detail::check_experts(options, "the layer", 2); });
    };
    const auto unknown = static_cast<Storage>(8);
    EXPECT_EQ(refusal({.storage = unknown}),
              "moe::freeze: the storage is 8, which is none of moe::Storage");
    EXPECT_EQ(refusal({.experts = {Storage::bf16, unknown}}),
              "moe::freeze: the storage of expert 1 is 8, which is none of moe::Storage");
    struct Nobody final : moe::Executor {
        int concurrency() const override { return 0; }
        void run(moe::Index, moe::TaskRef) override {}
    } nobody;
    EXPECT_NE(refusal({.executor = &nobody}).find("concurrency() is 0"), std::string::npos);
    EXPECT_EQ(refusal({.compute = static_cast<moe::Compute>(-1)}),
              "moe::freeze: compute is -1, which is none of moe::Compute");
}

TEST(FreezeOptions, AreRefusedIfTheyDoNotFit) {
    moe::FreezeOptions options;
    EXPECT_NO_THROW(moe::detail::check_experts(options, "the layer", 3));
    EXPECT_NO_THROW(moe::detail::check_options<double>(options, 3));
    options.experts = {Storage::bf16, Storage::bf16, Storage::bf16};
    EXPECT_NO_THROW(moe::detail::check_experts(options, "the layer", 3));
    EXPECT_NO_THROW(moe::detail::check_options<float>(options, 3));
    EXPECT_THROW(moe::detail::check_options<double>(options, 3), std::invalid_argument);
    options.compute = moe::Compute::bf16;
    EXPECT_NO_THROW(moe::detail::check_options<float>(options, 3));
    options.compute = moe::Compute::int8;
    EXPECT_THROW(moe::detail::check_options<float>(options, 3), std::invalid_argument);
    EXPECT_EQ(support::message([&] { moe::detail::check_experts(options, "the layer", 4); }),
              "moe::freeze: FreezeOptions::experts has 3 entries, the layer has 4 experts; "
              "give each one entry, or leave it empty and set storage");
}

}  // namespace
}  // namespace freeze_test
