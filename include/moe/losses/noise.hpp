// SPDX-License-Identifier: MIT
#ifndef MOE_LOSSES_NOISE_HPP
#define MOE_LOSSES_NOISE_HPP

#include <Eigen/Core>

#include <moe/core/error.hpp>
#include <moe/core/memory.hpp>
#include <moe/core/types.hpp>
#include <moe/core/workspace.hpp>
#include <moe/gates/noisy.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/losses/loss.hpp>

/// What losses on noisy logits share: the gates of a layer that they are about, and room.

namespace moe::inline MOE_ABI::detail {

/// f(gate, call) of the Noisy gate of a layer.
/// @param call  of `gate`, in its own node
template <class S, class Inner, class F>
Loss with_noisy_gate(const NoisyModule<S, Inner>& gate, const Call<S>& call, F&& f) {
    return f(gate, call);
}
template <class S, class Gate, class F>
Loss with_noisy_gate(const Gate& gate, const Call<S>& call, F&& f) {
    static_assert(
        requires {
            gate.inner;
            requires !Gate::changes_logits;
        },
        "moe: a loss on noisy logits takes the gate of a layer with moe::Noisy, alone or in gates "
        "around it that leave the logits as they are");
    return with_noisy_gate(gate.inner, call.child(0), f);
}

/// What a Noisy gate reads of the logits that a workspace holds, the first ones.
/// @throws std::invalid_argument if there are fewer, or the batch was routed to other experts: it
///         was not this gate that routed
template <class S, class Noisy>
Eigen::Ref<const Matrix<S>> logits_of_gate(const char* who, const Noisy& gate,
                                           const Workspace<S>& ws) {
    const Index read = gate.num_logits(gate.num_experts());
    if (ws.logits().cols() < read)
        fail("moe::", who, ": the gate reads ", read, " logits per token, the workspace holds ",
             ws.logits().cols(), "; give it the gate of the layer that filled the workspace");
    if (ws.routing().num_experts() != gate.num_experts())
        fail("moe::", who, ": the gate is for ", gate.num_experts(),
             " experts, the workspace holds a routing to ", ws.routing().num_experts(),
             "; give it the gate of the layer that filled the workspace");
    return Eigen::Ref<const Matrix<S>>(ws.logits().leftCols(read));
}

/// The TopK gate that noisy logits go to.
template <class S>
const TopKModule<S>& top_k_of(const TopKModule<S>& gate) {
    return gate;
}
template <class Gate>
const auto& top_k_of(const Gate& gate) {
    static_assert(
        requires {
            gate.inner;
            requires !Gate::changes_logits;
        },
        "moe: moe::load_loss takes a moe::Noisy gate around moe::TopK, alone or in gates around it "
        "that leave the logits as they are");
    return top_k_of(gate.inner);
}

/// Gradients of a loss on noisy logits.
template <class S>
struct NoisyScratch {
    Buffer<S> dnoisy, dsigma;  // [T, E]
};

}  // namespace moe::inline MOE_ABI::detail

#endif  // MOE_LOSSES_NOISE_HPP
