// SPDX-License-Identifier: MIT
#ifndef MOE_CORE_CONTEXT_HPP
#define MOE_CORE_CONTEXT_HPP

#include <cstdint>
#include <optional>
#include <span>
#include <type_traits>

#include <moe/core/error.hpp>
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

/// Choices that may change from call to call. Unset: what the gate was built with. Setting what the
/// gate of a layer does not have is an error.
struct Dial {
    std::optional<Index> k{};                  ///< experts per token, for gates with a fixed number
    std::optional<double> p{};                 ///< probability mass, for top-p gates
    std::span<const Index> k_per_sequence{};   ///< [B] overrides k; needs sequence_offsets
    std::span<const double> p_per_sequence{};  ///< [B] overrides p; needs sequence_offsets
};

/// Where gradients with respect to a context's optional inputs go. All are added to.
struct ContextGradients {
    std::span<double> logit_offset{};     ///< [L]
    std::span<double> gate_multiplier{};  ///< [E]
    SideGradients side_vectors{};         ///< [as Context::side_vectors]
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

    std::span<const std::int64_t> token_ids{};     ///< [T] vocabulary ids
    std::span<const std::int32_t> token_groups{};  ///< [T] group or modality of each token
    std::optional<Index> task{};                   ///< task of the whole batch
    std::span<const std::uint8_t> padding{};       ///< [T] 1: not a token; it goes to no expert
    std::span<const Index> sequence_offsets{};     ///< [B + 1] first row of each sequence
    SideVectors side_vectors{};                    ///< [T or B, any] conditioning inputs
    /// [T] how much a token matters, any unit: who is served first, or spared from pruning
    std::span<const double> token_importance{};
    /// Samples that a noisy gate uses instead of drawing its own, of the kind that it documents
    std::span<const double> noise{};
    std::span<const std::uint8_t> allowed{};  ///< [T * E] row-major, 0: never this expert
    std::span<const double> logit_offset{};   ///< [L] added to every token's logits
    /// [E] multiplies the weights of what experts return; the routing keeps the gate's own weights
    std::span<const double> gate_multiplier{};
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
    /// Whether a token may go to an expert. Knows the number of experts from the layer.
    bool is_allowed(Index token, Index expert) const {
        if (allowed.empty()) return true;
        const std::size_t t = static_cast<std::size_t>(token), e = static_cast<std::size_t>(expert);
        return allowed[t * experts.size() + e] != 0;
    }
};

namespace detail {

/// @throws std::invalid_argument unless a per-token (or per-expert) view is empty or of `wanted`
inline void check_extent(const char* field, std::size_t given, Index wanted, const char* what) {
    if (given != 0 && static_cast<Index>(given) != wanted)
        fail("moe::Context: ", field, " has ", given, " entries, ", what, " wants ", wanted);
}

inline void check_context(const Context& c, Index tokens, Index experts, Index logits) {
    check_extent("token_ids", c.token_ids.size(), tokens, "one per token");
    check_extent("token_groups", c.token_groups.size(), tokens, "one per token");
    check_extent("padding", c.padding.size(), tokens, "one per token");
    check_extent("token_importance", c.token_importance.size(), tokens, "one per token");
    check_extent("allowed", c.allowed.size(), checked_product(tokens, experts),
                 "one per token and expert");
    check_extent("logit_offset", c.logit_offset.size(), logits, "one per logit");
    check_extent("gate_multiplier", c.gate_multiplier.size(), experts, "one per expert");
    if (c.gradients != nullptr) {
        check_extent("gradients->logit_offset", c.gradients->logit_offset.size(), logits,
                     "one per logit");
        check_extent("gradients->gate_multiplier", c.gradients->gate_multiplier.size(), experts,
                     "one per expert");
        const SideGradients& g = c.gradients->side_vectors;
        if (!g.empty() && (g.rows() != c.side_vectors.rows() || g.cols() != c.side_vectors.cols()))
            fail("moe::Context: gradients->side_vectors is [", g.rows(), ", ", g.cols(),
                 "], side_vectors is [", c.side_vectors.rows(), ", ", c.side_vectors.cols(), "]");
    }
    const auto offsets = c.sequence_offsets;
    if (!offsets.empty()) {
        bool ascending = offsets.front() == 0 && offsets.back() == tokens;
        for (std::size_t b = 1; b < offsets.size(); ++b) ascending &= offsets[b - 1] <= offsets[b];
        if (!ascending)
            fail("moe::Context: sequence_offsets must ascend from 0 to the ", tokens,
                 " tokens of the batch");
    }
    const Index sequences = offsets.empty() ? 0 : static_cast<Index>(offsets.size()) - 1;
    const auto check_dial = [&](const char* field, std::size_t given) {
        if (given != 0 && static_cast<Index>(given) != sequences)
            fail("moe::Context: dial.", field, " has ", given, " entries, sequence_offsets has ",
                 sequences, " sequences");
    };
    check_dial("k_per_sequence", c.dial.k_per_sequence.size());
    check_dial("p_per_sequence", c.dial.p_per_sequence.size());
}

}  // namespace detail
}  // namespace moe::inline MOE_ABI

#endif  // MOE_CORE_CONTEXT_HPP
