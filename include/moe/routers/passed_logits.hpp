// SPDX-License-Identifier: MIT
#ifndef MOE_ROUTERS_PASSED_LOGITS_HPP
#define MOE_ROUTERS_PASSED_LOGITS_HPP

#include <cstdint>

#include <moe/core/context.hpp>
#include <moe/core/error.hpp>
#include <moe/core/memory.hpp>
#include <moe/core/types.hpp>

namespace moe::inline MOE_ABI::detail {

/// Logits that a router leaves in its workspace node for the router of a layer after it, which
/// reads them in forward and adds to their gradient in backward. Derive a type for each meaning:
/// a node holds one object of each type.
template <class S>
class PassedLogits {
public:
    /// Room to write a batch's logits to; their gradient is zero from now on.
    View<S> write(Index tokens, Index num_logits, const Context& context) {
        is_current_ = false;
        auto view = logits_.matrix(tokens, num_logits);
        gradient_.assign(view.size(), S(0));
        num_logits_ = num_logits;
        step_ = context.step;
        first_token_ = context.first_token;
        is_current_ = true;
        return view;
    }
    /// The gradient has been used: a reader that adds to it now comes too late.
    void finish() {
        gradient_.assign(gradient_.size(), S(0));
        is_current_ = false;
    }

    View<S> logits() { return view(logits_); }
    View<S> gradient() { return view(gradient_); }

    /// @throws std::logic_error unless these are the logits of the batch that the reader works on
    void check(const char* who, Index tokens, Index num_logits, const Context& context) const {
        if (!is_current_)
            fail<std::logic_error>(
                who,
                ": the logits that the layer before has left are not those of this batch: "
                "call its forward() before forward() here, and its backward() after the one "
                "here");
        if (context.step != step_ || context.first_token != first_token_)
            fail<std::logic_error>(who, ": the logits that the layer before has left are of step ",
                                   step_, " and of tokens from ", first_token_,
                                   " on, this call is of step ", context.step, " and from ",
                                   context.first_token, " on; call its forward() first");
        check_extents(who, tokens, num_logits);
    }
    void check_extents(const char* who, Index tokens, Index num_logits) const {
        if (rows() != tokens || num_logits_ != num_logits)
            fail(who, ": the logits that were left are [", rows(), ", ", num_logits_,
                 "], wanted are [", tokens, ", ", num_logits,
                 "]: those of this batch, with as many per token as the layer that reads them has");
    }

    void reserve(Index tokens, Index num_logits) {
        logits_.matrix(tokens, num_logits);
        gradient_.matrix(tokens, num_logits);
        is_current_ = false;
    }

private:
    Index rows() const { return num_logits_ == 0 ? 0 : logits_.size() / num_logits_; }
    View<S> view(Buffer<S>& buffer) {
        return View<S>(buffer.data(), rows(), num_logits_, Eigen::OuterStride<>(num_logits_));
    }

    Buffer<S> logits_, gradient_;  // [T, L]
    Index num_logits_ = 0;
    std::uint64_t step_ = 0;
    std::int64_t first_token_ = 0;
    bool is_current_ = false;
};

}  // namespace moe::inline MOE_ABI::detail

#endif  // MOE_ROUTERS_PASSED_LOGITS_HPP
