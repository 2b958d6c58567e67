// SPDX-License-Identifier: MIT
#include <moe/core/context.hpp>

#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include <gtest/gtest.h>

#include "core/message.hpp"

namespace {

using core_test::message;
using moe::Context;
using moe::Index;
using moe::SideVectors;

// The text for a batch of 4 tokens, 3 experts and 5 logits.
std::string refusal(const Context& context) {
    return message([&] { moe::detail::check_context(context, 4, 3, 5); });
}

TEST(Context, WithoutAnyFieldFitsEveryBatch) {
    EXPECT_NO_THROW(moe::detail::check_context({}, 4, 3, 5));
    EXPECT_NO_THROW(moe::detail::check_context({}, 0, 0, 0));
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
                                               4, 3, 5));
}

TEST(Context, EveryWrongExtentIsNamed) {
    const std::vector<std::int64_t> ids(3);
    const std::vector<std::int32_t> groups(5);
    const std::vector<std::uint8_t> bytes(6);
    const std::vector<double> numbers(4);
    EXPECT_EQ(refusal({.token_ids = ids}),
              "moe::Context: token_ids has 3 entries, one per token wants 4");
    EXPECT_EQ(refusal({.token_groups = groups}),
              "moe::Context: token_groups has 5 entries, one per token wants 4");
    EXPECT_EQ(refusal({.padding = bytes}),
              "moe::Context: padding has 6 entries, one per token wants 4");
    EXPECT_EQ(refusal({.allowed = bytes}),
              "moe::Context: allowed has 6 entries, one per token and expert wants 12");
    EXPECT_EQ(refusal({.logit_offset = numbers}),
              "moe::Context: logit_offset has 4 entries, one per logit wants 5");
    EXPECT_EQ(refusal({.gate_multiplier = numbers}),
              "moe::Context: gate_multiplier has 4 entries, one per expert wants 3");
}

TEST(Context, GradientsMustHaveTheExtentOfTheirFields) {
    std::vector<double> four(4);
    moe::ContextGradients offset{.logit_offset = four}, multiplier{.gate_multiplier = four};
    EXPECT_EQ(refusal({.gradients = &offset}),
              "moe::Context: gradients->logit_offset has 4 entries, one per logit wants 5");
    EXPECT_EQ(refusal({.gradients = &multiplier}),
              "moe::Context: gradients->gate_multiplier has 4 entries, one per expert wants 3");
}

TEST(Context, AnEmptyBatchRefusesEntriesForTokens) {
    const std::vector<std::uint8_t> one(1);
    EXPECT_EQ(message([&] { moe::detail::check_context({.padding = one}, 0, 3, 3); }),
              "moe::Context: padding has 1 entries, one per token wants 0");
    EXPECT_THROW(moe::detail::check_context({.allowed = one}, 0, 3, 3), std::invalid_argument);
}

TEST(Context, SequencesAscendFromZeroToTheTokens) {
    const auto text =
        "moe::Context: sequence_offsets must ascend from 0 to the 4 tokens of the batch";
    using Offsets = std::vector<Index>;
    for (const Offsets& wrong :
         {Offsets{0}, Offsets{4}, Offsets{0, 3}, Offsets{1, 4}, Offsets{0, 5}, Offsets{0, 3, 2, 4},
          Offsets{0, 5, 4}, Offsets{0, -1, 4}})
        EXPECT_EQ(refusal({.sequence_offsets = wrong}), text) << wrong.size();
    for (const Offsets& right : {Offsets{0, 4}, Offsets{0, 0, 4}, Offsets{0, 2, 2, 4, 4}})
        EXPECT_NO_THROW(moe::detail::check_context({.sequence_offsets = right}, 4, 3, 5));
    const Offsets none{0};
    EXPECT_NO_THROW(moe::detail::check_context({.sequence_offsets = none}, 0, 3, 5));
}

TEST(Context, DialsPerSequenceNeedSequences) {
    const std::vector<Index> k{1, 2}, sequences{0, 1, 2, 4};
    const std::vector<double> p{0.5};
    EXPECT_EQ(refusal({.dial = {.k_per_sequence = k}}),
              "moe::Context: dial.k_per_sequence has 2 entries, sequence_offsets has 0 sequences");
    EXPECT_EQ(refusal({.sequence_offsets = sequences, .dial = {.k_per_sequence = k}}),
              "moe::Context: dial.k_per_sequence has 2 entries, sequence_offsets has 3 sequences");
    EXPECT_EQ(refusal({.sequence_offsets = sequences, .dial = {.p_per_sequence = p}}),
              "moe::Context: dial.p_per_sequence has 1 entries, sequence_offsets has 3 sequences");
}

