// SPDX-License-Identifier: MIT
#ifndef MOE_ROUTERS_DECIDE_HPP
#define MOE_ROUTERS_DECIDE_HPP

#include <algorithm>
#include <cstddef>
#include <limits>

#include <moe/core/context.hpp>
#include <moe/core/error.hpp>
#include <moe/core/executor.hpp>
#include <moe/core/shape.hpp>
#include <moe/core/types.hpp>
#include <moe/core/views.hpp>
#include <moe/core/workspace.hpp>

/// What routers check of the layer they come into, and what those share that do not look at tokens:
/// ids, labels, chance or the caller decide.
///
/// A router that decides outright gives logit 0 to the experts it chose and -inf to all others, so
/// that any gate takes just those: TopK{.k = k, .ones = true} with weight 1. Their slots are in
/// ascending order of experts, as all logits are equal. The way back ends there: dx is 0.

namespace moe::inline MOE_ABI::detail {

/// @throws std::invalid_argument if a router that was built for another layer comes into this one
inline void check_router(const char* router, Index num_logits, const Shape& shape) {
    if (num_logits != shape.num_logits)
        fail(router, ": the router was built for ", num_logits,
             " logits per token, the layer wants ", shape.num_logits,
             "; build it again from its recipe");
}

/// @throws std::invalid_argument unless logits are one per expert, its own
inline void check_expert_logits(const char* router, const Shape& shape) {
    if (shape.num_logits != shape.num_experts || !shape.has_expert_logits)
        fail(router, ": the router speaks of experts, the gate takes ", shape.num_logits,
             " logits for ", shape.num_experts, " experts",
             shape.has_expert_logits ? "" : ", none of which is an expert's own",
             "; use a gate with one logit per expert, such as moe::TopK");
}

/// check_router() for one that decides on experts, check_expert_logits() too.
inline void check_deciding_router(const char* router, Index num_logits, const Shape& shape) {
    check_router(router, num_logits, shape);
    check_expert_logits(router, shape);
}

/// @throws std::invalid_argument unless a token can go to that many experts
inline void check_k(const char* router, Index k, Index num_logits) {
    if (k < 1 || k > num_logits)
        fail(router, ": k is ", k, ", it must be in [1, ", num_logits,
             "], the experts of the layer");
}

/// @throws std::invalid_argument unless logits is [T, L]
template <class S>
void check_router_extents(const char* router, In<S> x, const Out<S>& logits, Index num_logits) {
    if (logits.rows() != x.rows() || logits.cols() != num_logits)
        fail(router, ": logits is [", logits.rows(), ", ", logits.cols(), "], it must be [",
             x.rows(), ", ", num_logits, "]: tokens of x, logits per token");
}

/// @throws std::invalid_argument unless a field of the context has one entry per token
inline void check_per_token(const char* router, const char* field, std::size_t given,
                            Index tokens) {
    if (static_cast<Index>(given) != tokens)
        fail(router, ": ", field, " has ", given, " entries, the batch has ", tokens,
             tokens == 1 ? " token" : " tokens", given == 0 ? "; set Context::" : "",
             given == 0 ? field : "");
}

/// choose(t, row) for every token that is not padding; row [L] holds -inf, choose sets to 0 what
/// it takes and must not throw.
template <class S, class Choose>
void decide(Out<S> logits, const Call<S>& call, Choose&& choose) {
    for_tokens(call.ws.executor(), logits.rows(), static_cast<double>(logits.cols()),
               [&](Index t, int) {
                   S* row = row_data(logits, t);
                   std::fill_n(row, logits.cols(), -std::numeric_limits<S>::infinity());
                   if (!call.context.is_padding(t)) choose(t, row);
               });
}

/// Takes k different experts of n: take(expert) for one after the other.
///
///     for j = 0 .. k - 1:  m = n - k + j,  r = draw(j, m + 1),
///                              the expert is r, or m if r is taken already
///
/// With independent draws that are uniform in [0, m] every set is as likely as any other. (m itself
/// cannot be taken: all before are below it.)
/// Source: Floyd, in Bentley, "Programming pearls: a sample of brilliance" (CACM 30, 1987).
///
/// @param draw      draw(j, bound) in [0, bound)
/// @param is_taken  is_taken(expert): whether take(expert) was called
template <class Draw, class IsTaken, class Take>
void take_different(Index k, Index n, Draw&& draw, IsTaken&& is_taken, Take&& take) {
    for (Index j = 0; j < k; ++j) {
        const Index most = n - k + j, drawn = draw(j, most + 1);
        take(is_taken(drawn) ? most : drawn);
    }
}

/// take_different() of the L experts whose logits `row` [L] holds.
template <class S, class Draw>
void choose_different(Index k, Index num_logits, S* row, Draw&& draw) {
    take_different(
        k, num_logits, draw, [row](Index e) { return row[e] == S(0); },
        [row](Index e) { row[e] = S(0); });
}

/// No token was looked at.
/// @throws std::invalid_argument if dx is of another extent than x
template <class S>
void write_no_gradient(const char* router, In<S> x, Out<S> dx) {
    if (dx.rows() != x.rows() || dx.cols() != x.cols())
        fail(router, ": dx is [", dx.rows(), ", ", dx.cols(), "], it must be [", x.rows(), ", ",
             x.cols(), "] like x");
    for (Index t = 0; t < dx.rows(); ++t) std::fill_n(row_data(dx, t), dx.cols(), S(0));
}

}  // namespace moe::inline MOE_ABI::detail

#endif  // MOE_ROUTERS_DECIDE_HPP
