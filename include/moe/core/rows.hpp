// SPDX-License-Identifier: MIT
#ifndef MOE_CORE_ROWS_HPP
#define MOE_CORE_ROWS_HPP

#include <cstdint>
#include <span>

#include <moe/core/types.hpp>

namespace moe::inline MOE_ABI {

/// The rows that the experts of one group work on. For row r of local expert e, r in
/// [begin(e), end(e)):
///
///     y[to[r]] += weights[r] * expert_e(input_weight(r) * x[from[r]])
///
/// In an ordinary call from and to are both the token. Rows of one expert never share a `to`, so
/// that its outputs may be scattered in any order. `ids` only key random numbers.
template <class S>
struct Rows {
    std::span<const Index> offsets;       ///< [experts + 1] into the arrays below
    std::span<const std::int32_t> from;   ///< row of x that is read
    std::span<const std::int32_t> to;     ///< row of y that is added to
    std::span<const S> weights;           ///< factor of the output
    std::span<const S> input_weights{};   ///< factor of the input; empty: all 1
    std::span<const std::int64_t> ids{};  ///< token numbers; empty: `from`
    Index first_expert = 0;               ///< local number of the expert of offsets[0]

    Index num_experts() const { return static_cast<Index>(offsets.size()) - 1; }
    Index num_rows() const { return offsets.back() - offsets.front(); }
    Index begin(Index e) const { return offsets[static_cast<std::size_t>(e)]; }
    Index end(Index e) const { return offsets[static_cast<std::size_t>(e) + 1]; }
    Index size(Index e) const { return end(e) - begin(e); }
    S input_weight(Index row) const {
        return input_weights.empty() ? S(1) : input_weights[static_cast<std::size_t>(row)];
    }

    /// The same rows, experts [first, last) of them only. Running ascending sub-ranges one after
    /// the other gives the bits of one run: weights need not all be resident.
    Rows experts(Index first, Index last) const {
        Rows part = *this;
        part.offsets = offsets.subspan(static_cast<std::size_t>(first),
                                       static_cast<std::size_t>(last - first) + 1);
        part.first_expert += first;
        return part;
    }
};

/// Where a group's backward writes d(loss)/d(weight) of each row: arrays as long as Rows::weights,
/// indexed by row number like it.
template <class S>
struct RowGradients {
    std::span<S> weights;
    std::span<S> input_weights{};  ///< empty: not wanted
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_CORE_ROWS_HPP
