// SPDX-License-Identifier: MIT
#include <moe/routers/passed_logits.hpp>

#include <stdexcept>

#include <gtest/gtest.h>

#include "support/message.hpp"

namespace {

using moe::Context;
using support::message;
using Passed = moe::detail::PassedLogits<double>;

Passed written(const Context& context = {}) {
    Passed passed;
    auto view = passed.write(2, 3, context);
    for (moe::Index i = 0; i < 6; ++i) view.data()[i] = static_cast<double>(i);
    return passed;
}

TEST(PassedLogits, AreWhatWasWrittenWithAGradientOfZero) {
    Passed passed = written();
    EXPECT_NO_THROW(passed.check("moe::Part", 2, 3, {}));
    EXPECT_EQ(passed.logits()(1, 2), 5);
    EXPECT_EQ(passed.gradient(), (moe::Matrix<double>::Zero(2, 3)));
    passed.gradient()(0, 1) = 7;
    passed.write(1, 3, {});
    EXPECT_EQ(passed.logits().rows(), 1);
    EXPECT_EQ(passed.gradient(), (moe::Matrix<double>::Zero(1, 3))) << "of the batch before";
}

TEST(PassedLogits, OfNoTokensAreEmpty) {
    Passed passed;
    passed.write(0, 3, {});
    EXPECT_NO_THROW(passed.check("moe::Part", 0, 3, {}));
    EXPECT_EQ(passed.logits().rows(), 0);
    EXPECT_EQ(passed.logits().cols(), 3);
}

TEST(PassedLogits, AreNotThereBeforeTheyAreWrittenOrAfterTheyWereUsed) {
    const auto said = [](const Passed& passed) {
        return message<std::logic_error>([&] { passed.check("moe::Part", 2, 3, {}); });
    };
    const std::string stale =
        "moe::Part: the logits that the layer before has left are not those of this batch: call "
        "its forward() before forward() here, and its backward() after the one here";
    Passed passed;
    EXPECT_EQ(said(passed), stale);
    passed = written();
    EXPECT_EQ(said(passed), "");
    passed.finish();
    EXPECT_EQ(said(passed), stale);
    passed = written();
    passed.reserve(4, 3);
    EXPECT_EQ(said(passed), stale) << "room is not a batch";
}

TEST(PassedLogits, OfAnotherStepPieceOrExtentAreRefused) {
    const Passed passed = written({.step = 5, .first_token = 8});
    const auto said = [&](const Context& context) {
        return message<std::logic_error>([&] { passed.check("moe::Part", 2, 3, context); });
    };
    EXPECT_EQ(said({.step = 5, .first_token = 8}), "");
    EXPECT_EQ(said({.step = 6, .first_token = 8}),
              "moe::Part: the logits that the layer before has left are of step 5 and of tokens "
              "from 8 on, this call is of step 6 and from 8 on; call its forward() first");
    EXPECT_NE(said({.step = 5, .first_token = 0}).find("from 0 on"), std::string::npos);
    EXPECT_EQ(message([&] { passed.check_extents("moe::Part", 3, 3); }),
              "moe::Part: the logits that were left are [2, 3], wanted are [3, 3]: those of this "
              "batch, with as many per token as the layer that reads them has");
    EXPECT_NE(message([&] { passed.check_extents("moe::Part", 2, 4); }), "");
}

}  // namespace
