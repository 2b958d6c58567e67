// SPDX-License-Identifier: MIT
#ifndef MOE_TESTS_LOSSES_HEAD_OF_LOGITS_HPP
#define MOE_TESTS_LOSSES_HEAD_OF_LOGITS_HPP

#include <vector>

#include <moe/head.hpp>
#include <moe/testing/random.hpp>

namespace example {

/// A router whose logits are the tokens.
template <class S>
struct Tokens {
    using Scalar = S;
    void forward(moe::In<S> x, moe::Out<S> logits) const { logits = x; }
    void backward(moe::In<S>, moe::In<S> dlogits, moe::Out<S> dx, Tokens&) const { dx = dlogits; }
};

/// A head that runs a gate over `experts` experts on given logits, and its workspace: the gradient
/// of a loss at the logits is what it adds to ws.dlogits().
template <class S, class Gate>
struct HeadOfLogits {
    moe::Matrix<S> logits;  // [T, L]
    moe::Head<S, Tokens<S>, Gate> head;
    moe::Workspace<S> ws;

    /// @param columns  L
    HeadOfLogits(const Gate& gate, moe::Index tokens, moe::Index experts, moe::Index columns)
        : logits(moe::testing::random_matrix<S>(tokens, columns, 5)),
          head(moe::Config{.model_dim = columns}, Tokens<S>{}, gate,
               std::vector<moe::ExpertFacts>(static_cast<std::size_t>(experts))) {}

    const auto& gate() const { return head.gate(); }
    void route(const moe::Context& context) { head.route(logits, ws, context); }
};

}  // namespace example

#endif  // MOE_TESTS_LOSSES_HEAD_OF_LOGITS_HPP
