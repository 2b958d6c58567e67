// SPDX-License-Identifier: MIT
#ifndef MOE_LOSSES_LOSS_HPP
#define MOE_LOSSES_LOSS_HPP

#include <cmath>
#include <limits>
#include <span>

#include <moe/core/concepts.hpp>
#include <moe/core/context.hpp>
#include <moe/core/error.hpp>
#include <moe/core/memory.hpp>
#include <moe/core/routing.hpp>
#include <moe/core/types.hpp>
#include <moe/core/views.hpp>
#include <moe/core/workspace.hpp>

namespace moe::inline MOE_ABI {

/// What an auxiliary loss returns: its value, **without** the caller's weight.
///
/// Every loss is a free function in two forms, here for z_loss:
///
///     Loss z_loss(logits, routing, context, weight, dlogits)
///     Loss z_loss(ws, weight)        the same on what forward() or route() left in a workspace
///
/// The second form is about the experts' own logits, Workspace::expert_logits(): not about noise
/// logits of Noisy, or masks of KeepAny. Losses on those, and on what a gate learns, take the
/// layer's gate first: load_loss(layer.gate(), ws, 0.1), importance_loss, mask_loss,
/// activation_loss. What is given besides, such as labels, comes before the weight, options last.
///
/// It computes the value from the logits alone and **adds** weight * d(value)/d(logits) to dlogits.
/// So the loss to report is weight * value, and the weight holds the coefficient and whatever the
/// caller's own loss is scaled by. With weight 0 only the value is computed, dlogits is not
/// touched.
///
///     layer.forward(x, y, ws);
///     const Loss z = z_loss(ws, 1e-3);
///     layer.backward(x, dy, dx, grad, ws);    // takes the loss's gradient with it
///
/// What all losses have in common:
///   - Means are over the tokens that count: not the padding of the context, and not rows in which
///     every logit is -inf. Without any such token the value is exactly 0 and nothing is added.
///     A loss of one's own asks counts_in_losses(); on a workspace, it reads ws.expert_logits(),
///     ws.routing() and ws.context(), and adds to ws.expert_dlogits().
///   - A logit of -inf (a masked expert) has probability 0 and gradient 0. A NaN makes the value
///     and the gradient of its row NaN.
///   - Sums over tokens are in double, in token order; sums over experts are those of the kernels.
///   - Nothing is kept; the short form allocates nothing on the second call.
///   - @throws std::invalid_argument if extents differ, or no logits are the experts' own: those of
///     ProductKeyTopK are of half keys.
///
/// A loss that is to come with the library is a copy of z_loss.hpp, a header with both forms. It is
/// also included by losses.hpp, declared in fwd.hpp if it has a type, named in README.md, and has
/// its tests in tests/losses/mine_test.cpp, which begin with those of laws.hpp, and a row in
/// loss_test.cpp; what published code makes of it goes into tests/golden/generate_losses.py.
struct Loss {
    const char* name;
    double value;

    operator double() const { return value; }  // NOLINT(google-explicit-constructor)
};

/// Whether a token takes part in losses: it is not padding, and not all of its logits are -inf. It
/// reads up to the first that is not.
///
///     for (Index t = 0; t < logits.rows(); ++t)
///         if (counts_in_losses(ws.context(), logits, t)) ...
///
/// @param logits  [T, L]
template <class X>
bool counts_in_losses(const Context& context, const Eigen::DenseBase<X>& logits, Index token) {
    if (context.is_padding(token)) return false;
    for (Index l = 0; l < logits.cols(); ++l)
        if (logits.derived()(token, l) != -std::numeric_limits<typename X::Scalar>::infinity())
            return true;
    return false;
}

namespace detail {

/// Checks a span of settings, one per expert or token; empty is allowed.
/// @param who    the options that have it   @param field  its name there
/// @param per    "experts" or "tokens", of which there are `count`
inline void check_weights(const char* who, const char* field, std::span<const double> values,
                          Index count, const char* per) {
    if (!values.empty() && static_cast<Index>(values.size()) != count)
        fail(who, ": ", field, " has ", values.size(), " entries, there are ", count, " ", per);
    for (const double value : values)
        if (!(value >= 0) || !std::isfinite(value))
            fail(who, ": an entry of ", field, " is ", value, ", it must be finite and >= 0");
}

/// Rows of one token, and numbers per expert.
template <class S>
struct LossScratch {
    Buffer<S> scores;         // [L] of a token; [2 E] with their slopes
    Buffer<S> gradient;       // [L] of a token
    Buffer<S> fraction;       // [E] f(e)
    Buffer<double> load_sum;  // [2 E] n(e), then f(e) in its place; summed scores
    Buffer<double> given;     // f(e) that one loss gives another, and what it is made of
};

/// The matrices of a loss, checked against one another.
template <class S>
struct LossInput {
    In<S> logits;  // [T, L]
    const Routing& routing;
    const Context& context;
    double weight;
    Out<S>& dlogits;  // [T, L]

    void check(const char* who) const {
        if (logits.cols() == 0)
            fail("moe::", who,
                 ": the gate of this layer has no logits of experts, which the loss is about "
                 "(ProductKeyTopK has those of half keys); take another gate, or write a loss on "
                 "ws.logits()");
        if (dlogits.rows() != logits.rows() || dlogits.cols() != logits.cols())
            fail("moe::", who, ": dlogits is [", dlogits.rows(), ", ", dlogits.cols(),
                 "], logits is [", logits.rows(), ", ", logits.cols(), "]");
        if (routing.num_tokens() != logits.rows())
            fail("moe::", who, ": the routing is for ", routing.num_tokens(),
                 " tokens, logits has ", logits.rows(), " rows");
        check_extent("padding", context.padding.size(), logits.rows(), "one per token");
    }

    /// For losses that need to know which logit is whose.
    void check_experts(const char* who) const {
        if (logits.cols() != routing.num_experts())
            fail("moe::", who, ": there are ", logits.cols(), " logits per token and ",
                 routing.num_experts(), " experts; it needs one logit per expert");
    }

    const S* row(Index token) const { return row_data(logits, token); }
    S* drow(Index token) const { return row_data(dlogits, token); }

    bool counts(Index token) const { return counts_in_losses(context, logits, token); }
    Index count(Index from, Index to) const {
        Index tokens = 0;
        for (Index t = from; t < to; ++t) tokens += counts(t) ? 1 : 0;
        return tokens;
    }
};

/// loss(input, scratch) on matrices as callers have them.
template <class F, class X, class Y>
Loss call_loss(F loss, const Eigen::DenseBase<X>& logits, const Routing& routing,
               const Context& context, double weight, Y&& dlogits) {
    using S = typename X::Scalar;
    const Eigen::Ref<const Matrix<S>> z = readable<S>(logits);
    Eigen::Ref<Matrix<S>> dz = writable<S>(std::forward<Y>(dlogits));
    LossScratch<S> scratch;
    return loss(LossInput<S>{z, routing, context, weight, dz}, scratch);
}

/// loss(input, scratch) on a workspace.
template <class F, class S>
Loss call_loss(F loss, Workspace<S>& ws, double weight) {
    const Eigen::Ref<const Matrix<S>> z(ws.expert_logits());
    Eigen::Ref<Matrix<S>> dz(ws.expert_dlogits());
    return loss(LossInput<S>{z, ws.routing(), ws.context(), weight, dz},
                ws.template state<LossScratch<S>>());
}

}  // namespace detail
}  // namespace moe::inline MOE_ABI

#endif  // MOE_LOSSES_LOSS_HPP
