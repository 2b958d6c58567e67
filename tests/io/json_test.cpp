// SPDX-License-Identifier: MIT
#include <cstdint>
#include <string>
#include <string_view>

#include <gtest/gtest.h>

#include <moe/io/json.hpp>

#include "support/message.hpp"

namespace json_test {
namespace {

using moe::FormatError;
using moe::detail::JsonReader;
using support::message;

std::string parse_string(std::string_view text) {
    JsonReader reader(text, "test");
    std::string scratch;
    const std::string value(reader.string(scratch));
    reader.finish();
    return value;
}

std::uint64_t parse_integer(std::string_view text) {
    JsonReader reader(text, "test");
    const std::uint64_t value = reader.unsigned_integer();
    reader.finish();
    return value;
}

// {"key": integer, ...} as "key=integer;".
std::string parse_object(std::string_view text) {
    JsonReader reader(text, "test");
    std::string out, scratch;
    std::string_view key;
    reader.begin_object();
    while (reader.next_key(key, scratch)) {
        out += std::string(key) + "=";
        out += std::to_string(reader.unsigned_integer()) + ";";
    }
    reader.finish();
    return out;
}

std::string parse_array(std::string_view text) {
    JsonReader reader(text, "test");
    std::string out;
    reader.begin_array();
    while (reader.next_element()) out += std::to_string(reader.unsigned_integer()) + ";";
    reader.finish();
    return out;
}

TEST(Json, ReadsObjectsWithAnySpaceBetween) {
    EXPECT_EQ(parse_object("{}"), "");
    EXPECT_EQ(parse_object(R"({"a":1})"), "a=1;");
    EXPECT_EQ(parse_object("{ \"a\"\t:\r\n1 , \"b\":2 }   "), "a=1;b=2;");
}

TEST(Json, ReadsArrays) {
    EXPECT_EQ(parse_array("[]"), "");
    EXPECT_EQ(parse_array("[ 1 ,2]"), "1;2;");
}

TEST(Json, ReadsWhatFollowsANestedObject) {
    JsonReader reader(R"({"a":{},"b":[],"c":3})", "test");
    std::string scratch;
    std::string_view key;
    reader.begin_object();
    ASSERT_TRUE(reader.next_key(key, scratch));
    reader.begin_object();
    EXPECT_FALSE(reader.next_key(key, scratch));
    ASSERT_TRUE(reader.next_key(key, scratch));
    EXPECT_EQ(key, "b");
    reader.begin_array();
    EXPECT_FALSE(reader.next_element());
    ASSERT_TRUE(reader.next_key(key, scratch));
    EXPECT_EQ(reader.unsigned_integer(), 3u);
    EXPECT_FALSE(reader.next_key(key, scratch));
    reader.finish();
}

TEST(Json, RefusesBrokenPunctuation) {
    for (const char* text :
         {"", "{", "}", "{,}", R"({"a":1,})", R"({"a":1 "b":2})", R"({"a" 1})", R"({"a":})",
          R"({a:1})", R"({"a":1]})", R"({"a":1}})", R"({"a"::1})", R"({"a":1},)", R"({,"a":1})"})
        EXPECT_THROW(parse_object(text), FormatError) << text;
    for (const char* text : {"", "[", "]", "[,]", "[1,]", "[,1]", "[1 2]", "[1}", "[1]]"})
        EXPECT_THROW(parse_array(text), FormatError) << text;
}

TEST(Json, RefusesOtherKindsOfValues) {
    for (const char* text : {"null", "true", "[]", "{}", "\"1\"", "NaN", "'a'"})
        EXPECT_THROW(parse_integer(text), FormatError) << text;
    for (const char* text : {"null", "true", "[]", "{}", "1", "'a'"})
        EXPECT_THROW(parse_string(text), FormatError) << text;
}

TEST(Json, IntegersAreExactUpToTheLast) {
    EXPECT_EQ(parse_integer("0"), 0u);
    EXPECT_EQ(parse_integer("10"), 10u);
    EXPECT_EQ(parse_integer("9007199254740993"), 9007199254740993u);  // a double would lose the 3
    EXPECT_EQ(parse_integer("18446744073709551615"), 18446744073709551615u);
}

TEST(Json, RefusesIntegersThatOverflow) {
    for (const char* text : {"18446744073709551616", "18446744073709551620", "99999999999999999999",
                             "184467440737095516150"})
        EXPECT_THROW(parse_integer(text), FormatError) << text;
}

TEST(Json, RefusesSignsFractionsExponentsAndLeadingZeros) {
    for (const char* text : {"-1", "-0", "+1", "1.0", "1.", ".5", "1e3", "1E3", "0e0", "00", "01",
                             "0x10", "1_000", "", "a"})
        EXPECT_THROW(parse_integer(text), FormatError) << text;
}

TEST(Json, DecodesEveryEscape) {
    EXPECT_EQ(parse_string(R"("\"\\\/\b\f\n\r\t")"), "\"\\/\b\f\n\r\t");
    EXPECT_EQ(parse_string(R"("a\u0041\u00e9\u5927\ud83d\uDE00z")"),
              "aA\xc3\xa9\xe5\xa4\xa7\xf0\x9f\x98\x80z");
    EXPECT_EQ(parse_string(R"("\u0000")"), std::string(1, '\0'));
    EXPECT_EQ(parse_string(R"("\uffff\udbff\udfff")"), "\xef\xbf\xbf\xf4\x8f\xbf\xbf");
}

TEST(Json, RefusesLoneAndSwappedSurrogates) {
    for (const char* text :
         {R"("\ud800")", R"("\udc00")", R"("\ud800\ud800")", R"("\ud800x")", R"("\udc00\ud800")",
          R"("\ud800\n")", R"("\ud800\u0041")", R"("\ud800\)", R"("\ud800\u)"})
        EXPECT_THROW(parse_string(text), FormatError) << text;
}

TEST(Json, RefusesBrokenEscapes) {
    for (const char* text : {R"("\x")", R"("\u12")", R"("\u12g4")", R"("\)", R"("\u)", R"("\u123)",
                             R"("\U0041")", R"("\u 041")", R"("\u+041")"})
        EXPECT_THROW(parse_string(text), FormatError) << text;
}

TEST(Json, RefusesStringsThatDoNotEnd) {
    for (const char* text : {"\"", "\"a", "\"a\\\""})
        EXPECT_THROW(parse_string(text), FormatError) << text;
}

TEST(Json, RefusesControlCharactersInStrings) {
    for (int c = 0; c < 0x20; ++c) {
        const std::string text = {'"', static_cast<char>(c), '"'};
        EXPECT_THROW(parse_string(text), FormatError) << c;
    }
    EXPECT_EQ(parse_string("\"\x7f\""), "\x7f");
}

TEST(Json, RefusesTextThatIsNotUtf8) {
    EXPECT_THROW(parse_string("\"\xff\""), FormatError);
    EXPECT_THROW(parse_string("\"\xc0\xaf\""), FormatError);
    EXPECT_THROW(parse_string("\"\xed\xa0\x80\""), FormatError);
    EXPECT_EQ(parse_string("\"\xc3\xa9\""), "\xc3\xa9");
}

TEST(Json, ViewsStringsWithoutEscapesAndDecodesOthersIntoScratch) {
    const std::string text = R"(["plain"]["esc\n"])";
    JsonReader reader(text, "test");
    std::string scratch;
    reader.begin_array();
    ASSERT_TRUE(reader.next_element());
    const std::string_view plain = reader.string(scratch);
    EXPECT_EQ(plain.data(), text.data() + 2);
    EXPECT_FALSE(reader.next_element());
    reader.begin_array();
    ASSERT_TRUE(reader.next_element());
    EXPECT_EQ(reader.string(scratch).data(), scratch.data());
    EXPECT_EQ(scratch, "esc\n");
}

TEST(Json, NestsToItsLimitAndNoFurther) {
    for (const int limit : {1, 3, 10}) {
        const std::string text(static_cast<std::size_t>(limit) + 1, '[');
        JsonReader reader(text, "test", limit);
        for (int i = 0; i < limit; ++i) {
            reader.begin_array();
            ASSERT_TRUE(reader.next_element());
        }
        EXPECT_EQ(message<FormatError>([&] { reader.begin_array(); }),
                  "test byte " + std::to_string(limit) + ": nested deeper than " +
                      std::to_string(limit) + " levels, found '['");
    }
}

TEST(Json, ClosingALevelGivesItBack) {
    JsonReader reader("[[],[],[],[]]", "test", 2);
    reader.begin_array();
    int count = 0;
    for (; reader.next_element(); ++count) {
        reader.begin_array();
        EXPECT_FALSE(reader.next_element());
    }
    EXPECT_EQ(count, 4);
    reader.finish();
}

TEST(Json, OnlySpacesMayFollow) {
    EXPECT_EQ(parse_integer("1   "), 1u);
    for (const std::string_view text : {std::string_view("1\n"), std::string_view("1\0", 2),
                                        std::string_view("1 x"), std::string_view("1 \t")})
        EXPECT_THROW(parse_integer(text), FormatError);
}

TEST(Json, ErrorsSayWhereAndWhatWasFound) {
    EXPECT_EQ(message<FormatError>([] { parse_object(R"({"a";1})"); }),
              "test byte 4: expected ':', found ';'");
    EXPECT_EQ(message<FormatError>([] { parse_object("{\"a\":1\x01"); }),
              "test byte 6: expected ',' or '}', found byte value 1");
    EXPECT_EQ(message<FormatError>([] { parse_integer(""); }),
              "test byte 0: expected an unsigned integer, found the end");
    EXPECT_EQ(message<FormatError>([] { parse_string("\"ab\xff\""); }),
              "test byte 3: not valid UTF-8, found byte value 255");
}

// Skips the first element of an array and returns the second, which shows that it skipped just
// that.
std::uint64_t behind(const std::string& value, int nesting = 8) {
    const std::string text = "[" + value + ",7]";
    JsonReader reader(text, "test", nesting);
    reader.begin_array();
    EXPECT_TRUE(reader.next_element());
    reader.skip_value();
    EXPECT_TRUE(reader.next_element());
    const std::uint64_t next = reader.unsigned_integer();
    EXPECT_FALSE(reader.next_element());
    reader.finish();
    return next;
}

TEST(Json, SkipsAValueOfAnyKind) {
    for (const char* value :
         {"0", "-0", "12", "-3.25", "0.5e10", "1E+2", "1e-2", "123456789012345678901234567890",
          "true", "false", "null", "\"\"", R"("\u00e9\"]")", "[]", "{}", " [ ] ", "[1,[2],{}]",
          R"({"a":[true,{"b":null}],"a":-1.5})", "\n{\t\"\" : \"\"\r}"})
        EXPECT_EQ(behind(value), 7u) << value;
}

