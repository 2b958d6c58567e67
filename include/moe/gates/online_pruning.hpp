// SPDX-License-Identifier: MIT
#ifndef MOE_GATES_ONLINE_PRUNING_HPP
#define MOE_GATES_ONLINE_PRUNING_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include <moe/core/concepts.hpp>
#include <moe/core/hooks.hpp>
#include <moe/core/parameters.hpp>
#include <moe/gates/wrapper.hpp>

namespace moe::inline MOE_ABI {

/// A gate that takes experts back which weigh little beside the token's first one:
///
///     slot i >= keep is pruned where w_i < ratio w_0
///
/// Slots that the inner gate has dropped do not count; w is the weight on whichever side of the
/// expert it is. Pruned assignments stay in the token's list as Dropped::pruned and cost no
/// product. Build the inner gate with normalize_kept_only, and what is left is normalised anew.
/// Protected are the tokens with the largest Context::token_importance, a protected_fraction of
/// those that are not padding, rounded up, the lower one of equals, if that context is given (the
/// attention a token receives times |x|_1 in the source). Nothing is pruned beside a NaN.
///
/// It prunes in training and out of it; the source does so at inference only.
///
/// Source: MC-MoE (arXiv:2410.06270), online dynamic pruning: top-2, ratio = the median of w_1 /
/// w_0 on calibration data, see median_weight_ratio(); 2 % of tokens protected.
template <class S, class Inner>
class OnlinePruningModule : public GateWrapper<S, Inner> {
    using Base = GateWrapper<S, Inner>;

public:
    OnlinePruningModule() = default;
    /// @throws std::invalid_argument if a setting is out of range
    OnlinePruningModule(Inner gate, double ratio, double protected_fraction, Index keep)
        : Base{std::move(gate)},
          ratio_(ratio),
          protected_fraction_(protected_fraction),
          keep_(keep) {
        if (!(ratio >= 0 && std::isfinite(ratio)))
            detail::fail(name, ": ratio is ", ratio, ", it must be finite and >= 0");
        if (!(protected_fraction >= 0 && protected_fraction <= 1))
            detail::fail(name, ": protected_fraction is ", protected_fraction,
                         ", it must be in [0, 1]");
        if (keep < 1) detail::fail(name, ": keep is ", keep, ", it must be >= 1");
    }

    static constexpr bool skips_empty_gradients = Base::inner_skips_empty_gradients;
    /// Protection compares tokens of a batch.
    static constexpr bool per_token = false;
    bool is_causal() const { return protected_fraction_ == 0 && hooks::is_causal(this->inner); }

    void select(In<S> logits, Routing& routing, const Call<S>& call) const {
        detail::check_gate_context(call.context, logits.rows(), routing.num_experts());
        Base::select(logits, routing, call);
        routing.group();
        Base::weigh(logits, routing, call);
        routing.group();
        State& state = call.ws.template state<State>();
        find_protected(call.context, logits.rows(), state);
        state.pruned.clear();
        for (Index t = 0; t < logits.rows(); ++t) {
            if (state.is_protected[detail::at(t)]) continue;
            Index number = routing.first(t), slot = 0;
            double first = 0;
            for (const Assignment& own : routing.of(t)) {
                const Index assignment = number++;
                if (own.dropped != Dropped::no) continue;
                const double weight = own.weight * own.input_weight;
                if (slot == 0) first = weight;
                if (slot++ >= keep_ && weight < ratio_ * first) state.pruned.push_back(assignment);
            }
        }
        for (const Index a : state.pruned) routing.set_dropped(a, Dropped::pruned);
        routing.group();
    }

    void reserve(Index tokens, Index assignments, Workspace<S>& ws) const {
        Base::reserve(tokens, assignments, ws);
        State& state = ws.template state<State>();
        state.order.reserve(detail::at(tokens));
        state.pruned.reserve(detail::at(assignments));
        state.is_protected.reserve(detail::at(tokens));
    }
    Index workspace_bytes(Index tokens, Index assignments, Keep keep, int workers) const {
        constexpr auto number = static_cast<Index>(sizeof(Index));
        return Base::workspace_bytes(tokens, assignments, keep, workers) +
               detail::checked_product(tokens, number + 1) +
               detail::checked_product(assignments, number);
    }

private:
    static constexpr const char* name = "moe::OnlinePruning";

