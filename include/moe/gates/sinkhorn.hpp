// SPDX-License-Identifier: MIT
#ifndef MOE_GATES_SINKHORN_HPP
#define MOE_GATES_SINKHORN_HPP

#include <algorithm>
#include <cmath>
#include <limits>

#include <moe/core/concepts.hpp>
#include <moe/core/executor.hpp>
#include <moe/core/random.hpp>
#include <moe/gates/score.hpp>
#include <moe/gates/select.hpp>
#include <moe/gates/token_gate.hpp>
#include <moe/gates/weights.hpp>
#include <moe/kernels/dispatch.hpp>

namespace moe::inline MOE_ABI {
namespace detail {

/// What balances a batch: P = d1_e c_te d0_t has rows of sum 1 / T and columns of sum 1 / E, as far
/// as the iteration went.
template <class S>
struct SinkhornScales {
    Buffer<S> shares;        // [T, E] c
    Buffer<double> rows;     // [T] d0; 0 for rows that are left out
    Buffer<double> columns;  // [E] d1; 1 for experts that no token may have
    Buffer<double> sums;     // [E] of c, then the last d1
    Index iterations = 0;

    void resize(Index tokens, Index experts) {
        shares.resize(checked_product(tokens, experts));
        rows.resize(tokens);
        columns.resize(experts);
        sums.resize(experts);
    }
    static Index bytes(Index tokens, Index experts) {
        return checked_product(tokens, experts) * static_cast<Index>(sizeof(S)) +
               (tokens + 2 * experts) * static_cast<Index>(sizeof(double));
    }
};

/// Runs Sinkhorn's iteration on c = softmax(z_t).
///
///     d0_t = 1 / T / (sum of d1_e c_te over e + 1e-8)
///     d1_e = 1 / E / (sum of d0_t c_te over t + 1e-8),  from d1 = 1 on
///
/// until the mean of |d1 - last d1| is at most `tolerance`. With c = exp(z_t) instead, as
/// published, d0 takes up the factor of the row and P is the same (but for the 1e-8), until exp
/// overflows. Rows of -inf and rows that hold a NaN are left out and T counts the others; E counts
/// experts that some token may have. Sums are in double, over tokens and experts in order.
template <class S>
void sinkhorn(In<S> logits, double tolerance, Index max_iterations, Executor& executor,
              SinkhornScales<S>& scales) {
    const Index tokens = logits.rows(), n = logits.cols();
    scales.resize(tokens, n);
    S* c = scales.shares.data();
    double *d0 = scales.rows.data(), *d1 = scales.columns.data(), *sums = scales.sums.data();
    const double row_flops = 20.0 * static_cast<double>(n);
    for_tokens(executor, tokens, row_flops, [&](Index t, int) {
        S* row = c + t * n;
        kernels<S>().softmax(n, row_data(logits, t), row);
        S most = 0;
        for (Index e = 0; e < n; ++e) most = std::max(most, row[e]);
        d0[t] = most > 0 ? 1 : 0;
        if (d0[t] == 0) std::fill_n(row, n, S(0));
    });
    // One task per run of experts: each sum is one chain over the tokens.
    const auto sum_columns = [&] {
        constexpr Index run = 16;
        parallel_for(executor, (n + run - 1) / run, row_flops * static_cast<double>(tokens),
                     [&](Index i, int) {
                         const Index first = i * run, last = std::min(n, first + run);
                         for (Index e = first; e < last; ++e) sums[e] = 0;
                         for (Index t = 0; t < tokens; ++t)
                             for (Index e = first; e < last; ++e)
                                 sums[e] =
                                     std::fma(d0[t], static_cast<double>(c[t * n + e]), sums[e]);
                     });
    };
    sum_columns();
    double live_tokens = 0, live_experts = 0;
    for (Index t = 0; t < tokens; ++t) live_tokens += d0[t];
    for (Index e = 0; e < n; ++e) live_experts += sums[e] > 0 ? 1 : 0;
    std::fill_n(d1, n, 1.0);
    scales.iterations = 0;
    if (live_tokens == 0) return;
    for (double error = tolerance + 1; error > tolerance && scales.iterations < max_iterations;
         ++scales.iterations) {
        for_tokens(executor, tokens, row_flops, [&](Index t, int) {
            if (d0[t] == 0) return;
            double sum = 0;
            for (Index e = 0; e < n; ++e)
                sum = std::fma(d1[e], static_cast<double>(c[t * n + e]), sum);
            d0[t] = 1 / live_tokens / (sum + 1e-8);
        });
        sum_columns();
        error = 0;
        for (Index e = 0; e < n; ++e) {
            if (sums[e] == 0) continue;
            const double next = 1 / live_experts / (sums[e] + 1e-8);
            error += std::abs(next - d1[e]);
            d1[e] = next;
        }
        error /= live_experts;
    }
}

}  // namespace detail

template <class S>
class SinkhornModule;

/// Recipe for a gate whose training evens out the load by optimal transport: tokens take the k best
/// of logits that are first scaled so that all experts are wanted equally. It needs no balancing
/// loss. Inference takes the k best logits of each token.
///
/// Source: S-BASE (arXiv:2202.01169) section 4.1, as in Megatron-LM's "sinkhorn" routing.
struct Sinkhorn {
    Index k = 1;  ///< experts per token, 1 to E
    /// The iteration stops when the scales of the experts move by no more than this in the mean.
    double tolerance = 1e-4;
    /// ... and after so many turns whatever they do: Megatron-LM has no such limit, but scales that
    /// cannot be balanced (tokens that may go to one expert only) need thousands of turns.
    Index max_iterations = 200;

