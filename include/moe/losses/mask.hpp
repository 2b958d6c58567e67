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

namespace detail {

/// @param call  of the gate, in its own node
template <class S>
Loss mask_loss(const KeepAnyModule<S>& gate, const Call<S>& call, Workspace<S>& ws, double weight,
               KeepAnyModule<S>& grad) {
    const Eigen::Ref<const Matrix<S>> z(ws.logits());
    return gate.mask_loss(z, ws.routing(), weight, ws.dlogits(), grad, call);
}
template <class S, class Gate>
Loss mask_loss(const Gate& gate, const Call<S>& call, Workspace<S>& ws, double weight, Gate& grad) {
    static_assert(
        requires {
            gate.inner;
            requires !Gate::changes_logits;
        },
        "moe: moe::mask_loss takes the gate of a layer with moe::KeepAny, alone or in gates around "
        "it that leave the logits as they are");
    return mask_loss(gate.inner, call.child(0), ws, weight, grad.inner);
}

}  // namespace detail

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
/// @param gate  of a layer or a head; may be in wrappers that leave the logits as they are, so not
///              in Noisy
/// @param ws    what that left the batch in
/// @param grad  of the same gate, **added** to
/// @param gradients  what Context::gradients is in backward, if forward had none: masks look at
///                   weights, and these at multipliers with MultiplierOrder::before_normalization.
///                   Null: those that forward had
/// @return the value without `weight`; see Loss
/// Source: MC# (arXiv:2510.10962), the L1 norm of the masks.
template <class S, class Gate>
Loss mask_loss(const Gate& gate, Workspace<S>& ws, double weight, Gate& grad,
               ContextGradients* gradients = nullptr) {
    Context context = ws.context();
    if (gradients != nullptr) context.gradients = gradients;
    return detail::mask_loss(gate, Call<S>{context, ws.child(detail::gate_node)}, ws, weight, grad);
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_LOSSES_MASK_HPP
