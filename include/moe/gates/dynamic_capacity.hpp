// SPDX-License-Identifier: MIT
#ifndef MOE_GATES_DYNAMIC_CAPACITY_HPP
#define MOE_GATES_DYNAMIC_CAPACITY_HPP

#include <algorithm>
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
class DynamicCapacityModule;

/// Recipe for the gate of Uni-MoE 2.0: as many experts as the probability p takes, nearly equal
/// weights for them, and a few fixed experts that every token gets and weighs for itself.
///
/// Its experts are columns of one router, in this order: real ones, null ones, fixed ones. What the
/// model calls null keeps its share of the weight and returns 0, as moe::Zero does:
///
///     moe::Layer{config, moe::LinearRouter{}, moe::DynamicCapacity{.num_fixed = 2},
///                moe::Swiglu{.count = 4, .ffn_dim = 1408}, moe::Zero{.count = 1},
///                moe::Swiglu{.count = 2, .ffn_dim = 704}}
///
/// Source: Uni-MoE 2.0 (arXiv:2511.12609) and its code.
struct DynamicCapacity {
    double p = 0.7;        ///< 1 or more: every expert; 0 or less: k experts
    Index num_fixed = 0;   ///< experts that every token gets, the last of the layer; below E
    Index k = 1;           ///< dynamic experts per token where p is 0, at least 1
    double jitter = 0.01;  ///< an expert is near within 2 jitter of the best one's size; >= 0
    /// Whether training draws experts near the best, as SparseMixer does (an option of the code).
    bool sample = false;

    /// @throws std::invalid_argument if a setting is out of range
    template <class S>
    DynamicCapacityModule<S> build(const Shape& shape, Random&) const {
        return DynamicCapacityModule<S>(*this, shape.num_experts);
    }
};

namespace detail {

/// Weights of DynamicCapacity.
struct DynamicCapacityRule {
    static constexpr const char* name = "moe::DynamicCapacity";
    static constexpr Placement placement = Placement::output;
    static constexpr double epsilon = 1e-6;

    Index num_dynamic = 0;
    double jitter = 0.01;
    bool sample = false;

    /// The samples of a call in which choices are drawn.
    template <class S>
    std::optional<Samples> samples(const Call<S>& call, Index tokens, Index experts) const {
        if (!sample || !call.context.training) return std::nullopt;
        return Samples(name, call, tokens, experts, 2 * num_dynamic);
    }

    template <class S, class Normalizes>
    void weigh(In<S> logits, Routing& routing, const Call<S>& call, Normalizes&&) const {
        each_token(logits, routing, call, [&](Token<S>& token) {
            const Shares<S> shares = evaluate(token);
            for (Index i = 0; i < token.count; ++i) {
                S w = is_dynamic(token.list[i]) ? token.part[i] * shares.mass : token.all[i];
                if (token.is_broken) w = std::numeric_limits<S>::quiet_NaN();
                if (left_out(token.list[i], call.context)) w = 0;
                routing.set_weight(token.first + i, static_cast<double>(w));
                routing.set_input_weight(token.first + i, 1);
            }
        });
    }

    template <class S, class Normalizes>
    void backward(In<S> logits, const Routing& routing, const WeightGradients<S>& dweights,
                  Out<S> dlogits, const Call<S>& call, Normalizes&&) const {
        const auto given = gradients_at<S>(placement, dweights, routing, logits, dlogits);
        each_token(logits, routing, call, [&](Token<S>& token) {
            S* dz = row_data(dlogits, token.number);
            if (token.is_broken) return fill_nan(logits.cols(), token.z, dz);
            const Shares<S> shares = evaluate(token);
            add_gradient(token, shares, given.data() + token.first, dz);
        });
    }

    /// Room for tokens with up to `longest` assignments.
    template <class S>
    static void reserve(Workspace<S>& ws, Index n, Index longest) {
        reserve_turns(ws, scratch_size<S>(n, longest));
    }
    template <class S>
    static Index bytes(Index n, Index longest, Index workers) {
        return turns_bytes<S>(scratch_size<S>(n, longest), workers);
    }

private:
    template <class S>
    static Index scratch_size(Index n, Index longest) {
        return Neighbours<S>::scratch_size(n) + 3 * longest;
    }

    /// One token: what it is given, and what evaluate() leaves.
    template <class S>
    struct Token {
        Index number, first, count;
        const S* z;              // [E]
        const Assignment* list;  // [count]
        bool is_broken;          // z holds a NaN
        const Context& context;
        const Samples* drawn;
        S* near;   // scratch of the neighbours
        S* part;   // [count] b / (sum of b + epsilon), 0 for fixed experts
        S* all;    // [count] softmax of z over the list
        S* slope;  // [count] d(loss)/db
    };
    template <class S>
    struct Shares {
        S q = 1;     ///< sum of b + epsilon
        S mass = 1;  ///< of dynamic experts in `all`
    };

