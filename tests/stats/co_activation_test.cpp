// SPDX-License-Identifier: MIT
#include <moe/stats/co_activation.hpp>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <vector>

#include <gtest/gtest.h>

#include "stats/traces.hpp"
#include "support/message.hpp"

namespace co_activation_test {
namespace {

using moe::co_activation;
using moe::CoActivation;
using moe::Index;
using moe::Matrix;
using support::message;

Matrix<double> matrix(std::initializer_list<std::initializer_list<double>> rows) {
    Matrix<double> m(static_cast<Index>(rows.size()), static_cast<Index>(rows.begin()->size()));
    Index i = 0;
    for (const auto& row : rows)
        for (const double value : row) m.data()[i++] = value;
    return m;
}

// Tokens {0, 1}, {1, 0}, {0, 2}, {1}; nobody uses expert 3. Loads 3 3 1 0; 0 and 1 meet twice,
// 0 and 2 once.
const traces::Lists small{{0, 1}, {1, 0}, {0, 2}, {1}};

TEST(CoActivation, OfASmallBatchIsWorkedOutByHand) {
    const moe::Trace trace = traces::trace(4, small);
    EXPECT_EQ(co_activation(trace, 0),
              matrix({{3, 2, 1, 0}, {2, 3, 0, 0}, {1, 0, 1, 0}, {0, 0, 0, 0}}));
    EXPECT_EQ(co_activation(trace, 0, CoActivation::conditional),
              matrix({{1, 2. / 3, 1. / 3, 0}, {2. / 3, 1, 0, 0}, {1, 0, 1, 0}, {0, 0, 0, 0}}));
    // 0 and 1: 2 of 3 + 3 - 2 tokens; 0 and 2: 1 of 3 + 1 - 1
    EXPECT_EQ(co_activation(trace, 0, CoActivation::jaccard),
              matrix({{1, 0.5, 1. / 3, 0}, {0.5, 1, 0, 0}, {1. / 3, 0, 1, 0}, {0, 0, 0, 0}}));
}

TEST(CoActivation, EqualsBruteForceOverPairsOfExperts) {
    moe::Trace trace;
    const traces::Lists first = traces::random_lists(31, 6, 3, 1),
                        second = traces::random_lists(17, 6, 2, 2);
    trace.record(5, traces::routing(6, first));
    trace.record(5, traces::routing(6, second));
    const Matrix<double> counts = co_activation(trace, 5),
                         given = co_activation(trace, 5, CoActivation::conditional),
                         jaccard = co_activation(trace, 5, CoActivation::jaccard);
    const auto uses = [](const std::vector<Index>& list, Index e) {
        return std::count(list.begin(), list.end(), e) > 0;
    };
    for (Index a = 0; a < 6; ++a)
        for (Index b = 0; b < 6; ++b) {
            double both = 0, either = 0, one = 0;
            for (const traces::Lists* lists : {&first, &second})
                for (const auto& list : *lists) {
                    both += uses(list, a) && uses(list, b);
                    either += uses(list, a) || uses(list, b);
                    one += uses(list, a);
                }
            EXPECT_EQ(counts(a, b), both);
            EXPECT_DOUBLE_EQ(given(a, b), both / one);
            EXPECT_DOUBLE_EQ(jaccard(a, b), both / either);
        }
}

TEST(CoActivation, FindsAPlantedPair) {
    // Expert 4 always comes with 7, the third expert is random.
    traces::Lists lists = traces::random_lists(200, 4, 1, 3);
    for (auto& list : lists) list.insert(list.end(), {4, 7});
    const moe::Trace trace = traces::trace(8, lists);
    const Matrix<double> jaccard = co_activation(trace, 0, CoActivation::jaccard);
    EXPECT_EQ(jaccard(4, 7), 1);
    for (Index a = 0; a < 8; ++a)
        for (Index b = 0; b < a; ++b)
            if (a != 7 || b != 4) {
                EXPECT_LT(jaccard(a, b), 0.5);
            }
}

TEST(CoActivation, LeavesOutPaddingDroppedAssignmentsAndOtherLayers) {
    moe::Routing routing = traces::routing(4, small);
    routing.set_dropped(0, moe::Dropped::capacity);  // token 0, expert 0
    routing.group();
    const std::vector<std::uint8_t> padding{0, 0, 1, 0};
    moe::Trace trace;
    trace.record(0, routing, {.padding = padding});
    trace.record(2, traces::routing(3, small), {.padding = padding});
    // left: {1}, {1, 0}, {1}
    EXPECT_EQ(co_activation(trace, 0),
              matrix({{1, 1, 0, 0}, {1, 3, 0, 0}, {0, 0, 0, 0}, {0, 0, 0, 0}}));
    EXPECT_EQ(co_activation(trace, 1).size(), 0);  // a number that was not recorded
}

TEST(CoActivation, OfNothingIsZero) {
    const moe::Trace trace = traces::trace(2, {});
    for (const auto form : {CoActivation::count, CoActivation::conditional, CoActivation::jaccard})
        EXPECT_EQ(co_activation(trace, 0, form), matrix({{0, 0}, {0, 0}}));
}

TEST(CoActivation, RefusesALayerOrFormThatThereIsNot) {
    const moe::Trace trace = traces::trace(4, small);
    EXPECT_THROW(co_activation(trace, 1), std::invalid_argument);
    EXPECT_EQ(message([&] { co_activation(trace, 0, static_cast<CoActivation>(3)); }),
              "moe::co_activation: form is number 3 of its choices, they are 0 to 2");
}

}  // namespace
}  // namespace co_activation_test
