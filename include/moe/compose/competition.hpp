// SPDX-License-Identifier: MIT
#ifndef MOE_COMPOSE_COMPETITION_HPP
#define MOE_COMPOSE_COMPETITION_HPP

#include <algorithm>
#include <cstddef>
#include <utility>

#include <moe/compose/contest.hpp>
#include <moe/core/error.hpp>
#include <moe/core/routing.hpp>
#include <moe/core/views.hpp>
#include <moe/core/workspace.hpp>
#include <moe/frozen.hpp>
#include <moe/layer.hpp>
#include <moe/losses/loss.hpp>

namespace moe::inline MOE_ABI {

/// Settings of Competition.
struct CompetitionRule {
    Index k = 0;           ///< experts that win a token, 1 to E; required
    double frequency = 0;  ///< share of the training calls that compete, 0 to 1
    /// How much of the score is the router's logit, 0 to 1. Published: 0, or 0.5.
    double logit_share = 0;

    /// @throws std::invalid_argument if a setting is out of range
    void check(Index num_experts) const {
        const char* const who = "moe::CompetitionRule";
        if (k < 1 || k > num_experts)
            detail::fail(who, ": k is ", k, ", it must be in [1, ", num_experts,
                         "], the experts of the layer; set it: moe::CompetitionRule{.k = 2}");
        if (!(frequency >= 0 && frequency <= 1))
            detail::fail(who, ": frequency is ", frequency,
                         ", it must be in [0, 1]; 0: the router always decides");
        if (!(logit_share >= 0 && logit_share <= 1))
            detail::fail(who, ": logit_share is ", logit_share,
                         ", it must be in [0, 1]; 0: experts are judged by their outputs alone");
    }
};

/// A Layer whose router learns from what experts have to say. In some of the training calls every
/// expert works on every token, and those that answer loudest win it:
///
///     score(t, e) = (1 - logit_share) |expert_e(x_t)| + logit_share z(t, e)
///     y_t         = sum over the k best e of w(t, e) expert_e(x_t)
///     w           = softmax over those k scores
///
/// In all other calls, and without training always, it is the Layer of its router and gate, bit for
/// bit. What the contest says is taught to the router by competition_loss(), so that it need not be
/// held at inference. For training against experts that all learn the same.
///
///     moe::Competition layer{config, moe::CompetitionRule{.k = 2, .frequency = 0.1},
///                            moe::LinearRouter{}, moe::TopK{.k = 2}, experts};
///     layer.forward(x, y, ws, context);
///     moe::competition_loss(ws, 5e-3);         // 0 if the call did not compete
///     layer.backward(x, dy, dx, grad, ws, context);
///
/// Which calls compete depends on the context's seed, stream and step alone: all parts of a split
/// batch do what the whole would. After a contest ws.routing() holds the winners, best first, with
/// their weights; ties go to the lower expert, an expert at -inf (masked, padding, not allowed)
/// never wins, null experts win with weight 0. dial.k counts here too. The gate is not asked, and
/// gets no gradient; the experts get theirs through their scores also, 0 where an output is 0.
///
/// A contest costs E + k expert rows per token forward: all experts, keeping only lengths, then the
/// winners, as a Layer would.
///
/// Source: Pham et al., "CompeteSMoE" (arXiv:2402.02526); the code is FMoEOpt of
/// rachtsy/MomentumSMoE.
template <class S, class R, class G, class... Groups>
class Competition {
public:
    using Scalar = S;
    using LayerType = Layer<S, R, G, Groups...>;

    /// Holds nothing; a gradient like this is not wanted.
    Competition() = default;

    /// @throws std::invalid_argument if a setting is out of range or the parts do not fit
    explicit Competition(const Config& config, const CompetitionRule& rule, const R& router,
                         const G& gate, const Groups&... groups)
        : layer_(config, router, gate, groups...), rule_(rule) {
        rule.check(num_experts());
        const auto& head = layer_.head();
        if (head.num_logits() != num_experts() || head.expert_logits() != num_experts())
            detail::fail("moe::Competition: the gate takes ", head.num_logits(),
                         " logits per token, of which ", head.expert_logits(),
                         " are experts' own; it must take one for each of the ", num_experts(),
                         " experts and no other, as moe::TopK does");
        contest_ = detail::Contest<S>(rule.k, rule.logit_share, num_experts());
    }

    const CompetitionRule& rule() const { return rule_; }
    const Config& config() const { return layer_.config(); }
    Index model_dim() const { return layer_.model_dim(); }
    Index output_dim() const { return layer_.output_dim(); }
    Index num_experts() const { return layer_.num_experts(); }
    /// Whether no token's choice depends on what later tokens of the batch hold: a contest is one
    /// of experts for a token, so that of the layer counts.
    bool is_causal() const { return layer_.is_causal(); }
    /// The same parameters as a layer that never competes; what freeze() packs.
    const LayerType& layer() const { return layer_; }
    LayerType& layer() { return layer_; }

