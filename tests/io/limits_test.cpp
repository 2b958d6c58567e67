// SPDX-License-Identifier: MIT
// Each limit of the reader, at it and one beyond.
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <moe/io/checkpoint.hpp>
#include <moe/io/limits.hpp>
#include <moe/io/safetensors.hpp>
#include <moe/io/shard_index.hpp>

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
        // A checkpoint holds as many, in all its files together.
        static_assert(moe::CheckpointLimits::tensors == Limits::tensors);
        EXPECT_EQ(moe::Checkpoint(view).size(), view.size());
        const auto other = raw_file("{" + empty_tensor("one more") + "}");
        EXPECT_EQ(support::message<moe::FormatError>([&] {
                      moe::Checkpoint({moe::SafetensorsView(other), view});
                  }),
                  "moe::Checkpoint: more than 1000000 tensors in all files");
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

// What is wrong with a text as an index of files; "" if nothing is.
std::string index_error_of(const std::string& text) {
    return support::message<moe::FormatError>([&] { moe::detail::read_shard_index(text); });
}

std::string index_of(const std::string& name, const std::string& file) {
    return "{\"weight_map\":{\"" + name + "\":\"" + file + "\"}}";
}

TEST(CheckpointLimits, IndexBytes) {
    std::string text = R"({"weight_map":{}})";
    text.resize(moe::CheckpointLimits::index_bytes, ' ');
    EXPECT_EQ(index_error_of(text), "");
    text += ' ';
    EXPECT_EQ(index_error_of(text),
              "moe::Checkpoint: index: it has 100000001 bytes, the limit is 100000000");
}

TEST(CheckpointLimits, TensorsOfTheIndex) {
    std::string text = "{\"weight_map\":{\"n\":\"f\"";
    for (std::size_t i = 1; i < moe::CheckpointLimits::tensors; ++i)
        text += ",\"" + std::to_string(i) + "\":\"f\"";
    EXPECT_EQ(index_error_of(text + "}}"), "");
    EXPECT_EQ(index_error_of(text + ",\"one more\":\"f\"}}"),
              "moe::Checkpoint: index: more than 1000000 tensors");
}

TEST(CheckpointLimits, FilesOfTheIndex) {
    std::string text = "{\"weight_map\":{\"n\":\"f\"";
    for (std::size_t i = 1; i < moe::CheckpointLimits::files; ++i)
        text += ",\"" + std::to_string(i) + "\":\"" + std::to_string(i) + '"';
    EXPECT_EQ(index_error_of(text + R"(,"again":"1"}})"), "");
    EXPECT_EQ(index_error_of(text + R"(,"one more":"0"}})"),
              "moe::Checkpoint: index: more than 10000 files");
}

TEST(CheckpointLimits, NameBytesOfTheIndex) {
    const std::string longest(Limits::name_bytes, 'n');
    EXPECT_EQ(index_error_of(index_of(longest, "f")), "");
    EXPECT_EQ(index_error_of(index_of(longest + "n", "f")),
              "moe::Checkpoint: index: name \"" + std::string(80, 'n') +
                  "\"... has 1025 bytes, the limit is 1024");
    const std::string file(moe::CheckpointLimits::file_name_bytes, 'f');
    EXPECT_EQ(index_error_of(index_of("n", file)), "");
    EXPECT_EQ(index_error_of(index_of("n", file + "f")),
              "moe::Checkpoint: index: file name \"" + std::string(80, 'f') +
                  "\"... has 256 bytes, the limit is 255");
}

TEST(CheckpointLimits, NestingOfTheIndex) {
    const auto text = [](int levels) {  // the index itself is one
        const auto depth = static_cast<std::size_t>(levels) - 1;
        return "{\"metadata\":" + std::string(depth, '[') + std::string(depth, ']') +
               ",\"weight_map\":{}}";
    };
    EXPECT_EQ(index_error_of(text(moe::CheckpointLimits::nesting)), "");
    EXPECT_EQ(index_error_of(text(moe::CheckpointLimits::nesting + 1)),
              "moe::Checkpoint: index byte 27: nested deeper than 16 levels, found '['");
}

TEST(CheckpointLimits, Files) {
    const auto file = raw_file("{}");
    std::vector<moe::SafetensorsView> files(moe::CheckpointLimits::files,
                                            moe::SafetensorsView(file));
    EXPECT_EQ(moe::Checkpoint(files).size(), 0);
    files.push_back(files.front());
    EXPECT_EQ(support::message<moe::FormatError>([&] { moe::Checkpoint{files}; }),
              "moe::Checkpoint: 10001 files, the limit is 10000");
}

}  // namespace
}  // namespace limits_test
