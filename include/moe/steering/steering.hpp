// SPDX-License-Identifier: MIT
#ifndef MOE_STEERING_STEERING_HPP
#define MOE_STEERING_STEERING_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <moe/core/context.hpp>
#include <moe/core/error.hpp>
#include <moe/core/types.hpp>
#include <moe/steering/expert_scores.hpp>

namespace moe::inline MOE_ABI {

/// How a Steering counts.
struct SteeringSettings {
    /// What offsets are counted in; by default in standard deviations of the token's logits, so
    /// that 0.5 means as much in every layer (arXiv:2510.04694).
    OffsetUnit offset_unit = OffsetUnit::row_std;
    /// Whether factors multiply what experts return, or scores before they are normalised.
    MultiplierOrder multiplier_order = MultiplierOrder::after_normalization;
    Index k = 0;           ///< experts per token: more cannot be forced; 0: not known, not checked
    Index num_logits = 0;  ///< of the layer, at least E; 0: E
};

/// What is done to the experts of **one** layer from outside, call after call, while the layer
/// stays as it is: switch them off, force them, nudge their logits, multiply their weights.
///
///     off         logit -inf: never chosen, others take the place
///     forced      logit raised above those that are not forced: chosen for every token
///     offset o    z + o * std(z) or z + o: chosen more often, or less
///     factor f    whenever it is chosen, its weight is multiplied
///
///     Steering steer = Steering::of(layer);
///     steer.turn_off(3).force(5).offset(2, 0.5).multiply(7, 64);
///     layer.forward(x, y, ws, steer.on(context));
///
/// An expert is in one state, {normal, off, forced}, the last that was set; its offset and factor
/// are apart from it. More than k forced experts make a layer useless: the first k of them work for
/// every token, whatever it holds. With as many as k that is already so, but for the weights. A
/// softmax over all experts gives the share of one that is off to the others; scores that are their
/// own (sigmoid), or a softmax of those selected, leave tokens that did not use it as they are, bit
/// for bit.
///
/// The context of on() views this object: it must live, and stay unchanged, until the last thing
/// that is done with the call's workspace, which is why a temporary has neither on() nor anything
/// to set. Of one that changes nothing, on() gives the same context back.
///
/// Source: off and forced: arXiv:2502.11096; offsets in standard deviations (lambda = 0.5) and
/// forced as the hard variant: arXiv:2510.04694; factors (64): arXiv:2505.14681.
class Steering {
public:
    enum class State : std::uint8_t { normal, off, forced };

    /// @throws std::invalid_argument if a number is out of range
    explicit Steering(Index num_experts, const SteeringSettings& settings = {})
        : settings_(settings) {
        if (num_experts < 0)
            detail::fail(name, ": num_experts is ", num_experts, ", it must be >= 0");
        detail::check_choice(name, "offset_unit", settings.offset_unit, OffsetUnit::row_std);
        detail::check_choice(name, "multiplier_order", settings.multiplier_order,
                             MultiplierOrder::before_normalization);
        if (settings.k < 0)
            detail::fail(name, ": k is ", settings.k, ", it must be >= 0; 0 if it is not known");
        if (settings.num_logits != 0 && settings.num_logits < num_experts)
            detail::fail(name, ": num_logits is ", settings.num_logits, ", it must be at least ",
                         num_experts, ", one per expert; 0 if they are as many");
        const auto experts = static_cast<std::size_t>(num_experts);
        allowed_.resize(experts);
        forced_.resize(experts);
        factors_.resize(experts);
        offsets_.resize(std::max(experts, static_cast<std::size_t>(settings.num_logits)));
        reset();
    }
    /// For a layer, with its numbers of experts and logits.
    template <class Layer>
    static Steering of(const Layer& layer, SteeringSettings settings = {}) {
        settings.num_logits = layer.head().num_logits();
        return Steering(layer.num_experts(), settings);
    }

    Index num_experts() const { return static_cast<Index>(allowed_.size()); }
    const SteeringSettings& settings() const { return settings_; }
    State state(Index expert) const {
        const std::size_t e = at(expert);
        return allowed_[e] == 0 ? State::off : forced_[e] != 0 ? State::forced : State::normal;
    }

    /// @throws std::invalid_argument if there is no such expert, or, to force it, if k are forced
    ///         already
    Steering& turn_off(Index expert) & { return set(expert, State::off); }
    Steering& force(Index expert) & {
        if (settings_.k > 0 && state(expert) != State::forced && num_forced() >= settings_.k)
            detail::fail(name, "::force: ", num_forced(), " experts are forced already, k is ",
                         settings_.k, "; a token has no place for expert ", expert);
        return set(expert, State::forced);
    }
    Steering& turn_normal(Index expert) & { return set(expert, State::normal); }
    /// @param amount  finite, in SteeringSettings::offset_unit; 0: none
    /// @throws std::invalid_argument if it is not finite or there is no such expert
    Steering& offset(Index expert, double amount) & {
        check_finite("offset", amount);
        offsets_[at(expert)] = amount;
        return *this;
    }
    /// @param factor  finite; 1: none
    /// @throws std::invalid_argument if it is not finite or there is no such expert
    Steering& multiply(Index expert, double factor) & {
        check_finite("multiply", factor);
        factors_[at(expert)] = factor;
        return *this;
    }

