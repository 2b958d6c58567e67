// SPDX-License-Identifier: MIT
#ifndef MOE_LOSSES_MASK_HPP
#define MOE_LOSSES_MASK_HPP

#include <cstddef>

#include <Eigen/Core>

#include <moe/core/context.hpp>
#include <moe/core/workspace.hpp>
#include <moe/gates/keep_any.hpp>
#include <moe/losses/loss.hpp>

namespace moe::inline MOE_ABI {

/// Makes a KeepAny gate spare experts: how many of a token's slots its masks keep.
///
///     value = mean over tokens of (sum of c_i)      in [1, k]
///
/// It adds weight * gradient to ws.dlogits() like every loss, and to the gradient of the gate,
/// which has a parameter in its masks. At inference the value is the experts per token and there is
/// no gradient. Tokens without experts do not count.
///
///     layer.forward(x, y, ws, context);
///     moe::mask_loss(layer.gate(), ws, 0.01, grad.gate());
///     layer.backward(x, dy, dx, grad, ws, context);
///
/// @param gate  of a layer or a head
/// @param ws    what that left the batch in
/// @param grad  of the same gate, **added** to
/// @param gradients  what Context::gradients is in backward, if forward had none: masks look at
///                   weights, and these at multipliers with MultiplierOrder::before_normalization.
///                   Null: those that forward had
/// @return the value without `weight`; see Loss
/// Source: MC# (arXiv:2510.10962), the L1 norm of the masks.
template <class S>
Loss mask_loss(const KeepAnyModule<S>& gate, Workspace<S>& ws, double weight,
               KeepAnyModule<S>& grad, ContextGradients* gradients = nullptr) {
    constexpr std::size_t gate_node = 1;  // of a head's children
    Context context = ws.context();
    if (gradients != nullptr) context.gradients = gradients;
    const Eigen::Ref<const Matrix<S>> z(ws.logits());
    return gate.mask_loss(z, ws.routing(), weight, ws.dlogits(), grad,
                          Call<S>{context, ws.child(gate_node)});
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_LOSSES_MASK_HPP
