// SPDX-License-Identifier: MIT
#ifndef MOE_GATES_PLACEMENT_HPP
#define MOE_GATES_PLACEMENT_HPP

#include <span>
#include <stdexcept>

#include <moe/core/error.hpp>
#include <moe/core/routing.hpp>
#include <moe/core/types.hpp>
#include <moe/core/views.hpp>

namespace moe::inline MOE_ABI {

/// Which side of the expert the weight is on.
enum class Placement {
    output,  ///< y = w * expert(x)
    input,   ///< y = expert(w * x) (Llama-4)
};

namespace detail {

/// @throws std::logic_error unless a gate that weighs on this side got a gradient per assignment
/// @throws std::invalid_argument if dlogits is of another extent than logits
template <class S>
std::span<const S> gradients_at(Placement placement, const WeightGradients<S>& dweights,
                                const Routing& routing, In<S> logits, const Out<S>& dlogits) {
    const bool on_input = placement == Placement::input;
    const auto given = on_input ? dweights.input : dweights.output;
    if (static_cast<Index>(given.size()) != routing.num_assignments())
        fail<std::logic_error>("moe: a gate that weighs ", on_input ? "inputs" : "outputs", " got ",
                               given.size(), " gradients for ", routing.num_assignments(),
                               " assignments; a gate around it must say weighs_input() as it does");
    if (dlogits.rows() != logits.rows() || dlogits.cols() != logits.cols())
        fail("moe: a gate's dlogits is [", dlogits.rows(), ", ", dlogits.cols(),
             "], its logits are [", logits.rows(), ", ", logits.cols(), "]");
    return given;
}

}  // namespace detail
}  // namespace moe::inline MOE_ABI

#endif  // MOE_GATES_PLACEMENT_HPP
