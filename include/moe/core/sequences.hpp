// SPDX-License-Identifier: MIT
#ifndef MOE_CORE_SEQUENCES_HPP
#define MOE_CORE_SEQUENCES_HPP

#include <cstddef>
#include <limits>
#include <span>

#include <moe/core/context.hpp>
#include <moe/core/error.hpp>
#include <moe/core/types.hpp>

/// The sequences of a batch, for parts whose tokens compete with each other.

namespace moe::inline MOE_ABI::detail {

/// The runs of rows within which tokens compete: sequences, or the whole batch as one.
struct Sequences {
    std::span<const Index> offsets;  ///< [B + 1]; empty: the batch is one run
    Index tokens = 0;

    Index count() const { return offsets.empty() ? 1 : static_cast<Index>(offsets.size()) - 1; }
    Index first(Index run) const {
        return offsets.empty() ? 0 : offsets[static_cast<std::size_t>(run)];
    }
    Index last(Index run) const {
        return offsets.empty() ? tokens : offsets[static_cast<std::size_t>(run) + 1];
    }
    Index size(Index run) const { return last(run) - first(run); }
};

/// Those of the context; the whole batch if it says nothing of sequences.
/// @throws std::invalid_argument if they are not about this batch
inline Sequences sequences(const char* gate, const Context& context, Index tokens) {
    const auto offsets = context.sequence_offsets;
    if (!offsets.empty() && (offsets.front() != 0 || offsets.back() != tokens))
        fail(gate, ": sequence_offsets run from ", offsets.front(), " to ", offsets.back(),
             ", the batch has tokens 0 to ", tokens);
    return {offsets, tokens};
}

/// Whether a row has a logit that is not -inf; padding has none.
template <class S>
bool is_live(Index n, const S* z) {
    for (Index e = 0; e < n; ++e)
        if (z[e] != -std::numeric_limits<S>::infinity()) return true;
    return false;
}

}  // namespace moe::inline MOE_ABI::detail

#endif  // MOE_CORE_SEQUENCES_HPP
