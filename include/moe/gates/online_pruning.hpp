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
/// Pruned assignments stay in the token's list as Dropped::pruned and cost no product. Build the
/// inner gate with normalize_kept_only, and what is left is normalised anew. Protected are the
/// tokens with the largest Context::token_importance, a protected_fraction of the batch, if that
/// context is given (the attention a token receives times |x|_1 in the source).
///
/// Source: MC-MoE (arXiv:2410.06270), online dynamic pruning: top-2, ratio = the median of w_1 /
/// w_0 on calibration data, see median_weight_ratio(); 2 % of tokens protected.
template <class S, class Inner>
class OnlinePruningModule : public GateWrapper<S, Inner> {
public:
    OnlinePruningModule() = default;
    /// @throws std::invalid_argument if a setting is out of range
    OnlinePruningModule(Inner gate, double ratio, double protected_fraction, Index keep)
        : GateWrapper<S, Inner>{std::move(gate)},
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

    /// Protection compares tokens of a batch.
    static constexpr bool per_token = false;
    bool is_causal() const { return protected_fraction_ == 0 && hooks::is_causal(this->inner); }

    void select(In<S> logits, Routing& routing, const Call<S>& call) const {
        hooks::select<S>(this->inner, logits, routing, call);
        routing.group();
        hooks::weigh<S>(this->inner, logits, routing, call);
        routing.group();
        State& state = call.ws.template state<State>();
        find_protected(call.context, logits.rows(), state);
        state.pruned.clear();
        for (Index t = 0; t < logits.rows(); ++t) {
            const auto own = routing.of(t);
            if (own.empty() || state.is_protected[static_cast<std::size_t>(t)]) continue;
            const double first = own[0].weight * own[0].input_weight;
            for (auto i = static_cast<std::size_t>(keep_); i < own.size(); ++i)
                if (own[i].weight * own[i].input_weight < ratio_ * first)
                    state.pruned.push_back(routing.first(t) + static_cast<Index>(i));
        }
        for (const Index a : state.pruned) routing.set_dropped(a, Dropped::pruned);
        routing.group();
    }

private:
    static constexpr const char* name = "moe::OnlinePruning";

    struct State {
        std::vector<Index> order, pruned;
        std::vector<std::uint8_t> is_protected;
    };

    void find_protected(const Context& context, Index tokens, State& state) const {
        const auto importance = context.token_importance;
        state.is_protected.assign(static_cast<std::size_t>(tokens), 0);
        if (importance.empty() || protected_fraction_ == 0) return;
        state.order.clear();
        for (Index t = 0; t < tokens; ++t)
            if (!context.is_padding(t)) state.order.push_back(t);
        const double share = protected_fraction_ * static_cast<double>(state.order.size());
        const auto count = static_cast<std::ptrdiff_t>(std::ceil(share));
        const auto value = [&importance](Index t) {
            const double given = importance[static_cast<std::size_t>(t)];
            return std::isnan(given) ? -std::numeric_limits<double>::infinity() : given;
        };
        std::partial_sort(state.order.begin(), state.order.begin() + count, state.order.end(),
                          [&value](Index a, Index b) {
                              return value(a) > value(b) || (value(a) == value(b) && a < b);
                          });
        for (std::ptrdiff_t i = 0; i < count; ++i)
            state.is_protected[static_cast<std::size_t>(state.order[static_cast<std::size_t>(i)])] =
                1;
    }

    double ratio_ = 0, protected_fraction_ = 0;
    Index keep_ = 1;
};

/// Recipe: `moe::OnlinePruning{moe::TopK{.k = 2, .normalize_kept_only = true}, 0.5}`
template <class Inner>
struct OnlinePruning {
    Inner inner;
    double ratio = 0.5;                ///< 0.40 to 0.62 in the source; 0 prunes nothing
    double protected_fraction = 0.02;  ///< of the batch, by Context::token_importance
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

/// The median over tokens of (weight of slot `slot`) / (weight of slot 0) in a routing: the ratio
/// at which half of the calibration tokens lose that slot. Tokens without it do not count; 0 if
/// there is none. The mean of the two in the middle, if they are two.
/// @throws std::invalid_argument unless slot >= 1
inline double median_weight_ratio(const Routing& routing, Index slot = 1) {
    if (slot < 1) detail::fail("moe::median_weight_ratio: slot is ", slot, ", it must be >= 1");
    std::vector<double> ratios;
    for (Index t = 0; t < routing.num_tokens(); ++t) {
        const auto own = routing.of(t);
        if (static_cast<Index>(own.size()) <= slot) continue;
        const double ratio = own[static_cast<std::size_t>(slot)].weight / own[0].weight;
        if (!std::isnan(ratio)) ratios.push_back(ratio);
    }
    if (ratios.empty()) return 0;
    std::sort(ratios.begin(), ratios.end());
    const std::size_t half = ratios.size() / 2;
    return ratios.size() % 2 == 1 ? ratios[half] : (ratios[half - 1] + ratios[half]) / 2;
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_GATES_ONLINE_PRUNING_HPP
