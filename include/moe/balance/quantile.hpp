// SPDX-License-Identifier: MIT
#ifndef MOE_BALANCE_QUANTILE_HPP
#define MOE_BALANCE_QUANTILE_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <limits>
#include <span>
#include <vector>

#include <moe/balance/selection_bias.hpp>
#include <moe/core/error.hpp>
#include <moe/core/types.hpp>
#include <moe/core/views.hpp>
#include <moe/core/workspace.hpp>

namespace moe::inline MOE_ABI {

/// Quantile balancing: moves a selection bias on logits (TopK::biases_logits) straight to where
/// each expert would have got its share of the batch.
///
///     a_t = the (k + 1)-th largest of z_t + bias             what a token would take otherwise
///     b_e = the (floor(T k / E) + 1)-th largest of z_te - a_t over the tokens
///     beta = ema beta + (1 - ema) mean of b over the batches, less its mean over the experts
///     bias = -beta
///
/// With a fixed, T k / E tokens have z_te - b_e > a_t: one step of the dual of the balanced
/// assignment. Where E does not divide T k, the share is rounded down. Megatron-LM demands that it
/// does.
///
///     QuantileUpdate quantile;
///     for (...) { layer.forward(x, y, ws);  quantile.add(layer, ws, 8); }  // micro-batches, k = 8
///     quantile.update(layer);                                              // and starts anew
///
/// T counts tokens that have a choice. Rows with at most k logits other than -inf (padding) take
/// those whatever the bias is, and rows that hold a NaN say nothing: both are left out. An expert
/// that fewer tokens may have than its share gets as b the smallest z_te - a_t; one that none may
/// have keeps its bias but for the mean. A batch without any token that has a choice is not
/// counted.
///
/// Source: Megatron-LM, megatron/core/transformer/moe/router.py ("quantile balancing").
struct QuantileUpdate {
    double ema = 0;  ///< share of the old beta that stays, in [0, 1)

    std::vector<double> sum{};  ///< [E] of b since the last update; empty before the first add()
    double batches = 0;         ///< how many are in it

    /// Takes the logits of one batch in.
    /// @param logits  [T, E] as the gate saw them, masks at -inf
    /// @param bias    [E] with which it chose
    /// @param k       experts per token, 1 to E - 1
    /// @throws std::invalid_argument if ema or k is out of range or the extents differ; nothing is
    ///         added then
    template <class S>
    void add(In<S> logits, std::span<const S> bias, Index k) {
        const Index tokens = logits.rows(), n = logits.cols();
        const auto experts = static_cast<std::size_t>(n);
        check();
        if (bias.size() != experts || (!sum.empty() && sum.size() != experts))
            detail::fail("moe::QuantileUpdate: the logits are of ", n, " experts, the bias of ",
                         bias.size(), ", what was added before of ", sum.size());
        if (k < 1 || k >= n)
            detail::fail("moe::QuantileUpdate: k is ", k, ", it must be in [1, ", n - 1,
                         "]: with all ", n, " experts for every token there is nothing to balance");
        constexpr double dead = -std::numeric_limits<double>::infinity();
        std::vector<std::vector<double>> gains(experts);  // z - a, by expert
        std::vector<double> row(experts), ranked;
        Index choosers = 0;
        for (Index t = 0; t < tokens; ++t) {
            const S* z = row_data(logits, t);
            ranked.clear();
            bool is_number = true;
            for (std::size_t e = 0; e < experts; ++e) {
                row[e] = static_cast<double>(z[e]);
                is_number &= !std::isnan(row[e]);
                if (row[e] != dead) ranked.push_back(row[e] + static_cast<double>(bias[e]));
            }
            if (!is_number || static_cast<Index>(ranked.size()) <= k) continue;
            ++choosers;
            std::nth_element(ranked.begin(), ranked.begin() + k, ranked.end(), std::greater<>());
            const double next = ranked[static_cast<std::size_t>(k)];
            for (std::size_t e = 0; e < experts; ++e)
                if (row[e] != dead) gains[e].push_back(row[e] - next);
        }
        if (choosers == 0) return;
        const Index share = detail::checked_product(choosers, k) / n;
        sum.resize(experts, 0.0);
        batches += 1;
        for (std::size_t e = 0; e < experts; ++e) {
            const auto candidates = static_cast<Index>(gains[e].size());
            if (candidates == 0) {
                sum[e] -= static_cast<double>(bias[e]);
                continue;
            }
            const auto place = gains[e].begin() + std::min(share, candidates - 1);
            std::nth_element(gains[e].begin(), place, gains[e].end(), std::greater<>());
            sum[e] += *place;
        }
    }
    /// The last batch of a layer with one selection bias: its experts' own logits, without those
    /// that the gate wants besides.
    template <class Layer>
    void add(Layer& layer, const Workspace<typename Layer::Scalar>& ws, Index k) {
        using S = typename Layer::Scalar;
        add<S>(ws.expert_logits(), std::span<const S>(selection_bias<S>(layer)), k);
    }

    /// Moves the bias, and forgets what was added; without any, nothing moves.
    /// @param bias  [E]
    /// @throws std::invalid_argument if ema is out of range or the extents differ
    template <class S>
    void update(std::span<S> bias) {
        check();
        if (batches == 0) return;
        if (bias.size() != sum.size())
            detail::fail("moe::QuantileUpdate: the bias has ", bias.size(),
                         " entries, what was added ", sum.size());
        double mean = 0;
        for (std::size_t e = 0; e < sum.size(); ++e) {
            sum[e] =
                std::fma(ema, -static_cast<double>(bias[e]) - sum[e] / batches, sum[e] / batches);
            mean += sum[e];
        }
        mean /= static_cast<double>(sum.size());
        for (std::size_t e = 0; e < sum.size(); ++e) bias[e] = static_cast<S>(mean - sum[e]);
        clear();
    }
    /// The one selection bias of a layer.
    template <class Layer>
        requires requires { typename Layer::Scalar; }
    void update(Layer& layer) { update(selection_bias<typename Layer::Scalar>(layer)); }

    void clear() {
        sum.clear();
        batches = 0;
    }

private:
    void check() const {
        if (!(ema >= 0 && ema < 1))
            detail::fail("moe::QuantileUpdate: ema is ", ema, ", it must be in [0, 1)");
    }
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_BALANCE_QUANTILE_HPP