    struct State {
        std::vector<Index> order;                // tokens that are not padding, by importance
        std::vector<Index> pruned;               // assignments
        std::vector<std::uint8_t> is_protected;  // [T]
    };

    void find_protected(const Context& context, Index tokens, State& state) const {
        const auto importance = context.token_importance;
        state.is_protected.assign(detail::at(tokens), 0);
        if (importance.empty() || protected_fraction_ == 0) return;
        state.order.clear();
        for (Index t = 0; t < tokens; ++t)
            if (!context.is_padding(t)) state.order.push_back(t);
        const double share = protected_fraction_ * static_cast<double>(state.order.size());
        const auto count = static_cast<std::ptrdiff_t>(std::ceil(share));
        const auto value = [&importance](Index t) {
            const double given = importance[detail::at(t)];
            return std::isnan(given) ? -std::numeric_limits<double>::infinity() : given;
        };
        std::partial_sort(state.order.begin(), state.order.begin() + count, state.order.end(),
                          [&value](Index a, Index b) {
                              return value(a) > value(b) || (value(a) == value(b) && a < b);
                          });
        for (std::ptrdiff_t i = 0; i < count; ++i)
            state.is_protected[detail::at(state.order[detail::at(i)])] = 1;
    }

    double ratio_ = 0, protected_fraction_ = 0;
    Index keep_ = 1;
};

/// Recipe: `moe::OnlinePruning{moe::TopK{.k = 2, .normalize_kept_only = true}, 0.5}`
template <class Inner>
struct OnlinePruning {
    Inner inner;
    double ratio = 0.5;                ///< 0.40 to 0.62 in the source; 0 prunes nothing
    double protected_fraction = 0.02;  ///< of the tokens, by Context::token_importance
    Index keep = 1;                    ///< first slots that are never pruned

    template <class S>
    auto build(const Shape& shape, Random& random) const {
        using Module = detail::built_t<Inner, S>;
        static_assert(Gate<Module, S>,
                      "moe: moe::OnlinePruning takes a gate, e.g. "
                      "moe::OnlinePruning{moe::TopK{.k = 2, .normalize_kept_only = true}}");
        return OnlinePruningModule<S, Module>(detail::built<Inner, S>(inner, shape, random), ratio,
                                              protected_fraction, keep);
    }
};

template <class Inner>
OnlinePruning(Inner) -> OnlinePruning<Inner>;
template <class Inner>
OnlinePruning(Inner, double) -> OnlinePruning<Inner>;
template <class Inner>
OnlinePruning(Inner, double, double) -> OnlinePruning<Inner>;
template <class Inner>
OnlinePruning(Inner, double, double, Index) -> OnlinePruning<Inner>;

/// The median over tokens of (weight of slot `slot`) / (weight of slot 0) in a routing without
/// drops: the ratio at which half of the calibration tokens lose that slot. Tokens without it, or
/// with a ratio of 0 / 0 or NaN, do not count; 0 if there is none. The mean of the two in the
/// middle, if they are two. Weights are those on whichever side of the expert they are.
/// @throws std::invalid_argument unless slot >= 1
inline double median_weight_ratio(const Routing& routing, Index slot = 1) {
    if (slot < 1) detail::fail("moe::median_weight_ratio: slot is ", slot, ", it must be >= 1");
    std::vector<double> ratios;
    for (Index t = 0; t < routing.num_tokens(); ++t) {
        const auto own = routing.of(t);
        if (static_cast<Index>(own.size()) <= slot) continue;
        const Assignment& other = own[detail::at(slot)];
        const double ratio =
            other.weight * other.input_weight / (own[0].weight * own[0].input_weight);
        if (!std::isnan(ratio)) ratios.push_back(ratio);
    }
    if (ratios.empty()) return 0;
    std::sort(ratios.begin(), ratios.end());
    const std::size_t half = ratios.size() / 2;
    return ratios.size() % 2 == 1 ? ratios[half] : (ratios[half - 1] + ratios[half]) / 2;
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_GATES_ONLINE_PRUNING_HPP
