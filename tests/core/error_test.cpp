// SPDX-License-Identifier: MIT
#include <moe/core/error.hpp>

#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <string_view>

#include <gtest/gtest.h>

#include "support/message.hpp"

namespace error_test {
namespace {

using moe::Index;
using moe::detail::checked_product;
using moe::detail::fail;
using moe::detail::text;
using support::message;

TEST(Error, PartsAreJoinedIntoOneSentence) {
    EXPECT_EQ(
        message([] { fail("moe::TopK: k is ", 9, " but the layer has ", Index{8}, " experts"); }),
        "moe::TopK: k is 9 but the layer has 8 experts");
    EXPECT_EQ(message([] { fail("one part"); }), "one part");
    EXPECT_EQ(message([] { fail(std::string("a"), "b", 'c' - 'a', 0.5f); }), "ab20.5");
}

TEST(Error, TheTypeIsInvalidArgumentUnlessAsked) {
    EXPECT_EQ(message<std::invalid_argument>([] { fail("text"); }), "text");
    EXPECT_EQ(message<std::length_error>([] { fail<std::length_error>("text"); }), "text");
    EXPECT_EQ(message<std::logic_error>([] { fail<std::logic_error>("text"); }), "text");
    EXPECT_EQ(message<moe::FormatError>([] { fail<moe::FormatError>("text"); }), "text");
}

TEST(Error, ADamagedFileIsARuntimeError) {
    EXPECT_THROW(fail<moe::FormatError>("damaged"), std::runtime_error);
    static_assert(!std::is_base_of_v<std::logic_error, moe::FormatError>);
}

TEST(Error, IntegersAreWrittenOut) {
    EXPECT_EQ(text(0), "0");
    EXPECT_EQ(text(-7), "-7");
    EXPECT_EQ(text(std::numeric_limits<std::int64_t>::min()), "-9223372036854775808");
    EXPECT_EQ(text(std::numeric_limits<std::uint64_t>::max()), "18446744073709551615");
}

TEST(Error, NumbersAreWrittenAsBrieflyAsTheyReadBack) {
    EXPECT_EQ(text(0.5), "0.5");
    EXPECT_EQ(text(0.1), "0.1");
    EXPECT_EQ(text(0.1f), "0.1");
    EXPECT_EQ(text(100.0), "100");
    EXPECT_EQ(text(0.0), "0");
    EXPECT_EQ(text(-2.25), "-2.25");
    EXPECT_EQ(text(1.0 / 3), "0.3333333333333333");
    EXPECT_EQ(text(1e-10), "1e-10");  // not "0": it may be what is wrong
    EXPECT_EQ(text(std::numeric_limits<double>::denorm_min()), "5e-324");
    EXPECT_EQ(text(std::numeric_limits<double>::infinity()), "inf");
    EXPECT_EQ(text(-std::numeric_limits<float>::infinity()), "-inf");
    EXPECT_EQ(text(std::numeric_limits<double>::quiet_NaN()), "nan");
}

TEST(Error, ExtentsMultiply) {
    constexpr Index most = std::numeric_limits<Index>::max();
    EXPECT_EQ(checked_product(0, 0), 0);
    EXPECT_EQ(checked_product(most, 0), 0);
    EXPECT_EQ(checked_product(0, most), 0);
    EXPECT_EQ(checked_product(most, 1), most);
    EXPECT_EQ(checked_product(1, most), most);
    EXPECT_EQ(checked_product(most / 2, 2), most - 1);
    EXPECT_EQ(checked_product(3037000499, 3037000499), 9223372030926249001);
}

TEST(Error, AProductThatDoesNotFitIsALengthError) {
    constexpr Index most = std::numeric_limits<Index>::max();
    EXPECT_EQ(message<std::length_error>([] { checked_product(3037000500, 3037000500); }),
              "moe: 3037000500 x 3037000500 elements do not fit a signed 64-bit size");
    EXPECT_THROW(checked_product(most, 2), std::length_error);
    EXPECT_THROW(checked_product(most / 2 + 1, 2), std::length_error);
    EXPECT_THROW(checked_product(2, most / 2 + 1), std::length_error);
}

TEST(Error, NegativeExtentsAreRefused) {
    EXPECT_EQ(message<std::length_error>([] { checked_product(-1, 5); }),
              "moe: -1 x 5 elements do not fit a signed 64-bit size");
    EXPECT_THROW(checked_product(5, -1), std::length_error);
    EXPECT_THROW(checked_product(0, -1), std::length_error);
    EXPECT_THROW(checked_product(-1, -1), std::length_error);
    EXPECT_THROW(checked_product(std::numeric_limits<Index>::min(), -1), std::length_error);
}

TEST(Error, AChoiceThatIsNoneIsRefusedWithItsField) {
    enum class Side { left, right };
    using moe::detail::check_choice;
    for (const Side side : {Side::left, Side::right})
        EXPECT_NO_THROW(check_choice("moe::X", "side", side, Side::right));
    EXPECT_EQ(message([] { check_choice("moe::X", "side", static_cast<Side>(2), Side::right); }),
              "moe::X: side is number 2 of its choices, they are 0 to 1");
    EXPECT_EQ(message([] { check_choice("moe::X", "side", static_cast<Side>(-1), Side::right); }),
              "moe::X: side is number -1 of its choices, they are 0 to 1");
}

}  // namespace
}  // namespace error_test
