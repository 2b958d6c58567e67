// SPDX-License-Identifier: MIT
#ifndef MOE_GATES_SAMPLES_HPP
#define MOE_GATES_SAMPLES_HPP

#include <cstdint>
#include <span>

#include <moe/core/error.hpp>
#include <moe/core/memory.hpp>
#include <moe/core/random.hpp>
#include <moe/core/types.hpp>
#include <moe/core/workspace.hpp>

namespace moe::inline MOE_ABI::detail {

/// The noise of a gate in one call: drawn by address (token, expert, draw), or the caller's own
/// samples if Context::noise has them, [draws, T, E] of the kind that the gate asks for.
class Samples {
public:
    /// @param gate   who draws, for the message
    /// @param width  samples per token and draw
    /// @throws std::invalid_argument if there are samples, but another number of them
    template <class S>
    Samples(const char* gate, const Call<S>& call, Index tokens, Index width, Index draws = 1)
        : given_(call.context.noise),
          source_(call.random()),
          first_token_(call.context.first_token),
          tokens_(tokens),
          width_(width) {
        const Index wanted = checked_product(checked_product(tokens, width), draws);
        if (!given_.empty() && static_cast<Index>(given_.size()) != wanted)
            fail(gate, ": noise has ", given_.size(), " samples, the gate takes ", wanted,
                 ": draws x tokens x width = ", draws, " x ", tokens, " x ", width);
    }

    /// Standard normal.
    double normal(Index row, Index expert, std::uint32_t draw = 0) const {
        return given_.empty() ? source_.normal(first_token_ + row, expert, draw)
                              : given(row, expert, draw);
    }
    /// Standard Gumbel.
    double gumbel(Index row, Index expert, std::uint32_t draw = 0) const {
        return given_.empty() ? source_.gumbel(first_token_ + row, expert, draw)
                              : given(row, expert, draw);
    }
    /// Uniform in (0, 1).
    double uniform(Index row, Index expert, std::uint32_t draw = 0) const {
        return given_.empty() ? source_.uniform(first_token_ + row, expert, draw)
                              : given(row, expert, draw);
    }

private:
    double given(Index row, Index expert, std::uint32_t draw) const {
        const Index i = (static_cast<Index>(draw) * tokens_ + row) * width_ + expert;
        return given_[at(i)];
    }

    std::span<const double> given_;
    CounterRandom source_;
    std::int64_t first_token_;
    Index tokens_, width_;
};

}  // namespace moe::inline MOE_ABI::detail

#endif  // MOE_GATES_SAMPLES_HPP
