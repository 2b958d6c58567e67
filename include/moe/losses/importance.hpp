// SPDX-License-Identifier: MIT
#ifndef MOE_LOSSES_IMPORTANCE_HPP
#define MOE_LOSSES_IMPORTANCE_HPP

#include <cstddef>
#include <span>
#include <utility>

#include <Eigen/Core>

#include <moe/core/hooks.hpp>
#include <moe/kernels/dispatch.hpp>
#include <moe/losses/loss.hpp>
#include <moe/losses/noise.hpp>
#include <moe/losses/scores.hpp>
#include <moe/losses/variation.hpp>

namespace moe::inline MOE_ABI {

/// Which importance loss.
struct Importance {
    Variance variance = Variance::population;
    /// all: V-MoE, Tutel, ShiftAddViT. selected: the weights that Shazeer, fastmoe and LLaMA-MoE
    /// combine with; a token that has selected none adds nothing.
    Scored scored = Scored::all;
    bool count_dropped = true;  ///< with Scored::selected, whether a dropped assignment is selected
    /// [E] multiplies the importance, so that it is cost * importance that is to be equal, e.g. the
    /// latency of each expert (ShiftAddViT). Empty: 1. Entries are finite and >= 0.
    std::span<const double> expert_costs{};
};

namespace detail {

template <class S>
Loss importance_loss(const LossInput<S>& in, LossScratch<S>& scratch, const Importance& options) {
    in.check("importance_loss");
    in.check_experts("importance_loss");
    const Index experts = in.logits.cols(), rows = in.logits.rows();
    check_choice("moe::Importance", "variance", options.variance, Variance::sample);
    check_choice("moe::Importance", "scored", options.scored, Scored::selected);
    check_weights("moe::Importance", "expert_costs", options.expert_costs, experts, "experts");

    const KernelTable<S>& table = kernels<S>();
    S* s = scratch.scores.resize(2 * experts).data();
    const auto fill_scores = [&](Index t) {
        const S* z = in.row(t);
        if (options.scored == Scored::selected) {
            mask_unselected(in.routing, t, options.count_dropped, experts, z, s);
            z = s;
        }
        table.softmax(experts, z, s);
    };
    double* importance = scratch.load_sum.assign(2 * experts, 0.0).data();
    double* slope = importance + experts;
    for (Index t = 0; t < rows; ++t) {
        if (!in.counts(t)) continue;
        fill_scores(t);
        for (Index e = 0; e < experts; ++e) importance[e] += static_cast<double>(s[e]);
    }
    const double value =
        squared_variation(options.variance, options.expert_costs, experts, importance, slope);
    if (in.weight == 0) return {"importance", value};

    S* g = s + experts;
    for (Index e = 0; e < experts; ++e) g[e] = static_cast<S>(in.weight * slope[e]);
    S* gradient = scratch.gradient.resize(experts).data();
    for (Index t = 0; t < rows; ++t) {
        if (!in.counts(t)) continue;
        fill_scores(t);
        add_softmax_gradient(table, experts, S(1), s, g, gradient, in.drow(t));
    }
    return {"importance", value};
}

/// Of noisy logits h, and from there to the logits of the router.
template <class S, class Noisy>
Loss importance_of_noisy(const Noisy& gate, const Call<S>& call, Workspace<S>& ws, double weight,
                         const Importance& options) {
    const Index experts = gate.num_experts(), own = hooks::expert_logits(gate.inner, experts);
    const Eigen::Ref<const Matrix<S>> z = logits_of_gate("importance_loss", gate, ws);
    const View<S> h = gate.noisy_logits(z, call);
    View<S> dh = ws.template state<NoisyScratch<S>>().dnoisy.matrix(h.rows(), h.cols());
    dh.setZero();
    const Eigen::Ref<const Matrix<S>> h_own(h.leftCols(own));
    Eigen::Ref<Matrix<S>> dh_own(dh.leftCols(own));
    const Loss loss =
        importance_loss(LossInput<S>{h_own, ws.routing(), ws.context(), weight, dh_own},
                        ws.template state<LossScratch<S>>(), options);
    if (weight != 0) gate.noise_backward(z, dh, Matrix<S>(), ws.dlogits().leftCols(z.cols()), call);
    return loss;
}

}  // namespace detail

/// Pulls the router towards experts of equal importance, the sum of an expert's scores: how much
/// it matters, where its load is how many tokens it gets.
///
///     v(e)  = cost(e) * sum over tokens of s(e),  s = softmax(z)
///     value = CV^2(v), see Variance
///     dz(e) = weight * s(e) (g(e) - sum_j s(j) g(j)),  g = d(CV^2)/d(sum of s)
///
/// The value is 0 at perfect balance and at most E - 1 (population) or E (sample). Padding does not
/// count. s is no count: with Scored::all nothing of the routing is read, so that it does not
/// matter what was selected or dropped. One NaN makes all of the value and gradient NaN, as all
/// tokens share v.
///
///     published                                scored      variance      weight
///     Shazeer (arXiv:1701.06538) eq. 6, 7      selected    population    0.1
///     V-MoE (arXiv:2106.05974)                 all         population    0.005
///     fastmoe, LLaMA-MoE (arXiv:2406.16554)    selected    sample        0.01 (LLaMA-MoE)
///     Tutel (arXiv:2206.03382)                 all         sample        half
///     ShiftAddViT (arXiv:2306.06446)           all         sample, with expert_costs
///
/// load_loss goes with each. V-MoE and Tutel take clean logits. Where weights come from noisy ones,
/// as in the others, take the form on a gate.
///
/// @param logits   [T, E]
/// @param routing  of the same tokens; read with Scored::selected
/// @param weight   times the value
/// @param dlogits  [T, E], **added** to
/// @return the value without `weight`; see Loss
template <class X, class Y>
Loss importance_loss(const Eigen::DenseBase<X>& logits, const Routing& routing,
                     const Context& context, double weight, Y&& dlogits,
                     const Importance& options = {}) {
    using S = typename X::Scalar;
    const auto loss = [&](const detail::LossInput<S>& in, detail::LossScratch<S>& scratch) {
        return detail::importance_loss(in, scratch, options);
    };
    return detail::call_loss(loss, logits, routing, context, weight, std::forward<Y>(dlogits));
}

/// importance_loss of the batch that `ws` holds.
template <class S>
Loss importance_loss(Workspace<S>& ws, double weight, const Importance& options = {}) {
    const auto loss = [&](const detail::LossInput<S>& in, detail::LossScratch<S>& scratch) {
        return detail::importance_loss(in, scratch, options);
    };
    return detail::call_loss(loss, ws, weight);
}

/// The same of the noisy logits that a Noisy gate weighs by, where the call has noise in weights.
/// The gradient goes to clean logits and noise logits, with the samples as constants.
///
///     layer.forward(x, y, ws, context);
///     importance_loss(layer.gate(), ws, 0.01, {.scored = Scored::selected});
///     layer.backward(x, dy, dx, grad, ws, context);
///
/// @param gate  of a layer or a head: Noisy, alone or in gates that leave the logits as they are
/// @param ws    what that left the batch in; its dlogits() are **added** to
template <class S, class Gate>
Loss importance_loss(const Gate& gate, Workspace<S>& ws, double weight,
                     const Importance& options = {}) {
    const Call<S> call{ws.context(), ws.child(detail::gate_node)};
    return detail::with_noisy_gate(gate, call, [&](const auto& noisy, const Call<S>& within) {
        if (!noisy.weighs(ws.context())) return importance_loss(ws, weight, options);
        return detail::importance_of_noisy(noisy, within, ws, weight, options);
    });
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_LOSSES_IMPORTANCE_HPP
