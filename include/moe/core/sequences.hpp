// SPDX-License-Identifier: MIT
#ifndef MOE_CORE_SEQUENCES_HPP
#define MOE_CORE_SEQUENCES_HPP

#include <algorithm>
#include <cstddef>
#include <limits>
#include <span>

#include <moe/core/error.hpp>
#include <moe/core/types.hpp>

/// The sequences of a batch, as Context::sequence_offsets tells them.
///
/// Who asks for sequences by a setting needs the offsets: required_sequences(). For others a batch
/// without offsets is one sequence: sequences().

namespace moe::inline MOE_ABI::detail {

/// The runs of rows that are sequences; the batch as one without offsets.
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
    /// Number of the run that a token is in; the last one that begins at or before it.
    Index of(Index token) const {
        if (offsets.empty()) return 0;
        const auto next = std::upper_bound(offsets.begin(), offsets.end(), token);
        return static_cast<Index>(next - offsets.begin()) - 1;
    }
};

/// @param who  who asks, for the message
/// @throws std::invalid_argument unless offsets ascend from 0 to the tokens of the batch
inline void check_sequences(const char* who, std::span<const Index> offsets, Index tokens) {
    constexpr const char *must = ": sequence_offsets must ascend from 0 to the ",
                         *batch = " tokens of the batch, ";
    if (offsets.empty())
        fail(who, must, tokens, batch,
             "it is empty; set Context::sequence_offsets to the first row of each sequence and, at "
             "last, the number of tokens");
    if (offsets.front() != 0)
        fail(who, must, tokens, batch, "its first entry is ", offsets.front());
    for (std::size_t i = 1; i < offsets.size(); ++i)
        if (offsets[i] < offsets[i - 1])
            fail(who, must, tokens, batch, "its entry ", i, " is ", offsets[i], " after ",
                 offsets[i - 1]);
    if (offsets.back() != tokens)
        fail(who, must, tokens, batch, "its last entry is ", offsets.back());
}

/// Those of a context; the batch as one if it says nothing of sequences.
/// @throws std::invalid_argument if they are not about this batch
inline Sequences sequences(const char* who, std::span<const Index> offsets, Index tokens) {
    if (!offsets.empty()) check_sequences(who, offsets, tokens);
    return {offsets, tokens};
}

/// Those of a context.
/// @throws std::invalid_argument if it says nothing of them and there are tokens
inline Sequences required_sequences(const char* who, std::span<const Index> offsets, Index tokens) {
    if (tokens > 0) check_sequences(who, offsets, tokens);
    return sequences(who, offsets, tokens);
}

/// @param field  what has `given` entries, `each` per sequence
/// @throws std::invalid_argument unless it is empty or there are as many as that
inline void check_per_sequence(const char* who, std::span<const Index> offsets, const char* field,
                               std::size_t given, Index each) {
    const Index count = std::max(static_cast<Index>(offsets.size()) - 1, Index(0));
    if (given == 0 || static_cast<Index>(given) == checked_product(count, each)) return;
    if (offsets.empty())
        fail(who, ": ", field, " has ", given, " entries, it wants ", each,
             " per sequence, and sequence_offsets is empty; set Context::sequence_offsets");
    fail(who, ": ", field, " has ", given, " entries, it wants ", each, " for each of the ", count,
         " sequences of sequence_offsets");
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