    /// Whether a call with this workspace and context competes.
    bool competes(Workspace<S>& ws, const Context& context) const {
        return context.training &&
               Call<S>{context, ws.child(contest_node)}.random().uniform(0, 0) < rule_.frequency;
    }

    /// Inference in one line; allocates the result and a workspace.
    template <class X>
    Matrix<S> operator()(const X& x, const Context& context = {}) const {
        Workspace<S> ws;
        ws.keep(Keep::nothing);
        Matrix<S> y(x.rows(), output_dim());
        forward(x, y, ws, context);
        return y;
    }

    /// y = layer(x).
    /// @param x  [T, D]; T may be 0   @param y  [T, O], overwritten; must not overlap x
    /// @throws std::invalid_argument if an extent is wrong; y and ws are then unspecified
    template <class X, class Y>
    void forward(const X& x, Y&& y, Workspace<S>& ws, const Context& context = {}) const {
        auto& record = ws.template state<detail::ContestRecord>();
        record.was_held = false;
        if (!competes(ws, context)) return layer_.forward(x, std::forward<Y>(y), ws, context);
        layer_.route(x, ws, context);
        contest_.forward(layer_.bank(), detail::readable<S>(x),
                         detail::writable<S>(std::forward<Y>(y)), ws, ws.child(contest_node),
                         context);
        record.was_held = true;
    }

    /// The gradients of forward() and of the losses added to ws.dlogits() since.
    /// @param dy    [T, O] d(loss)/dy
    /// @param dx    [T, D], overwritten with d(loss)/dx
    /// @param grad  made by zeros_like(layer); **added** to
    /// @throws std::logic_error if ws does not hold what forward() of this layer, x and context
    ///         left
    /// @throws std::invalid_argument if an extent is wrong or grad is of another layer
    template <class X, class DY, class DX>
    void backward(const X& x, const DY& dy, DX&& dx, Competition& grad, Workspace<S>& ws,
                  const Context& context = {}) const {
        auto& record = ws.template state<detail::ContestRecord>();
        if (!record.was_held)
            return layer_.backward(x, dy, std::forward<DX>(dx), grad.layer_, ws, context);
        const auto dx_ref = detail::writable<S>(std::forward<DX>(dx));
        contest_.backward(layer_.bank(), detail::readable<S>(x), detail::readable<S>(dy), dx_ref,
                          grad.layer_.bank(), ws, ws.child(contest_node), context);
        // The gate chose nothing: it gets no assignments to send gradients through.
        record.nothing.reset(x.rows(), num_experts());
        record.nothing.group();
        std::swap(ws.edit_routing(), record.nothing);
        layer_.head().route_backward(detail::readable<S>(x), {}, dx_ref, grad.layer_.head(), ws,
                                     context);
        std::swap(ws.edit_routing(), record.nothing);
    }
    /// Only dx: parameter gradients are not computed.
    template <class X, class DY, class DX>
    void backward(const X& x, const DY& dy, DX&& dx, NoGradient, Workspace<S>& ws,
                  const Context& context = {}) const {
        backward(x, dy, std::forward<DX>(dx), ws.template state<Competition>(), ws, context);
    }

    /// Rooms for `tokens` tokens and `assignments` assignments; see Workspace::reserve.
    void reserve(Index tokens, Index assignments, Workspace<S>& ws) const {
        layer_.reserve(tokens, assignments, ws);
        ws.template state<detail::ContestRecord>().nothing.reserve(tokens, num_experts(), 0);
        if (ws.keeps()) ws.template state<Competition>();  // for no_gradient
        if (rule_.frequency > 0)
            contest_.reserve(layer_.bank(), tokens, assignments, ws.child(contest_node));
    }

    /// Bytes of those rooms, for a call by `workers` threads. A part that does not say counts as 0.
    Index workspace_bytes(Index tokens, Index assignments, Keep keep, int workers) const {
        const auto& head = layer_.head();
        Index bytes = head.workspace_bytes(tokens, assignments, keep, workers) +
                      layer_.bank().workspace_bytes(tokens, assignments, keep, workers) +
                      Routing::bytes(tokens, num_experts(), 0);
        if (keep != Keep::nothing)  // gradients at the layer's weights
            bytes += (head.weighs_input() ? 2 : 1) * assignments * static_cast<Index>(sizeof(S));
        if (rule_.frequency > 0)
            bytes += contest_.workspace_bytes(layer_.bank(), tokens, assignments, keep, workers);
        return bytes;
    }

