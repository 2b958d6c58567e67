// SPDX-License-Identifier: MIT
#ifndef MOE_TESTS_ROUTERS_WRAPPED_HPP
#define MOE_TESTS_ROUTERS_WRAPPED_HPP

#include <initializer_list>
#include <string>

#include <gtest/gtest.h>

#include <moe/routers/linear.hpp>

#include "routers/laws.hpp"
#include "support/message.hpp"

/// What tests of routers around routers share.
namespace routers_test {

/// A user's router: no call, no recipe, not linear in x. logits = (x * x) W^T
struct Own {
    Matrix<double> weight;  // [L, D]

    void forward(In<double> x, Out<double> logits) const {
        logits = x.cwiseProduct(x) * weight.transpose();
    }
    void backward(In<double> x, In<double> dlogits, Out<double> dx, Own& grad) const {
        dx = (dlogits * weight).cwiseProduct(2 * x);
        grad.weight += dlogits.transpose() * x.cwiseProduct(x);
    }
    void visit_parameters(auto&& visit) { visit("weight", weight); }
};
static_assert(moe::Router<Own, double>);

inline Own own(Index dim, Index logits) { return {random_matrix<double>(logits, dim, 41)}; }

/// A user's router for inference only.
struct OnlyForward {
    void forward(In<double> x, Out<double> logits) const {
        logits.colwise() = x.rowwise().sum().eval();
    }
};

/// f() throws an Error whose message holds every part.
template <class Error, class F>
void expect_message(F&& f, std::initializer_list<const char*> parts) {
    const std::string said = support::message<Error>(f);
    EXPECT_NE(said, "") << "nothing was thrown";
    for (const char* const part : parts) EXPECT_NE(said.find(part), std::string::npos) << said;
}

}  // namespace routers_test

#endif  // MOE_TESTS_ROUTERS_WRAPPED_HPP
