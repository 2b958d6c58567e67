// SPDX-License-Identifier: MIT
#ifndef MOE_GATES_NEXT_CHOICES_HPP
#define MOE_GATES_NEXT_CHOICES_HPP

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include <moe/core/error.hpp>
#include <moe/core/routing.hpp>
#include <moe/core/types.hpp>
#include <moe/core/views.hpp>

namespace moe::inline MOE_ABI::detail {

/// Other experts for assignments that got no place: in rounds, in each of which all that are still
/// without one try the best expert that their token has not tried, by logits.
struct NextChoices {
    struct Place {
        Index token, expert;
    };
    std::vector<Place> added;  ///< what was found

    /// @param refused  assignments of tokens [first, last), first who goes first
    /// @param rounds   most of them
    /// @param take     take(expert): whether it has a place, which is then taken
    template <class S, class Take>
    void find(Index first, Index last, std::span<const Index> refused, Index rounds, In<S> logits,
              const Routing& routing, Take&& take) {
        const Index experts = routing.num_experts();
        tried_.assign(at((last - first) * experts), 0);
        for (Index t = first; t < last; ++t)
            for (const Assignment& own : routing.of(t))
                tried_[at((t - first) * experts + own.expert)] = 1;
        seekers_.clear();
        for (const Index a : refused)
            seekers_.push_back({routing.assignments()[at(a)].token, none});
        for (Index round = 0; round < rounds && !seekers_.empty(); ++round) {
            for (Place& seeker : seekers_) {
                std::uint8_t* tried = tried_.data() + (seeker.token - first) * experts;
                seeker.expert = best_untried(row_data(logits, seeker.token), tried, experts);
                if (seeker.expert == none) continue;
                tried[seeker.expert] = 1;
                if (!take(seeker.expert)) continue;
                added.push_back(seeker);
                seeker.expert = none;  // is served
            }
            std::erase_if(seekers_, [](const Place& seeker) { return seeker.expert == none; });
        }
    }

    void reserve(Index tokens, Index assignments, Index experts) {
        added.reserve(at(assignments));
        seekers_.reserve(at(assignments));
        tried_.reserve(at(checked_product(tokens, experts)));
    }
    /// Bytes of that room.
    static Index bytes(Index tokens, Index assignments, Index experts) {
        return checked_product(assignments, static_cast<Index>(2 * sizeof(Place))) +
               checked_product(tokens, experts);
    }

private:
    static constexpr Index none = -1;

    template <class S>
    static Index best_untried(const S* z, const std::uint8_t* tried, Index experts) {
        Index best = none;
        for (Index e = 0; e < experts; ++e) {
            if (tried[e] || std::isnan(z[e]) || z[e] == -std::numeric_limits<S>::infinity())
                continue;
            if (best == none || z[e] > z[best]) best = e;
        }
        return best;
    }

    std::vector<Place> seekers_;       // tokens that look for a place, and what they tried last
    std::vector<std::uint8_t> tried_;  // [tokens of the scope, E]
};

}  // namespace moe::inline MOE_ABI::detail

#endif  // MOE_GATES_NEXT_CHOICES_HPP
