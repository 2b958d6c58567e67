// SPDX-License-Identifier: MIT
// Each limit of the reader, at it and one beyond.
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <moe/io/limits.hpp>
#include <moe/io/safetensors.hpp>

#include "raw_file.hpp"

namespace limits_test {
namespace {

using Limits = moe::SafetensorsLimits;
using moe_test::error_of;
using moe_test::raw_file;

std::string empty_tensor(const std::string& name) {
    return '"' + name + R"(":{"dtype":"U8","shape":[0],"data_offsets":[0,0]})";
}

std::string header_of(std::size_t tensors) {
    std::string header = "{";
    for (std::size_t i = 0; i < tensors; ++i) {
        if (i != 0) header += ',';
        header += empty_tensor(std::to_string(i));
    }
    return header + '}';
}

TEST(SafetensorsLimits, HeaderBytes) {
    std::string header = "{}";
    header.resize(Limits::header_bytes, ' ');
    EXPECT_EQ(error_of(header), "");
    header += ' ';
    EXPECT_EQ(error_of(header),
              "moe::SafetensorsView: the header would have 100000001 bytes, the limit is "
              "100000000; is this a safetensors file?");
}

TEST(SafetensorsLimits, Tensors) {
    std::string header = header_of(Limits::tensors);
    {
        const auto file = raw_file(header);
        const moe::SafetensorsView view(file);
        EXPECT_EQ(view.size(), static_cast<moe::Index>(Limits::tensors));
        EXPECT_NE(view.find("999999"), nullptr);
        EXPECT_EQ(view.find("1000000"), nullptr);
    }
    header.back() = ',';
    header += empty_tensor("one more") + '}';
    EXPECT_EQ(error_of(header), "moe::SafetensorsView: more than 1000000 tensors");
}

TEST(SafetensorsLimits, MetadataEntries) {
    std::string header = "{\"__metadata__\":{";
    for (std::size_t i = 0; i < Limits::tensors; ++i) {
        if (i != 0) header += ',';
        header += '"' + std::to_string(i) + "\":\"\"";
    }
    EXPECT_EQ(error_of(header + "}}"), "");
    EXPECT_EQ(error_of(header + ",\"one more\":\"\"}}"),
              "moe::SafetensorsView: more than 1000000 entries in __metadata__");
}

TEST(SafetensorsLimits, Rank) {
    const auto header = [](std::size_t rank) {
        std::string shape = "1";
        for (std::size_t i = 1; i < rank; ++i) shape += ",1";
        return R"({"a":{"dtype":"U8","shape":[)" + shape + R"(],"data_offsets":[0,1]}})";
    };
    EXPECT_EQ(error_of(header(Limits::rank), 1), "");
    EXPECT_EQ(error_of(header(Limits::rank + 1), 1),
              "moe::SafetensorsView: tensor \"a\" has more than 8 dimensions");
}

TEST(SafetensorsLimits, NameBytes) {
    const std::string longest(Limits::name_bytes, 'n');
    EXPECT_EQ(error_of("{" + empty_tensor(longest) + "}"), "");
    EXPECT_EQ(error_of("{" + empty_tensor(longest + "n") + "}"),
              "moe::SafetensorsView: name \"" + std::string(80, 'n') +
                  "\"... has 1025 bytes, the limit is 1024");
    // What counts are the bytes of the name, not of its spelling.
    std::string spelled;
    for (std::size_t i = 0; i < Limits::name_bytes; ++i) spelled += "\\u006e";
    EXPECT_EQ(error_of("{" + empty_tensor(spelled) + "}"), "");
    EXPECT_NE(error_of("{" + empty_tensor(spelled + "n") + "}"), "");
    EXPECT_EQ(error_of("{\"__metadata__\":{\"" + longest + "\":\"" + longest + "nn\"}}"), "");
    EXPECT_NE(error_of("{\"__metadata__\":{\"" + longest + "n\":\"\"}}"), "");
}

TEST(SafetensorsLimits, NestingIsWhatAHeaderNeeds) {
    EXPECT_EQ(error_of("{" + empty_tensor("a") + "}"), "");  // header, tensor, shape
    EXPECT_NE(error_of(R"({"a":{"dtype":"U8","shape":[[0]],"data_offsets":[0,0]}})"), "");
}

}  // namespace
}  // namespace limits_test
