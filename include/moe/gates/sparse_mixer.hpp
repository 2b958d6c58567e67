// SPDX-License-Identifier: MIT
#ifndef MOE_GATES_SPARSE_MIXER_HPP
#define MOE_GATES_SPARSE_MIXER_HPP

#include <cmath>
#include <cstddef>
#include <limits>
#include <optional>

#include <moe/core/concepts.hpp>
#include <moe/gates/neighbours.hpp>
#include <moe/gates/samples.hpp>
#include <moe/gates/token_gate.hpp>

namespace moe::inline MOE_ABI {

template <class S>
class SparseMixerModule;

/// Recipe for the gate of Phi-3.5-MoE and GRIN-MoE: training draws among the experts that are
/// nearly as good as the best one, so that the router learns what another choice would have
/// brought.
///
/// Source: SparseMixer-v2 in GRIN (arXiv:2409.12136), after SparseMixer (arXiv:2310.00811).
struct SparseMixer {
    Index k = 2;            ///< experts per token, 1 to E
    double epsilon = 0.01;  ///< an expert is near within 2 epsilon of the best one's size; >= 0
    bool sample = true;     ///< false: training chooses and weighs as inference does

    /// @throws std::invalid_argument if a setting is out of range
    template <class S>
    SparseMixerModule<S> build(const Shape& shape, Random&) const {
        return SparseMixerModule<S>(*this, shape.num_experts);
    }
};

namespace detail {

/// Each assignment's share of the experts near the best one that slots before it have left.
struct SparseMixerRule {
    static constexpr const char* name = "moe::SparseMixer";
    static constexpr Placement placement = Placement::output;

    Index k = 2;
    double epsilon = 0.01;
    bool sample = true;

    /// The samples of a call in which choices are drawn.
    template <class S>
    std::optional<Samples> samples(const Call<S>& call, Index tokens, Index experts) const {
        if (!sample || !call.context.training) return std::nullopt;
        return Samples(name, call, tokens, experts, 2 * k);
    }

    template <class S, class Normalizes>
    void weigh(In<S> logits, Routing& routing, const Call<S>& call, Normalizes&&) const {
        const auto drawn = samples(call, logits.rows(), logits.cols());
        each_slot(logits, routing, call, [&](Index t, Index i, Neighbours<S>* near, Index best) {
            const Assignment& a = routing.assignments()[at(i)];
            S w = near == nullptr ? std::numeric_limits<S>::quiet_NaN() : near->q(a.expert);
            if (drawn && a.slot < k)
                w *= midpoint_factor<S>(a.expert == best,
                                        drawn->uniform(t, a.expert, midpoint_draw(a.slot)));
            routing.set_weight(i, is_null(a, call.context) ? 0 : static_cast<double>(w));
            routing.set_input_weight(i, 1);
        });
    }

    template <class S, class Normalizes>
    void backward(In<S> logits, const Routing& routing, const WeightGradients<S>& dweights,
                  Out<S> dlogits, const Call<S>& call, Normalizes&&) const {
        const auto given = gradients_at<S>(placement, dweights, routing, logits, dlogits);
        each_slot(logits, routing, call, [&](Index t, Index i, Neighbours<S>* near, Index) {
            const auto number = at(i);
            const Assignment& a = routing.assignments()[number];
            if (near == nullptr)
                fill_nan(logits.cols(), row_data(logits, t), row_data(dlogits, t));
            else if (!is_null(a, call.context))
                near->add_gradient(a.expert, given[number], row_data(dlogits, t));
        });
    }

