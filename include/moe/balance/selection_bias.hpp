// SPDX-License-Identifier: MIT
#ifndef MOE_BALANCE_SELECTION_BIAS_HPP
#define MOE_BALANCE_SELECTION_BIAS_HPP

#include <cmath>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <moe/balance/load_sum.hpp>
#include <moe/core/error.hpp>
#include <moe/core/parameters.hpp>
#include <moe/core/types.hpp>

namespace moe::inline MOE_ABI {

/// Moves a selection bias after a step: controller.update(bias, load) with bias and load [E].
///
/// The bias is added to the scores when experts are chosen and never enters weights, losses or
/// gradients, so balance costs the model no gradient. A controller may have state of its own; its
/// rate may follow a schedule: SignUpdate{.rate = schedule.at(step)}, see gates/schedule.hpp.
template <class C, class S = float>
concept BalanceController = requires(C& controller, std::span<S> bias,
                                     std::span<const double> load) {
    controller.update(bias, load);
};

/// A controller of a bias in the scalar of a layer.
template <class C, class Layer>
concept ControlsBiasOf =  // clang-format off
    BalanceController<std::remove_reference_t<C>, typename Layer::Scalar>;
// clang-format on

namespace detail {

/// The mean load.
/// @throws std::invalid_argument if the extents differ, or an entry or the sum is negative or not
///         finite
inline double mean_load(const char* who, std::size_t experts, std::span<const double> load) {
    if (load.size() != experts)
        fail("moe::", who, ": load has ", load.size(), " entries, the bias has ", experts);
    double sum = 0;
    for (const double count : load) {
        if (!(count >= 0) || !std::isfinite(count))
            fail("moe::", who, ": a load is ", count, ", it must be finite and >= 0");
        sum += count;
    }
    if (!std::isfinite(sum))
        fail("moe::", who, ": the loads sum to ", sum, ", that must be finite");
    return experts == 0 ? 0 : sum / static_cast<double>(experts);
}

/// @throws std::invalid_argument if a rate is not finite
inline void check_rate(const char* who, double rate) {
    if (!std::isfinite(rate)) fail("moe::", who, ": rate is ", rate, ", it must be finite");
}

inline double sign(double x) { return x > 0 ? 1 : x < 0 ? -1 : 0; }

}  // namespace detail

/// The auxiliary-loss-free balance of DeepSeek-V3: one equal step up or down for every expert.
///
///     b(e) += rate * sign(mean load - load(e)),  sign(0) = 0
///
/// Source: arXiv:2408.15664, algorithm 1.
struct SignUpdate {
    double rate = 1e-3;  ///< DeepSeek-V3: 1e-3 for scores in (0, 1)
    bool centre =
        false;  ///< subtract the mean of the steps, so that the mean of b stays (torchtitan)

    /// @param bias  [E] any values    @param load  [E] tokens per expert since the last update
    /// @throws std::invalid_argument if the rate is not finite, the extents differ, or a load is
    ///         negative or not finite
    template <class S>
    void update(std::span<S> bias, std::span<const double> load) const {
        detail::check_rate("SignUpdate", rate);
        const double mean = detail::mean_load("SignUpdate", bias.size(), load);
        double steps = 0;
        for (const double count : load) steps += detail::sign(mean - count);
        const double shift = centre && steps != 0 ? steps / static_cast<double>(bias.size()) : 0;
        for (std::size_t e = 0; e < bias.size(); ++e)
            bias[e] = static_cast<S>(
                std::fma(rate, detail::sign(mean - load[e]) - shift, static_cast<double>(bias[e])));
    }
};

/// A step in proportion to the deviation: quick far from balance, gentle near it.
///
///     b(e) += rate * (mean load - load(e)) / mean load;  nothing moves while there is no load
///
/// The steps sum to zero up to rounding. InverseStepUpdate lets the rate fall.
/// Source: arXiv:2512.03915.
struct ProportionalUpdate {
    double rate = 1e-3;

    /// As SignUpdate::update.
    template <class S>
    void update(std::span<S> bias, std::span<const double> load) const {
        detail::check_rate("ProportionalUpdate", rate);
        const double mean = detail::mean_load("ProportionalUpdate", bias.size(), load);
        if (mean == 0) return;
        for (std::size_t e = 0; e < bias.size(); ++e)
            bias[e] = static_cast<S>(
                std::fma(rate, (mean - load[e]) / mean, static_cast<double>(bias[e])));
    }
};

/// The selection bias of a layer, a head or a gate, [E]: its one parameter with Role::state whose
/// name is "bias" or ends in ".bias" ("gate.bias" in a layer). Valid as long as the layer is.
/// @throws std::invalid_argument if there is none, or several
template <class S, class Layer>
    requires(!std::is_const_v<Layer>)
std::span<S> selection_bias(Layer& layer) {
    std::span<S> bias;
    std::string found;
    visit_parameters(layer, [&](std::string_view name, auto& matrix, Role role) {
        const bool is_bias = name == "bias" || name.ends_with(".bias");
        if (role != Role::state || !is_bias || matrix.size() == 0) return;
        if (!found.empty())
            detail::fail("moe::selection_bias: there are two, ", found, " and ", std::string(name),
                         "; pass the gate whose bias you mean");
        if constexpr (std::is_same_v<typename std::remove_cvref_t<decltype(matrix)>::Scalar, S>) {
            found = name;
            bias = detail::span_of(matrix);
        } else {
            detail::fail("moe::selection_bias: ", std::string(name), " is of another scalar");
        }
    });
    if (found.empty())
        detail::fail(
            "moe::selection_bias: the gate has none; build it with one, e.g. "
            "moe::TopK{.k = 2, .selection_bias = true}");
    return bias;
}

/// Moves the selection bias of a layer, explicitly, between steps.
///
///     update_bias(layer, load, SignUpdate{.rate = 1e-3});
///
/// @param layer       a layer, or a head or gate with `using Scalar`
/// @param load        [E] tokens per expert since the last update, e.g. LoadSum::counts()
/// @param controller  anything with update(bias, load)
/// @throws std::invalid_argument as selection_bias() and the controller do
template <class Layer, ControlsBiasOf<Layer> Controller>
void update_bias(Layer& layer, std::span<const double> load, Controller&& controller) {
    controller.update(selection_bias<typename Layer::Scalar>(layer), load);
}
template <class Layer, class Controller>
void update_bias(Layer& layer, const LoadSum& load, Controller&& controller) {
    update_bias(layer, load.counts(), std::forward<Controller>(controller));
}
template <class Layer, class Controller>
void update_bias(Layer& layer, std::span<const Index> load, Controller&& controller) {
    LoadSum sum(static_cast<Index>(load.size()));
    sum.add(load);
    update_bias(layer, sum.counts(), std::forward<Controller>(controller));
}
/// With the load of one batch.
template <class Layer, class Controller>
void update_bias(Layer& layer, const Routing& routing, Controller&& controller) {
    LoadSum load(routing.num_experts());
    load.add(routing);
    update_bias(layer, load.counts(), std::forward<Controller>(controller));
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_BALANCE_SELECTION_BIAS_HPP
