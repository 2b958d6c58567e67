// SPDX-License-Identifier: MIT
#ifndef MOE_GATES_SEQUENCE_BUDGET_HPP
#define MOE_GATES_SEQUENCE_BUDGET_HPP

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include <moe/core/concepts.hpp>
#include <moe/core/executor.hpp>
#include <moe/core/sequences.hpp>
#include <moe/gates/score.hpp>
#include <moe/gates/select.hpp>
#include <moe/gates/token_gate.hpp>
#include <moe/gates/weights.hpp>

namespace moe::inline MOE_ABI {

template <class S>
class SequenceBudgetModule;

/// Recipe for a gate that gives a sequence k experts per token in the mean, and each token as many
/// of them as its scores earn: the budget of a sequence is fixed, its tokens compete for it.
///
/// For a cost per sequence that is known beforehand with compute that varies from token to token:
/// top-k fixes both, top-p neither. A choice depends on the whole sequence, later tokens too, so it
/// is for encoders, images and prompts, not for a decoder that generates.
struct SequenceBudget {
    double k = 2;           ///< experts per token in the mean, min_experts to max_experts
    Index min_experts = 1;  ///< that every token gets, 0 to E
    Index max_experts = 0;  ///< that a token can get, min_experts to E; 0: E

    Score score = Score::softmax;  ///< what tokens compete with, and the weight
    Normalize normalize = Normalize::plain;
    double epsilon = 1e-20;  ///< for add_epsilon and clamp
    double scale = 1;        ///< multiplies the weights at last
    Placement placement = Placement::output;

    /// @throws std::invalid_argument if a setting is out of range
    template <class S>
    SequenceBudgetModule<S> build(const Shape& shape, Random&) const {
        return SequenceBudgetModule<S>(*this, shape.num_experts);
    }
};

/// The gate that SequenceBudget describes.
///
///     s_te = score(z_t)_e                           [T, E]
///     B    = round(k n), halves up                  n tokens of the sequence that are not padding
///     P    = the min_experts best of every token, and of the other pairs (t, e) of the sequence
///            those with the largest s_te, B pairs in all and at most max_experts of one token
///     w_te = scale * s_te / normaliser              of the pairs in P
///
/// A sequence is what Context::sequence_offsets says, the whole batch without them. Ties go to the
/// lower token, then to the lower expert. Slots are in falling order of the scores. Logits of -inf
/// are never chosen: where they leave fewer than B pairs, all are taken; a row of -inf is padding
/// and adds nothing to B. NaN ranks last, and a row that holds one has NaN weights. With
/// Score::softmax_of_selected, tokens compete with their logits.
///
/// context.dial.k and k_per_sequence replace k for a call. The gradient is exact for the chosen
/// pairs as constant.
template <class S>
class SequenceBudgetModule : public TokenGate<S, SequenceBudgetModule<S>> {
    using Base = TokenGate<S, SequenceBudgetModule>;
    friend Base;

public:
    using Base::num_experts;
    static constexpr bool per_token = false;
    static constexpr bool reads_k = true;

    SequenceBudgetModule() = default;
    /// @throws std::invalid_argument if a setting is out of range
    SequenceBudgetModule(const SequenceBudget& settings, Index experts)
        : Base(experts),
          settings_(settings),
          most_(settings.max_experts == 0 ? experts : settings.max_experts),
          rule_(detail::combine_rule(settings, settings.score)) {
        if (settings.min_experts < 0 || settings.min_experts > experts)
            detail::fail(name, ": min_experts is ", settings.min_experts, ", it must be in [0, ",
                         experts, "], the experts of the layer");
        if (most_ < std::max(settings.min_experts, Index(1)) || most_ > experts)
            detail::fail(name, ": max_experts is ", settings.max_experts, ", it must be in [",
                         std::max(settings.min_experts, Index(1)), ", ", experts,
                         "], or 0 for all");
        check_k("k", settings.k);
        rule_.check(name);
    }

    const SequenceBudget& settings() const { return settings_; }

    void reserve(Index tokens, Index assignments, Workspace<S>& ws) const {
        Base::reserve(tokens, assignments, ws);
        auto& scratch = ws.template state<Scratch>();
        const Index pairs = detail::checked_product(tokens, num_experts());
        scratch.keys.resize(pairs);
        scratch.ranked.resize(pairs);
        scratch.counts.resize(tokens);
    }
    Index workspace_bytes(Index tokens, Index assignments, Keep keep, int workers) const {
        return Base::workspace_bytes(tokens, assignments, keep, workers) +
               detail::checked_product(tokens, num_experts()) *
                   static_cast<Index>(sizeof(S) + sizeof(detail::Ranked<S>)) +
               tokens * static_cast<Index>(sizeof(std::int32_t));
    }

private:
    static constexpr const char* name = "moe::SequenceBudget";
    static constexpr S dead = -std::numeric_limits<S>::infinity();

