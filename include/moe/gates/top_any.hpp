// SPDX-License-Identifier: MIT
#ifndef MOE_GATES_TOP_ANY_HPP
#define MOE_GATES_TOP_ANY_HPP

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

#include <moe/core/concepts.hpp>
#include <moe/core/executor.hpp>
#include <moe/core/memory.hpp>
#include <moe/core/parameters.hpp>
#include <moe/core/views.hpp>
#include <moe/gates/score.hpp>
#include <moe/gates/select.hpp>
#include <moe/gates/tokens.hpp>
#include <moe/kernels/dispatch.hpp>

namespace moe::inline MOE_ABI {

template <class S>
class TopAnyModule;

/// Recipe for a gate that asks every expert on its own: those whose sigmoid exceeds a threshold of
/// theirs, which is learned, share the token equally. How many there are is not set anywhere; with
/// adaptive_experts.hpp neither is the number of experts. Meant for a router of scaled cosines.
///
/// Source: top-any gating of DynMoE (arXiv:2405.14297).
struct TopAny {
    double scale = 1;  ///< of the thresholds: the router's, 1 where a temperature starts at 1; > 0

    /// @throws std::invalid_argument if a setting is out of range
    template <class S>
    TopAnyModule<S> build(const Shape& shape, Random&) const {
        return TopAnyModule<S>(*this, shape.num_experts);
    }
};

/// The gate that TopAny describes.
///
///     u_e = m_e sigmoid(z_e),  thr_e = sigmoid(scale * a_e)     z [L] logits, a, m [1, E]
///     S_t = experts with u > thr                                none of them in training
///         = the best of z_t with m != 0, if there is none       at inference
///     w_e = 1 / k,  k = experts of the token that are not null
///
/// The weights are constant where they do not jump, so the gradient is straight through: as if
/// w_e = max(u_e - thr_e, 0) / k and k were constant,
///
///     du_e = dw_e / k,  dthr_e = -dw_e / k                      if u_e > thr_e, else 0
///
/// Thresholds a start at 0 and are trained. The mask m, state, is 1, or 0 for an expert that
/// is taken out.
///
/// Slots are in falling order of z_t, ties go to the lower index. A token without an expert gets an
/// output of 0. Experts at -inf are never selected; a row of -inf routes nowhere. A logit
/// that is NaN counts as chosen, and its row gets NaN weights; logits that m takes out are not
/// read. Null experts may be chosen, do not count in k, and weigh 0. Dropped assignments
/// keep their share. A routing that is replayed is weighed by its own k.
template <class S>
class TopAnyModule {
public:
    using Scalar = S;
    static constexpr bool skips_empty_gradients = true;

    TopAnyModule() = default;
    /// @throws std::invalid_argument if a setting is out of range or there are no experts
    TopAnyModule(const TopAny& settings, Index experts) : settings_(settings) {
        detail::check_experts(name, experts);
        if (!(settings.scale > 0 && std::isfinite(settings.scale)))
            detail::fail(name, ": scale is ", settings.scale, ", it must be finite and > 0");
        threshold = mask = Parameter<S>(1, experts);
        std::fill_n(mask.data(), mask.size(), S(1));
    }

    Parameter<S> threshold;  // [1, E] logits of the thresholds
    Parameter<S> mask;       // [1, E] 0: the expert is not there

    const TopAny& settings() const { return settings_; }
    Index num_experts() const { return mask.cols(); }

    /// @throws std::invalid_argument if the layer has another number of experts
    void check(const Shape& shape) const { detail::check_gate(name, num_experts(), shape); }

    /// Adds the assignments of every token.
    /// @param logits  [T, L]
    void select(In<S> logits, Routing& routing, const Call<S>& call) const {
        detail::check_gate_extents(name, logits.rows(), logits.cols(), routing, num_experts(),
                                   call.context);
        const Index n = num_experts();
        const S* limits = thresholds(call.ws);
        detail::select_each<S>(
            logits, routing, call, n,
            [this, n, limits, training = call.context.training](Index, const S* z, S* values,
                                                                detail::Ranked<S>* ranked) {
                S *u = values, *keys = values + n;
                kernels<S>().sigmoid(n, z, u);
                const auto is_there = [this](Index e) { return mask(0, e) != 0; };
                const Index found = detail::rank_where(
                    n, z, n, [&](Index e) { return is_there(e) && !(u[e] <= limits[e]); }, keys,
                    ranked);
                return found > 0 || training ? found
                                             : detail::rank_where(n, z, 1, is_there, keys, ranked);
            });
    }

    /// Sets the weights of the assignments that are there, whoever chose them.
    void weigh(In<S> logits, Routing& routing, const Call<S>& call) const {
        detail::check_gate_extents(name, logits.rows(), logits.cols(), routing, num_experts(),
                                   call.context);
        const auto assignments = routing.assignments();
        detail::for_tokens(call.ws.executor(), logits.rows(), 20.0, [&](Index t, int) {
            const Index first = routing.first(t), last = routing.first(t + 1);
            const S share = share_of(row_data(logits, t), routing, t, call.context);
            for (Index a = first; a < last; ++a) {
                const bool is_null = this->is_null(assignments[detail::at(a)], call.context);
                routing.set_weight(a, is_null && !std::isnan(share) ? 0 : double{share});
                routing.set_input_weight(a, 1);
            }
        });
    }

