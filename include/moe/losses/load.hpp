// SPDX-License-Identifier: MIT
#ifndef MOE_LOSSES_LOAD_HPP
#define MOE_LOSSES_LOAD_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <utility>

#include <Eigen/Core>

#include <moe/core/memory.hpp>
#include <moe/gates/tokens.hpp>
#include <moe/kernels/dispatch.hpp>
#include <moe/losses/loss.hpp>
#include <moe/losses/noise.hpp>
#include <moe/losses/variation.hpp>

namespace moe::inline MOE_ABI {

/// Which load loss.
struct SmoothLoad {
    /// What a clean logit has to exceed.
    enum class Threshold {
        /// The k-th best noisy logit of the *other* experts: with experts ranked by noisy logits,
        /// the (k+1)-th for one that is among the k best, the k-th for others (Shazeer, fastmoe,
        /// LLaMA-MoE, M3ViT).
        of_others,
        /// The k-th best noisy logit, for all (V-MoE).
        kth,
    };

    Threshold threshold = Threshold::of_others;
    Variance variance = Variance::population;
    /// [E] multiplies the load, as Importance::expert_costs. Empty: 1.
    std::span<const double> expert_costs{};
};

namespace detail {

/// What load_loss keeps of a token, and sums.
template <class S>
struct LoadScratch {
    Buffer<std::int32_t> best;  // [E] experts by noisy logits
    Buffer<double> load;        // [2 E] Load; d(loss)/d(Load)
};

/// The probabilities of one token's experts to be selected.
template <class S>
struct SelectionChances {
    const S *clean, *noisy;    // [E]
    Index last_in, first_out;  // k-th and (k+1)-th best by noisy logits; -1: there is none
    SmoothLoad::Threshold rule;

    SelectionChances(const KernelTable<S>& table, Index experts, Index k, const S* z, const S* h,
                     SmoothLoad::Threshold threshold, std::int32_t* best)
        : clean(z), noisy(h), rule(threshold) {
        const Index live = table.top_k(experts, h, std::min(k + 1, experts), best);
        last_in = live < k ? -1 : best[k - 1];
        first_out = live <= k ? -1 : best[k];
    }

    /// The expert whose noisy logit this one is compared with; -1: none, it is always selected.
    Index threshold(Index e) const {
        if (rule == SmoothLoad::Threshold::kth || last_in < 0) return last_in;
        const bool is_in = first_out < 0 || noisy[e] > noisy[first_out];
        return is_in ? first_out : last_in;
    }
    bool is_masked(Index e) const {
        constexpr S dead = -std::numeric_limits<S>::infinity();
        return clean[e] == dead || noisy[e] == dead;
    }
    double distance(Index e, Index threshold) const {
        return static_cast<double>(clean[e]) - static_cast<double>(noisy[threshold]);
    }

