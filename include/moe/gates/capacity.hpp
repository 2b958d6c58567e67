// SPDX-License-Identifier: MIT
#ifndef MOE_GATES_CAPACITY_HPP
#define MOE_GATES_CAPACITY_HPP

#include <algorithm>
#include <cstddef>
#include <limits>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include <moe/core/concepts.hpp>
#include <moe/core/error.hpp>
#include <moe/core/hooks.hpp>
#include <moe/core/sequences.hpp>
#include <moe/gates/capacity_limit.hpp>
#include <moe/gates/capacity_order.hpp>
#include <moe/gates/next_choices.hpp>
#include <moe/gates/wrapper.hpp>

namespace moe::inline MOE_ABI {

/// How many assignments an expert takes, who goes first, and what becomes of the others. Without
/// it, layers are dropless.
struct Capacity {
    /// Tokens that share the places of an expert. The formula's T counts them, its N their
    /// assignments to experts that can be full; padding and what is dropped already is in neither.
    enum class Scope {
        batch,
        sequence,  ///< those of a sequence; needs Context::sequence_offsets
        group,     ///< runs of group_size tokens of the batch
    };
    using Priority = CapacityPriority;
    /// What becomes of an assignment for which there is no place.
    enum class Overflow {
        drop,  ///< it adds nothing
        /// It adds weight * x, not input_scale * x (Switch in Hugging Face transformers). Needs an
        /// output_dim that is model_dim.
        pass_through,
        /// The token gets the best other expert, by logits, that has a place, beside the dropped
        /// assignment: all those without a place try their next choice, then all the one after it
        /// (mesh-TF's "no token left behind")
        next_choice,
    };

    CapacityLimit limit{};
    /// For calls that are not training; unset: limit
    std::optional<CapacityLimit> inference_limit{};
    Scope scope = Scope::batch;
    Index group_size = 0;  ///< tokens, for Scope::group
    Priority priority = Priority::k_major;
    Overflow overflow = Overflow::drop;
    Index next_choices = 0;        ///< most other experts that are tried; 0: all
    Index unlimited_last = 0;      ///< so many experts at the end are never full and not in E
    Index experts_per_device = 1;  ///< runs of experts with one capacity together (DeepSeek-V2)
    /// Of the sequences of a training batch, drawn by the number of their first token: they are
    /// served before all others and lose nothing, though there be no place (DeepSeek-V2: 0.1)
    double exempt_fraction = 0;
};

/// A gate whose experts have a capacity: chooses as the inner gate does, then drops what is too
/// much with Dropped::capacity. Weights of what is left are the inner gate's: as before the drop,
/// or normalised over what is kept if that gate is built with normalize_kept_only. What passes
/// through counts as kept there.
///
///     C(e) = limit(T, N) of the scope;  kept: the first C(e) assignments to e by priority
///
/// Where positions are counted from, requests or kept assignments of earlier slots (both are
/// published), makes no difference: after C requests there is no place either way.
///
/// Of the priorities only token_major never looks at what later tokens choose, nor does C then if
/// the inner gate gives tokens equally many experts or the limit has a k of its own. k_major is the
/// same for gates that choose one expert, although is_causal() does not say so. A NaN comes last.
///
/// Sources: GShard (arXiv:2006.16668) algorithm 1, Switch (arXiv:2101.03961) section 2.2; see
/// CapacityLimit.
template <class S, class Inner>
class CapacityModule : public GateWrapper<S, Inner> {
    using Base = GateWrapper<S, Inner>;

public:
    static constexpr bool per_token = false;
    static constexpr bool skips_empty_gradients = Base::inner_skips_empty_gradients;