    template <class S>
    static void reserve(Workspace<S>& ws, Index n, Index) {
        reserve_turns(ws, Neighbours<S>::scratch_size(n));
    }
    template <class S>
    static Index bytes(Index n, Index, Index workers) {
        return turns_bytes<S>(Neighbours<S>::scratch_size(n), workers);
    }

private:
    /// f(token, assignment number, neighbours or null if the row holds a NaN, best one left)
    template <class S, class F>
    void each_slot(In<S> logits, const Routing& routing, const Call<S>& call, F&& f) const {
        const Index n = logits.cols();
        for_turns(call, logits.rows(), n, Neighbours<S>::scratch_size(n), [&](Index t, S* scratch) {
            const S* z = row_data(logits, t);
            const Index first = routing.first(t), last = routing.first(t + 1);
            if (first == last) return;
            Neighbours<S> near(n, z, epsilon, scratch);
            const bool is_broken = has_nan(n, z);
            for (Index i = first; i < last; ++i) {
                const Index best = is_broken ? -1 : near.look();
                f(t, i, is_broken ? nullptr : &near, best);
                near.take(routing.assignments()[at(i)].expert);
            }
        });
    }
};

}  // namespace detail

/// The gate that SparseMixer describes. For slots i = 1 .. k, z the logits [E]:
///
///     v_i    = max of z_j over experts j that slots before have not taken
///     near_i = { j not taken : (v_i - z_j) / max(|z_j|, |v_i|) <= 2 epsilon }
///     q_i    = softmax(z[near_i])
///     e_i    = the best; in training a draw from q_i, by Gumbel samples added to z
///     w_i    = r q_i[e_i]     r = 1; in training, if e_i is not the best, 1 or 0.3333 for one draw
///                             in four or the other three
///
/// Weights do not sum to 1: most often each is exactly 1, since nobody else is near. The gradient
/// of w_i is that of q_i[e_i], nothing through r or the choice: exact at inference, and in training
/// Heun's third-order estimate of the gradient of the expected output,
///
///     dz_j = dw_i q_i[e_i] (1[j = e_i] - q_i[j])
///
/// What is near does not change when logits are multiplied by a positive number, it does when one
/// is added to them. An expert in a replayed routing that is not near weighs 0. Null experts weigh
/// 0. Ties go to the lower index; -inf is never chosen; a row that holds a NaN chooses its best
/// with NaN weights. Context::noise: [2 k, T, E], for each slot Gumbel samples and then, in the
/// column of the expert drawn, the uniform one that r = 1 if it is above 0.75.
///
/// Published code also multiplies the layer's input by U(1 - epsilon, 1 + epsilon) in training;
/// that is not the gate's to do.
template <class S>
class SparseMixerModule : public TokenGate<S, SparseMixerModule<S>> {
    using Base = TokenGate<S, SparseMixerModule>;
    friend Base;

public:
    static constexpr bool multiplies_scores = false;  // its weights are not CombineRule's
    static constexpr bool fixed_count = true;
    using Base::num_experts;

    SparseMixerModule() = default;
    /// @throws std::invalid_argument if a setting is out of range
    SparseMixerModule(const SparseMixer& settings, Index experts)
        : Base(experts), settings_(settings), rule_{settings.k, settings.epsilon, settings.sample} {
        if (settings.k < 1 || settings.k > experts)
            detail::fail(name, ": k is ", settings.k, ", it must be in [1, ", experts,
                         "], the experts of the layer");
        if (!(settings.epsilon >= 0 && std::isfinite(settings.epsilon)))
            detail::fail(name, ": epsilon is ", settings.epsilon, ", it must be finite and >= 0");
    }

    const SparseMixer& settings() const { return settings_; }

private:
    static constexpr const char* name = detail::SparseMixerRule::name;

    Index most_experts() const { return settings_.k; }
    const detail::SparseMixerRule& rule() const { return rule_; }

    auto choice(const Call<S>& call, Index tokens) const {
        return [this, drawn = rule_.samples(call, tokens, num_experts())](
                   Index t, const S* z, S* values, detail::Ranked<S>* ranked) {
            return detail::take_in_turn(num_experts(), z, settings_.k, settings_.epsilon,
                                        drawn ? &*drawn : nullptr, t, values, ranked);
        };
    }

    SparseMixer settings_;
    detail::SparseMixerRule rule_;
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_GATES_SPARSE_MIXER_HPP