    template <class S, class F>
    void each_token(In<S> logits, const Routing& routing, const Call<S>& call, F&& f) const {
        const Index tokens = logits.rows(), n = logits.cols();
        Index longest = 0;
        for (Index t = 0; t < tokens; ++t)
            longest = std::max(longest, routing.first(t + 1) - routing.first(t));
        const auto drawn = samples(call, tokens, n);
        for_turns(call, tokens, n, scratch_size<S>(n, longest), [&](Index t, S* scratch) {
            S* lists = scratch + Neighbours<S>::scratch_size(n);
            Token<S> token{.number = t,
                           .first = routing.first(t),
                           .count = routing.first(t + 1) - routing.first(t),
                           .z = row_data(logits, t),
                           .list = routing.of(t).data(),
                           .is_broken = has_nan(n, row_data(logits, t)),
                           .context = call.context,
                           .drawn = drawn ? &*drawn : nullptr,
                           .near = scratch,
                           .part = lists,
                           .all = lists + longest,
                           .slope = lists + 2 * longest};
            if (token.count > 0) f(token);
        });
    }

    bool is_dynamic(const Assignment& a) const { return a.expert < num_dynamic; }
    static bool left_out(const Assignment& a, const Context& context) {
        return (a.dropped != Dropped::no && a.dropped != Dropped::pass_through) ||
               is_null(a, context);
    }

    /// f(i, neighbours, best one left, place among the dynamic) for every dynamic assignment.
    template <class S, class F>
    void each_choice(const Token<S>& token, F&& f) const {
        Neighbours<S> near(num_dynamic, token.z, jitter, token.near);
        Index turn = 0;
        for (Index i = 0; i < token.count; ++i) {
            if (!is_dynamic(token.list[i])) continue;
            const Index best = near.look();
            f(i, near, best, turn++);
            near.take(token.list[i].expert);
        }
    }

    /// Fills part and all.
    template <class S>
    Shares<S> evaluate(Token<S>& token) const {
        Shares<S> shares;
        if (token.is_broken) return shares;
        S d = 0;
        std::fill_n(token.part, token.count, S(0));
        each_choice(token, [&](Index i, const Neighbours<S>& near, Index best, Index turn) {
            const Assignment& a = token.list[i];
            if (left_out(a, token.context)) return;
            S factor = 1;
            if (token.drawn != nullptr && turn < num_dynamic)
                factor = midpoint_factor<S>(
                    a.expert == best,
                    token.drawn->uniform(token.number, a.expert, midpoint_draw(turn)));
            token.part[i] = factor * near.q(a.expert);
            d = std::fma(factor, near.q(a.expert), d);
        });
        shares.q = d + static_cast<S>(epsilon);
        for (Index i = 0; i < token.count; ++i) token.part[i] /= shares.q;

        for (Index i = 0; i < token.count; ++i) {
            const Assignment& a = token.list[i];
            token.all[i] = left_out(a, token.context) ? -std::numeric_limits<S>::infinity()
                                                      : token.z[a.expert];
        }
        kernels<S>().softmax(token.count, token.all, token.all);
        bool has_fixed = false;
        S mass = 0;
        for (Index i = 0; i < token.count; ++i) {
            if (is_dynamic(token.list[i]))
                mass += token.all[i];
            else
                has_fixed = true;
        }
        if (has_fixed) shares.mass = mass;
        return shares;
    }

    /// With g the gradients at the weights, G = all, M = mass and r = part:
    ///
    ///     dM = sum of g r,  dG = dM or, of a fixed expert, g,  dz = G (dG - sum of G dG)
    ///     db = (g M - sum of g M r) / q,  and from b to z as Neighbours says
    template <class S>
    void add_gradient(Token<S>& token, const Shares<S>& shares, const S* g, S* dz) const {
        S by_mass = 0, c = 0;
        for (Index i = 0; i < token.count; ++i)
            if (!left_out(token.list[i], token.context))
                by_mass = std::fma(g[i], token.part[i], by_mass);
        const auto at_all = [&](Index i) { return is_dynamic(token.list[i]) ? by_mass : g[i]; };
        for (Index i = 0; i < token.count; ++i)
            if (!left_out(token.list[i], token.context)) c = std::fma(token.all[i], at_all(i), c);
        const S m = by_mass * shares.mass;
        for (Index i = 0; i < token.count; ++i) {
            const Index e = token.list[i].expert;
            const bool is_out = left_out(token.list[i], token.context) ||
                                token.z[e] == -std::numeric_limits<S>::infinity();
            token.slope[i] = is_out ? S(0) : std::fma(g[i], shares.mass, -m) / shares.q;
            if (!is_out) dz[e] = std::fma(token.all[i], at_all(i) - c, dz[e]);
        }
        each_choice(token, [&](Index i, const Neighbours<S>& near, Index, Index) {
            near.add_gradient(token.list[i].expert, token.slope[i], dz);
        });
    }
};

}  // namespace detail