    CapacityModule() = default;
    /// @throws std::invalid_argument if a setting is out of range
    CapacityModule(Inner gate, const Capacity& settings, Index experts)
        : Base{std::move(gate)}, settings_(settings), num_experts_(experts) {
        using C = Capacity;
        settings.limit.check(name);
        if (settings.inference_limit) settings.inference_limit->check(name);
        detail::check_choice(name, "scope", settings.scope, C::Scope::group);
        detail::check_choice(name, "priority", settings.priority, C::Priority::random);
        detail::check_choice(name, "overflow", settings.overflow, C::Overflow::next_choice);
        if (settings.scope == C::Scope::group && settings.group_size < 1)
            detail::fail(name, ": group_size is ", settings.group_size,
                         ", it must be >= 1 tokens for Scope::group");
        if (settings.scope != C::Scope::group && settings.group_size != 0)
            detail::fail(name, ": group_size is ", settings.group_size,
                         ", but scope is not Scope::group; set it, or leave group_size 0");
        if (settings.next_choices < 0)
            detail::fail(name, ": next_choices is ", settings.next_choices, ", it must be >= 0");
        if (settings.overflow != C::Overflow::next_choice && settings.next_choices != 0)
            detail::fail(name, ": next_choices is ", settings.next_choices,
                         ", but overflow is not Overflow::next_choice; set it, or leave it 0");
        if (settings.unlimited_last < 0 || settings.unlimited_last >= std::max(experts, Index(1)))
            detail::fail(name, ": unlimited_last is ", settings.unlimited_last,
                         ", it must be in [0, ", experts, "), the experts of the layer");
        if (!(settings.exempt_fraction >= 0 && settings.exempt_fraction <= 1))
            detail::fail(name, ": exempt_fraction is ", settings.exempt_fraction,
                         ", it must be in [0, 1]; 0 exempts no sequence");
        if (settings.experts_per_device < 1 ||
            (experts - settings.unlimited_last) % settings.experts_per_device != 0)
            detail::fail(name, ": experts_per_device is ", settings.experts_per_device,
                         ", it must divide the ", experts - settings.unlimited_last,
                         " limited experts of the layer");
    }

    const Capacity& settings() const { return settings_; }
    Index num_experts() const { return num_experts_; }
    /// For batches of one size, which C depends on.
    bool is_causal() const {
        const auto is_fixed = [this](const CapacityLimit& limit) {
            return limit.k != 0 || limit.factor == 0 ||
                   (hooks::fixed_count<Inner> && settings_.unlimited_last == 0);
        };
        return settings_.priority == Capacity::Priority::token_major &&
               settings_.exempt_fraction == 0 &&
               settings_.overflow != Capacity::Overflow::next_choice && is_fixed(settings_.limit) &&
               is_fixed(settings_.inference_limit.value_or(settings_.limit)) &&
               hooks::is_causal(this->inner);
    }

    /// @throws std::invalid_argument if the inner gate does not fit, has no logits of experts where
    ///         those are compared, or if tokens cannot pass through
    void check(const Shape& shape) const {
        Base::check(shape);
        if (compares_logits() && num_expert_logits() == 0)
            detail::fail(name, ": the gate inside has ", shape.num_logits, " logits for ",
                         shape.num_experts,
                         " experts, none of which are the experts' own; take "
                         "Priority::probability and not Overflow::next_choice");
        if (settings_.overflow == Capacity::Overflow::next_choice &&
            !hooks::weighs_added_experts<Inner>)
            detail::fail(name,
                         ": overflow is next_choice, but the gate inside weighs none but its own "
                         "choices; take another Overflow");
        if (settings_.overflow == Capacity::Overflow::pass_through &&
            shape.output_dim != shape.model_dim)
            detail::fail(name, ": overflow is pass_through, but output_dim is ", shape.output_dim,
                         " and model_dim ", shape.model_dim, "; they must be equal");
    }

