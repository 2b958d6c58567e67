// SPDX-License-Identifier: MIT
#include <moe/kernels/dispatch.hpp>

#include <algorithm>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "support/message.hpp"

namespace {

using moe::Isa;
using moe::ScopedIsa;

constexpr Isa every[] = {Isa::scalar, Isa::avx2, Isa::avx512, Isa::amx, Isa::neon};

TEST(Dispatch, SupportsEverythingUpToTheBest) {
    const auto all = moe::supported_isas();
    ASSERT_FALSE(all.empty());
    EXPECT_EQ(all.front(), Isa::scalar);
    EXPECT_EQ(all.back(), moe::best_isa());
    for (std::size_t i = 1; i < all.size(); ++i) EXPECT_LT(all[i - 1], all[i]);
#if defined(__aarch64__)
    EXPECT_EQ(all.size(), 2U);
    EXPECT_EQ(moe::best_isa(), Isa::neon);
#else
    for (std::size_t i = 0; i < all.size(); ++i) EXPECT_EQ(all[i], every[i]);
    EXPECT_LT(moe::best_isa(), Isa::neon);
#endif
}

TEST(Dispatch, NamesEveryInstructionSetDifferently) {
    for (const Isa a : every) {
        EXPECT_STRNE(moe::name(a), "unknown");
        for (const Isa b : every) EXPECT_EQ(std::string(moe::name(a)) == moe::name(b), a == b);
    }
}

TEST(Dispatch, UsesNothingTheMachineLacks) { EXPECT_LE(moe::isa(), moe::best_isa()); }

TEST(Dispatch, HandsOutTheTableOfTheForcedInstructionSet) {
    for (const Isa isa : moe::supported_isas()) {
        const ScopedIsa scope(isa);
        EXPECT_EQ(moe::isa(), isa);
        EXPECT_EQ(&moe::kernels<float>(), &moe::kernels<float>(isa));
        EXPECT_EQ(&moe::kernels<double>(), &moe::kernels<double>(isa));
        EXPECT_STREQ(moe::kernels<float>().name, moe::name(isa == Isa::amx ? Isa::avx512 : isa));
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
    const auto better = static_cast<Isa>(static_cast<int>(moe::best_isa()) + 1);
    const std::string said = support::message([&] { moe::force_isa(better); });
    EXPECT_NE(said.find("does not support"), std::string::npos);
    EXPECT_NE(said.find(moe::name(moe::best_isa())), std::string::npos);
    EXPECT_THROW(moe::force_isa(static_cast<Isa>(-1)), std::invalid_argument);
    const auto all = moe::supported_isas();
    for (const Isa isa : every) {
        if (std::find(all.begin(), all.end(), isa) != all.end()) continue;
        EXPECT_THROW(moe::force_isa(isa), std::invalid_argument) << moe::name(isa);
    }
    EXPECT_EQ(moe::isa(), before);
}

#if defined(__aarch64__)

TEST(Dispatch, ReadsTheEnvironmentsWord) {
    using moe::detail::requested_isa;
    EXPECT_EQ(requested_isa("scalar", Isa::neon), Isa::scalar);
    EXPECT_EQ(requested_isa("neon", Isa::neon), Isa::neon);
    EXPECT_EQ(requested_isa(nullptr, Isa::neon), Isa::neon);
}

TEST(Dispatch, IgnoresAWordItDoesNotKnow) {
    using moe::detail::requested_isa;
    for (const char* word : {"", "NEON", "sve", "neon ", "unknown", "avx2", "avx512", "amx"})
        EXPECT_EQ(requested_isa(word, Isa::neon), Isa::neon) << word;
}

#else

TEST(Dispatch, ReadsTheEnvironmentsWord) {
    using moe::detail::requested_isa;
    EXPECT_EQ(requested_isa("scalar", Isa::amx), Isa::scalar);
    EXPECT_EQ(requested_isa("avx2", Isa::amx), Isa::avx2);
    EXPECT_EQ(requested_isa("avx512", Isa::amx), Isa::avx512);
    EXPECT_EQ(requested_isa("amx", Isa::amx), Isa::amx);
}

TEST(Dispatch, ClampsTheEnvironmentsWordToTheMachine) {
    using moe::detail::requested_isa;
    EXPECT_EQ(requested_isa("amx", Isa::avx512), Isa::avx512);
    EXPECT_EQ(requested_isa("avx512", Isa::avx2), Isa::avx2);
    EXPECT_EQ(requested_isa("avx2", Isa::scalar), Isa::scalar);
    EXPECT_EQ(requested_isa("amx", Isa::scalar), Isa::scalar);
}

TEST(Dispatch, IgnoresAWordItDoesNotKnow) {
    using moe::detail::requested_isa;
    for (const char* word : {"", "AVX2", "sse", "avx2 ", "unknown", "neon"})
        EXPECT_EQ(requested_isa(word, Isa::amx), Isa::amx) << word;
    EXPECT_EQ(requested_isa(nullptr, Isa::avx2), Isa::avx2);
}

#endif

TEST(Dispatch, GivesAllThreadsTheSameAnswer) {
    std::vector<const void*> seen(8);
    std::vector<std::thread> threads;
    for (auto& slot : seen) threads.emplace_back([&slot] { slot = &moe::kernels<float>(); });
    for (auto& thread : threads) thread.join();
    for (const void* table : seen) EXPECT_EQ(table, seen.front());
}

#if defined(__x86_64__) && defined(__linux__)
TEST(Dispatch, SeesWhatLinuxSees) {
    std::ifstream file("/proc/cpuinfo");
    std::string line;
    bool amd = false;
    int family = 0;
    while (std::getline(file, line) && line.rfind("flags", 0) != 0) {
        if (line.rfind("vendor_id", 0) == 0) amd = line.find("AuthenticAMD") != std::string::npos;
        if (line.rfind("cpu family", 0) == 0) family = std::stoi(line.substr(line.find(':') + 1));
    }
    if (line.empty()) GTEST_SKIP() << "/proc/cpuinfo has no flags";
    line += ' ';
    const auto has = [&](const char* words) {  // all of them
        std::istringstream stream(words);
        for (std::string word; stream >> word;)
            if (line.find(' ' + word + ' ') == std::string::npos) return false;
        return true;
    };
    const moe::CpuFeatures features = moe::cpu_features();
    EXPECT_EQ(features.avx2, has("avx2 fma f16c"));
    EXPECT_EQ(features.avx_vnni, features.avx2 && has("avx_vnni"));
    EXPECT_EQ(features.avx512, features.avx2 && has("avx512f avx512bw avx512dq avx512vl"));
    EXPECT_EQ(features.vnni, features.avx512 && has("avx512_vnni"));
    EXPECT_EQ(features.amx, features.vnni && has("amx_tile amx_int8 amx_bf16"));
    EXPECT_EQ(features.zen3, amd && family >= 0x19);
}
#endif

}  // namespace
