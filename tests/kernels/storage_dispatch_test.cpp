// SPDX-License-Identifier: MIT
#include <moe/kernels/storage_dispatch.hpp>

#include <thread>
#include <vector>

#include <gtest/gtest.h>

namespace {

using moe::Isa;
using moe::ScopedIsa;

TEST(StorageDispatch, HandsOutTheTableOfTheForcedInstructionSet) {
    for (const Isa isa : moe::supported_isas()) {
        const ScopedIsa scope(isa);
        EXPECT_EQ(&moe::storage_kernels(), &moe::storage_kernels(isa));
    }
}

TEST(StorageDispatch, GivesAllThreadsTheSameAnswer) {
    std::vector<const void*> seen(8);
    std::vector<std::thread> threads;
    for (auto& slot : seen) threads.emplace_back([&slot] { slot = &moe::storage_kernels(); });
    for (auto& thread : threads) thread.join();
    for (const void* table : seen) EXPECT_EQ(table, seen.front());
}

}  // namespace
