// SPDX-License-Identifier: MIT
#ifndef MOE_TESTS_LOSSES_EXAMPLE_HPP
#define MOE_TESTS_LOSSES_EXAMPLE_HPP

#include <cstdint>
#include <initializer_list>
#include <limits>
#include <vector>

#include <moe/core/routing.hpp>
#include <moe/core/types.hpp>
#include <moe/core/workspace.hpp>
#include <moe/testing/finite_difference.hpp>
#include <moe/testing/random.hpp>

namespace example {

using moe::Index;

inline constexpr double minus_infinity = -std::numeric_limits<double>::infinity();

/// Logits of 4 tokens for 8 experts, exact decimals.
template <class S>
moe::Matrix<S> logits() {
    moe::Matrix<S> z(4, 8);
    z << S(1.2), S(-0.3), S(0.8), S(0.1), S(-1.5), S(2.0), S(0.4), S(-0.7),     //
        S(0.0), S(0.5), S(-0.5), S(1.0), S(-1.0), S(0.25), S(-0.25), S(0.75),   //
        S(3.0), S(-2.0), S(-1.0), S(-3.0), S(-2.5), S(-1.5), S(-0.5), S(-4.0),  //
        S(0.1), S(0.2), S(0.3), S(0.4), S(0.5), S(0.6), S(0.7), S(0.8);
    return z;
}

/// A routing with these experts per token, in slot order.
inline moe::Routing routing(Index experts, const std::vector<std::vector<Index>>& chosen) {
    moe::Routing plan;
    plan.reset(static_cast<Index>(chosen.size()), experts);
    for (std::size_t t = 0; t < chosen.size(); ++t)
        for (const Index e : chosen[t]) plan.add(static_cast<Index>(t), e);
    plan.group();
    return plan;
}

/// The two best of every row of logits().
inline moe::Routing two_best() { return routing(8, {{5, 0}, {3, 7}, {0, 6}, {7, 6}}); }

/// What routing leaves in a workspace.
template <class S>
void fill(moe::Workspace<S>& ws, const moe::Matrix<S>& logits, const moe::Routing& plan,
          const moe::Context& context = {}) {
    moe::Routed<S>& routed = ws.template state<moe::Routed<S>>();
    routed.routing = plan;
    routed.context = context;
    routed.num_logits = logits.cols();
    routed.logits.matrix(logits.rows(), logits.cols()) = logits;
    routed.dlogits.assign(logits.size(), S(0));
}

/// Fails the test unless d(loss)/d(logits) agrees with differences of the value, and adds to what
/// was there. loss(logits, routing, context, weight, dlogits) in double.
template <class F>
moe::testing::GradientComparison check(F loss, moe::Matrix<double> logits, const moe::Routing& plan,
                                       const moe::Context& context = {}) {
    const double weight = 0.7;
    moe::Matrix<double> gradient =
        moe::testing::random_matrix<double>(logits.rows(), logits.cols(), 9);
    const moe::Matrix<double> before = gradient;
    loss(logits, plan, context, weight, gradient);
    gradient -= before;
    moe::Matrix<double> unused(logits.rows(), logits.cols());
    const auto value = [&] { return weight * loss(logits, plan, context, 0.0, unused).value; };
    return moe::testing::check_gradient(value, logits, gradient);
}

}  // namespace example

#endif  // MOE_TESTS_LOSSES_EXAMPLE_HPP
