// SPDX-License-Identifier: MIT
#include <moe/kernels/storage_dispatch.hpp>

#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

namespace {

using moe::Isa;
using moe::ScopedIsa;
using moe::detail::StorageKernels;

TEST(StorageDispatch, HandsOutTheTableOfTheForcedInstructionSet) {
    for (const Isa isa : moe::supported_isas()) {
        const ScopedIsa scope(isa);
        EXPECT_EQ(&moe::storage_kernels(), &moe::storage_kernels(isa));
    }
}

/// Decoded panels are read by the float kernels of the same instruction set.
TEST(StorageDispatch, HandsOutPanelsOfTheWidthThatFloatHas) {
    for (const Isa isa : moe::supported_isas()) {
        EXPECT_EQ(moe::storage_kernels(isa).panel_width, moe::kernels<float>(isa).panel_width)
            << moe::name(isa);
    }
}

TEST(StorageDispatch, NamesTablesAfterTheirInstructionSet) {
    for (const Isa isa : moe::supported_isas()) {
        const std::string name = moe::storage_kernels(isa).name;
        const std::string want = moe::name(isa == Isa::neon ? Isa::scalar : isa);
        const bool refused =
            isa == Isa::amx && !moe::detail::supports(StorageKernels::amx) && name == "avx512";
        EXPECT_TRUE(name.rfind(want, 0) == 0 || refused) << name << " for " << want;
    }
}

TEST(StorageDispatch, SupportsOneTableOfEachInstructionSetOrMore) {
    EXPECT_TRUE(moe::detail::supports(StorageKernels::scalar));
    for (const Isa isa : moe::supported_isas())
        EXPECT_TRUE(moe::detail::supports(moe::detail::storage_kernels_of(isa)));
#if defined(__x86_64__)
    EXPECT_EQ(moe::detail::supports(StorageKernels::avx2), moe::best_isa() >= Isa::avx2);
    EXPECT_EQ(moe::detail::supports(StorageKernels::avx512), moe::best_isa() >= Isa::avx512);
    if (moe::best_isa() < Isa::amx) {
        EXPECT_FALSE(moe::detail::supports(StorageKernels::amx));
    }
#endif
}

TEST(StorageDispatch, GivesAllThreadsTheSameAnswer) {
    std::vector<const void*> seen(8);
    std::vector<std::thread> threads;
    for (auto& slot : seen) threads.emplace_back([&slot] { slot = &moe::storage_kernels(); });
    for (auto& thread : threads) thread.join();
    for (const void* table : seen) EXPECT_EQ(table, seen.front());
}

}  // namespace