/// The gate that DynamicCapacity describes. z are the logits [E], the first of them, z_d, of the
/// dynamic experts, real and null:
///
///     n    = the fewest experts with c_n >= p, c_j the sum of the j largest of softmax(z_d)
///     e_i  = the best of z_d that e_1 .. e_{i-1} have left, i = 1 .. n
///     b_i  = q_i[e_i], the share of e_i in the softmax of those nearly as good; see SparseMixer
///     r_i  = b_i / (sum of b + 1e-6)
///     G    = softmax of z over e_1 .. e_n and the fixed experts
///     w_i  = r_i * sum of G over e_1 .. e_n
///     w_f  = G_f of a fixed expert
///
/// Mostly b is 1, so that dynamic experts share their mass equally. A token's weights sum to 1 to
/// within 1e-6, those of null experts included. Assignments that are dropped, for example by a
/// capacity limit around this gate, weigh 0 and leave their share to the others; so do moe::Null
/// experts. The gradient is exact with n and e as constants. With `sample`, training draws e_i from
/// q_i and multiplies b_i by 1 or 0.3333, which the gradient takes for 1, as in SparseMixer.
///
/// Ties go to the lower index, -inf is never chosen. Slots are e_1 .. e_n, then fixed experts. A
/// row that holds a NaN gets all dynamic experts and NaN weights. Where rounding keeps every sum
/// below p, all dynamic experts are taken (the published code then takes none). Padding gets no
/// fixed experts either. The code's jitter of the router's input is not the gate's to do.
///
/// context.dial.p and p_per_sequence replace p for a call. Context::noise: [2 n, T, E] with n all
/// dynamic experts, for each choice the two that SparseMixer says.
template <class S>
class DynamicCapacityModule : public TokenGate<S, DynamicCapacityModule<S>> {
    using Base = TokenGate<S, DynamicCapacityModule>;
    friend Base;

public:
    static constexpr bool multiplies_scores = false;  // its weights are not CombineRule's
    using Base::num_experts;
    static constexpr bool reads_p = true;

    DynamicCapacityModule() = default;
    /// @throws std::invalid_argument if a setting is out of range
    DynamicCapacityModule(const DynamicCapacity& settings, Index experts)
        : Base(experts),
          settings_(settings),
          rule_{experts - settings.num_fixed, settings.jitter, settings.sample} {
        if (settings.num_fixed < 0 || settings.num_fixed >= experts)
            detail::fail(name, ": num_fixed is ", settings.num_fixed, ", it must be in [0, ",
                         experts - 1, "], fewer than the experts of the layer");
        if (settings.k < 1 || settings.k > num_dynamic())
            detail::fail(name, ": k is ", settings.k, ", it must be in [1, ", num_dynamic(),
                         "], the experts that are not fixed");
        if (!(settings.jitter >= 0 && std::isfinite(settings.jitter)))
            detail::fail(name, ": jitter is ", settings.jitter, ", it must be finite and >= 0");
        check_p("p", settings.p);
    }

    const DynamicCapacity& settings() const { return settings_; }
    /// Experts that are chosen; those after them are fixed.
    Index num_dynamic() const { return rule_.num_dynamic; }

private:
    static constexpr const char* name = detail::DynamicCapacityRule::name;

    Index most_experts() const { return num_experts(); }
    const detail::DynamicCapacityRule& rule() const { return rule_; }

    static void check_p(const char* field, double p) {
        if (std::isnan(p)) detail::fail(name, ": ", field, " is not a number");
    }

    auto choice(const Call<S>& call, Index tokens) const {
        const auto p = detail::dialled<double>(
            name, "dial.p_per_sequence", call.context.dial.p.value_or(settings_.p),
            call.context.dial.p_per_sequence, call.context, tokens);
        p.for_each("dial.p", "dial.p_per_sequence", check_p);
        return [this, p, drawn = rule_.samples(call, tokens, num_experts())](
                   Index t, const S* z, S* values, detail::Ranked<S>* ranked) {
            Index count = rank_up_to(p(t), z, values, ranked);
            if (drawn)
                count = detail::take_in_turn(num_dynamic(), z, count, settings_.jitter, &*drawn, t,
                                             values, ranked);
            for (Index e = num_dynamic(); e < num_experts(); ++e)
                if (z[e] != -std::numeric_limits<S>::infinity())
                    ranked[count++] = {z[e], static_cast<std::int32_t>(e)};
            return count;
        };
    }

    /// The best dynamic experts, as many as p wants.
    Index rank_up_to(double p, const S* z, S* probabilities, detail::Ranked<S>* ranked) const {
        const Index n = num_dynamic();
        if (p <= 0) return detail::rank_by_index(n, z, settings_.k, ranked);
        const Index found = detail::rank_by_index(n, z, n, ranked);
        if (p >= 1 || static_cast<S>(p) >= 1) return found;
        kernels<S>().softmax(n, z, probabilities);
        double sum = 0;
        for (Index j = 0; j < found; ++j) {
            sum += static_cast<double>(probabilities[ranked[j].index]);
            if (static_cast<S>(sum) >= static_cast<S>(p)) return j + 1;
        }
        return found;
    }

    DynamicCapacity settings_;
    detail::DynamicCapacityRule rule_;
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_GATES_DYNAMIC_CAPACITY_HPP
