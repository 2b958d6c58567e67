// SPDX-License-Identifier: MIT
#include <moe/kernels/dispatch.hpp>

#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

namespace {

using moe::Isa;
using moe::ScopedIsa;

TEST(Dispatch, SupportsEverythingUpToTheBest) {
    const auto all = moe::supported_isas();
    ASSERT_FALSE(all.empty());
    EXPECT_EQ(all.front(), Isa::scalar);
    EXPECT_EQ(all.back(), moe::best_isa());
    for (std::size_t i = 0; i < all.size(); ++i) EXPECT_EQ(static_cast<std::size_t>(all[i]), i);
}

TEST(Dispatch, UsesNothingTheMachineLacks) { EXPECT_LE(moe::isa(), moe::best_isa()); }

TEST(Dispatch, HandsOutTheTableOfTheForcedInstructionSet) {
    for (const Isa isa : moe::supported_isas()) {
        const ScopedIsa scope(isa);
        EXPECT_EQ(moe::isa(), isa);
        EXPECT_EQ(&moe::kernels<float>(), &moe::kernels<float>(isa));
        EXPECT_EQ(&moe::kernels<double>(), &moe::kernels<double>(isa));
        EXPECT_STREQ(moe::kernels<float>().name, moe::name(isa));
    }
}

TEST(Dispatch, PutsThePreviousInstructionSetBack) {
    const Isa before = moe::isa();
    {
        const ScopedIsa outer(Isa::scalar);
        {
            const ScopedIsa inner(moe::best_isa());
            EXPECT_EQ(moe::isa(), moe::best_isa());
        }
        EXPECT_EQ(moe::isa(), Isa::scalar);
    }
    EXPECT_EQ(moe::isa(), before);
}

TEST(Dispatch, RefusesWhatTheMachineLacks) {
    const Isa before = moe::isa();
    try {
        moe::force_isa(static_cast<Isa>(static_cast<int>(moe::best_isa()) + 1));
        FAIL() << "nothing was thrown";
    } catch (const std::invalid_argument& error) {
        EXPECT_NE(std::string(error.what()).find("does not support"), std::string::npos);
        EXPECT_NE(std::string(error.what()).find(moe::name(moe::best_isa())), std::string::npos);
    }
    EXPECT_THROW(moe::force_isa(static_cast<Isa>(-1)), std::invalid_argument);
    EXPECT_EQ(moe::isa(), before);
}

TEST(Dispatch, ReadsTheEnvironmentsWord) {
    using moe::detail::requested_isa;
    EXPECT_EQ(requested_isa("scalar", Isa::avx512), Isa::scalar);
    EXPECT_EQ(requested_isa("avx2", Isa::avx512), Isa::avx2);
    EXPECT_EQ(requested_isa("avx512", Isa::avx512), Isa::avx512);
    EXPECT_EQ(requested_isa("amx", Isa::avx512), Isa::avx512);
}

TEST(Dispatch, ClampsTheEnvironmentsWordToTheMachine) {
    using moe::detail::requested_isa;
    EXPECT_EQ(requested_isa("avx512", Isa::avx2), Isa::avx2);
    EXPECT_EQ(requested_isa("avx2", Isa::scalar), Isa::scalar);
    EXPECT_EQ(requested_isa("amx", Isa::scalar), Isa::scalar);
}

TEST(Dispatch, IgnoresAWordItDoesNotKnow) {
    using moe::detail::requested_isa;
    for (const char* word : {"", "AVX2", "sse", "avx2 "})
        EXPECT_EQ(requested_isa(word, Isa::avx512), Isa::avx512) << word;
    EXPECT_EQ(requested_isa(nullptr, Isa::avx2), Isa::avx2);
}

TEST(Dispatch, GivesAllThreadsTheSameAnswer) {
    std::vector<const void*> seen(8);
    std::vector<std::thread> threads;
    for (auto& slot : seen) threads.emplace_back([&slot] { slot = &moe::kernels<float>(); });
    for (auto& thread : threads) thread.join();
    for (const void* table : seen) EXPECT_EQ(table, seen.front());
}

}  // namespace
