// SPDX-License-Identifier: MIT
#ifndef MOE_LOSSES_TOP_ANY_HPP
#define MOE_LOSSES_TOP_ANY_HPP

#include <cmath>
#include <span>

#include <Eigen/Core>

#include <moe/core/context.hpp>
#include <moe/core/memory.hpp>
#include <moe/core/workspace.hpp>
#include <moe/gates/tokens.hpp>
#include <moe/gates/top_any.hpp>
#include <moe/losses/loss.hpp>

namespace moe::inline MOE_ABI {
namespace detail {

/// Gradients of a batch's activations on their way through the gate.
template <class S>
struct TopAnyLoss {
    Buffer<double> load;  // [2 E] f(e); then summed A / k
    Buffer<S> dweights;   // [N]

    static bool is_active(const Assignment& a, const Context& context) {
        const auto expert = at(a.expert);
        return expert >= context.experts.size() || !context.experts[expert].is_null;
    }
    /// k of a token.
    static Index count(std::span<const Assignment> slots, const Context& context) {
        Index k = 0;
        for (const Assignment& a : slots) k += is_active(a, context) ? 1 : 0;
        return k;
    }

    /// dweights = slope(token, k, expert) of each activation.
    template <class F>
    void through(const TopAnyModule<S>& gate, const Call<S>& call, Workspace<S>& ws,
                 TopAnyModule<S>& grad, F slope) {
        const Routing& routing = ws.routing();
        dweights.assign(routing.num_assignments(), S(0));
        for (Index t = 0; t < routing.num_tokens(); ++t) {
            const Index k = count(routing.of(t), call.context);
            for (Index a = routing.first(t); a < routing.first(t + 1); ++a) {
                const Assignment& assignment = routing.assignments()[at(a)];
                if (is_active(assignment, call.context))
                    dweights[a] = static_cast<S>(slope(t, k, assignment.expert));
            }
        }
        const Eigen::Ref<const Matrix<S>> z(ws.logits());
        const std::span<const S> given(dweights.data(), at(dweights.size()));
        gate.backward(z, routing, {given, {}}, ws.dlogits(), grad, call);
    }
};

/// @throws std::invalid_argument if the batch or the gradient is another gate's
template <class S>
void check_top_any(const char* who, const TopAnyModule<S>& gate, const Call<S>& call,
                   const Workspace<S>& ws, const TopAnyModule<S>& grad) {
    check_gate_extents(who, ws.logits().rows(), ws.logits().cols(), ws.routing(),
                       gate.num_experts(), call.context);
    if (!grad.threshold.empty() && grad.threshold.cols() != gate.num_experts())
        fail(who, ": the threshold of grad has ", grad.threshold.cols(),
             " entries, the gate is for ", gate.num_experts(),
             " experts; make grad with zeros_like() of the gate's layer");
}

/// f(gate, call) of the TopAny gate that is in `gate`.
/// @param call  of the gate, in its own node
template <class S, class F>
Loss with_top_any(const TopAnyModule<S>& gate, const Call<S>& call, TopAnyModule<S>& grad, F&& f) {
    return f(gate, call, grad);
}
template <class S, class Gate, class F>
Loss with_top_any(const Gate& gate, const Call<S>& call, Gate& grad, F&& f) {
    static_assert(
        requires {
            gate.inner;
            requires !Gate::changes_logits;
        },
        "moe: the losses of activations take the gate of a layer with moe::TopAny, alone or in "
        "gates around it that leave the logits as they are");
    return with_top_any(gate.inner, call.child(0), grad.inner, f);
}

template <class S>
Loss activation_balance_loss(const TopAnyModule<S>& gate, const Call<S>& call, Workspace<S>& ws,
                             double weight, TopAnyModule<S>& grad) {
    using Scratch = TopAnyLoss<S>;
    const Routing& routing = ws.routing();
    const Context& context = call.context;
    const Index experts = gate.num_experts();
    check_top_any("moe::activation_balance_loss", gate, call, ws, grad);
    auto& scratch = ws.template state<Scratch>();
    double* load = scratch.load.assign(2 * experts, 0).data();
    double* share = load + experts;
    Index tokens = 0;
    for (Index t = 0; t < routing.num_tokens(); ++t) {
        const Index k = Scratch::count(routing.of(t), context);
        tokens += k > 0 ? 1 : 0;
        for (const Assignment& a : routing.of(t)) {
            if (!Scratch::is_active(a, context)) continue;
            load[a.expert] += 1;
            share[a.expert] += 1 / static_cast<double>(k);
        }
    }
    if (tokens == 0) return {"activation_balance", 0};
    const auto count = static_cast<double>(tokens), all = static_cast<double>(experts);
    double sum = 0;
    for (Index e = 0; e < experts; ++e) {
        load[e] /= count;
        sum = std::fma(share[e] / count, load[e], sum);
    }
    if (weight != 0)
        scratch.through(gate, call, ws, grad, [&](Index t, Index k, Index expert) {
            double mean = 0;
            for (const Assignment& a : routing.of(t))
                mean += Scratch::is_active(a, context) ? load[a.expert] : 0;
            return weight * all / count * (load[expert] - mean / static_cast<double>(k));
        });
    return {"activation_balance", all * sum};
}

template <class S>
Loss activation_loss(const TopAnyModule<S>& gate, const Call<S>& call, Workspace<S>& ws,
                     double weight, TopAnyModule<S>& grad) {
    using Scratch = TopAnyLoss<S>;
    const Routing& routing = ws.routing();
    const auto logits = ws.logits();
    check_top_any("moe::activation_loss", gate, call, ws, grad);
    Index tokens = 0, active = 0;
    for (Index t = 0; t < routing.num_tokens(); ++t) {
        tokens += counts_in_losses(call.context, logits, t) ? 1 : 0;
        active += Scratch::count(routing.of(t), call.context);
    }
    if (tokens == 0 || gate.num_experts() == 0) return {"activation", 0};
    const double entries = static_cast<double>(tokens) * static_cast<double>(gate.num_experts());
    if (weight != 0)
        ws.template state<Scratch>().through(gate, call, ws, grad, [&](Index, Index k, Index) {
            return weight * static_cast<double>(k) / entries;
        });
    return {"activation", static_cast<double>(active) / entries};
}

}  // namespace detail

/// Pulls a TopAny gate towards equal loads, whatever the number of experts of a token is.
///
///     value = E sum_e P(e) f(e),  f(e) = mean over tokens of A,  P(e) = mean over tokens of A / k
///
/// A is 1 where the token activates the expert, else 0, and k = sum_e A. Means are over tokens with
/// an expert; the value is 0 if there are none, and the mean of k at perfect balance. f is a count
/// and constant in the gradient. A / k is not; that of A is straight through, like the gate's:
///
///     du_e = weight E / (n k) (f(e) - mean of f over the token's experts)      n: such tokens
///     dthr_e = -du_e                                                           where u_e > thr_e
///
/// So it moves a token from busy experts to idle ones and says nothing of how many it has. It adds
/// to ws.dlogits() like every loss, and to the gradient of the gate, whose thresholds have one.
///
///     layer.forward(x, y, ws, context);                          // with .training = true
///     moe::activation_balance_loss(layer.gate(), ws, 1.0, grad.gate());
///     layer.backward(x, dy, dx, grad, ws, context);
///
/// E counts experts that are taken out as well. Dropped assignments are activations; null experts
/// are not. The value is one of counts and does not show a NaN; the gradient of its row does. The
/// loss of DynMoE is this plus activation_loss(), diversity_loss() and simplicity_loss().
///
/// @param gate    of a layer or a head; may be in wrappers that leave the logits as they are
/// @param ws      what that left the batch in
/// @param weight  published: 1
/// @param grad    of the same gate, **added** to
/// @return the value without `weight`; see Loss
/// @throws std::invalid_argument if the gate or grad is for another number of experts
/// Source: DynMoE (arXiv:2405.14297) and its released code, where it is mean(me * ce) E^2.
template <class S, class Gate>
Loss activation_balance_loss(const Gate& gate, Workspace<S>& ws, double weight, Gate& grad) {
    const Call<S> call{ws.context(), ws.child(detail::gate_node)};
    return detail::with_top_any(gate, call, grad, [&](auto& of, const Call<S>& in, auto& to) {
        return detail::activation_balance_loss(of, in, ws, weight, to);
    });
}

/// Makes a TopAny gate spare experts: how much of all that could be activated is.
///
///     value = mean over tokens and experts of A      in [0, 1]
///     du_e = weight / (T E),  dthr_e = -du_e         where u_e > thr_e
///
/// A as in activation_balance_loss(), whose gradient, gate and arguments are like these. Tokens
/// that count are the T of all losses: also those without an expert. The value is k / E where every
/// token activates k experts.
///
/// @param weight  published: 1
/// @return the value without `weight`; see Loss
/// Source: DynMoE (arXiv:2405.14297), the efficiency loss of its released code.
template <class S, class Gate>
Loss activation_loss(const Gate& gate, Workspace<S>& ws, double weight, Gate& grad) {
    const Call<S> call{ws.context(), ws.child(detail::gate_node)};
    return detail::with_top_any(gate, call, grad, [&](auto& of, const Call<S>& in, auto& to) {
        return detail::activation_loss(of, in, ws, weight, to);
    });
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_LOSSES_TOP_ANY_HPP