    /// Adds the assignments of every token, dropped ones with their reason.
    /// @throws std::invalid_argument if Scope::sequence, or Capacity::exempt_fraction in training,
    ///         lacks Context::sequence_offsets, or Priority::batch_prioritized
    ///         Context::token_importance where experts have no logits of their own
    void select(In<S> logits, Routing& routing, const Call<S>& call) const {
        detail::check_gate_context(call.context, logits.rows(), num_experts_);
        if (settings_.priority == Capacity::Priority::batch_prioritized &&
            call.context.token_importance.empty() && num_expert_logits() == 0)
            detail::fail(name,
                         ": token_importance is empty, batch_prioritized wants one per token "
                         "of a gate with ",
                         logits.cols(), " logits for ", routing.num_experts(),
                         " experts, none of which are the experts' own");
        if (exempts(call.context))
            detail::required_sequences(name, call.context.sequence_offsets, logits.rows());
        Base::select(logits, routing, call);
        routing.group();
        const CapacityLimit& limit = settings_.inference_limit && !call.context.training
                                         ? *settings_.inference_limit
                                         : settings_.limit;
        if (!(limit.factor < std::numeric_limits<double>::infinity())) return;
        if (settings_.priority == Capacity::Priority::probability) {
            Base::weigh(logits, routing, call);
            routing.group();
        }
        State& state = call.ws.template state<State>();
        state.refused.clear();
        state.next.added.clear();
        for_each_scope(call.context, logits.rows(), [&](Index first, Index last) {
            limit_scope(limit, first, last, logits.leftCols(num_expert_logits()), routing, call,
                        state);
        });
        const bool passes = settings_.overflow == Capacity::Overflow::pass_through;
        for (const Index a : state.refused)
            routing.set_dropped(a, passes ? Dropped::pass_through : Dropped::capacity);
        for (const auto& place : state.next.added) routing.add(place.token, place.expert);
        routing.group();
    }

    void reserve(Index tokens, Index assignments, Workspace<S>& ws) const {
        Base::reserve(tokens, assignments, ws);
        State& state = ws.template state<State>();
        state.order.requests.reserve(detail::at(assignments));
        state.refused.reserve(detail::at(assignments));
        state.free.reserve(detail::at(num_experts_));
        if (settings_.overflow == Capacity::Overflow::next_choice)
            state.next.reserve(tokens, assignments, num_experts_);
    }
    Index workspace_bytes(Index tokens, Index assignments, Keep keep, int workers) const {
        constexpr auto of_each =
            static_cast<Index>(sizeof(detail::CapacityOrder::Request) + sizeof(Index));
        const bool seeks = settings_.overflow == Capacity::Overflow::next_choice;
        return Base::workspace_bytes(tokens, assignments, keep, workers) +
               detail::checked_product(assignments, of_each) +
               num_experts_ * static_cast<Index>(sizeof(Index)) +
               (seeks ? detail::NextChoices::bytes(tokens, assignments, num_experts_) : 0);
    }

private:
    static constexpr const char* name = "moe::Capacity";

    struct State {
        detail::CapacityOrder order;
        std::vector<Index> refused;  // assignments without a place, first who goes first
        std::vector<Index> free;     // [E] places left, of a device at its first expert
        detail::NextChoices next;
    };

    Index num_expert_logits() const { return hooks::expert_logits(this->inner, num_experts_); }
    bool compares_logits() const {
        return settings_.priority == Capacity::Priority::logit ||
               settings_.priority == Capacity::Priority::score ||
               settings_.overflow == Capacity::Overflow::next_choice;
    }

    bool exempts(const Context& context) const {
        return context.training && settings_.exempt_fraction > 0;
    }
    /// Whether nothing of a token's sequence is refused.
    bool is_exempt(Index token, const Call<S>& call) const {
        if (!exempts(call.context)) return false;
        const Index first =
            call.context.sequence_offsets[detail::at(call.context.sequence_of(token))];
        // Beside the draws of Priority::random, which are those of experts.
        return call.random().uniform(call.token(first), num_experts_) < settings_.exempt_fraction;
    }

