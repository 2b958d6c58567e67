// SPDX-License-Identifier: MIT
#ifndef MOE_LOSSES_LOAD_FRACTION_HPP
#define MOE_LOSSES_LOAD_FRACTION_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>
#include <vector>

#include <Eigen/Core>

#include <moe/core/context.hpp>
#include <moe/core/error.hpp>
#include <moe/core/memory.hpp>
#include <moe/core/routing.hpp>
#include <moe/core/types.hpp>
#include <moe/core/workspace.hpp>
#include <moe/losses/load_balance.hpp>
#include <moe/losses/loss.hpp>

namespace moe::inline MOE_ABI {

/// f(e) of load_balance_loss for more than one batch: layers, micro-batches, processes. It counts
/// as that loss does and is what LoadBalance::fraction takes.
///
///     n(e) = assignments of expert e, T = tokens that count, N = sum of n: all added up
///     f    = n / T, or n / N for the norms per_assignment and all_per_assignment
///
/// The joint loss of transformers, with means over the tokens of all layers, padding left out:
///
///     LoadFraction load(E);
///     for (auto& ws : layers) load.add(ws);
///     for (auto& ws : layers)
///         value += load_balance_loss(ws, weight / L, {.fraction = load.fraction()}) / L;
///
/// With f from all processes, the mean over processes of value and gradient is the loss of the
/// whole batch, if they have equally many tokens (Megatron's global loss):
///
///     load.add(ws, options);
///     MPI_Allreduce(MPI_IN_PLACE, load.totals().data(), E + 1, MPI_DOUBLE, MPI_SUM, processes);
///     options.fraction = load.fraction(options.norm);
///     load_balance_loss(ws, weight, options);
///
/// Accumulated counts: the same without clear() between micro-batches. A LoadSum, which knows no
/// tokens, is added with load.add(sum.counts(), tokens).
class LoadFraction {
public:
    explicit LoadFraction(Index num_experts) {
        if (num_experts < 0)
            detail::fail("moe::LoadFraction: num_experts is ", num_experts, ", it must be >= 0");
        totals_.assign(static_cast<std::size_t>(num_experts) + 1, 0.0);
        fraction_.assign(static_cast<std::size_t>(num_experts), 0.0);
    }

    /// Adds the batch that `ws` holds.
    /// @param options  its slots, count_dropped and token_weights are read
    /// @throws std::invalid_argument as load_balance_loss, and if there are other experts; nothing
    ///         is added then
    template <class S>
    void add(const Workspace<S>& ws, const LoadBalance& options = {}) {
        add(ws.expert_logits(), ws.routing(), ws.context(), options);
    }
    /// Adds a batch.
    /// @param logits  [T, E] tokens whose logits are all -inf do not count
    template <class X>
    void add(const Eigen::DenseBase<X>& logits, const Routing& routing, const Context& context,
             const LoadBalance& options = {}) {
        check_extent(routing.num_experts());
        if (logits.cols() == 0 && num_experts() != 0)
            detail::fail(
                name,
                "the gate of this layer has no logits of experts, which say what tokens "
                "count (ProductKeyTopK has those of half keys); add its counts and tokens");
        check_extent(logits.cols());
        if (routing.num_tokens() != logits.rows())
            detail::fail(name, "the routing is for ", routing.num_tokens(), " tokens, logits has ",
                         logits.rows(), " rows");
        detail::check_extent("padding", context.padding.size(), logits.rows(), "one per token");
        detail::check_counting(options, logits.rows());
        const auto counts = [&](Index t) { return counts_in_losses(context, logits, t); };
        totals_.back() +=
            detail::count_load(routing, options, 0, logits.rows(), counts, totals_.data());
    }
    /// Adds what was counted elsewhere.
    /// @param counts  [E] n(e), finite and >= 0
    /// @param tokens  T, finite and >= 0
    void add(std::span<const double> counts, double tokens) {
        check_extent(static_cast<Index>(counts.size()));
        detail::check_weights("moe::LoadFraction::add", "counts", counts, num_experts(), "experts");
        detail::check_weights("moe::LoadFraction::add", "tokens", {&tokens, 1}, 1, "sums");
        for (std::size_t e = 0; e < counts.size(); ++e) totals_[e] += counts[e];
        totals_.back() += tokens;
    }

    void clear() { std::fill(totals_.begin(), totals_.end(), 0.0); }

    Index num_experts() const { return static_cast<Index>(fraction_.size()); }
    /// [E + 1] n(e), then T; to be summed over processes in place.
    std::span<double> totals() { return {totals_.data(), totals_.size()}; }
    std::span<const double> totals() const { return detail::elements(totals_); }

    /// [E] f(e) for a norm; 0 without tokens, or assignments. It lives until the next call.
    std::span<const double> fraction(LoadBalance::Norm norm = LoadBalance::Norm::per_token) {
        double assignments = 0;
        for (std::size_t e = 0; e < fraction_.size(); ++e) assignments += totals_[e];
        const double per_load =
            detail::balance_scale(norm, num_experts(), totals_.back(), assignments).per_load;
        for (std::size_t e = 0; e < fraction_.size(); ++e) fraction_[e] = totals_[e] * per_load;
        return detail::elements(fraction_);
    }

private:
    static constexpr const char* name = "moe::LoadFraction::add: ";

    void check_extent(Index given) const {
        if (given != num_experts())
            detail::fail(name, "the load is of ", given, " experts, the sum of ", num_experts(),
                         "; make one for each number of experts");
    }

    std::vector<double> totals_;    // [E + 1] n(e), T
    std::vector<double> fraction_;  // [E]
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_LOSSES_LOAD_FRACTION_HPP
