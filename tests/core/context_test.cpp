// SPDX-License-Identifier: MIT
#include <moe/core/context.hpp>

#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include <gtest/gtest.h>

#include "support/message.hpp"

namespace context_test {
namespace {

using moe::Context;
using moe::Index;
using support::message;

// The text for a batch of 4 tokens, 3 experts and 5 logits.
std::string refusal(const Context& context) {
    return message([&] { moe::detail::check_context(context, 4, 3, 5, false); });
}

TEST(Context, WithoutAnyFieldFitsEveryBatch) {
    EXPECT_NO_THROW(moe::detail::check_context({}, 4, 3, 5, false));
    EXPECT_NO_THROW(moe::detail::check_context({}, 0, 0, 0, true));
    const Context context;
    EXPECT_FALSE(context.training);
    EXPECT_EQ(context.seed + context.stream + context.step, 0u);
    EXPECT_EQ(context.first_token, 0);
}

TEST(Context, FieldsOfTheRightExtentPass) {
    const std::vector<std::int64_t> ids(4);
    const std::vector<std::int32_t> groups(4);
    const std::vector<std::uint8_t> padding(4), allowed(12);
    const std::vector<double> offset(5), multiplier(3), p{0.5, 0.6};
    const std::vector<Index> sequences{0, 1, 4}, k{1, 2};
    std::vector<double> doffset(5), dmultiplier(3);
    moe::ContextGradients gradients{.logit_offset = doffset, .gate_multiplier = dmultiplier};
    EXPECT_NO_THROW(moe::detail::check_context({.token_ids = ids,
                                                .token_groups = groups,
                                                .padding = padding,
                                                .sequence_offsets = sequences,
                                                .allowed = allowed,
                                                .logit_offset = offset,
                                                .gate_multiplier = multiplier,
                                                .dial = {.k_per_sequence = k, .p_per_sequence = p},
                                                .gradients = &gradients},
                                               4, 3, 5, false));
}

TEST(Context, EveryWrongExtentIsNamed) {
    const std::vector<std::int64_t> ids(3);
    const std::vector<std::int32_t> groups(5);
    const std::vector<std::uint8_t> bytes(6);
    const std::vector<double> numbers(4);
    EXPECT_EQ(refusal({.token_ids = ids}),
              "moe::Context: token_ids has 3 entries, it wants 4, one per token");
    EXPECT_EQ(refusal({.token_groups = groups}),
              "moe::Context: token_groups has 5 entries, it wants 4, one per token");
    EXPECT_EQ(refusal({.padding = bytes}),
              "moe::Context: padding has 6 entries, it wants 4, one per token");
    EXPECT_EQ(
        refusal({.allowed = bytes}),
        "moe::Context: allowed has 6 entries, it wants 3, one per expert, or 12, one per token "
        "and expert");
    EXPECT_EQ(refusal({.logit_offset = numbers}),
              "moe::Context: logit_offset has 4 entries, it wants 5, one per logit");
    EXPECT_EQ(refusal({.gate_multiplier = numbers}),
              "moe::Context: gate_multiplier has 4 entries, it wants 3, one per expert");
}

TEST(Context, GradientsMustHaveTheExtentOfTheirFields) {
    std::vector<double> four(4);
    moe::ContextGradients offset{.logit_offset = four}, multiplier{.gate_multiplier = four};
    EXPECT_EQ(refusal({.gradients = &offset}),
              "moe::Context: gradients->logit_offset has 4 entries, it wants 5, one per logit");
    EXPECT_EQ(refusal({.gradients = &multiplier}),
              "moe::Context: gradients->gate_multiplier has 4 entries, it wants 3, one per expert");
}

TEST(Context, AnEmptyBatchRefusesEntriesForTokens) {
    const std::vector<std::uint8_t> one(1);
    EXPECT_EQ(message([&] { moe::detail::check_context({.padding = one}, 0, 3, 3, true); }),
              "moe::Context: padding has 1 entries, it wants 0, one per token");
    EXPECT_THROW(moe::detail::check_context({.allowed = one}, 0, 3, 3, true),
                 std::invalid_argument);
}

TEST(Context, SequencesAscendFromZeroToTheTokens) {
    const std::string must =
        "moe::Context: sequence_offsets must ascend from 0 to the 4 tokens of the batch, ";
    using Offsets = std::vector<Index>;
    const auto refused = [&](const Offsets& wrong, const char* why) {
        EXPECT_EQ(refusal({.sequence_offsets = wrong}), must + why);
    };
    refused({0}, "its last entry is 0");
    refused({4}, "its first entry is 4");
    refused({0, 3}, "its last entry is 3");
    refused({1, 4}, "its first entry is 1");
    refused({0, 5}, "its last entry is 5");
    refused({0, 3, 2, 4}, "its entry 2 is 2 after 3");
    refused({0, 5, 4}, "its entry 2 is 4 after 5");
    refused({0, -1, 4}, "its entry 1 is -1 after 0");
    for (const Offsets& right : {Offsets{0, 4}, Offsets{0, 0, 4}, Offsets{0, 2, 2, 4, 4}})
        EXPECT_NO_THROW(moe::detail::check_context({.sequence_offsets = right}, 4, 3, 5, false));
    const Offsets none{0};
    EXPECT_NO_THROW(moe::detail::check_context({.sequence_offsets = none}, 0, 3, 5, false));
}

TEST(Context, DialsPerSequenceNeedSequences) {
    const std::vector<Index> k{1, 2}, sequences{0, 1, 2, 4};
    const std::vector<double> p{0.5};
    EXPECT_EQ(refusal({.dial = {.k_per_sequence = k}}),
              "moe::Context: dial.k_per_sequence has 2 entries, it wants 1 per sequence, and "
              "sequence_offsets is empty; set Context::sequence_offsets");
    EXPECT_EQ(refusal({.sequence_offsets = sequences, .dial = {.k_per_sequence = k}}),
              "moe::Context: dial.k_per_sequence has 2 entries, it wants 1 for each of the 3 "
              "sequences of sequence_offsets");
    EXPECT_EQ(refusal({.sequence_offsets = sequences, .dial = {.p_per_sequence = p}}),
              "moe::Context: dial.p_per_sequence has 1 entries, it wants 1 for each of the 3 "
              "sequences of sequence_offsets");
}

TEST(Context, WhatSteersSequencesHasARowForEach) {
    const std::vector<std::uint8_t> mask(5);
    const std::vector<double> numbers(5);
    std::vector<double> five(5);
    const std::vector<Index> sequences{0, 1, 4};
    const auto refused = [&](Context context, const std::string& field, int each) {
        context.sequence_offsets = sequences;
        EXPECT_EQ(refusal(context), "moe::Context: " + field + " has 5 entries, it wants " +
                                        std::to_string(each) +
                                        " for each of the 2 sequences of sequence_offsets");
    };
    refused({.dial = {.allowed_per_sequence = mask}}, "dial.allowed_per_sequence", 3);
    refused({.dial = {.logit_offset_per_sequence = numbers}}, "dial.logit_offset_per_sequence", 5);
    refused({.dial = {.gate_multiplier_per_sequence = numbers}},
            "dial.gate_multiplier_per_sequence", 3);
    moe::ContextGradients offset{.logit_offset_per_sequence = five},
        multiplier{.gate_multiplier_per_sequence = five};
    refused({.gradients = &offset}, "gradients->logit_offset_per_sequence", 5);
    refused({.gradients = &multiplier}, "gradients->gate_multiplier_per_sequence", 3);
}

TEST(Context, ForcesExpertsOnlyWhereEachHasALogit) {
    const std::vector<std::uint8_t> forced(3, 1);
    EXPECT_EQ(refusal({.forced = forced}),
              "moe::Context: forced wants a gate with a logit for each expert, this layer's has 5 "
              "logits for 3 experts, and none are the experts' own");
    EXPECT_NO_THROW(moe::detail::check_context({.forced = forced}, 4, 3, 3, true));
}

TEST(Context, MasksOfAllTokensOfEachAndOfSequencesHoldTogether) {
    const std::vector<std::uint8_t> all{1, 0}, each{1, 1, 0, 1, 1, 1}, sequence{0, 1, 1, 1};
    const std::vector<Index> sequences{0, 1, 3};
    const std::vector<moe::ExpertFacts> experts(2);
    const Context call{.allowed = all, .experts = experts};
    const Context tokens{.sequence_offsets = sequences,
                         .allowed = each,
                         .dial = {.allowed_per_sequence = sequence},
                         .experts = experts};
    for (Index t = 0; t < 3; ++t) {
        EXPECT_TRUE(call.is_allowed(t, 0));
        EXPECT_FALSE(call.is_allowed(t, 1));
        EXPECT_EQ(tokens.is_allowed(t, 0), t == 2);
        EXPECT_TRUE(tokens.is_allowed(t, 1));
    }
}

TEST(Context, ExtentsThatOverflowAreLengthErrors) {
    const std::vector<std::uint8_t> one(1);
    EXPECT_THROW(
        moe::detail::check_context({.allowed = one}, std::numeric_limits<Index>::max(), 2, 2, true),
        std::length_error);
}

TEST(Context, PaddingIsWhatIsNotZero) {
    const std::vector<std::uint8_t> padding{0, 1, 255};
    const Context context{.padding = padding};
    EXPECT_FALSE(context.is_padding(0));
    EXPECT_TRUE(context.is_padding(1));
    EXPECT_TRUE(context.is_padding(2));
    EXPECT_FALSE(Context{}.is_padding(1));
}

}  // namespace
}  // namespace context_test