TEST(Json, SkipsNothingThatIsDamaged) {
    for (const char* value : {"",           "-",
                              "+1",         "01",
                              "-01",        ".5",
                              "1.",         "1.e2",
                              "1e",         "1e+",
                              "--1",        "0x1",
                              "1 2",        "NaN",
                              "Infinity",   "-Infinity",
                              "tru",        "truer",
                              "True",       "nul",
                              "nulll",      "fals",
                              "'a'",        "\"a",
                              "\"\\x\"",    "[",
                              "[1,]",       "[,1]",
                              "{",          "}",
                              "{1:2}",      R"({"a"})",
                              R"({"a":})",  R"({"a":1,})",
                              "[}",         "{]",
                              R"(["a":1])", R"({"a":\ud800})"})
        EXPECT_THROW(behind(value), FormatError) << value;
}

TEST(Json, SkipsNestedValuesToItsLimitAndNoFurther) {
    for (const int limit : {2, 8}) {
        const auto depth = static_cast<std::size_t>(limit) - 1;  // within the array that is open
        EXPECT_EQ(behind(std::string(depth, '[') + std::string(depth, ']'), limit), 7u);
        EXPECT_THROW(behind(std::string(depth + 1, '[') + std::string(depth + 1, ']'), limit),
                     FormatError);
        EXPECT_THROW(behind(std::string(100'000, '['), limit), FormatError);
    }
}

TEST(Json, WhiteSpaceMayFollowAText) {
    for (const std::string_view text : {"1", "1\n", "1 \r\n\t "}) {
        JsonReader reader(text, "test");
        reader.skip_value();
        reader.finish_text();
    }
    for (const std::string_view text : {std::string_view("1\0", 2), std::string_view("1\n,")}) {
        JsonReader reader(text, "test");
        reader.skip_value();
        EXPECT_THROW(reader.finish_text(), FormatError);
    }
}

TEST(Json, StringsItWritesReadBackTheSame) {
    std::string all;
    for (int c = 0; c < 0x80; ++c) all += static_cast<char>(c);
    all += "\xc3\xa9\xf0\x9f\x98\x80";
    std::string written;
    moe::detail::append_json_string(written, all);
    EXPECT_EQ(parse_string(written), all);
    EXPECT_NE(written.find("\\u001f"), std::string::npos);
}

}  // namespace
}  // namespace json_test