    /// The same for those of a list that are in layer number `layer`, which is this one.
    /// @throws std::invalid_argument as above; nothing is changed then
    Steering& turn_off(std::span<const ExpertScore> experts, Index layer) & {
        return each(experts, layer, [](Steering& s, Index e) { s.turn_off(e); });
    }
    Steering& force(std::span<const ExpertScore> experts, Index layer) & {
        return each(experts, layer, [](Steering& s, Index e) { s.force(e); });
    }
    Steering& offset(std::span<const ExpertScore> experts, Index layer, double amount) & {
        return each(experts, layer, [amount](Steering& s, Index e) { s.offset(e, amount); });
    }
    Steering& multiply(std::span<const ExpertScore> experts, Index layer, double factor) & {
        return each(experts, layer, [factor](Steering& s, Index e) { s.multiply(e, factor); });
    }

    /// All normal, as new.
    void reset() {
        std::fill(allowed_.begin(), allowed_.end(), std::uint8_t{1});
        std::fill(forced_.begin(), forced_.end(), std::uint8_t{0});
        std::fill(offsets_.begin(), offsets_.end(), 0.0);
        std::fill(factors_.begin(), factors_.end(), 1.0);
    }

    /// The context of a call that is steered. What the context has per sequence is combined with
    /// it, as Dial says.
    /// @throws std::invalid_argument if the context sets for the whole call what is steered here,
    ///         counts what it has per sequence in another way, or sets a k below the number of
    ///         forced experts
    Context on(const Context& context = {}) const& {
        Context steered = context;
        if (std::find(allowed_.begin(), allowed_.end(), 0) != allowed_.end())
            set_view("allowed", steered.allowed, allowed_);
        if (num_forced() > 0) {
            set_view("forced", steered.forced, forced_);
            if (context.dial.k) check_dial(*context.dial.k);
            for (const Index k : context.dial.k_per_sequence) check_dial(k);
        }
        if (std::any_of(offsets_.begin(), offsets_.end(), [](double o) { return o != 0; })) {
            set_view("logit_offset", steered.logit_offset, offsets_);
            if (context.dial.offset_unit != settings_.offset_unit &&
                !context.dial.logit_offset_per_sequence.empty())
                fail_order("logit_offset_per_sequence", "offset_unit");
            steered.dial.offset_unit = settings_.offset_unit;
        }
        if (std::any_of(factors_.begin(), factors_.end(), [](double f) { return f != 1; })) {
            set_view("gate_multiplier", steered.gate_multiplier, factors_);
            if (context.dial.multiplier_order != settings_.multiplier_order &&
                !context.dial.gate_multiplier_per_sequence.empty())
                fail_order("gate_multiplier_per_sequence", "multiplier_order");
            steered.dial.multiplier_order = settings_.multiplier_order;
        }
        return steered;
    }
    Context on(const Context& context = {}) const&& = delete;  // would dangle

private:
    static constexpr const char* name = "moe::Steering";

    std::size_t at(Index expert) const {
        if (expert < 0 || expert >= num_experts())
            detail::fail(name, ": there is no expert ", expert, ", the layer has ", num_experts());
        return static_cast<std::size_t>(expert);
    }
    Index num_forced() const {
        return static_cast<Index>(std::count(forced_.begin(), forced_.end(), 1));
    }
    Steering& set(Index expert, State state) {
        const std::size_t e = at(expert);
        allowed_[e] = state == State::off ? 0 : 1;
        forced_[e] = state == State::forced ? 1 : 0;
        return *this;
    }
    /// f(a copy, expert) for each of the list; the copy's values are taken over at last.
    template <class F>
    Steering& each(std::span<const ExpertScore> experts, Index layer, F&& f) {
        Steering changed = *this;
        for (const ExpertScore& score : experts)
            if (score.layer == layer) f(changed, score.expert);
        return *this = changed;
    }

    static void check_finite(const char* field, double value) {
        if (!std::isfinite(value))
            detail::fail(name, "::", field, ": the number is ", value, ", it must be finite");
    }
    void check_dial(Index k) const {
        if (num_forced() > k)
            detail::fail(name, "::on: ", num_forced(), " experts are forced, a token has ", k,
                         " in this call");
    }
    template <class V>
    static void set_view(const char* field, std::span<const V>& view,
                         const std::vector<V>& values) {
        if (!view.empty())
            detail::fail(name, "::on: the context has ", field,
                         " of its own; set it in one place, or per token and sequence in the "
                         "context without this object");
        view = values;
    }
    [[noreturn]] static void fail_order(const char* field, const char* setting) {
        detail::fail(name, "::on: the context has dial.", field, " with another ", setting,
                     " than this object; one call has one");
    }

    SteeringSettings settings_;
    std::vector<std::uint8_t> allowed_, forced_;  // [E]
    std::vector<double> offsets_;                 // [L]
    std::vector<double> factors_;                 // [E]
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_STEERING_STEERING_HPP