    struct Scratch {
        Buffer<S> keys;                    // [T, E] scores of pairs that compete, else -inf
        Buffer<detail::Ranked<S>> ranked;  // [T, E]
        Buffer<std::int32_t> counts;       // [T] experts that each token gets
    };

    void check_k(const char* field, double k) const {
        if (!(k >= static_cast<double>(settings_.min_experts) && k <= static_cast<double>(most_)))
            detail::fail(name, ": ", field, " is ", k, ", it must be in [", settings_.min_experts,
                         ", ", most_, "], the experts that a token can get");
    }

    Index most_experts() const { return most_; }
    const detail::CombineRule& rule() const { return rule_; }

    /// What a token takes is always a head of its own ranking: the batch only says how many.
    auto choice(const Call<S>& call, In<S> logits) const {
        auto& scratch = call.ws.template state<Scratch>();
        count(logits, call, scratch);
        return [this, counts = scratch.counts.data()](Index t, const S* z, S*,
                                                      detail::Ranked<S>* ranked) {
            return detail::rank_by_index(num_experts(), z, counts[t], ranked);
        };
    }

    void fill_scores(const S* z, S* scores) const {
        detail::selection_scores(settings_.score, num_experts(), z, scores);
        for (Index e = 0; e < num_experts(); ++e)
            if (z[e] == dead) scores[e] = dead;
    }

    void count(In<S> logits, const Call<S>& call, Scratch& scratch) const {
        const Index tokens = logits.rows(), n = num_experts();
        const auto offsets = call.context.sequence_offsets;
        const auto runs = detail::sequences(name, offsets, tokens);
        const auto k = call.context.dial.k_per_sequence;
        const double own =
            call.context.dial.k ? static_cast<double>(*call.context.dial.k) : settings_.k;
        if (call.context.dial.k) check_k("dial.k", own);
        detail::check_per_sequence(name, offsets, "dial.k_per_sequence", k.size(), 1);
        for (const Index value : k) check_k("dial.k_per_sequence", static_cast<double>(value));
        const Index pairs = detail::checked_product(tokens, n);
        if (pairs > std::numeric_limits<std::int32_t>::max())
            detail::fail(name, ": ", tokens, " tokens x ", n,
                         " experts do not fit 31 bits; route fewer tokens at once");
        scratch.keys.resize(pairs);
        scratch.ranked.resize(pairs);
        scratch.counts.resize(tokens);

        const double flops = 20.0 * static_cast<double>(n);
        detail::for_tokens(call.ws.executor(), tokens, flops,
                           [&](Index t, int) { serve_minimum(row_data(logits, t), t, scratch); });
        detail::parallel_for(call.ws.executor(), runs.count(), flops * static_cast<double>(tokens),
                             [&](Index run, int) {
                                 const double mean =
                                     k.empty() ? own : static_cast<double>(k[detail::at(run)]);
                                 serve_rest(logits, runs.first(run), runs.last(run), mean, scratch);
                             });
    }

    /// Takes the minimum of a token; leaves the scores of what it may get besides as keys.
    void serve_minimum(const S* z, Index t, Scratch& scratch) const {
        const Index n = num_experts(), least = settings_.min_experts;
        S* keys = scratch.keys.data() + t * n;
        auto* ranked = scratch.ranked.data() + t * n;
        fill_scores(z, keys);
        const Index found = detail::rank_by_index(n, keys, n, ranked);
        const Index taken = std::min(found, least);
        for (Index i = 0; i < found; ++i)
            if (i < taken || i >= most_) keys[ranked[i].index] = dead;
        scratch.counts[t] = static_cast<std::int32_t>(taken);
    }

    /// Hands the rest of the budget of tokens [first, last) to the best pairs. A pair's place in
    /// the keys is token by token, expert by expert: so ties fall.
    void serve_rest(In<S> logits, Index first, Index last, double mean, Scratch& scratch) const {
        const Index n = num_experts();
        Index live = 0, spent = 0;
        for (Index t = first; t < last; ++t) {
            live += detail::is_live(n, row_data(logits, t)) ? 1 : 0;
            spent += scratch.counts[t];
        }
        const auto budget =
            static_cast<Index>(std::floor(std::fma(mean, static_cast<double>(live), 0.5)));
        auto* ranked = scratch.ranked.data() + first * n;
        const Index found =
            detail::rank_by_index((last - first) * n, scratch.keys.data() + first * n,
                                  std::max(budget - spent, Index(0)), ranked);
        for (Index i = 0; i < found; ++i) ++scratch.counts[first + ranked[i].index / n];
    }

    SequenceBudget settings_;
    Index most_ = 0;
    detail::CombineRule rule_;
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_GATES_SEQUENCE_BUDGET_HPP