    /// Phi((z - threshold) / sigma); sigma = 0: a step.
    double chance(Index e, double sigma) const {
        const Index other = threshold(e);
        if (other < 0) return std::isnan(noisy[e]) ? std::numeric_limits<double>::quiet_NaN() : 1;
        const double from = distance(e, other);
        if (sigma == 0 && from == 0) return 0.5;
        return 0.5 * std::erfc(-from / sigma * 0.70710678118654752);
    }
};

/// The loss of tokens that count.
/// @param k       k(token)            @param sigma  sigma(token, expert)
/// @param dsigma  [T, E], or [0, 0] if none is wanted; the three gradients are added to
template <class S, class K, class Sigma>
Loss load_loss(In<S> clean, In<S> noisy, K&& k, Sigma&& sigma, const Context& context,
               double weight, Out<S> dclean, Out<S> dnoisy, Out<S> dsigma, LoadScratch<S>& scratch,
               const SmoothLoad& options) {
    const KernelTable<S>& table = kernels<S>();
    const Index experts = clean.cols();
    std::int32_t* best = scratch.best.resize(experts).data();
    double *load = scratch.load.assign(2 * experts, 0.0).data(), *slope = load + experts;
    const auto for_tokens_that_count = [&](auto&& f) {
        for (Index t = 0; t < clean.rows(); ++t)
            if (counts_in_losses(context, clean, t))
                f(t, SelectionChances<S>(table, experts, k(t), row_data(clean, t),
                                         row_data(noisy, t), options.threshold, best));
    };
    for_tokens_that_count([&](Index t, const SelectionChances<S>& token) {
        for (Index e = 0; e < experts; ++e)
            if (!token.is_masked(e)) load[e] += token.chance(e, static_cast<double>(sigma(t, e)));
    });
    const double value =
        squared_variation(options.variance, options.expert_costs, experts, load, slope);
    if (weight == 0) return {"load", value};

    for_tokens_that_count([&](Index t, const SelectionChances<S>& token) {
        double to_in = 0, to_out = 0;  // at the two thresholds
        for (Index e = 0; e < experts; ++e) {
            const Index other = token.threshold(e);
            const double width = static_cast<double>(sigma(t, e));
            if (token.is_masked(e) || other < 0 || width == 0) continue;
            const double u = token.distance(e, other) / width;
            const double density = 0.39894228040143268 * std::exp(-0.5 * (u * u));
            const double at_distance = weight * slope[e] * density / width;
            dclean(t, e) += static_cast<S>(at_distance);
            (other == token.last_in ? to_in : to_out) -= at_distance;
            if (dsigma.size() == 0) continue;
            S& ds = dsigma(t, e);
            ds = static_cast<S>(std::fma(-at_distance, u, static_cast<double>(ds)));
        }
        if (token.last_in >= 0) dnoisy(t, token.last_in) += static_cast<S>(to_in);
        if (token.first_out >= 0) dnoisy(t, token.first_out) += static_cast<S>(to_out);
    });
    return {"load", value};
}

inline void check_smooth_load(const SmoothLoad& options, Index experts) {
    check_choice("moe::SmoothLoad", "threshold", options.threshold, SmoothLoad::Threshold::kth);
    check_choice("moe::SmoothLoad", "variance", options.variance, Variance::sample);
    check_weights("moe::SmoothLoad", "expert_costs", options.expert_costs, experts, "experts");
}

/// Refuses gates whose choice is not that of the formula.
template <class Noisy>
void check_noisy_top_k(const Noisy& gate, const TopK& top_k, const Context& context) {
    const char* const who = "moe::load_loss: ";
    const GateNoise& noise = gate.noise();
    const bool is_learned = noise.kind == GateNoise::Kind::learned;
    if (noise.kind == GateNoise::Kind::gumbel)
        fail(who,
             "the noise of the gate is Gumbel's, it must be normal; take another "
             "GateNoise::kind");
    const bool is_quiet = !gate.is_on(context), is_off = !context.training && !noise.inference;
    if (is_quiet || (!is_learned && noise.std == 0))
        fail(who, "there is no noise in this call, and without it no chance of being selected; ",
             is_off     ? "set Context::training, or leave the loss out at inference"
             : is_quiet ? "GateNoise::factor is 0 at this step: leave the loss out from here on"
                        : "give the gate a GateNoise::std > 0");
    if (top_k.selection_bias)
        fail(who,
             "the gate has a selection_bias, but the loss is about a choice by logits alone; "
             "balance it by one of them");
    if (top_k.num_groups > top_k.groups_kept)
        fail(who, "the gate keeps ", top_k.groups_kept, " of ", top_k.num_groups,
             " groups, but the loss is about a choice among all experts");
}

template <class S, class Noisy>
Loss load_of_gate(const Noisy& gate, const Call<S>& call, Workspace<S>& ws, double weight,
                  const SmoothLoad& options) {
    const Index experts = gate.num_experts();
    const TopK& top_k = top_k_of(gate.inner).settings();
    const Context& context = ws.context();
    check_noisy_top_k(gate, top_k, context);
    check_smooth_load(options, experts);
    const auto k =
        dialled<Index>("moe::load_loss", "dial.k_per_sequence", context.dial.k.value_or(top_k.k),
                       context.dial.k_per_sequence, context, ws.logits().rows());

    const Eigen::Ref<const Matrix<S>> z = logits_of_gate("load_loss", gate, ws);
    const Eigen::Ref<const Matrix<S>> clean(z.leftCols(experts));
    Eigen::Ref<Matrix<S>> dclean(ws.dlogits().leftCols(experts));
    const View<S> h = gate.noisy_logits(z, call);  // of gates inside, perhaps others' logits, too
    const Eigen::Ref<const Matrix<S>> noisy(h.leftCols(experts));
    auto& scratch = ws.template state<NoisyScratch<S>>();
    const Index sigmas = gate.noise().kind == GateNoise::Kind::learned ? h.cols() : 0;
    View<S> dh = scratch.dnoisy.matrix(h.rows(), h.cols());
    View<S> dsigma = scratch.dsigma.matrix(h.rows(), sigmas);
    dh.setZero();
    dsigma.setZero();
    Eigen::Ref<Matrix<S>> dnoisy(dh.leftCols(experts));
    Eigen::Ref<Matrix<S>> dwidth(dsigma.leftCols(std::min(experts, sigmas)));
    const auto sigma = [&](Index t, Index e) { return gate.sigma(z, t, e, context); };
    const Loss loss = load_loss<S>(clean, noisy, k, sigma, context, weight, dclean, dnoisy, dwidth,
                                   ws.template state<LoadScratch<S>>(), options);
    if (weight != 0) gate.noise_backward(z, dh, dsigma, ws.dlogits().leftCols(z.cols()), call);
    return loss;
}

}  // namespace detail

/// Pulls a noisy router towards equal loads. How many tokens an expert gets jumps; the chance that
/// it gets one, were its noise drawn again, does not, and has a gradient.
///
///     v(e)    = cost(e) * Load(e),  Load(e) = sum over tokens of Phi((z(e) - h(j)) / sigma(e))
///     value   = CV^2(v), see Variance
///     dz(e)   = weight * g(e) phi(u) / sigma(e),  u = (z(e) - h(j)) / sigma(e),
///     dh(j)   = -dz(e),  dsigma(e) = -u dz(e),    g = d(CV^2)/d(Load)
///
/// z are clean logits, h = z + noise * sigma, and j is the expert that e would have to beat, see
/// SmoothLoad::Threshold. Phi and phi are the normal distribution and its density. The gradient
/// goes through z, sigma and the threshold h(j), a noisy logit itself, as in published code, with
/// the samples as constants. The value is 0 at perfect balance and at most E - 1 (population) or
/// E (sample).
///
/// An expert that the noise can not keep out, because no more than k are open to the token, has
/// chance 1 there (k = E: the load is what fastmoe counts, and the value 0); with Threshold::kth,
/// as published, only where fewer than k are. A masked one has 0. Padding does not count. What was
/// dropped is not asked. One NaN makes all of the value and gradient NaN. V-MoE's mean over tokens
/// in place of the sum is the same value.
///
///     published                                threshold    variance
///     Shazeer (arXiv:1701.06538) eq. 8-11      of_others    population
///     fastmoe, LLaMA-MoE (arXiv:2406.16554)    of_others    sample
///     V-MoE (arXiv:2106.05974)                 kth          population
///     ShiftAddViT (arXiv:2306.06446)           of_others    sample, with expert_costs
///
/// Not copied: LLaMA-MoE finds who is among the k best by the noise instead of the noisy logits,
/// and Tutel compares clean probabilities with a noisy logit.
///
/// It goes with importance_loss, at the same weight. The latency-aware loss of ShiftAddViT, whose
/// costs are latencies:
///
///     layer.forward(x, y, ws, context);
///     importance_loss(layer.gate(), ws, weight, {.variance = Variance::sample,
///                                                .expert_costs = latency});
///     load_loss(layer.gate(), ws, weight, {.variance = Variance::sample,
///                                          .expert_costs = latency});
///     layer.backward(x, dy, dx, grad, ws, context);
///
/// @param gate  of a layer or a head: Noisy around TopK, each alone or in gates that leave the
///              logits as they are. k is TopK's, or the dial's
/// @param ws    what that left the batch in; its dlogits() are **added** to
/// @return the value without `weight`; see Loss
/// @throws std::invalid_argument if the call has no noise, or Gumbel's, or experts are not chosen
///         by noisy logits alone; nothing is added then
template <class S, class Gate>
Loss load_loss(const Gate& gate, Workspace<S>& ws, double weight, const SmoothLoad& options = {}) {
    const Call<S> call{ws.context(), ws.child(detail::gate_node)};
    return detail::with_noisy_gate(gate, call, [&](const auto& noisy, const Call<S>& within) {
        return detail::load_of_gate(noisy, within, ws, weight, options);
    });
}

/// The same on matrices, for noise of one's own: z and h are taken for independent, so what makes h
/// of z and sigma has its own way back, here from h = z + noise * sigma:
///
///     load_loss(z, h, sigma, k, context, weight, dz, dh, dsigma);
///     dz += dh;  dsigma += noise * dh;
///
/// @param clean, noisy, sigma     [T, E] z, h, sigma >= 0; -inf in z and h masks. With sigma = 0
///                                the chance is a step
/// @param k                       experts that each token gets, 1 to E
/// @param context                 padding
/// @param dclean, dnoisy, dsigma  [T, E], **added** to
template <class X, class Y, class Z, class DX, class DY, class DZ>
Loss load_loss(const Eigen::DenseBase<X>& clean, const Eigen::DenseBase<Y>& noisy,
               const Eigen::DenseBase<Z>& sigma, Index k, const Context& context, double weight,
               DX&& dclean, DY&& dnoisy, DZ&& dsigma, const SmoothLoad& options = {}) {
    using S = typename X::Scalar;
    const Eigen::Ref<const Matrix<S>> z = detail::readable<S>(clean);
    const Eigen::Ref<const Matrix<S>> h = detail::readable<S>(noisy);
    const Eigen::Ref<const Matrix<S>> width = detail::readable<S>(sigma);
    Eigen::Ref<Matrix<S>> dz = detail::writable<S>(std::forward<DX>(dclean));
    Eigen::Ref<Matrix<S>> dh = detail::writable<S>(std::forward<DY>(dnoisy));
    Eigen::Ref<Matrix<S>> dwidth = detail::writable<S>(std::forward<DZ>(dsigma));
    const auto check = [&](const char* name, const auto& matrix) {
        if (matrix.rows() != z.rows() || matrix.cols() != z.cols())
            detail::fail("moe::load_loss: ", name, " is [", matrix.rows(), ", ", matrix.cols(),
                         "], clean is [", z.rows(), ", ", z.cols(), "]");
    };
    check("noisy", h), check("sigma", width);
    check("dclean", dz), check("dnoisy", dh), check("dsigma", dwidth);
    if (k < 1 || k > z.cols())
        detail::fail("moe::load_loss: k is ", k, ", it must be in [1, ", z.cols(),
                     "], the experts that there are");
    detail::check_extent("padding", context.padding.size(), z.rows(), "one per token");
    detail::check_smooth_load(options, z.cols());
    for (Index t = 0; t < z.rows(); ++t)
        for (Index e = 0; e < z.cols(); ++e)
            if (width(t, e) < 0)
                detail::fail("moe::load_loss: an entry of sigma is ", width(t, e),
                             ", it must be >= 0");
    detail::LoadScratch<S> scratch;
    return detail::load_loss<S>(
        z, h, [k](Index) { return k; }, [&](Index t, Index e) { return width(t, e); }, context,
        weight, dz, dh, dwidth, scratch, options);
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_LOSSES_LOAD_HPP
