// SPDX-License-Identifier: MIT
#ifndef MOE_GATES_SHARE_RULE_HPP
#define MOE_GATES_SHARE_RULE_HPP

#include <algorithm>
#include <cmath>
#include <limits>

#include <moe/core/executor.hpp>
#include <moe/core/memory.hpp>
#include <moe/core/routing.hpp>
#include <moe/core/sequences.hpp>
#include <moe/core/types.hpp>
#include <moe/core/workspace.hpp>
#include <moe/gates/weights.hpp>
#include <moe/kernels/dispatch.hpp>

namespace moe::inline MOE_ABI::detail {

/// f(run, expert, worker) for every run of tokens and every expert.
template <class F>
void each_column(const Sequences& runs, Index experts, Executor& executor, F&& f) {
    parallel_for(executor, checked_product(runs.count(), experts),
                 20.0 * static_cast<double>(experts) * static_cast<double>(runs.tokens),
                 [&](Index i, int worker) { f(i / experts, i % experts, worker); });
}

/// Combine weights that are an expert's shares of its attention, and the way back.
///
///     p_te = softmax of z_te over the tokens t of a run
///     w_te = p_te / n_t       n_t experts that the token has, null ones not counted, 1 at least
///
/// Null experts weigh 0. The gradient is exact and dense: it reaches all tokens of the run.
struct ShareRule {
    /// Sets the weight of every assignment.
    template <class S>
    void weigh(In<S> z, Routing& routing, const Sequences& runs, const Call<S>& call) const {
        const Index tokens = z.rows();
        const S* shares = softmax_over_tokens<S>(z, runs, call);
        const auto assignments = routing.assignments();
        for_tokens(call.ws.executor(), tokens, flops(z.cols()), [&](Index t, int) {
            const auto choosers = static_cast<S>(count_experts(t, routing, call.context));
            for (Index a = routing.first(t); a < routing.first(t + 1); ++a) {
                const Index e = assignments[at(a)].expert;
                const S w = is_null(e, call.context) ? S(0) : shares[e * tokens + t] / choosers;
                routing.set_weight(a, static_cast<double>(w));
                routing.set_input_weight(a, 1);
            }
        });
    }

    /// Adds to dlogits: with h_te = d(loss)/d(w_te) / n_t where t has e, else 0,
    ///
    ///     dz_te = p_te (h_te - sum of p_ue h_ue over the tokens u of the run)
    template <class S>
    void backward(In<S> z, const Routing& routing, const WeightGradients<S>& dweights,
                  Out<S> dlogits, const Sequences& runs, const Call<S>& call) const {
        const auto given = gradients_at<S>(Placement::output, dweights, routing, z, dlogits);
        const Index n = z.cols(), tokens = z.rows();
        Executor& executor = call.ws.executor();
        const S* shares = softmax_over_tokens<S>(z, runs, call);
        auto& buffer = call.ws.template state<Scratch<S>>().dshares;
        S* dshares = buffer.assign(checked_product(tokens, n), S(0)).data();
        const auto assignments = routing.assignments();
        for_tokens(executor, tokens, flops(n), [&](Index t, int) {
            const auto choosers = static_cast<S>(count_experts(t, routing, call.context));
            for (Index a = routing.first(t); a < routing.first(t + 1); ++a) {
                const Index e = assignments[at(a)].expert;
                if (!is_null(e, call.context)) dshares[e * tokens + t] = given[at(a)] / choosers;
            }
        });
        each_column(runs, n, executor, [&](Index run, Index e, int) {
            const S* p = shares + e * tokens;
            S* dp = dshares + e * tokens;
            S mean = 0;
            for (Index t = runs.first(run); t < runs.last(run); ++t)
                mean = std::fma(p[t], dp[t], mean);
            for (Index t = runs.first(run); t < runs.last(run); ++t) dp[t] = dp[t] - mean;
        });
        for_tokens(executor, tokens, flops(n), [&](Index t, int) {
            for (Index e = 0; e < n; ++e)
                if (z(t, e) != -std::numeric_limits<S>::infinity())
                    dlogits(t, e) =
                        std::fma(shares[e * tokens + t], dshares[e * tokens + t], dlogits(t, e));
        });
    }

    /// Room for both.
    template <class S>
    static void reserve(Workspace<S>& ws, Index tokens, Index experts) {
        auto& scratch = ws.template state<Scratch<S>>();
        scratch.shares.resize(checked_product(tokens, experts));
        scratch.dshares.resize(checked_product(tokens, experts));
    }
    /// Bytes of that room.
    template <class S>
    static Index bytes(Index tokens, Index experts) {
        return 2 * checked_product(tokens, experts) * static_cast<Index>(sizeof(S));
    }

private:
    template <class S>
    struct Scratch {
        Buffer<S> shares, dshares;  // [E, T]
    };

    static double flops(Index experts) { return 20.0 * static_cast<double>(experts); }

    /// [E, T], each row a softmax within each run.
    template <class S>
    static const S* softmax_over_tokens(In<S> z, const Sequences& runs, const Call<S>& call) {
        const Index n = z.cols(), tokens = z.rows();
        auto& buffer = call.ws.template state<Scratch<S>>().shares;
        S* shares = buffer.resize(checked_product(tokens, n)).data();
        for_tokens(call.ws.executor(), tokens, flops(n), [&](Index t, int) {
            for (Index e = 0; e < n; ++e) shares[e * tokens + t] = z(t, e);
        });
        each_column(runs, n, call.ws.executor(), [&](Index run, Index e, int) {
            S* column = shares + e * tokens + runs.first(run);
            kernels<S>().softmax(runs.last(run) - runs.first(run), column, column);
        });
        return shares;
    }

    static bool is_null(Index expert, const Context& context) {
        const auto e = at(expert);
        return e < context.experts.size() && context.experts[e].is_null;
    }
    static Index count_experts(Index t, const Routing& routing, const Context& context) {
        Index count = 0;
        for (const Assignment& a : routing.of(t)) count += is_null(a.expert, context) ? 0 : 1;
        return std::max(count, Index(1));
    }
};

}  // namespace moe::inline MOE_ABI::detail

#endif  // MOE_GATES_SHARE_RULE_HPP
