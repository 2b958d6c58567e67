// SPDX-License-Identifier: MIT
#ifndef MOE_CORE_CONTEXT_HPP
#define MOE_CORE_CONTEXT_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <type_traits>

#include <moe/config.hpp>
#include <moe/core/error.hpp>
#include <moe/core/sequences.hpp>
#include <moe/core/side_vectors.hpp>
#include <moe/core/types.hpp>

namespace moe::inline MOE_ABI {

class WorkspaceBase;

/// What a gate may want to know about an expert; the layer fills it from its groups.
struct ExpertFacts {
    bool is_null = false;      ///< takes a slot, does nothing, is left out of normalisation
    bool is_free = false;      ///< costs no matrix product: zero, null, copy
    int capacity_class = 0;    ///< experts of one class share a capacity rule
    double flops_per_row = 0;  ///< floating-point operations of one row, forward
};

/// What Context::logit_offset is counted in.
enum class OffsetUnit {
    logits,   ///< z + offset
    row_std,  ///< z + offset * the standard deviation of the token's L logits (arXiv:2510.04694)
};

/// When Context::gate_multiplier comes in.
enum class MultiplierOrder {
    after_normalization,   ///< it multiplies what experts return; the routing keeps the weights
    before_normalization,  ///< it multiplies scores, of which weights are made (arXiv:2505.14681)
};

/// Choices that may change from call to call. Unset: what the gate was built with. Setting what the
/// gate of a layer does not have is an error. What is per sequence needs sequence_offsets and is
/// combined with what holds for the call: k and p replace it, offsets are added to it, multipliers
/// multiplied with it, and an expert must be allowed by both, or forced by one.
struct Dial {
    std::optional<Index> k{};   ///< experts per token, for gates with a fixed number
    std::optional<double> p{};  ///< probability mass, for top-p gates
    OffsetUnit offset_unit = OffsetUnit::logits;
    MultiplierOrder multiplier_order = MultiplierOrder::after_normalization;

    std::span<const Index> k_per_sequence{};                 ///< [B]
    std::span<const double> p_per_sequence{};                ///< [B]
    std::span<const std::uint8_t> allowed_per_sequence{};    ///< [B * E]
    std::span<const std::uint8_t> forced_per_sequence{};     ///< [B * E]
    std::span<const double> logit_offset_per_sequence{};     ///< [B * L]
    std::span<const double> gate_multiplier_per_sequence{};  ///< [B * E]
};

/// Where gradients with respect to a context's optional inputs go. All are added to.
struct ContextGradients {
    std::span<double> logit_offset{};                  ///< [L]
    std::span<double> gate_multiplier{};               ///< [E]
    std::span<double> logit_offset_per_sequence{};     ///< [B * L]
    std::span<double> gate_multiplier_per_sequence{};  ///< [B * E]
    SideGradients side_vectors{};                      ///< [as Context::side_vectors]
};

/// Everything about a call that is not a token vector. All views are optional. They must live until
/// the last thing that is done with the call's workspace: a loss, a statistic, backward. Backward
/// takes the same context; `gradients` may be given to it alone.
///
/// A part that needs a field it did not get throws std::invalid_argument with the field's name.
struct Context {
    bool training = false;         ///< switches noise, jitter and capacity, nothing else
    std::uint64_t step = 0;        ///< optimiser step, keys random numbers and schedules
    std::uint64_t seed = 0;        ///< keys random numbers
    std::uint64_t stream = 0;      ///< tells layers and passes of one step apart
    std::int64_t first_token = 0;  ///< number of row 0 within the whole batch, keys random numbers

    std::span<const std::int64_t> token_ids{};  ///< [T] vocabulary ids
    /// [T] a number for each token: its modality (PerModality), its task (PerTask without `task`)
    /// or its label (LabelRouter), whichever part reads it. Two that read it differently cannot be
    /// in one layer.
    std::span<const std::int32_t> token_groups{};
    std::optional<Index> task{};              ///< task of the whole batch
    std::span<const std::uint8_t> padding{};  ///< [T] 1: not a token; it goes to no expert
    /// [B + 1] first row of each sequence, then T. Settings that name sequences need it; for what
    /// has no such setting, a batch without it is one sequence.
    std::span<const Index> sequence_offsets{};
    SideVectors side_vectors{};  ///< [T or B, any] conditioning inputs
    /// [T] how much a token matters, any unit: who is served first, or spared from pruning
    std::span<const double> token_importance{};
    /// Samples that a noisy gate uses instead of drawing its own, of the kind that it documents
    std::span<const double> noise{};
    std::span<const std::uint8_t> allowed{};  ///< [E] or [T * E], 0: never this expert
    /// [E] or [T * E], 1: the expert's logit is raised above those of experts that are not forced.
    /// Gates that rank logits choose it before them, with the weight that goes with that, as far as
    /// they choose that many (of several that were raised, the lower index). Noise, draws and
    /// balance in training act on the raised logit, and so do experts that choose tokens. What is
    /// not allowed is not forced (arXiv:2502.11096, 2510.04694).
    std::span<const std::uint8_t> forced{};
    std::span<const double> logit_offset{};     ///< [L] added to every token's logits
    std::span<const double> gate_multiplier{};  ///< [E] of weights; see MultiplierOrder
    Dial dial{};

