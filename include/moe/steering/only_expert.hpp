// SPDX-License-Identifier: MIT
#ifndef MOE_STEERING_ONLY_EXPERT_HPP
#define MOE_STEERING_ONLY_EXPERT_HPP

#include <charconv>
#include <string_view>

#include <moe/core/error.hpp>
#include <moe/core/types.hpp>

namespace moe::inline MOE_ABI {

/// Which parameters of a layer are trained if only one expert is to change: its own,
/// "experts.<e>.*", and the router's, "router.*". See only_expert().
struct OnlyExpert {
    Index expert = 0;
    bool with_router = true;  ///< false: the expert alone

    bool operator()(std::string_view name) const {
        constexpr std::string_view router = "router.", experts = "experts.";
        if (name.starts_with(router)) return with_router;
        if (!name.starts_with(experts)) return false;
        name.remove_prefix(experts.size());
        Index number = -1;
        const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), number);
        return error == std::errc() && end != name.data() + name.size() && *end == '.' &&
               number == expert;
    }
};

/// The parameters of one expert and of the router, for a gradient in which the others are not
/// wanted: nothing is computed for them, and an optimiser does not see them.
///
///     auto grad = zeros_like(layer, only_expert(layer, 3));
///     layer.backward(x, dy, dx, grad, ws);    // dx is complete
///     for_each_parameter(layer, grad, [](std::string_view, auto w, auto dw) { ... });
///
/// So a layer unlearns, or learns, in one place: of a whole model, the expert of the largest mean
/// weight on the data that is to be forgotten.
///
/// Source: SEUF, or UOE (arXiv:2411.18797).
/// @throws std::invalid_argument if there is no such expert
template <class Layer>
OnlyExpert only_expert(const Layer& layer, Index expert, bool with_router = true) {
    if (expert < 0 || expert >= layer.num_experts())
        detail::fail("moe::only_expert: there is no expert ", expert, ", the layer has ",
                     layer.num_experts());
    return {expert, with_router};
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_STEERING_ONLY_EXPERT_HPP