    /// @throws std::invalid_argument if a setting is out of range
    template <class S>
    SinkhornModule<S> build(const Shape& shape, Random&) const {
        return SinkhornModule<S>(*this, shape.num_experts);
    }
};

/// The gate that Sinkhorn describes.
///
///     P   = Sinkhorn(exp z)          [T, E], rows of sum 1 / T, columns of sum 1 / E
///     S_t = the k best of P_t        training; a row of P ranks like z_t + log d1
///     S_t = the k best of z_t        inference
///     w_t = sigmoid(z_t)[S_t] for k = 1, else softmax(z_t)[S_t], over all E, not normalised
///
/// So what training does is a selection bias log d1 that is made for the batch, and it is computed
/// as one: no exp overflows. A training choice depends on the whole batch.
///
/// Ties go to the lower index; a logit of -inf is never selected and a row of -inf is padding that
/// does not count. A row that holds a NaN does not count either, ranks it last, and has NaN
/// weights. The gradient is exact for the chosen set as constant: none flows through P, as
/// published.
template <class S>
class SinkhornModule : public TokenGate<S, SinkhornModule<S>> {
    using Base = TokenGate<S, SinkhornModule>;
    friend Base;

public:
    using Base::num_experts;
    static constexpr bool per_token = false;

    SinkhornModule() = default;
    /// @throws std::invalid_argument if a setting is out of range
    SinkhornModule(const Sinkhorn& settings, Index experts)
        : Base(experts),
          settings_(settings),
          rule_{.score = settings.k == 1 ? Score::sigmoid : Score::softmax,
                .normalize = Normalize::none} {
        if (settings.k < 1 || settings.k > experts)
            detail::fail(name, ": k is ", settings.k, ", it must be in [1, ", experts,
                         "], the experts of the layer");
        if (!(settings.tolerance >= 0 && std::isfinite(settings.tolerance)))
            detail::fail(name, ": tolerance is ", settings.tolerance,
                         ", it must be finite and >= 0");
        if (settings.max_iterations < 1)
            detail::fail(name, ": max_iterations is ", settings.max_iterations,
                         ", it must be >= 1");
    }

    const Sinkhorn& settings() const { return settings_; }

    void reserve(Index tokens, Index assignments, Workspace<S>& ws) const {
        Base::reserve(tokens, assignments, ws);
        auto& scratch = ws.template state<Scratch>();
        scratch.scales.resize(tokens, num_experts());
        scratch.bias.resize(num_experts());
    }
    Index workspace_bytes(Index tokens, Index assignments, Keep keep, int workers) const {
        return Base::workspace_bytes(tokens, assignments, keep, workers) +
               detail::SinkhornScales<S>::bytes(tokens, num_experts()) +
               num_experts() * static_cast<Index>(sizeof(double));
    }

private:
    static constexpr const char* name = "moe::Sinkhorn";

    struct Scratch {
        detail::SinkhornScales<S> scales;
        Buffer<double> bias;  // [E] log d1
    };

    Index most_experts() const { return settings_.k; }
    const detail::CombineRule& rule() const { return rule_; }

    auto choice(const Call<S>& call, In<S> logits) const {
        auto& scratch = call.ws.template state<Scratch>();
        scratch.bias.assign(num_experts(), 0);
        if (call.context.training) {
            detail::sinkhorn<S>(logits, settings_.tolerance, settings_.max_iterations,
                                call.ws.executor(), scratch.scales);
            for (Index e = 0; e < num_experts(); ++e)
                scratch.bias[e] = detail::portable_log(scratch.scales.columns[e]);
        }
        return [n = num_experts(), k = settings_.k, bias = scratch.bias.data()](
                   Index, const S* z, S* keys, detail::Ranked<S>* ranked) {
            for (Index e = 0; e < n; ++e)
                keys[e] = static_cast<S>(static_cast<double>(z[e]) + bias[e]);
            return detail::rank_by_index(n, keys, k, ranked);
        };
    }

    Sinkhorn settings_;
    detail::CombineRule rule_;
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_GATES_SINKHORN_HPP
