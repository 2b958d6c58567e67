// SPDX-License-Identifier: MIT
#include <moe/gates/samples.hpp>

#include <cstdint>
#include <numeric>
#include <vector>

#include <gtest/gtest.h>

#include "support/message.hpp"

namespace {

using moe::Call;
using moe::Context;
using moe::Index;
using moe::detail::Samples;

TEST(Samples, AreDrawnByTheNumberOfTheTokenInTheStream) {
    moe::Workspace<float> ws;
    const Context whole{.seed = 3}, rest{.seed = 3, .first_token = 2}, other{.seed = 4};
    const Samples a("moe::X", Call<float>{whole, ws}, 5, 4);
    const Samples b("moe::X", Call<float>{rest, ws}, 3, 4);
    const Samples c("moe::X", Call<float>{other, ws}, 5, 4);
    for (const std::uint32_t draw : {0u, 1u}) {
        EXPECT_EQ(a.normal(2, 1, draw), b.normal(0, 1, draw));
        EXPECT_EQ(a.gumbel(4, 3, draw), b.gumbel(2, 3, draw));
        EXPECT_EQ(a.uniform(3, 0, draw), b.uniform(1, 0, draw));
        EXPECT_NE(a.normal(2, 1, draw), c.normal(2, 1, draw));
    }
    EXPECT_NE(a.normal(2, 1, 0), a.normal(2, 1, 1));
    EXPECT_NE(a.normal(2, 1), a.normal(1, 1));
    EXPECT_NE(a.normal(2, 1), a.normal(2, 2));
}

TEST(Samples, OfTheCallerAreTakenAsTheyAre) {
    std::vector<double> given(2 * 3 * 4);  // draws, tokens, experts
    std::iota(given.begin(), given.end(), 0.0);
    moe::Workspace<double> ws;
    const Context context{.first_token = 7, .noise = given};
    const Samples samples("moe::X", Call<double>{context, ws}, 3, 4, 2);
    EXPECT_EQ(samples.normal(0, 0), 0);
    EXPECT_EQ(samples.gumbel(1, 2), 6);
    EXPECT_EQ(samples.uniform(2, 3, 1), 23);
}

TEST(Samples, OfTheCallerMustBeAsManyAsTheGateTakes) {
    const std::vector<double> given(11);
    moe::Workspace<float> ws;
    const Context context{.noise = given};
    EXPECT_EQ(
        support::message([&] {
            Samples("moe::X", Call<float>{context, ws}, 3, 4);
        }),
        "moe::X: noise has 11 samples, the gate takes 12: draws x tokens x width = 1 x 3 x 4");
}

}  // namespace
