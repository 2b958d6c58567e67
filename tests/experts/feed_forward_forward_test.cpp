// SPDX-License-Identifier: MIT
#include <moe/experts/feed_forward_forward.hpp>

#include <cstdint>
#include <vector>

#include <gtest/gtest.h>

namespace feed_forward_forward_test {
namespace {

using moe::Index;
using moe::Matrix;

TEST(Gather, CopiesColumnsOfTheRowsThatAreNamed) {
    const auto& table = moe::kernels<float>();
    Matrix<float> source(4, 5);
    for (Index i = 0; i < 20; ++i) source.data()[i] = static_cast<float>(i);
    const std::vector<std::int32_t> index{2, 0, 3, 3};
    const std::vector<float> factors{1, 1, 2, -1};
    for (const bool scaled : {false, true}) {
        std::vector<float> to(9, -7);
        moe::detail::gather<float>(table, source, index, scaled ? factors : std::vector<float>(), 1,
                                   3, 2, 4, to.data(), 3);
        const float a = scaled ? 2 : 1, b = scaled ? -1 : 1;
        EXPECT_EQ(to, (std::vector<float>{2, 3, -7, a * 17, a * 18, -7, b * 17, b * 18, -7}))
            << scaled;
    }
}

TEST(BiasRow, IsTheExpertsOwnOrNull) {
    const moe::Weights<double> biases(3, 1, 4);
    EXPECT_EQ(moe::detail::bias_row(biases, 2), biases.owned(2).data());
    EXPECT_EQ(moe::detail::bias_row(moe::Weights<double>(), 2), nullptr);
}

}  // namespace
}  // namespace feed_forward_forward_test
