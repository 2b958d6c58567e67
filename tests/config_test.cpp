// SPDX-License-Identifier: MIT
#include <moe/config.hpp>

#include <string>

#include <gtest/gtest.h>

namespace moe::inline MOE_ABI {
struct OfThisConfiguration {};
}  // namespace moe::inline MOE_ABI

namespace config_test {
namespace {

#define MOE_TEST_TEXT_OF(x) #x
#define MOE_TEST_TEXT(x) MOE_TEST_TEXT_OF(x)

const std::string tag = MOE_TEST_TEXT(MOE_ABI);

TEST(Config, TheVersionIsThreeNumbers) {
    static_assert(MOE_VERSION_MAJOR >= 0 && MOE_VERSION_MINOR >= 0 && MOE_VERSION_PATCH >= 0);
    EXPECT_EQ(
        tag.find("v" MOE_TEST_TEXT(MOE_VERSION_MAJOR) "_" MOE_TEST_TEXT(MOE_VERSION_MINOR) "_"), 0u)
        << tag;
}

TEST(Config, TheTagIsInvisibleToUsers) {
    [[maybe_unused]] const moe::OfThisConfiguration short_name;
    const moe::MOE_ABI::OfThisConfiguration& same = short_name;
    EXPECT_EQ(&same, &short_name);
}

TEST(Config, AssertionsRunInCheckedBuildsOnly) {
    [[maybe_unused]] int runs = 0;
    MOE_ASSERT(++runs == 1, "it runs once");
#if defined(NDEBUG)
    EXPECT_EQ(runs, 0);
#else
    EXPECT_EQ(runs, 1);
#endif
}

#if !defined(NDEBUG)
TEST(ConfigDeathTest, AFailedAssertionShowsItsText) {
    EXPECT_DEATH(MOE_ASSERT(1 + 1 == 3, "the sum of one and one"), "the sum of one and one");
}
#endif

}  // namespace
}  // namespace config_test