TEST(Context, ExtentsThatOverflowAreLengthErrors) {
    const std::vector<std::uint8_t> one(1);
    EXPECT_THROW(
        moe::detail::check_context({.allowed = one}, std::numeric_limits<Index>::max(), 2, 2),
        std::length_error);
}

TEST(Context, PaddingIsWhatIsNotZero) {
    const std::vector<std::uint8_t> padding{0, 1, 255};
    const Context context{.padding = padding};
    EXPECT_FALSE(moe::detail::is_padding(context, 0));
    EXPECT_TRUE(moe::detail::is_padding(context, 1));
    EXPECT_TRUE(moe::detail::is_padding(context, 2));
    EXPECT_FALSE(moe::detail::is_padding({}, 1));
}

TEST(SideVectors, AreTheCallersMemory) {
    moe::Matrix<float> v = moe::Matrix<float>::Random(4, 6);
    const Context context{.side_vectors = v};  // a matrix converts as it is
    const moe::ConstView<float> view = context.side_vectors.as<float>();
    EXPECT_EQ(view.data(), v.data());
    EXPECT_EQ(view.rows(), 4);
    EXPECT_EQ(view.cols(), 6);
    EXPECT_FALSE(context.side_vectors.empty());
    v(3, 5) = 7;
    EXPECT_EQ(view(3, 5), 7);
}

TEST(SideVectors, KeepTheStrideOfTheirRows) {
    const moe::Matrix<double> wide = moe::Matrix<double>::Random(5, 9);
    const Eigen::MatrixXd columns = Eigen::MatrixXd::Random(9, 5);
    const auto same = [](const SideVectors& vectors, const auto& expected) {
        const auto view = vectors.as<double>();
        return view.rows() == expected.rows() && view.cols() == expected.cols() &&
               view.cwiseEqual(expected).all();
    };
    EXPECT_TRUE(same(wide.block(1, 2, 3, 4), wide.block(1, 2, 3, 4)));
    EXPECT_TRUE(same(wide.row(2), wide.row(2)));
    EXPECT_TRUE(same(wide.col(2), wide.col(2)));  // one number per token
    EXPECT_TRUE(same(columns.col(2), columns.col(2)));
    EXPECT_TRUE(same(columns.transpose(), columns.transpose()));
    EXPECT_TRUE(same(columns.middleCols(1, 2).transpose(), columns.middleCols(1, 2).transpose()));
    EXPECT_TRUE(same(Eigen::Map<const moe::Matrix<double>>(wide.data(), 9, 5),
                     Eigen::Map<const moe::Matrix<double>>(wide.data(), 9, 5)));
    EXPECT_EQ(SideVectors(moe::In<double>(wide)).as<double>().data(), wide.data());
}

TEST(SideVectors, AreOfOneScalar) {
    static_assert(!std::is_constructible_v<SideVectors, moe::Matrix<int>>);
    const moe::Matrix<float> f32 = moe::Matrix<float>::Zero(2, 3);
    const moe::Matrix<double> f64 = moe::Matrix<double>::Zero(2, 3);
    EXPECT_TRUE(SideVectors(f32).holds<float>() && SideVectors(f64).holds<double>());
    EXPECT_FALSE(SideVectors(f32).holds<double>() || SideVectors(f64).holds<float>());
    EXPECT_EQ(
        message([&] { SideVectors(f32).as<double>(); }),
        "moe::Context: side_vectors is of another scalar, the part that reads it wants double");
    EXPECT_EQ(
        message([&] { SideVectors(f64).as<float>(); }),
        "moe::Context: side_vectors is of another scalar, the part that reads it wants float");
}

TEST(SideVectors, OfNoTokensAreGivenAllTheSame) {
    const moe::Matrix<float> none(0, 5);
    const SideVectors vectors = none;
    EXPECT_FALSE(vectors.empty());
    EXPECT_EQ(vectors.as<float>().rows(), 0);
    EXPECT_EQ(vectors.as<float>().cols(), 5);
    EXPECT_THROW(vectors.as<double>(), std::invalid_argument);
}

TEST(SideVectors, ThatWereNotGivenAreMissedByName) {
    EXPECT_TRUE(SideVectors().empty());
    EXPECT_EQ(message([] { SideVectors().as<float>(); }),
              "moe::Context: side_vectors is empty, the part that reads it wants float");
    EXPECT_EQ(message([] { SideVectors().as<double>(); }),
              "moe::Context: side_vectors is empty, the part that reads it wants double");
}

}  // namespace