    template <class F>
    void for_each_scope(const Context& context, Index tokens, F&& f) const {
        if (settings_.scope == Capacity::Scope::sequence) {
            const auto runs = detail::required_sequences(name, context.sequence_offsets, tokens);
            for (Index run = 0; run < runs.count(); ++run) f(runs.first(run), runs.last(run));
        } else {
            const bool whole = settings_.scope != Capacity::Scope::group;
            const Index size = whole ? std::max(tokens, Index(1)) : settings_.group_size;
            for (Index t = 0; t < tokens; t += size) f(t, std::min(t + size, tokens));
        }
    }

    Index limited(Index experts) const { return experts - settings_.unlimited_last; }
    /// Where the places of an expert are counted.
    Index device(Index expert) const {
        return expert / settings_.experts_per_device * settings_.experts_per_device;
    }

    void limit_scope(const CapacityLimit& limit, Index first, Index last, In<S> logits,
                     const Routing& routing, const Call<S>& call, State& state) const {
        state.order.template fill<S>(settings_.priority, first, last, logits, routing, call,
                                     [&](Index t) { return is_exempt(t, call); });
        fill_places(limit, first, last, routing, call.context, state);
        const auto take = [&](Index expert) {
            if (expert >= limited(routing.num_experts())) return true;
            Index& places = state.free[detail::at(device(expert))];
            if (places == 0) return false;
            --places;
            return true;
        };
        const std::size_t begin = state.refused.size();
        for (const auto& request : state.order.requests) {
            const Index expert = routing.assignments()[detail::at(request.assignment)].expert;
            if (!take(expert) && request.slot != detail::CapacityOrder::exempt)
                state.refused.push_back(request.assignment);
        }
        if (settings_.overflow != Capacity::Overflow::next_choice) return;
        const Index rounds =
            settings_.next_choices == 0 ? routing.num_experts() : settings_.next_choices;
        state.next.template find<S>(first, last, std::span(state.refused).subspan(begin), rounds,
                                    logits, routing, take);
    }

    /// Fills state.free.
    void fill_places(const CapacityLimit& limit, Index first, Index last, const Routing& routing,
                     const Context& context, State& state) const {
        const auto computes = [&context](Index e) {
            return detail::at(e) >= context.experts.size() ||
                   context.experts[detail::at(e)].capacity_class == 0;
        };
        const Index experts = routing.num_experts();
        const Index end = limited(experts), step = settings_.experts_per_device;
        Index tokens = 0, made = 0, classes[2] = {0, 0};
        for (Index t = first; t < last; ++t) tokens += context.is_padding(t) ? 0 : 1;
        for (const auto& request : state.order.requests)
            made += routing.assignments()[detail::at(request.assignment)].expert < end ? 1 : 0;
        for (Index e = 0; e < end; e += step) ++classes[computes(e) ? 0 : 1];
        state.free.assign(detail::at(experts), 0);
        for (Index e = 0; e < end; e += step)
            state.free[detail::at(e)] = limit(tokens, made, classes[0], classes[1], computes(e));
    }

    Capacity settings_;
    Index num_experts_ = 0;
};

/// Recipe: another gate's choice, as far as experts have room.
///
///     moe::WithCapacity{moe::TopK{.k = 1, .normalize = moe::Normalize::none},
///                       moe::Capacity{.limit = moe::CapacityLimit::gshard()}}
template <class Inner>
struct WithCapacity {
    Inner inner;
    Capacity capacity{};

    template <class S>
    auto build(const Shape& shape, Random& random) const {
        using Module = detail::built_t<Inner, S>;
        static_assert(Gate<Module, S>,
                      "moe: moe::WithCapacity takes a gate, e.g. "
                      "moe::WithCapacity{moe::TopK{.k = 1}, moe::Capacity{...}}");
        return CapacityModule<S, Module>(detail::built<Inner, S>(inner, shape, random), capacity,
                                         shape.num_experts);
    }
};

template <class Inner>
WithCapacity(Inner) -> WithCapacity<Inner>;
template <class Inner>
WithCapacity(Inner, Capacity) -> WithCapacity<Inner>;

}  // namespace moe::inline MOE_ABI

#endif  // MOE_GATES_CAPACITY_HPP
