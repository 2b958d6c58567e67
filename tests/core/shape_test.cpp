// SPDX-License-Identifier: MIT
#include <moe/core/shape.hpp>

#include <limits>

#include <gtest/gtest.h>

#include "support/message.hpp"

namespace shape_test {
namespace {

using moe::Index;
using moe::detail::shape_of;
using support::message;

TEST(Shape, TheOutputIsAsWideAsTheModelUnlessSet) {
    const moe::Shape shape = shape_of({.model_dim = 12}, 5);
    EXPECT_EQ(shape.model_dim, 12);
    EXPECT_EQ(shape.output_dim, 12);
    EXPECT_EQ(shape.num_experts, 5);
    EXPECT_EQ(shape.num_logits, 5);
    EXPECT_EQ(shape_of({.model_dim = 12, .output_dim = 7}, 5).output_dim, 7);
    EXPECT_EQ(shape_of({.model_dim = 1}, 0).num_experts, 0);
}

TEST(Shape, DefaultsChangeNothing) {
    const moe::Config config;
    EXPECT_EQ(config.output_dim, 0);
    EXPECT_EQ(config.input_scale, 1);
    EXPECT_EQ(config.seed, 0u);
}

TEST(Shape, AModelNeedsADimension) {
    EXPECT_EQ(
        message([] { shape_of({}, 4); }),
        "moe::Config: model_dim is 0, it must be >= 1; set it: moe::Config{.model_dim = 256}");
    EXPECT_EQ(message([] { shape_of({.model_dim = std::numeric_limits<Index>::min()}, 4); }),
              "moe::Config: model_dim is -9223372036854775808, it must be >= 1; set it: "
              "moe::Config{.model_dim = 256}");
}

TEST(Shape, AnOutputIsNotNegative) {
    EXPECT_EQ(message([] { shape_of({.model_dim = 4, .output_dim = -1}, 4); }),
              "moe::Config: output_dim is -1, it must be >= 0 (0: model_dim)");
}

}  // namespace
}  // namespace shape_test