    /// Workspace of an earlier layer: routers may read its logits (-inf where it masked) and add to
    /// its logit gradient, so that layer's backward runs after this one's. See Call::previous().
    WorkspaceBase* previous = nullptr;
    ContextGradients* gradients = nullptr;

    /// [E] filled by the layer; leave empty.
    std::span<const ExpertFacts> experts{};

    bool is_padding(Index token) const {
        return !padding.empty() && padding[static_cast<std::size_t>(token)] != 0;
    }
    /// Number of the sequence that a token is in; the last one that begins at or before it. 0
    /// without sequence_offsets.
    Index sequence_of(Index token) const { return detail::Sequences{sequence_offsets}.of(token); }
    /// Whether a token may go to an expert. The number of experts is that of `experts`, which the
    /// layer fills in the context that it calls a part with. The caller's own has none and takes
    /// the next form, with the number.
    bool is_allowed(Index token, Index expert) const {
        MOE_ASSERT(!restricts() || !experts.empty(), "a context that went through a layer");
        return is_allowed(token, expert, static_cast<Index>(experts.size()));
    }
    bool is_allowed(Index token, Index expert, Index num_experts) const {
        return (allowed.empty() || entry(allowed, token, expert, num_experts) != 0) &&
               (dial.allowed_per_sequence.empty() ||
                dial.allowed_per_sequence[static_cast<std::size_t>(
                    sequence_of(token) * num_experts + expert)] != 0);
    }
    /// Whether an expert's logit is raised for a token. Not for the caller's own context: it needs
    /// `experts`, too.
    bool is_forced(Index token, Index expert) const {
        MOE_ASSERT(!forces() || !experts.empty(), "a context that went through a layer");
        return (!forced.empty() &&
                entry(forced, token, expert, static_cast<Index>(experts.size())) != 0) ||
               (!dial.forced_per_sequence.empty() &&
                of_sequence(dial.forced_per_sequence, token, expert) != 0);
    }
    bool restricts() const { return !allowed.empty() || !dial.allowed_per_sequence.empty(); }
    bool forces() const { return !forced.empty() || !dial.forced_per_sequence.empty(); }
    bool multiplies() const {
        return !gate_multiplier.empty() || !dial.gate_multiplier_per_sequence.empty();
    }
    /// The factor of an expert's weight for a token.
    double multiplier(Index token, Index expert) const {
        double factor = 1;
        if (!gate_multiplier.empty()) factor = gate_multiplier[static_cast<std::size_t>(expert)];
        if (!dial.gate_multiplier_per_sequence.empty())
            factor *= of_sequence(dial.gate_multiplier_per_sequence, token, expert);
        return factor;
    }

