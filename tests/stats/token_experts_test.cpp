// SPDX-License-Identifier: MIT
#include <moe/stats/token_experts.hpp>

#include <cstdint>
#include <span>
#include <tuple>
#include <vector>

#include <gtest/gtest.h>

#include "stats/traces.hpp"

namespace token_experts_test {
namespace {

using moe::Index;
using Experts = std::vector<Index>;

std::vector<Index> list(std::span<const Index> experts) { return {experts.begin(), experts.end()}; }

TEST(TokenExperts, AreThoseThatWorkOnATokenThatIsNotPadding) {
    moe::Routing routing = traces::routing(4, {{3, 0, 1}, {2}, {1}, {}});
    routing.set_dropped(1, moe::Dropped::capacity);      // token 0, expert 0
    routing.set_dropped(4, moe::Dropped::pass_through);  // token 2
    routing.group();
    const std::vector<std::uint8_t> padding{0, 1, 0, 0};
    moe::Trace trace;
    trace.record(0, routing, {.padding = padding});
    trace.record(1, traces::routing(2, {{1}, {1}, {0}, {0, 1}}), {.padding = padding});
    std::vector<std::pair<Index, Experts>> seen;
    moe::detail::for_each_token(trace, 0, [&](Index t, std::span<const Index> experts) {
        seen.emplace_back(t, list(experts));
    });
    EXPECT_EQ(seen, (std::vector<std::pair<Index, Experts>>{{0, {3, 1}}, {2, {}}, {3, {}}}));

    std::vector<std::tuple<Index, Experts, Experts>> both;
    moe::detail::for_each_token(
        trace.records()[0], trace.records()[1], trace.batches()[0],
        [&](Index t, std::span<const Index> here, std::span<const Index> there) {
            both.emplace_back(t, list(here), list(there));
        });
    EXPECT_EQ(both, (std::vector<std::tuple<Index, Experts, Experts>>{
                        {0, {3, 1}, {1}}, {2, {}, {0}}, {3, {}, {0, 1}}}));
}

TEST(TokenExperts, KnowWhereTheirSequenceBegins) {
    moe::TraceBatch batch{.num_tokens = 5};
    EXPECT_EQ(moe::detail::sequence_begin(batch, 4), 0);
    batch.sequence_offsets = {0, 0, 2, 2, 5};  // two of them are empty
    const std::vector<Index> begins{0, 0, 2, 2, 2};
    for (Index t = 0; t < 5; ++t)
        EXPECT_EQ(moe::detail::sequence_begin(batch, t), begins[static_cast<std::size_t>(t)]);
}

}  // namespace
}  // namespace token_experts_test
