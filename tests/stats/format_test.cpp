// SPDX-License-Identifier: MIT
#include <moe/stats/format.hpp>

#include <limits>

#include <gtest/gtest.h>

namespace format_test {
namespace {

namespace detail = moe::detail;

TEST(Format, WritesFixedAndSignificantDigits) {
    EXPECT_EQ(detail::fixed(1.005, 1), "1.0");
    EXPECT_EQ(detail::fixed(-0.04, 1), "0.0");
    EXPECT_EQ(detail::fixed(-1.25, 2), "-1.25");
    EXPECT_EQ(detail::fixed(1e300, 0).size(), 301u);
    EXPECT_EQ(detail::fixed(std::numeric_limits<double>::max(), 4).size(), 314u);
    EXPECT_EQ(detail::fixed(std::numeric_limits<double>::quiet_NaN(), 2), "nan");
    EXPECT_EQ(detail::fixed(-std::numeric_limits<double>::infinity(), 2), "-inf");
    EXPECT_EQ(detail::significant(0.125, 6), "0.125");
    EXPECT_EQ(detail::significant(-0.0, 6), "0");
    EXPECT_EQ(detail::significant(1500, 6), "1500");
    EXPECT_EQ(detail::significant(2.5e-7, 6), "2.5e-07");
    EXPECT_EQ(detail::percent(0.0314), "3.1 %");
    EXPECT_EQ(detail::counted(1, "token"), "1 token");
    EXPECT_EQ(detail::counted(0, "token"), "0 tokens");
}

TEST(Format, AlignsByCodePoints) {
    EXPECT_EQ(detail::columns_of("日本"), 2);
    EXPECT_EQ(detail::right_aligned("日本", 4), "  日本");
    EXPECT_EQ(detail::right_aligned("abc", 2), "abc");
}

TEST(Format, EscapesForXml) {
    EXPECT_EQ(detail::escape_xml("a < b & \"c\" > d"), "a &lt; b &amp; &quot;c&quot; &gt; d");
    EXPECT_EQ(detail::escape_xml("日本語"), "日本語");
    EXPECT_EQ(detail::escape_xml("tab\tline\nend"), "tab line end");
    EXPECT_EQ(detail::escape_xml(std::string("nul\0bell\x07", 9)),
              "nul\xef\xbf\xbd"
              "bell\xef\xbf\xbd");
    EXPECT_EQ(detail::escape_xml("\xff"
                                 "a\xc3"),
              "\xef\xbf\xbd"
              "a\xef\xbf\xbd");                                          // no UTF-8
    EXPECT_EQ(detail::escape_xml("\xef\xbf\xbf<"), "\xef\xbf\xbd&lt;");  // U+FFFF
    EXPECT_EQ(detail::escape_xml(""), "");
}

}  // namespace
}  // namespace format_test
