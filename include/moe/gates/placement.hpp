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
    /// As output, but backward takes the expert's input for (1 + w - w') * x with w' = w a
    /// constant: what an expert would do with more or less of a token tells the router, too
    /// (st-moe-pytorch)
    straight_through,
};

namespace detail {

/// d(loss)/dw on the side of the weights; for straight_through that of the output, and
/// dweights.input is to be added to it.
/// @throws std::logic_error unless a gate that weighs on this side got a gradient per assignment
/// @throws std::invalid_argument if dlogits is of another extent than logits
template <class S>
std::span<const S> gradients_at(Placement placement, const WeightGradients<S>& dweights,
                                const Routing& routing, In<S> logits, const Out<S>& dlogits) {
    const bool on_input = placement == Placement::input;
    const auto check = [&routing](const char* side, std::span<const S> given) {
        if (static_cast<Index>(given.size()) != routing.num_assignments())
            fail<std::logic_error>(
                "moe: a gate that weighs ", side, " got ", given.size(), " gradients for ",
                routing.num_assignments(),
                " assignments; a gate around it must say weighs_input() as it does");
    };
    const auto given = on_input ? dweights.input : dweights.output;
    check(on_input ? "inputs" : "outputs", given);
    if (placement == Placement::straight_through) check("inputs", dweights.input);
    if (dlogits.rows() != logits.rows() || dlogits.cols() != logits.cols())
        fail("moe: a gate's dlogits is [", dlogits.rows(), ", ", dlogits.cols(),
             "], its logits are [", logits.rows(), ", ", logits.cols(), "]");
    return given;
}

}  // namespace detail
}  // namespace moe::inline MOE_ABI

#endif  // MOE_GATES_PLACEMENT_HPP
