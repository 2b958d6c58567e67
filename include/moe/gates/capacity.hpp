// SPDX-License-Identifier: MIT
#ifndef MOE_GATES_CAPACITY_HPP
#define MOE_GATES_CAPACITY_HPP

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#include <moe/core/concepts.hpp>
#include <moe/core/hooks.hpp>
#include <moe/core/memory.hpp>
#include <moe/core/parameters.hpp>
#include <moe/core/sequences.hpp>
#include <moe/core/views.hpp>
#include <moe/gates/capacity_limit.hpp>
#include <moe/gates/score.hpp>
#include <moe/gates/wrapper.hpp>

namespace moe::inline MOE_ABI {

template <class S>
class TopKModule;

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
    /// Who gets a place; among equals the lower token.
    enum class Priority {
        k_major,  ///< all first choices in token order, then all second ones (GShard, NLLB, ...)
        token_major,  ///< all choices of a token, then those of the next (DeepSpeed top-k)
        probability,  ///< the largest weights, as they are before anyone is dropped (Megatron)
        logit,        ///< the largest logits (Uni-MoE)
        /// Tokens in falling order of their largest softmax probability, or of
        /// Context::token_importance if it is given, k-major (V-MoE, arXiv:2106.05974)
        batch_prioritized,
        /// By draws keyed by token and expert, in training and out of it (DeepSpeed's random token
        /// selection)
        random,
    };
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
/// same for gates that choose one expert. A NaN comes last.
///
/// Sources: GShard (arXiv:2006.16668) algorithm 1, Switch (arXiv:2101.03961) section 2.2; see
/// CapacityLimit.
template <class S, class Inner>
class CapacityModule : public GateWrapper<S, Inner> {
public:
    static constexpr bool per_token = false;

    CapacityModule() = default;
    /// @throws std::invalid_argument if a setting is out of range
    CapacityModule(Inner gate, const Capacity& settings, Index experts)
        : GateWrapper<S, Inner>{std::move(gate)}, settings_(settings), num_experts_(experts) {
        using C = Capacity;
        settings.limit.check(name);
        if (settings.inference_limit) settings.inference_limit->check(name);
        detail::check_choice(name, "scope", settings.scope, C::Scope::group);
        detail::check_choice(name, "priority", settings.priority, C::Priority::random);
        detail::check_choice(name, "overflow", settings.overflow, C::Overflow::next_choice);
        if (settings.scope == C::Scope::group && settings.group_size < 1)
            detail::fail(name, ": group_size is ", settings.group_size,
                         ", it must be >= 1 tokens for Scope::group");
        if (settings.next_choices < 0)
            detail::fail(name, ": next_choices is ", settings.next_choices, ", it must be >= 0");
        if (settings.unlimited_last < 0 || settings.unlimited_last >= std::max(experts, Index(1)))
            detail::fail(name, ": unlimited_last is ", settings.unlimited_last,
                         ", it must be in [0, ", experts, "), the experts of the layer");
        if (settings.experts_per_device < 1 ||
            (experts - settings.unlimited_last) % settings.experts_per_device != 0)
            detail::fail(name, ": experts_per_device is ", settings.experts_per_device,
                         ", it must divide the ", experts - settings.unlimited_last,
                         " limited experts of the layer");
    }

    const Capacity& settings() const { return settings_; }
    Index num_experts() const { return num_experts_; }
    /// For batches of one size, which C depends on. Of the inner gates only TopK is known to give
    /// tokens equally many experts.
    bool is_causal() const {
        const auto is_fixed = [this](const CapacityLimit& limit) {
            return limit.k != 0 || limit.factor == 0 ||
                   (std::is_same_v<Inner, TopKModule<S>> && settings_.unlimited_last == 0);
        };
        return settings_.priority == Capacity::Priority::token_major &&
               settings_.overflow != Capacity::Overflow::next_choice && is_fixed(settings_.limit) &&
               is_fixed(settings_.inference_limit.value_or(settings_.limit)) &&
               hooks::is_causal(this->inner);
    }

    /// @throws std::invalid_argument if the inner gate does not fit, has another number of logits
    ///         than experts where logits are compared, or if tokens cannot pass through
    void check(const Shape& shape) const {
        GateWrapper<S, Inner>::check(shape);
        if (compares_logits() && shape.num_logits != shape.num_experts)
            detail::fail(name, ": the gate inside has ", shape.num_logits, " logits for ",
                         shape.num_experts,
                         " experts; take Priority::probability and not Overflow::next_choice");
        if (settings_.overflow == Capacity::Overflow::pass_through &&
            shape.output_dim != shape.model_dim)
            detail::fail(name, ": overflow is pass_through, but output_dim is ", shape.output_dim,
                         " and model_dim ", shape.model_dim, "; they must be equal");
    }

