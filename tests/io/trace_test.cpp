// SPDX-License-Identifier: MIT
#include <moe/io/trace.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <span>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "support/message.hpp"

namespace io_trace_test {
namespace {

using moe::Dropped;
using moe::FormatError;
using moe::Index;
using moe::Routing;
using moe::SafetensorsView;
using moe::SafetensorsWriter;
using moe::Trace;
using Bytes = std::vector<std::byte>;

/// `slots` of `experts` for each of `tokens` tokens; weights are floats.
Routing plain(Index tokens, Index experts, Index slots) {
    Routing routing;
    routing.reset(tokens, experts);
    for (Index t = 0; t < tokens; ++t)
        for (Index s = 0; s < slots; ++s)
            routing.add(t, (3 * t + s) % experts, 1.0F / static_cast<float>(1 + t + s));
    routing.group();
    return routing;
}

/// Three batches, of 4 tokens, 1 and none, in layers of 5 and 300 experts; every kind of drop, a
/// token to one expert twice but for its capacity, odd weights, contexts with something and
/// without.
Trace ragged() {
    Routing odd;
    odd.reset(4, 5);
    odd.add(0, 2, 0.1F);
    odd.add(0, 1, -0.0);
    odd.add(0, 2, 5e-324, 0.3);
    odd.add(2, 1, std::numeric_limits<double>::infinity(),
            std::bit_cast<double>(std::uint64_t{0x7ff8dead'beef1234}));
    odd.add(3, 0, std::numeric_limits<double>::quiet_NaN(), 2);
    odd.add(3, 4, 1.0 / 3);
    odd.set_dropped(0, Dropped::capacity);
    odd.set_dropped(1, Dropped::pruned);
    odd.set_dropped(5, Dropped::pass_through);
    odd.group();
    const std::vector<std::int64_t> ids{-1, 70'000, 3, std::numeric_limits<std::int64_t>::max()};
    const std::vector<std::int32_t> groups{0, -5, 1, 2}, group{9};
    const std::vector<std::uint8_t> padding{0, 1, 0, 0};
    const std::vector<Index> offsets{0, 1, 1, 4}, no_tokens{0};
    Trace trace;
    trace.record(0, odd,
                 {.step = std::numeric_limits<std::uint64_t>::max(),
                  .first_token = std::numeric_limits<std::int64_t>::min(),
                  .token_ids = ids,
                  .token_groups = groups,
                  .padding = padding,
                  .sequence_offsets = offsets});
    trace.record(7, plain(4, 300, 3),
                 {.step = std::numeric_limits<std::uint64_t>::max(),
                  .first_token = std::numeric_limits<std::int64_t>::min()});
    trace.record(7, plain(1, 300, 2), {.token_groups = group});
    trace.record(0, plain(0, 5, 0), {.sequence_offsets = no_tokens});
    return trace;
}

TEST(TraceFile, ComesBackBitForBit) {
    const Trace trace = ragged();
    ASSERT_EQ(trace.num_batches(), 3);
    const Bytes bytes = moe::save_trace(trace);
    const Trace back = moe::load_trace(bytes);
    EXPECT_EQ(back, trace);
    EXPECT_EQ(back.num_layers(), 8);
    EXPECT_EQ(back.num_experts(7), 300);
    EXPECT_EQ(back.num_experts(3), 0);
    EXPECT_EQ(moe::save_trace(back), bytes);
}

TEST(TraceFile, HoldsTracesOfNothing) {
    EXPECT_EQ(moe::load_trace(moe::save_trace(Trace())), Trace());
    for (const Routing& routing :
         {plain(0, 0, 0), plain(0, 3, 0), plain(3, 0, 0), plain(3, 2, 0), plain(1, 1, 1)}) {
        Trace trace;
        trace.record(0, routing);
        trace.record(0, routing);
        EXPECT_EQ(moe::load_trace(moe::save_trace(trace)), trace);
    }
}

/// "name DTYPE [n]" of every tensor.
std::map<std::string, std::string> tensors(const Trace& trace) {
    const Bytes bytes = moe::save_trace(trace);
    std::map<std::string, std::string> all;
    for (const moe::TensorView& tensor : SafetensorsView(bytes))
        all[std::string(tensor.name)] =
            std::string(dtype_name(tensor.dtype)) + " " + to_string(tensor.shape);
    return all;
}

TEST(TraceFile, SaysWhatItIsAndLeavesOutWhatIsNotThere) {
    const Bytes bytes = moe::save_trace(ragged());
    EXPECT_EQ(SafetensorsView(bytes).metadata().at("format"), "moe.trace");
    EXPECT_EQ(SafetensorsView(bytes).metadata().at("version"), "1");
    EXPECT_EQ(tensors(ragged()), (std::map<std::string, std::string>{
                                     {"batch.first_token", "I64 [3]"},
                                     {"batch.given", "U8 [3]"},
                                     {"batch.offsets", "U8 [3]"},
                                     {"batch.step", "U64 [3]"},
                                     {"batch.tokens", "U8 [3]"},
                                     {"dropped", "U8 [20]"},
                                     {"experts", "U8 [20]"},  // no plan names one above 255
                                     {"input_weights", "F64 [20]"},
                                     {"padding", "U8 [4]"},
                                     {"record.batch", "U8 [4]"},
                                     {"record.experts", "U16 [4]"},
                                     {"record.layer", "U8 [4]"},
                                     {"sequence_offsets", "U8 [5]"},
                                     {"slots", "U8 [9]"},
                                     {"token_groups", "I32 [5]"},
                                     {"token_ids", "I64 [4]"},
                                     {"weights", "F64 [20]"}}));
    Trace trace;
    trace.record(0, plain(2, 3, 1));
    EXPECT_EQ(tensors(trace), (std::map<std::string, std::string>{{"batch.first_token", "U8 [1]"},
                                                                  {"batch.given", "U8 [1]"},
                                                                  {"batch.offsets", "U8 [1]"},
                                                                  {"batch.step", "U64 [1]"},
                                                                  {"batch.tokens", "U8 [1]"},
                                                                  {"experts", "U8 [2]"},
                                                                  {"record.batch", "U8 [1]"},
                                                                  {"record.experts", "U8 [1]"},
                                                                  {"record.layer", "U8 [1]"},
                                                                  {"slots", "U8 [2]"},
                                                                  {"weights", "F32 [2]"}}));
    EXPECT_EQ(tensors(Trace()).size(), 0u);
}

TEST(TraceFile, StoresNumbersAsNarrowAsTheyAre) {
    const auto type_of = [](const char* tensor, Index expert, double weight) {
        Routing routing;
        routing.reset(1, expert + 1);
        routing.add(0, expert, weight);
        routing.group();
        Trace trace;
        trace.record(0, routing);
        EXPECT_EQ(moe::load_trace(moe::save_trace(trace)), trace);
        return tensors(trace).at(tensor);
    };
    EXPECT_EQ(type_of("experts", 255, 1), "U8 [1]");
    EXPECT_EQ(type_of("experts", 256, 1), "U16 [1]");
    EXPECT_EQ(type_of("experts", 65'535, 1), "U16 [1]");
    EXPECT_EQ(type_of("experts", 65'536, 1), "I32 [1]");
    EXPECT_EQ(type_of("record.experts", 255, 1), "U16 [1]");
    const float largest = std::numeric_limits<float>::max();
    for (const float weight :
         {0.1F, -0.0F, 1e-45F, largest, -largest, std::numeric_limits<float>::infinity(),
          std::numeric_limits<float>::quiet_NaN()})
        EXPECT_EQ(type_of("weights", 0, double{weight}), "F32 [1]") << weight;
    for (const double weight :
         {0.1, 5e-324, 1e39, 1 + 1e-15, std::bit_cast<double>(std::uint64_t{0x7ff8dead'beef1234})})
        EXPECT_EQ(type_of("weights", 0, weight), "F64 [1]") << weight;
}

TEST(TraceFile, TakesFiveBytesAndAnEighthPerAssignment) {
    // 8 of 64 experts: 1 byte for the expert, 4 for the weight, an eighth of the token's count; the
    // header takes less than 1200 bytes
    Trace trace;
    trace.record(0, plain(4096, 64, 8));
    const std::size_t assignments = 4096 * 8;
    const std::size_t size = moe::save_trace(trace).size();
    EXPECT_GE(size, assignments * 41 / 8);
    EXPECT_LE(size, assignments * 41 / 8 + 1200);
}

using Numbers = std::vector<std::int64_t>;

/// The numbers of two batches of 2 tokens and 1, in a layer of 3 experts.
const std::map<std::string, Numbers> sound_numbers{
    {"batch.tokens", {2, 1}},      {"batch.step", {0, 0}},
    {"batch.first_token", {0, 2}}, {"batch.given", {1, 6}},
    {"batch.offsets", {0, 2}},     {"token_ids", {5, 6}},
    {"token_groups", {4}},         {"padding", {0}},
    {"sequence_offsets", {0, 1}},  {"record.batch", {0, 1}},
    {"record.layer", {0, 0}},      {"record.experts", {3, 3}},
    {"slots", {1, 2, 1}},          {"experts", {2, 0, 1, 0}},
    {"weights", {5, 2, 1, 1}},     {"input_weights", {1, 1, 2, 1}},
    {"dropped", {0, 0, 2, 1}}};

void add(SafetensorsWriter& writer, const std::string& name, const Numbers& values) {
    if (name == "batch.step")
        writer.add(name, std::vector<std::uint64_t>(values.begin(), values.end()));
    else if (name == "weights" || name == "input_weights")
        writer.add(name, std::vector<double>(values.begin(), values.end()));
    else
        writer.add(name, values);
}

std::string fault_of(const SafetensorsWriter& writer) {
    return support::message<FormatError>([&] { moe::load_trace(writer.bytes()); });
}

/// What is wrong with those numbers but for one tensor.
/// @param values  empty: it is missing
std::string fault(const std::string& name, const Numbers& values) {
    SafetensorsWriter writer;
    writer.add_metadata("format", "moe.trace");
    writer.add_metadata("version", "1");
    for (const auto& [own_name, own] : sound_numbers)
        if (own_name != name) add(writer, own_name, own);
    if (!values.empty()) add(writer, name, values);
    return fault_of(writer);
}

/// The same with that tensor in another type.
template <class T>
std::string fault_with(const std::string& name, const std::vector<T>& values,
                       const moe::Extents& shape) {
    SafetensorsWriter writer;
    writer.add_metadata("format", "moe.trace");
    writer.add_metadata("version", "1");
    for (const auto& [own_name, own] : sound_numbers)
        if (own_name != name) add(writer, own_name, own);
    writer.add(name, std::span(values), shape);
    return fault_of(writer);
}

std::string refusal(const char* end) { return std::string("moe::load_trace: the file ") + end; }

TEST(TraceFile, RefusesWhatContradictsItself) {
    EXPECT_EQ(fault("slots", {1, 2, 1}), "");
    EXPECT_EQ(fault("experts", {2, 0, 3, 0}),
              refusal("contradicts itself: record 0 names expert 3, there are 3"));
    EXPECT_EQ(fault("dropped", {}), "");
    EXPECT_EQ(fault("experts", {2, 0, 0, 0}), "");  // the second 0 is dropped
    EXPECT_EQ(fault("slots", {2, 1, 1}), "");
    EXPECT_EQ(fault("slots", {1, 2, 2}),
              refusal("has a token with 2 slots where 1 assignments are left"));
    EXPECT_EQ(fault("slots", {1, 2, 0}), refusal("has 1 experts more than are wanted"));
    EXPECT_EQ(fault("batch.tokens", {3, 1}), refusal("has 2 token_ids left where 3 are wanted"));
    EXPECT_EQ(fault("record.batch", {0, 2}), refusal("names batch 2, there are 2"));
    const std::int64_t huge = std::int64_t{1} << 31,
                       most = std::numeric_limits<std::int64_t>::max();
    struct Spoilt {
        const char* name;
        Numbers values;
    };
    const std::vector<Spoilt> spoilt{{"batch.tokens", {2}},
                                     {"batch.tokens", {2, -1}},
                                     {"batch.tokens", {2, 0}},
                                     {"batch.tokens", {2, most}},
                                     {"batch.tokens", {1, 2}},
                                     {"batch.first_token", {0}},
                                     {"batch.offsets", {0}},
                                     {"batch.offsets", {0, 1}},
                                     {"batch.offsets", {2, 0}},
                                     {"batch.offsets", {-1, 3}},
                                     {"batch.offsets", {most, most}},
                                     {"batch.step", {0, 0, 0}},
                                     {"batch.given", {1}},
                                     {"batch.given", {0, 6}},
                                     {"batch.given", {1, 7}},
                                     {"batch.given", {1, 14}},
                                     {"batch.given", {1, 4}},
                                     {"batch.given", {1, 262}},
                                     {"token_ids", {1, 2, 3}},
                                     {"token_groups", {huge}},
                                     {"padding", {0, 0}},
                                     {"padding", {256}},
                                     {"sequence_offsets", {1, 1}},
                                     {"sequence_offsets", {0, 2}},
                                     {"sequence_offsets", {0, 0, 1}},
                                     {"record.batch", {0}},
                                     {"record.batch", {1, 0}},
                                     {"record.batch", {0, 0}},
                                     {"record.batch", {0, -1}},
                                     {"record.batch", {0, most}},
                                     {"record.layer", {0, -1}},
                                     {"record.layer", {0, 1'000'000}},
                                     {"record.layer", {0, most}},
                                     {"record.experts", {3, 4}},
                                     {"record.experts", {2, 2}},
                                     {"record.experts", {-1, -1}},
                                     {"record.experts", {huge, huge}},
                                     {"slots", {1, 2}},
                                     {"slots", {1, 2, 1, 0}},
                                     {"slots", {-1, 4, 1}},
                                     {"slots", {huge - 1, huge - 1, huge - 1}},
                                     {"slots", {huge, 2, 1}},
                                     {"experts", {2, 0, -1, 0}},
                                     {"experts", {2, 1, 1, 0, 0}},
                                     {"experts", {2, 0, 1}},
                                     {"weights", {1, 1, 1}},
                                     {"input_weights", {1, 1, 1, 1, 1}},
                                     {"dropped", {0, 0, 4, 0}},
                                     {"dropped", {0, 0, 0}},
                                     {"other", {1}}};
    for (const Spoilt& one : spoilt)
        EXPECT_NE(fault(one.name, one.values), "")
            << one.name << testing::PrintToString(one.values);
    // As many experts as there may be are only a number: nothing is made for each of them.
    EXPECT_EQ(fault("record.experts", {huge - 1, huge - 1}), "");
}

TEST(TraceFile, RefusesWhatIsMissingUnlessItMayBe) {
    for (const auto& [name, values] : sound_numbers)
        EXPECT_EQ(fault(name, {}) == "", name == "input_weights" || name == "dropped") << name;
}

TEST(TraceFile, RefusesOneExpertTwice) {
    SafetensorsWriter writer;
    writer.add_metadata("format", "moe.trace");
    writer.add_metadata("version", "1");
    for (auto numbers : sound_numbers) {
        if (numbers.first == "dropped") continue;
        if (numbers.first == "experts") numbers.second = {2, 0, 0, 0};
        add(writer, numbers.first, numbers.second);
    }
    EXPECT_EQ(fault_of(writer),
              refusal("contradicts itself: record 0 sends token 1 to expert 0 twice"));
}

TEST(TraceFile, RefusesOtherFormatsAndVersions) {
    const auto fault_by = [](const char* format, const char* version) {
        SafetensorsWriter writer;
        writer.add_metadata("format", format);
        writer.add_metadata("version", version);
        return fault_of(writer);
    };
    EXPECT_EQ(fault_by("moe.trace", "1"), "");
    EXPECT_EQ(fault_by("moe.routing", "1"), refusal("is no moe.trace by its metadata"));
    EXPECT_EQ(fault_by("moe.trace", "2"),
              refusal("is of another version by its metadata, this library reads version 1"));
    EXPECT_NE(fault_of(SafetensorsWriter()), "");
}

TEST(TraceFile, RefusesOtherTypesAndShapes) {
    EXPECT_EQ(fault_with<float>("weights", {1, 1, 1, 1}, {4}), "");
    EXPECT_EQ(fault_with<std::uint8_t>("slots", {1, 2, 1}, {3}), "");
    EXPECT_EQ(fault_with<float>("slots", {1, 2, 1}, {3}),
              refusal("has slots of F32, which it cannot be"));
    EXPECT_EQ(fault_with<std::uint8_t>("slots", {1, 2, 1}, {1, 3}),
              refusal("has \"slots\" of [1, 3], it must have one dimension"));
    EXPECT_NE(fault_with<std::int16_t>("slots", {1, 2, 1}, {3}), "");
    EXPECT_NE(fault_with<std::uint32_t>("token_ids", {5, 6}, {2}), "");
    EXPECT_NE(fault_with<std::uint64_t>("batch.tokens", {2, 1}, {2}), "");
    EXPECT_NE(fault_with<float>("batch.step", {0, 0}, {2}), "");
    EXPECT_NE(fault_with<std::uint8_t>("weights", {1, 1, 1, 1}, {4}), "");
    EXPECT_NE(fault_with<std::uint8_t>("batch.step", {0, 0}, {2}), "");
}

TEST(TraceFile, RefusesEveryTruncationAndDamageOfItsHeader) {
    const Trace trace = ragged();
    const Bytes sound = moe::save_trace(trace);
    int refused = 0, other = 0;
    const auto attempt = [&](const Bytes& bytes) {
        try {
            const Trace back = moe::load_trace(bytes);
            if (!(back == trace)) ++other;
        } catch (const FormatError&) {
            ++refused;
        }
    };
    for (std::size_t length = 0; length < sound.size(); ++length)
        attempt({sound.begin(), sound.begin() + static_cast<std::ptrdiff_t>(length)});
    EXPECT_EQ(refused, static_cast<int>(sound.size()));
    std::size_t data = 8;  // where the tensors begin
    for (std::size_t i = 0; i < 8; ++i) data += std::to_integer<std::size_t>(sound[i]) << (8 * i);
    ASSERT_LT(data, sound.size());
    Bytes bytes = sound;
    for (std::size_t i = 0; i < sound.size(); ++i) {
        if (i == data) {  // all of the header is behind us
            EXPECT_EQ(other, 0);
        }
        for (const int flip : {0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0xff}) {
            bytes[i] = sound[i] ^ static_cast<std::byte>(flip);
            attempt(bytes);
        }
        bytes[i] = sound[i];
    }
    EXPECT_GT(other, 100);  // weights, steps, ids: nothing contradicts those
}

}  // namespace
}  // namespace io_trace_test
