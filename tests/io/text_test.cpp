// SPDX-License-Identifier: MIT
#include <string>
#include <string_view>

#include <gtest/gtest.h>

#include <moe/io/text.hpp>

namespace text_test {
namespace {

using moe::detail::in_quotes;
using moe::detail::utf8_prefix;

TEST(Utf8Prefix, AcceptsTheFirstAndLastCodeOfEachLength) {
    for (const std::string_view text :
         {"", "a", "\x7f", "\xc2\x80", "\xdf\xbf", "\xe0\xa0\x80", "\xed\x9f\xbf", "\xee\x80\x80",
          "\xef\xbf\xbf", "\xf0\x90\x80\x80", "\xf4\x8f\xbf\xbf"})
        EXPECT_EQ(utf8_prefix(text), text.size()) << in_quotes(text);
}

TEST(Utf8Prefix, StopsAtOverlongForms) {
    for (const char* text : {"\xc0\x80", "\xc1\xbf", "\xe0\x9f\xbf", "\xf0\x8f\xbf\xbf"})
        EXPECT_EQ(utf8_prefix(text), 0u);
}

TEST(Utf8Prefix, StopsAtSurrogates) {
    EXPECT_EQ(utf8_prefix("\xed\xa0\x80"), 0u);
    EXPECT_EQ(utf8_prefix("\xed\xbf\xbf"), 0u);
}

TEST(Utf8Prefix, StopsAboveTheLastCode) {
    EXPECT_EQ(utf8_prefix("\xf4\x90\x80\x80"), 0u);
    EXPECT_EQ(utf8_prefix("\xf5\x80\x80\x80"), 0u);
    EXPECT_EQ(utf8_prefix("\xff"), 0u);
}

TEST(Utf8Prefix, StopsAtCutOrStrayBytes) {
    EXPECT_EQ(utf8_prefix("ab\x80"), 2u);
    for (const std::string_view whole : {"\xc2\x80", "\xe0\xa0\x80", "\xf0\x90\x80\x80"})
        for (std::size_t n = 1; n < whole.size(); ++n) {
            EXPECT_EQ(utf8_prefix(whole.substr(0, n)), 0u);
            EXPECT_EQ(utf8_prefix(std::string(whole.substr(0, n)) + "a"), 0u);
        }
}

TEST(Quoted, ShowsPrintableAsciiOnly) {
    EXPECT_EQ(in_quotes("experts.3.w1"), "\"experts.3.w1\"");
    EXPECT_EQ(in_quotes(std::string_view("a\0\n\x1b\x7f\xc3\xa9", 7)), "\"a??????\"");
}

TEST(Quoted, CutsAtEightyBytes) {
    EXPECT_EQ(in_quotes(std::string(80, 'x')), "\"" + std::string(80, 'x') + "\"");
    EXPECT_EQ(in_quotes(std::string(81, 'x')), "\"" + std::string(80, 'x') + "\"...");
}

}  // namespace
}  // namespace text_test