    /// Adds the assignments of every token, dropped ones with their reason.
    /// @throws std::invalid_argument if Scope::sequence lacks Context::sequence_offsets, or
    ///         Priority::batch_prioritized Context::token_importance where there is not one logit
    ///         per expert
    void select(In<S> logits, Routing& routing, const Call<S>& call) const {
        detail::check_gate_context(call.context, logits.rows(), num_experts_);
        if (settings_.priority == Capacity::Priority::batch_prioritized &&
            call.context.token_importance.empty() && logits.cols() != routing.num_experts())
            detail::fail(name,
                         ": token_importance is empty, batch_prioritized wants one per token "
                         "of a gate with ",
                         logits.cols(), " logits for ", routing.num_experts(), " experts");
        hooks::select<S>(this->inner, logits, routing, call);
        routing.group();
        const CapacityLimit& limit = settings_.inference_limit && !call.context.training
                                         ? *settings_.inference_limit
                                         : settings_.limit;
        if (!(limit.factor < std::numeric_limits<double>::infinity())) return;
        if (settings_.priority == Capacity::Priority::probability) {
            hooks::weigh<S>(this->inner, logits, routing, call);
            routing.group();
        }
        State& state = call.ws.template state<State>();
        state.refused.clear();
        state.added.clear();
        for_each_scope(call.context, logits.rows(), [&](Index first, Index last) {
            limit_scope(limit, first, last, logits, routing, call, state);
        });
        const bool passes = settings_.overflow == Capacity::Overflow::pass_through;
        for (const Index a : state.refused)
            routing.set_dropped(a, passes ? Dropped::pass_through : Dropped::capacity);
        for (const Place& place : state.added) routing.add(place.token, place.expert);
        routing.group();
    }

    void reserve(Index tokens, Index assignments, Workspace<S>& ws) const {
        GateWrapper<S, Inner>::reserve(tokens, assignments, ws);
        State& state = ws.template state<State>();
        state.order.reserve(at(assignments));
        state.refused.reserve(at(assignments));
        state.free.reserve(at(num_experts_));
        if (settings_.overflow != Capacity::Overflow::next_choice) return;
        state.added.reserve(at(assignments));
        state.seekers.reserve(at(assignments));
        state.tried.reserve(at(detail::checked_product(tokens, num_experts_)));
    }
    Index workspace_bytes(Index tokens, Index assignments, Keep keep, int workers) const {
        const bool seeks = settings_.overflow == Capacity::Overflow::next_choice;
        const std::size_t of_each =
            sizeof(Ranked) + sizeof(Index) + (seeks ? 2 : 0) * sizeof(Place);
        return GateWrapper<S, Inner>::workspace_bytes(tokens, assignments, keep, workers) +
               detail::checked_product(assignments, static_cast<Index>(of_each)) +
               num_experts_ * static_cast<Index>(sizeof(Index)) +
               (seeks ? detail::checked_product(tokens, num_experts_) : 0);
    }

private:
    static constexpr const char* name = "moe::Capacity";

    struct Ranked {
        std::int32_t slot;  // lower first
        double key;         // higher first
        Index assignment;   // lower first
    };
    struct Place {
        Index token, expert;
    };
    struct State {
        std::vector<Ranked> order;
        std::vector<Index> refused;       // assignments without a place, first who goes first
        std::vector<Index> free;          // [E] places left, of a device at its first expert
        std::vector<Place> added;         // next choices that got a place
        std::vector<Place> seekers;       // tokens that look for one, and what they tried last
        std::vector<std::uint8_t> tried;  // [tokens of the scope, E]
    };

    static std::size_t at(Index i) { return static_cast<std::size_t>(i); }

    bool compares_logits() const {
        return settings_.priority == Capacity::Priority::logit ||
               settings_.overflow == Capacity::Overflow::next_choice;
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
        rank(first, last, logits, routing, call, state);
        fill_places(limit, first, last, routing, call.context, state);
        const auto begin = static_cast<std::ptrdiff_t>(state.refused.size());
        for (const Ranked& ranked : state.order) {
            const Index expert = routing.assignments()[at(ranked.assignment)].expert;
            if (expert >= limited(routing.num_experts())) continue;
            Index& places = state.free[at(device(expert))];
            if (places > 0)
                --places;
            else
                state.refused.push_back(ranked.assignment);
        }
        if (settings_.overflow == Capacity::Overflow::next_choice)
            try_next(first, last, begin, logits, routing, state);
    }

