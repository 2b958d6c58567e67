// SPDX-License-Identifier: MIT
#include <moe/core/rows.hpp>

#include <cstdint>
#include <vector>

#include <gtest/gtest.h>

namespace rows_test {
namespace {

using moe::Index;

// Expert 0 has rows 2 and 3, expert 1 none, expert 2 row 4, expert 3 rows 5 to 7.
struct Example {
    std::vector<Index> offsets{2, 4, 4, 5, 8};
    std::vector<std::int32_t> tokens{9, 9, 0, 3, 1, 0, 1, 2};
    std::vector<float> weights{9, 9, 0.5f, 0.25f, 1, 2, 3, 4};
    moe::Rows<float> rows{.offsets = offsets, .from = tokens, .to = tokens, .weights = weights};
};

TEST(Rows, AreCountedPerExpert) {
    const Example example;
    const moe::Rows<float>& rows = example.rows;
    EXPECT_EQ(rows.num_experts(), 4);
    EXPECT_EQ(rows.num_rows(), 6);
    const std::vector<Index> begin{2, 4, 4, 5}, end{4, 4, 5, 8}, size{2, 0, 1, 3};
    for (Index e = 0; e < 4; ++e) {
        const auto i = static_cast<std::size_t>(e);
        EXPECT_EQ(rows.begin(e), begin[i]);
        EXPECT_EQ(rows.end(e), end[i]);
        EXPECT_EQ(rows.size(e), size[i]);
    }
}

TEST(Rows, ASubRangeKeepsRowNumbersAndExperts) {
    const Example example;
    const moe::Rows<float> part = example.rows.experts(1, 3);
    EXPECT_EQ(part.num_experts(), 2);
    EXPECT_EQ(part.num_rows(), 1);
    EXPECT_EQ(part.first_expert, 1);
    EXPECT_EQ(part.begin(1), 4);
    EXPECT_EQ(part.to[4], 1);
    EXPECT_EQ(part.weights.data(), example.rows.weights.data());
    const moe::Rows<float> last = part.experts(1, 2);  // of a sub-range
    EXPECT_EQ(last.first_expert, 2);
    EXPECT_EQ(last.num_rows(), 1);
}

TEST(Rows, SubRangesTogetherAreTheWhole) {
    const Example example;
    for (Index cut = 0; cut <= 4; ++cut) {
        const moe::Rows<float> first = example.rows.experts(0, cut),
                               second = example.rows.experts(cut, 4);
        EXPECT_EQ(first.num_experts() + second.num_experts(), 4);
        EXPECT_EQ(first.num_rows() + second.num_rows(), 6);
        EXPECT_EQ(second.first_expert, cut);
    }
}

TEST(Rows, OfNoExpertsAreNone) {
    const Example example;
    const moe::Rows<float> none = example.rows.experts(2, 2);
    EXPECT_EQ(none.num_experts(), 0);
    EXPECT_EQ(none.num_rows(), 0);
}

TEST(Rows, InputWeightsAreOneUnlessGiven) {
    Example example;
    EXPECT_EQ(example.rows.input_weight(5), 1.0f);
    example.rows.input_weights = example.weights;
    EXPECT_EQ(example.rows.input_weight(5), 2.0f);
    EXPECT_EQ(example.rows.experts(2, 3).input_weight(4), 1.0f);
}

TEST(Rows, GradientsOfInputWeightsAreNotWantedUnlessGiven) {
    std::vector<double> memory(3);
    const moe::RowGradients<double> gradients{.weights = memory};
    EXPECT_TRUE(gradients.input_weights.empty());
}

}  // namespace
}  // namespace rows_test
