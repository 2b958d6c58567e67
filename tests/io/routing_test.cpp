// SPDX-License-Identifier: MIT
#include <moe/io/routing.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "support/message.hpp"

namespace routing_test {
namespace {

using moe::Assignment;
using moe::Dropped;
using moe::FormatError;
using moe::Index;
using moe::Routing;
using moe::SafetensorsView;
using moe::SafetensorsWriter;
using support::message;

/// 4 tokens with 3, 0, 1 and 2 slots for 5 experts, every kind of drop, odd weights.
Routing ragged() {
    Routing routing;
    routing.reset(4, 5);
    routing.add(0, 4, 0.1F);
    routing.add(0, 1, -0.0);
    routing.add(0, 2, 5e-324, 0.3);
    routing.add(2, 1, std::numeric_limits<double>::infinity());
    routing.add(3, 0, std::bit_cast<double>(std::uint64_t{0x7ff8dead'beef1234}), 2);
    routing.add(3, 4, 1.0 / 3);
    routing.group();
    routing.set_dropped(1, Dropped::capacity);
    routing.set_dropped(5, Dropped::pruned);
    routing.group();
    return routing;
}

void expect_same_bits(const Routing& actual, const Routing& expected) {
    EXPECT_EQ(actual.num_tokens(), expected.num_tokens());
    EXPECT_EQ(actual.num_experts(), expected.num_experts());
    ASSERT_EQ(actual.num_assignments(), expected.num_assignments());
    const auto bits = [](double x) { return std::bit_cast<std::uint64_t>(x); };
    for (std::size_t i = 0; i < expected.assignments().size(); ++i) {
        const Assignment a = actual.assignments()[i], b = expected.assignments()[i];
        EXPECT_EQ(a.token, b.token);
        EXPECT_EQ(a.expert, b.expert);
        EXPECT_EQ(a.slot, b.slot);
        EXPECT_EQ(a.dropped, b.dropped);
        EXPECT_EQ(bits(a.weight), bits(b.weight));
        EXPECT_EQ(bits(a.input_weight), bits(b.input_weight));
    }
    for (Index e = 0; e < expected.num_experts(); ++e) {
        const auto a = actual.tokens_of(e), b = expected.tokens_of(e);
        EXPECT_EQ((std::vector<std::int32_t>{a.begin(), a.end()}),
                  (std::vector<std::int32_t>{b.begin(), b.end()}));
    }
}

TEST(RoutingFile, ComesBackBitForBit) {
    expect_same_bits(moe::load_routing(moe::save_routing(ragged())), ragged());
    EXPECT_EQ(moe::save_routing(moe::load_routing(moe::save_routing(ragged()))),
              moe::save_routing(ragged()));
}

TEST(RoutingFile, HoldsEmptyRoutings) {
    for (const auto& [tokens, experts] : {std::pair<Index, Index>{0, 0}, {0, 3}, {3, 0}, {2, 2}}) {
        Routing routing;
        routing.reset(tokens, experts);
        routing.group();
        const Routing back = moe::load_routing(moe::save_routing(routing));
        expect_same_bits(back, routing);
        EXPECT_EQ(back.num_kept(), 0);
    }
}

TEST(RoutingFile, SaysWhatItIs) {
    const auto bytes = moe::save_routing(ragged());
    const SafetensorsView file(bytes);
    EXPECT_EQ(file.metadata().at("format"), "moe.routing");
    EXPECT_EQ(file.integers("routing.header"),
              (moe::Matrix<std::int64_t>(1, 3) << 1, 4, 5).finished());
    EXPECT_EQ(file.integers("routing.token_offsets"),
              (moe::Matrix<std::int64_t>(1, 5) << 0, 3, 3, 4, 6).finished());
    EXPECT_EQ(file.integers("routing.load"),
              (moe::Matrix<std::int64_t>(1, 5) << 1, 1, 1, 0, 1).finished());
}

TEST(RoutingFile, SharesAFileWithOthers) {
    Routing other;
    other.reset(1, 2);
    other.add(0, 1, 0.5);
    other.group();
    SafetensorsWriter writer;
    moe::add_routing(writer, "layers.0.routing.", ragged());
    moe::add_routing(writer, "layers.1.routing.", other);
    const auto bytes = writer.bytes();
    const SafetensorsView file(bytes);
    expect_same_bits(moe::read_routing(file, "layers.0.routing."), ragged());
    EXPECT_EQ(moe::read_routing(file, "layers.1.routing."), other);
    EXPECT_THROW(moe::read_routing(file, "layers.2.routing."), FormatError);
}

TEST(RoutingFile, NeedsAGroupedRouting) {
    Routing routing;
    routing.reset(1, 1);
    EXPECT_THROW(moe::save_routing(routing), std::logic_error);
}

/// The tensors of a routing of 2 tokens and 3 experts, to be spoilt one at a time.
struct Parts {
    std::vector<std::int64_t> header{1, 2, 3}, token_offsets{0, 2, 3}, load{1, 0, 1};
    std::vector<std::int32_t> expert{2, 0, 1};
    std::vector<double> weight{0.5, 0.25, 1}, input_weight{1, 1, 1};
    std::vector<std::uint8_t> dropped{0, 0, 2};

    Routing load_it() const {
        SafetensorsWriter writer;
        writer.add("routing.header", header);
        writer.add("routing.token_offsets", token_offsets);
        writer.add("routing.expert", expert);
        writer.add("routing.weight", weight);
        writer.add("routing.input_weight", input_weight);
        writer.add("routing.dropped", dropped);
        writer.add("routing.load", load);
        return moe::load_routing(writer.bytes());
    }
};

std::string message_of(const Parts& parts) {
    return support::message<FormatError>([&] { parts.load_it(); });
}

TEST(RoutingFile, RefusesWhatContradictsItself) {
    EXPECT_EQ(message_of({}), "");
    EXPECT_EQ(message_of({.header = {2, 2, 3}}),
              "moe::read_routing: the routing \"routing.\" is of version 2, this library reads "
              "version 1");
    EXPECT_EQ(message_of({.expert = {2, 3, 1}}),
              "moe::read_routing: the routing \"routing.\" names expert 3, there are 3");
    EXPECT_EQ(
        message_of({.load = {1, 1, 1}}),
        "moe::read_routing: the routing \"routing.\" gives expert 1 a load of 1, its assignments "
        "are 0");
    const std::int64_t huge = std::int64_t{1} << 31,
                       most = std::numeric_limits<std::int64_t>::max();
    const Parts bad[] = {
        {.header = {1, 2}},
        {.header = {1, 2, 3, 4}},
        {.header = {1, -1, 3}},
        {.header = {1, 2, -3}},
        {.header = {1, huge, 3}},
        {.header = {1, most, most}},
        {.header = {1, huge - 1, huge - 1}},
        {.header = {1, 3, 3}},
        {.header = {1, 2, 4}},
        {.token_offsets = {1, 2, 3}},
        {.token_offsets = {0, 3, 2}},
        {.token_offsets = {0, 2, 4}},
        {.token_offsets = {0, -2, 3}},
        {.token_offsets = {0, most, 3}},
        {.token_offsets = {0, 3}},
        {.load = {1, 0}},
        {.expert = {2, -1, 1}},
        {.expert = {2, 0}},
        {.expert = {}},
        {.weight = {1, 1}},
        {.input_weight = {1, 1, 1, 1}},
        {.dropped = {0, 0, 4}},
        {.dropped = {0, 0}},
    };
    for (const Parts& parts : bad) EXPECT_THROW(parts.load_it(), FormatError);
}

TEST(RoutingFile, RefusesOtherTypesAndShapes) {
    const auto load_with = [](auto&& add) {
        SafetensorsWriter writer;
        moe::add_routing(writer, "", ragged());
        const auto bytes = writer.bytes();
        const SafetensorsView file(bytes);
        SafetensorsWriter changed;
        for (const moe::TensorView& tensor : file)
            if (tensor.name != "weight") changed.add_view(tensor);
        add(changed);
        const auto again = changed.bytes();
        return moe::read_routing(SafetensorsView(again), "");
    };
    const std::vector<double> weights(6, 1);
    EXPECT_EQ(load_with([&](auto& w) { w.add("weight", weights); }).num_assignments(), 6);
    EXPECT_THROW(load_with([&](auto& w) { w.add("weight", std::vector<float>(6)); }), FormatError);
    EXPECT_THROW(load_with([&](auto& w) {
                     w.add("weight", std::span(weights), {2, 3});
                 }),
                 FormatError);
    EXPECT_THROW(load_with([&](auto& w) {
                     w.add("weight", std::span(weights), {1, 6});
                 }),
                 FormatError);
    EXPECT_THROW(load_with([](auto&) {}), FormatError);
}

TEST(RoutingFile, SurvivesDamageAnywhere) {
    const std::vector<std::byte> sound = moe::save_routing(ragged());
    int refused = 0, changed = 0;
    const auto attempt = [&](const std::vector<std::byte>& bytes) {
        try {
            const Routing routing = moe::load_routing(bytes);
            EXPECT_EQ(routing.num_tokens(), 4);
            EXPECT_EQ(routing.num_experts(), 5);
            ++changed;  // a weight, a drop's reason, an expert of a dropped assignment, the
                        // metadata
        } catch (const FormatError&) {
            ++refused;
        }
    };
    for (std::size_t length = 0; length < sound.size(); ++length) {
        attempt({sound.begin(), sound.begin() + static_cast<std::ptrdiff_t>(length)});
        EXPECT_EQ(changed, 0) << length;
    }
    for (std::size_t i = 0; i < sound.size(); ++i)
        for (const int flip : {0x01, 0x80, 0xff}) {
            std::vector<std::byte> bytes = sound;
            bytes[i] ^= static_cast<std::byte>(flip);
            attempt(bytes);
        }
    EXPECT_GT(refused, 1000);
    EXPECT_GT(changed, 100);
}

}  // namespace
}  // namespace routing_test
