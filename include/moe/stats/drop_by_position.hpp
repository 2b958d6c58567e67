// SPDX-License-Identifier: MIT
#ifndef MOE_STATS_DROP_BY_POSITION_HPP
#define MOE_STATS_DROP_BY_POSITION_HPP

#include <cstddef>
#include <vector>

#include <moe/core/error.hpp>
#include <moe/core/memory.hpp>
#include <moe/core/types.hpp>
#include <moe/stats/token_experts.hpp>
#include <moe/stats/trace.hpp>

namespace moe::inline MOE_ABI {

/// What was dropped at each place of the sequences. Entry i is of the positions from i * bin to
/// (i + 1) * bin.
struct DropByPosition {
    Index bin = 1;
    std::vector<Index> assignments{};  ///< dropped ones included
    std::vector<Index> dropped{};      ///< for whatever reason
    std::vector<double> rate{};        ///< dropped / assignments; 0 where there are none
};

/// The drop rate as a function of the position in the sequence.
///
/// A capacity that is given out first come, first served drops the end of the batch, and of each
/// sequence if it has a capacity of its own (Capacity::Scope::sequence). That is the flaw OpenMoE
/// found: late tokens lose, in whatever they do best. A rate that does not depend on the position
/// means that the order is fair.
///
/// The position of a token is that of its row in its sequence, padding included, or in the batch if
/// that has no sequence_offsets. Padding itself is not counted.
/// @param bin  positions to one entry
/// @throws std::invalid_argument if there is no such layer or bin < 1
/// Source: OpenMoE (arXiv:2402.01739), section 4, drop towards the end.
inline DropByPosition drop_by_position(const Trace& trace, Index layer, Index bin = 1) {
    if (bin < 1) detail::fail("moe::drop_by_position: bin is ", bin, ", it must be >= 1");
    trace.num_experts(layer);  // throws if there is no such layer
    DropByPosition drops{.bin = bin};
    trace.for_each_of(layer, [&](const TraceRecord& record, const TraceBatch& batch) {
        for (Index t = 0; t < record.num_tokens(); ++t) {
            if (batch.is_padding(t)) continue;
            const auto i = detail::at((t - detail::sequence_begin(batch, t)) / bin);
            if (i >= drops.assignments.size()) {
                drops.assignments.resize(i + 1);
                drops.dropped.resize(i + 1);
            }
            for (Index a = record.first(t); a < record.first(t + 1); ++a) {
                ++drops.assignments[i];
                drops.dropped[i] += record.is_kept(a) ? 0 : 1;
            }
        }
    });
    for (std::size_t i = 0; i < drops.assignments.size(); ++i)
        drops.rate.push_back(drops.assignments[i] == 0
                                 ? 0
                                 : static_cast<double>(drops.dropped[i]) /
                                       static_cast<double>(drops.assignments[i]));
    return drops;
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_STATS_DROP_BY_POSITION_HPP
