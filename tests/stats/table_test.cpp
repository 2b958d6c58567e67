// SPDX-License-Identifier: MIT
#include <moe/stats/table.hpp>

#include <charconv>
#include <clocale>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <moe/stats/affinity.hpp>
#include <moe/stats/co_activation.hpp>
#include <moe/stats/load_over_time.hpp>
#include <moe/stats/locality.hpp>
#include <moe/stats/specialization.hpp>
#include <moe/stats/svg.hpp>
#include <moe/testing/random.hpp>

#include "stats/traces.hpp"
#include "support/message.hpp"

namespace table_test {
namespace {

using moe::Index;
using moe::Matrix;
using moe::to_csv;
using moe::to_json;
using support::message;

constexpr double nan = std::numeric_limits<double>::quiet_NaN();
constexpr double inf = std::numeric_limits<double>::infinity();

Matrix<double> two_by_two(double a, double b, double c, double d) {
    Matrix<double> m(2, 2);
    m << a, b, c, d;
    return m;
}

TEST(Csv, IsWrittenAsWorkedOutByHand) {
    EXPECT_EQ(to_csv(two_by_two(12, 0.5, nan, -inf), {.corner = "expert"}),
              "expert,0,1\r\n0,12,0.5\r\n1,nan,-inf\r\n");
    EXPECT_EQ(
        to_csv(two_by_two(-nan, inf, -0.0, 1e300), {.rows = {"a", "b"}, .columns = {"x", ""}}),
        ",x,\r\na,nan,inf\r\nb,-0,1e+300\r\n");
}

TEST(Csv, QuotesNamesThatHoldCommasQuotesOrLineBreaks) {
    EXPECT_EQ(to_csv(two_by_two(1, 2, 3, 4), {.rows = {"a,b", "say \"no\""},
                                              .columns = {"two\nlines", " plain text;"},
                                              .corner = "\r"}),
              "\"\r\",\"two\nlines\", plain text;\r\n\"a,b\",1,2\r\n\"say \"\"no\"\"\",3,4\r\n");
}

TEST(Csv, NumbersReadBackAsTheSameBits) {
    Matrix<double> values = moe::testing::random_matrix<double>(1, 40, 5);
    for (Index i = 0; i < 40; ++i)
        values(0, i) = std::ldexp(values(0, i) / 3, static_cast<int>(50 * i - 1000));
    values(0, 0) = 5e-324;
    values(0, 1) = std::numeric_limits<double>::max();
    const std::string csv = to_csv(values);
    const char* at = std::strchr(csv.c_str(), '\n') + 2;  // behind the row's name
    const char* const end = csv.data() + csv.size();
    for (Index i = 0; i < 40; ++i) {
        double value = 0;
        ASSERT_EQ(*at, ',');
        at = std::from_chars(at + 1, end, value).ptr;
        EXPECT_EQ(value, values(0, i));
    }
}

TEST(Csv, IsTheSameInEveryLocale) {
    const std::string before = std::setlocale(LC_ALL, nullptr);
    const Matrix<double> values = two_by_two(1234567.5, 0.25, 1e-9, 3);
    const std::string csv = to_csv(values), json = to_json(values);
    for (const char* locale : {"de_DE.UTF-8", "de_DE.utf8", "fr_FR.UTF-8"}) {
        std::setlocale(LC_ALL, locale);  // none of them may be there
        EXPECT_EQ(to_csv(values), csv);
        EXPECT_EQ(to_json(values), json);
    }
    std::setlocale(LC_ALL, before.c_str());
    EXPECT_EQ(csv, ",0,1\r\n0,1234567.5,0.25\r\n1,1e-09,3\r\n");
}

TEST(Json, IsWrittenAsWorkedOutByHand) {
    EXPECT_EQ(to_json(two_by_two(12, 0.5, nan, -inf), {.corner = "expert"}),
              "{\"corner\": \"expert\", \"rows\": [\"0\", \"1\"], \"columns\": [\"0\", \"1\"],\n"
              " \"values\": [[12, 0.5],\n"
              "            [null, null]]}\n");
}

TEST(Json, EscapesNames) {
    const std::string json =
        to_json(two_by_two(1, 2, 3, 4), {.rows = {"a\"b\\", "\n\x01"}, .columns = {"ü", "/"}});
    EXPECT_NE(json.find("\"rows\": [\"a\\\"b\\\\\", \"\\n\\u0001\"]"), std::string::npos) << json;
    EXPECT_NE(json.find("\"columns\": [\"ü\", \"/\"]"), std::string::npos) << json;
    EXPECT_EQ(message([] {
                  to_json(two_by_two(1, 2, 3, 4), {.columns = {"fine", "\xff"}});
              }),
              "moe::to_json: the name \"?\" is not valid UTF-8");
}

TEST(Table, OfNothingIsStillATable) {
    EXPECT_EQ(to_csv(Matrix<double>(0, 2)), ",0,1\r\n");
    EXPECT_EQ(to_csv(Matrix<double>(1, 0)), "\r\n0\r\n");
    EXPECT_EQ(to_json(Matrix<double>(0, 1)),
              "{\"corner\": \"\", \"rows\": [], \"columns\": [\"0\"],\n \"values\": []}\n");
    EXPECT_EQ(to_json(Matrix<double>(1, 0)),
              "{\"corner\": \"\", \"rows\": [\"0\"], \"columns\": [],\n \"values\": [[]]}\n");
}

TEST(Table, TakesAnyScalarAndStorageOrder) {
    const Matrix<double> m = two_by_two(1, 2, 3, 4);
    EXPECT_EQ(to_csv(m.transpose()), ",0,1\r\n0,1,3\r\n1,2,4\r\n");
    EXPECT_EQ(to_csv(Eigen::Matrix<std::int32_t, 1, 2>(7, -8)), ",0,1\r\n0,7,-8\r\n");
    // The float nearest to 0.1, as the double that it is.
    EXPECT_EQ(to_csv(Matrix<float>::Constant(1, 1, 0.1F)), ",0\r\n0,0.10000000149011612\r\n");
}

TEST(Table, RefusesNamesThatAreNotOneForEach) {
    const Matrix<double> m = two_by_two(1, 2, 3, 4);
    EXPECT_EQ(message([&] { to_csv(m, {.rows = {"a"}}); }),
              "moe::to_csv: rows has 1 entries, there are 2; give one for each, or none");
    EXPECT_EQ(message([&] {
                  to_json(m, {.columns = {"a", "b", "c"}});
              }),
              "moe::to_json: columns has 3 entries, there are 2; give one for each, or none");
}

TEST(Table, EveryMatrixOfATraceIsAPictureAndATableInOneLine) {
    moe::Trace trace;
    for (std::uint64_t b = 0; b < 2; ++b)
        for (Index layer = 0; layer < 2; ++layer)
            trace.record(layer, traces::routing(
                                    4, traces::random_lists(
                                           20, 4, 2, 2 * b + static_cast<std::uint64_t>(layer))));
    const auto is_drawn = [](const Matrix<double>& values) {
        const std::string svg = moe::svg_heat_map(values), csv = to_csv(values);
        std::size_t cells = 0, lines = 0;
        for (std::size_t at = svg.find("</title></rect>"); at != svg.npos;
             at = svg.find("</title></rect>", at + 1))
            ++cells;
        for (const char c : csv) lines += c == '\n';
        return cells == static_cast<std::size_t>(values.size()) &&
               lines == static_cast<std::size_t>(values.rows()) + 1;
    };
    EXPECT_TRUE(is_drawn(moe::co_activation(trace, 0, moe::CoActivation::jaccard)));
    EXPECT_TRUE(is_drawn(moe::expert_affinity(trace, 0, 1, moe::Affinity::conditional)));
    EXPECT_TRUE(is_drawn(moe::load_over_time(trace, 1)));
    EXPECT_TRUE(is_drawn(moe::experts_by(trace, 0, moe::ByPosition{.bin = 5}).counts));
    EXPECT_TRUE(is_drawn(moe::segment_activations(trace, 0, {.length = 4}).segments));
}

}  // namespace
}  // namespace table_test