    /// Adds d(loss)/d(logits) to dlogits [T, L] and d(loss)/d(threshold) to grad, straight through.
    /// @param dweights  by assignment number
    /// @throws std::logic_error unless there is one gradient per assignment
    void backward(In<S> logits, const Routing& routing, const WeightGradients<S>& dweights,
                  Out<S> dlogits, TopAnyModule& grad, const Call<S>& call) const {
        detail::check_gate_extents(name, logits.rows(), logits.cols(), routing, num_experts(),
                                   call.context);
        const auto assignments = routing.assignments();
        if (dweights.output.size() != assignments.size())
            detail::fail<std::logic_error>(name, ": got ", dweights.output.size(),
                                           " gradients for ", assignments.size(), " assignments");
        const Index n = num_experts(), stride = detail::round_up_16(2 * n);
        const S* limits = thresholds(call.ws);
        Scratch& scratch = this->scratch(call.ws);
        scratch.scores.resize(detail::checked_product(call.ws.executor().concurrency(), stride));
        scratch.through.resize(routing.num_assignments());
        detail::for_tokens(
            call.ws.executor(), logits.rows(), 20.0 * static_cast<double>(n),
            [&](Index t, int worker) {
                const Index first = routing.first(t), last = routing.first(t + 1);
                if (first == last) return;
                const S* z = row_data(logits, t);
                S *dz = row_data(dlogits, t), *u = scratch.scores.data() + worker * stride,
                  *slope = u + n;
                const S share = share_of(z, routing, t, call.context);
                kernels<S>().sigmoid(n, z, u);
                detail::score_slopes(Score::sigmoid, n, z, slope);
                for (Index a = first; a < last; ++a) {
                    const Index e = assignments[detail::at(a)].expert;
                    const bool passes = u[e] > limits[e] && mask(0, e) != 0 &&
                                        !is_null(assignments[detail::at(a)], call.context);
                    const S through = passes || std::isnan(share) ? share * dweights[a] : S(0);
                    scratch.through[a] = through;
                    if (passes) dz[e] = std::fma(through * mask(0, e), u[e] * slope[e], dz[e]);
                }
                if (!std::isnan(share)) return;
                for (Index e = 0; e < n; ++e)
                    if (z[e] != -std::numeric_limits<S>::infinity() && mask(0, e) != 0)
                        dz[e] = share;
            });
        if (grad.threshold.empty()) return;
        for (Index a = 0; a < routing.num_assignments(); ++a) {
            const Index e = assignments[detail::at(a)].expert;
            const S slope = static_cast<S>(settings_.scale) * limits[e] * limits[n + e];
            grad.threshold(0, e) = std::fma(-scratch.through[a], slope, grad.threshold(0, e));
        }
    }

    void reserve(Index tokens, Index assignments, Workspace<S>& ws) const {
        detail::reserve_selection<S>(ws, tokens, num_experts(), num_experts());
        Scratch& scratch = this->scratch(ws);
        scratch.limits.resize(2 * num_experts());
        scratch.scores.resize(detail::checked_product(ws.executor().concurrency(),
                                                      detail::round_up_16(2 * num_experts())));
        scratch.through.resize(assignments);
    }
    /// Bytes of workspace.
    Index workspace_bytes(Index tokens, Index assignments, Keep, int workers) const {
        const Index n = num_experts();
        return detail::selection_bytes<S>(tokens, n, n, workers) +
               (2 * n + workers * detail::round_up_16(2 * n) + assignments) *
                   static_cast<Index>(sizeof(S));
    }

    /// threshold; mask, state
    void visit_parameters(auto&& visit) {
        visit("threshold", threshold);
        visit("mask", mask, Role::state);
    }

private:
    static constexpr const char* name = "moe::TopAny";

    struct Scratch {
        Buffer<S> limits;   // [2, L] thr and 1 - thr
        Buffer<S> scores;   // [workers, 2 L]
        Buffer<S> through;  // [N] d(loss)/du of each assignment
    };
    static Scratch& scratch(Workspace<S>& ws) { return ws.template state<Scratch>(); }

    static bool is_null(const Assignment& assignment, const Context& context) {
        const auto expert = detail::at(assignment.expert);
        return expert < context.experts.size() && context.experts[expert].is_null;
    }

    /// [2, L] thr and 1 - thr, from now.
    const S* thresholds(Workspace<S>& ws) const {
        const Index n = num_experts();
        S* limits = scratch(ws).limits.resize(2 * n).data();
        for (Index e = 0; e < n; ++e) {
            limits[e] = static_cast<S>(settings_.scale) * threshold(0, e);
            limits[n + e] = -limits[e];
        }
        kernels<S>().sigmoid(2 * n, limits, limits);
        return limits;
    }

    /// 1 / k of a token; NaN if a logit that is read is NaN, 0 if k is.
    S share_of(const S* z, const Routing& routing, Index token, const Context& context) const {
        for (Index e = 0; e < num_experts(); ++e)
            if (std::isnan(z[e]) && mask(0, e) != 0) return z[e];
        Index count = 0;
        for (const Assignment& a : routing.of(token)) count += !is_null(a, context);
        return count == 0 ? S(0) : 1 / static_cast<S>(count);
    }

    TopAny settings_;
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_GATES_TOP_ANY_HPP