    /// Fills state.order by priority: the assignments of the scope, without what is dropped already
    /// and what crosses a mask, which the layer takes out.
    void rank(Index first, Index last, In<S> logits, const Routing& routing, const Call<S>& call,
              State& state) const {
        using Priority = Capacity::Priority;
        const Priority priority = settings_.priority;
        const CounterRandom random = call.random();
        constexpr std::uint32_t draw = 0x43415043;  // apart from those of the gate inside
        state.order.clear();
        for (Index t = first; t < last; ++t) {
            if (call.context.is_padding(t)) continue;
            const double rank_of_token =
                priority == Priority::batch_prioritized ? importance(t, logits, call.context) : 0;
            for (Index a = routing.first(t); a < routing.first(t + 1); ++a) {
                const Assignment& own = routing.assignments()[at(a)];
                if (own.dropped != Dropped::no || !call.context.is_allowed(t, own.expert)) continue;
                Ranked entry{0, rank_of_token, a};
                if (priority == Priority::k_major || priority == Priority::batch_prioritized)
                    entry.slot = own.slot;
                if (priority == Priority::probability) entry.key = own.weight * own.input_weight;
                if (priority == Priority::logit)
                    entry.key = static_cast<double>(logits(t, own.expert));
                if (priority == Priority::random)
                    entry.key = random.uniform(call.token(t), own.expert, draw);
                if (std::isnan(entry.key)) entry.key = -std::numeric_limits<double>::infinity();
                state.order.push_back(entry);
            }
        }
        if (priority == Priority::token_major) return;
        std::sort(state.order.begin(), state.order.end(), [](const Ranked& a, const Ranked& b) {
            if (a.slot != b.slot) return a.slot < b.slot;
            return a.key > b.key || (a.key == b.key && a.assignment < b.assignment);
        });
    }

    /// The largest softmax probability of a token, or what the context says of it.
    static double importance(Index token, In<S> logits, const Context& context) {
        if (!context.token_importance.empty()) return context.token_importance[at(token)];
        const S* z = row_data(logits, token);
        const S most = *std::max_element(z, z + logits.cols());
        double sum = 0;  // of exp(z - max), one over it is the probability of the best
        for (Index l = 0; l < logits.cols(); ++l)
            sum += std::exp(static_cast<double>(z[l]) - static_cast<double>(most));
        return 1 / sum;
    }

    /// Fills state.free.
    void fill_places(const CapacityLimit& limit, Index first, Index last, const Routing& routing,
                     const Context& context, State& state) const {
        const auto computes = [&context](Index e) {
            return at(e) >= context.experts.size() || context.experts[at(e)].capacity_class == 0;
        };
        const Index experts = routing.num_experts();
        const Index end = limited(experts), step = settings_.experts_per_device;
        Index tokens = 0, made = 0, classes[2] = {0, 0};
        for (Index t = first; t < last; ++t) tokens += context.is_padding(t) ? 0 : 1;
        for (const Ranked& ranked : state.order)
            made += routing.assignments()[at(ranked.assignment)].expert < end ? 1 : 0;
        for (Index e = 0; e < end; e += step) ++classes[computes(e) ? 0 : 1];
        state.free.assign(at(experts), 0);
        for (Index e = 0; e < end; e += step)
            state.free[at(e)] = limit(tokens, made, classes[0], classes[1], computes(e));
    }

    /// Looks for other experts for state.refused[begin ..), in rounds.
    void try_next(Index first, Index last, std::ptrdiff_t begin, In<S> logits,
                  const Routing& routing, State& state) const {
        const Index experts = routing.num_experts();
        state.tried.assign(at((last - first) * experts), 0);
        for (Index t = first; t < last; ++t)
            for (const Assignment& own : routing.of(t))
                state.tried[at((t - first) * experts + own.expert)] = 1;
        state.seekers.clear();
        for (std::size_t i = static_cast<std::size_t>(begin); i < state.refused.size(); ++i)
            state.seekers.push_back({routing.assignments()[at(state.refused[i])].token, -1});
        const Index rounds = settings_.next_choices == 0 ? experts : settings_.next_choices;
        for (Index round = 0; round < rounds && !state.seekers.empty(); ++round) {
            for (Place& seeker : state.seekers) {
                std::uint8_t* tried = state.tried.data() + (seeker.token - first) * experts;
                seeker.expert = best_untried(row_data(logits, seeker.token), tried, experts);
                if (seeker.expert < 0) continue;
                tried[seeker.expert] = 1;
                const bool is_limited = seeker.expert < limited(experts);
                Index& places = state.free[at(is_limited ? device(seeker.expert) : 0)];
                if (is_limited && places == 0) continue;
                if (is_limited) --places;
                state.added.push_back(seeker);
                seeker.expert = -1;  // is served
            }
            std::erase_if(state.seekers, [](const Place& seeker) { return seeker.expert < 0; });
        }
    }

    /// -1 if there is none.
    static Index best_untried(const S* z, const std::uint8_t* tried, Index experts) {
        Index best = -1;
        for (Index e = 0; e < experts; ++e) {
            if (tried[e] || std::isnan(z[e]) || z[e] == -std::numeric_limits<S>::infinity())
                continue;
            if (best < 0 || z[e] > z[best]) best = e;
        }
        return best;
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