    /// The same for a part whose rows are not the batch's tokens: without the dial and what has
    /// an entry per token or sequence, so that a part that reads it says that it is not there.
    Context without_tokens() const {
        Context rest = *this;
        rest.token_ids = {}, rest.token_groups = {}, rest.padding = {}, rest.sequence_offsets = {};
        rest.side_vectors = {}, rest.token_importance = {}, rest.noise = {};
        rest.allowed = {}, rest.forced = {}, rest.dial = {};
        return rest;
    }

private:
    /// Of a table with one row for all tokens, or one for each.
    static std::uint8_t entry(std::span<const std::uint8_t> table, Index token, Index expert,
                              Index num_experts) {
        const Index row = static_cast<Index>(table.size()) == num_experts ? 0 : token;
        return table[static_cast<std::size_t>(row * num_experts + expert)];
    }
    template <class V>
    V of_sequence(std::span<const V> table, Index token, Index expert) const {
        const std::size_t row = table.size() / (sequence_offsets.size() - 1);  // E
        return table[static_cast<std::size_t>(sequence_of(token)) * row +
                     static_cast<std::size_t>(expert)];
    }
};

namespace detail {

/// @throws std::invalid_argument unless a per-token (or per-expert) view is empty or of `wanted`
inline void check_extent(const char* field, std::size_t given, Index wanted, const char* what) {
    if (given != 0 && static_cast<Index>(given) != wanted)
        fail("moe::Context: ", field, " has ", given, " entries, it wants ", wanted, ", ", what);
}

/// Adds d(loss)/d(multiplier) of one assignment to the gradients that are wanted.
inline void add_multiplier_gradient(const Context& context, Index token, Index expert,
                                    double gradient) {
    if (context.gradients == nullptr) return;
    const auto all = context.gradients->gate_multiplier;
    const auto each = context.gradients->gate_multiplier_per_sequence;
    const auto e = static_cast<std::size_t>(expert);
    const auto row = [&context, e](std::size_t entries, Index of) {  // of [B * E]
        return entries / (context.sequence_offsets.size() - 1) *
                   static_cast<std::size_t>(context.sequence_of(of)) +
               e;
    };
    if (!all.empty()) {
        const auto& own = context.dial.gate_multiplier_per_sequence;
        all[e] = std::fma(gradient, own.empty() ? 1 : own[row(own.size(), token)], all[e]);
    }
    if (!each.empty()) {
        const auto& own = context.gate_multiplier;
        double& sum = each[row(each.size(), token)];
        sum = std::fma(gradient, own.empty() ? 1 : own[e], sum);
    }
}

/// @throws std::invalid_argument unless a mask is empty or has an entry per expert, for all tokens
///         or for each
inline void check_mask(const char* field, std::size_t given, Index tokens, Index experts) {
    const Index entries = static_cast<Index>(given), all = checked_product(tokens, experts);
    if (entries != 0 && entries != experts && entries != all)
        fail("moe::Context: ", field, " has ", entries, " entries, it wants ", experts,
             ", one per expert, or ", all, ", one per token and expert");
}

/// @throws std::invalid_argument unless a view is empty or has `each` entries per sequence
inline void check_each_sequence(const Context& c, const char* field, std::size_t given,
                                Index each) {
    check_per_sequence("moe::Context", c.sequence_offsets, field, given, each);
}

/// What experts are run with.
inline void check_bank_context(const Context& c, Index tokens, Index experts) {
    check_extent("padding", c.padding.size(), tokens, "one per token");
    check_mask("allowed", c.allowed.size(), tokens, experts);
    check_extent("gate_multiplier", c.gate_multiplier.size(), experts, "one per expert");
    const auto offsets = c.sequence_offsets;
    if (!offsets.empty()) check_sequences("moe::Context", offsets, tokens);
    check_each_sequence(c, "dial.gate_multiplier_per_sequence",
                        c.dial.gate_multiplier_per_sequence.size(), experts);
    if (c.gradients == nullptr) return;
    check_extent("gradients->gate_multiplier", c.gradients->gate_multiplier.size(), experts,
                 "one per expert");
    check_each_sequence(c, "gradients->gate_multiplier_per_sequence",
                        c.gradients->gate_multiplier_per_sequence.size(), experts);
}

/// What gates are run with, but for the dial's k and p, which they check themselves. A layer's gate
/// gets nothing else; one that is called by hand checks it before it looks anything up.
/// @param wants_facts  whether masks are looked up by Context::experts
inline void check_gate_context(const Context& c, Index tokens, Index experts,
                               bool wants_facts = true) {
    check_bank_context(c, tokens, experts);
    const Index facts = static_cast<Index>(c.experts.size());
    const bool reads_rows =
        static_cast<Index>(std::max(c.allowed.size(), c.forced.size())) > experts;
    if (facts != experts && (facts != 0 || (wants_facts && reads_rows)))
        fail("moe::Context: experts has ", facts, " entries, a gate for ", experts,
             " experts that is called by hand with masks per token wants one for each; in a layer "
             "leave it empty");
    check_extent("token_importance", c.token_importance.size(), tokens, "one per token");
    check_mask("forced", c.forced.size(), tokens, experts);
    check_each_sequence(c, "dial.allowed_per_sequence", c.dial.allowed_per_sequence.size(),
                        experts);
    check_each_sequence(c, "dial.forced_per_sequence", c.dial.forced_per_sequence.size(), experts);
}

/// All of it.
/// @param per_expert  whether the experts have logits of their own
inline void check_context(const Context& c, Index tokens, Index experts, Index logits,
                          bool per_expert) {
    check_gate_context(c, tokens, experts, false);
    check_extent("token_ids", c.token_ids.size(), tokens, "one per token");
    check_extent("token_groups", c.token_groups.size(), tokens, "one per token");
    if (c.forces() && !per_expert)
        fail("moe::Context: forced wants a gate with a logit for each expert, this layer's has ",
             logits, " logits for ", experts, " experts, and none are the experts' own");
    check_extent("logit_offset", c.logit_offset.size(), logits, "one per logit");
    check_each_sequence(c, "dial.k_per_sequence", c.dial.k_per_sequence.size(), 1);
    check_each_sequence(c, "dial.p_per_sequence", c.dial.p_per_sequence.size(), 1);
    check_each_sequence(c, "dial.logit_offset_per_sequence",
                        c.dial.logit_offset_per_sequence.size(), logits);
    if (c.gradients == nullptr) return;
    check_extent("gradients->logit_offset", c.gradients->logit_offset.size(), logits,
                 "one per logit");
    check_each_sequence(c, "gradients->logit_offset_per_sequence",
                        c.gradients->logit_offset_per_sequence.size(), logits);
    const SideGradients& g = c.gradients->side_vectors;
    if (!g.empty() && (g.rows() != c.side_vectors.rows() || g.cols() != c.side_vectors.cols()))
        fail("moe::Context: gradients->side_vectors is [", g.rows(), ", ", g.cols(),
             "], side_vectors is [", c.side_vectors.rows(), ", ", c.side_vectors.cols(), "]");
}

}  // namespace detail
}  // namespace moe::inline MOE_ABI

#endif  // MOE_CORE_CONTEXT_HPP