    /// router.*, gate.*, experts.<e>.*, shared.<i>.*
    void visit_parameters(auto&& visit) { layer_.visit_parameters(visit); }
    void own_gradients() { layer_.own_gradients(); }

private:
    static constexpr std::size_t contest_node = detail::bank_node + 1;  // after the layer's

    LayerType layer_;
    CompetitionRule rule_;
    detail::Contest<S> contest_;
};

template <class R, class G, class... Groups>
explicit Competition(Config, CompetitionRule, R, G, Groups...)
    -> Competition<float, R, G, Groups...>;

/// A layer of another scalar: make_competition<double>(config, rule, router, gate, experts).
template <class S, class R, class G, class... Groups>
Competition<S, R, G, Groups...> make_competition(const Config& config, const CompetitionRule& rule,
                                                 const R& router, const G& gate,
                                                 const Groups&... groups) {
    return Competition<S, R, G, Groups...>(config, rule, router, gate, groups...);
}

/// Packs the weights of its layer for inference, where experts do not compete: see freeze() of a
/// Layer.
template <class S, class R, class G, class... Groups>
auto freeze(const Competition<S, R, G, Groups...>& layer, const FreezeOptions& options = {}) {
    return freeze(layer.layer(), options);
}
template <class S, class R, class G, class... Groups>
auto freeze(Competition<S, R, G, Groups...>&& layer, const FreezeOptions& options = {}) {
    return freeze(std::move(layer.layer()), options);
}

namespace detail {

template <class S>
Loss competition_loss(const LossInput<S>& in, LossScratch<S>& scratch) {
    in.check("competition_loss");
    const Index experts = in.logits.cols(), tokens = in.count(0, in.logits.rows());
    if (in.routing.num_experts() != experts)
        fail("moe::competition_loss: the routing is for ", in.routing.num_experts(),
             " experts, logits has ", experts, " columns");
    if (tokens == 0) return {"competition", 0};
    const KernelTable<S>& kernel = kernels<S>();
    S* const p = scratch.scores.resize(experts).data();
    S* const error = scratch.gradient.resize(experts).data();
    const double count = static_cast<double>(tokens) * static_cast<double>(experts);
    const S factor = static_cast<S>(2 * in.weight / count);
    double sum = 0;
    for (Index t = 0; t < in.logits.rows(); ++t) {
        if (!in.counts(t)) continue;
        kernel.softmax(experts, in.row(t), p);
        std::copy_n(p, experts, error);
        for (const Assignment& a : in.routing.of(t)) error[a.expert] -= static_cast<S>(a.weight);
        sum += static_cast<double>(kernel.dot(experts, error, error));
        if (in.weight == 0) continue;
        const S mean = kernel.dot(experts, p, error);
        for (Index e = 0; e < experts; ++e) error[e] = p[e] * (error[e] - mean);
        kernel.axpy(experts, factor, error, in.drow(t));
    }
    return {"competition", sum / count};
}

}  // namespace detail

/// Teaches the router who wins a competition: the mean squared distance of its probabilities from
/// the winners' weights, expert by expert.
///
///     value = mean over tokens and experts of (p(e) - w(e))^2,  p = softmax(z)
///     dz(e) = 2 weight / (T E) * p(e) (p(e) - w(e) - sum_i p(i) (p(i) - w(i)))
///
/// where w(e) is 0 for experts that did not win. The winners' weights are what is taught: no
/// gradient reaches the experts from here. (The published code has the router's probabilities in
/// the order of its own choice and the winners' by number, and compares different experts.)
///
/// @param logits   [T, E]
/// @param routing  of the same tokens: the winners and their weights
/// @param weight   of the loss
/// @param dlogits  [T, E], **added** to
/// @return the value without `weight`; see Loss
/// Source: Pham et al., "CompeteSMoE" (arXiv:2402.02526).
template <class X, class Y>
Loss competition_loss(const Eigen::DenseBase<X>& logits, const Routing& routing,
                      const Context& context, double weight, Y&& dlogits) {
    using S = typename X::Scalar;
    return detail::call_loss(detail::competition_loss<S>, logits, routing, context, weight,
                             std::forward<Y>(dlogits));
}

/// competition_loss of the batch that `ws` holds; 0 if that call of a Competition did not compete.
template <class S>
Loss competition_loss(Workspace<S>& ws, double weight) {
    const auto* const record = ws.template find<detail::ContestRecord>();
    if (record == nullptr || !record->was_held) return {"competition", 0};
    return detail::call_loss(detail::competition_loss<S>, ws, weight);
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_COMPOSE_COMPETITION_HPP
