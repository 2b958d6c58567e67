// SPDX-License-Identifier: MIT
#ifndef MOE_STATS_LOAD_OVER_TIME_HPP
#define MOE_STATS_LOAD_OVER_TIME_HPP

#include <vector>

#include <moe/balance/load_sum.hpp>
#include <moe/core/error.hpp>
#include <moe/core/types.hpp>
#include <moe/stats/trace.hpp>

namespace moe::inline MOE_ABI {

/// The load of one layer, batch after batch: assignments that reach each expert, as load_stats()
/// counts them.
///
/// A row is the sum of `window` successive batches of the layer; the last one has the rest, which
/// may be fewer. Rising and falling columns are experts that are found or forgotten in training.
///
///     svg_heat_map(load_over_time(trace, 3), {.row_title = "batch", .column_title = "expert"})
///
/// @return [ceil(batches / window), E]
/// @throws std::invalid_argument if there is no such layer or window < 1
inline Matrix<double> load_over_time(const Trace& trace, Index layer, Index window = 1) {
    if (window < 1) detail::fail("moe::load_over_time: window is ", window, ", it must be >= 1");
    const Index experts = trace.num_experts(layer);
    Index batches = 0;
    trace.for_each_of(layer, [&](const TraceRecord&, const TraceBatch&) { ++batches; });
    Matrix<double> load =
        Matrix<double>::Zero(batches / window + (batches % window != 0 ? 1 : 0), experts);
    Index i = 0;
    trace.for_each_of(layer, [&](const TraceRecord& record, const TraceBatch&) {
        const Index row = i++ / window;
        record.for_each_kept([&](Index, Index expert, double) { load(row, expert) += 1; });
    });
    return load;
}

/// max_violation() of each row: how far the busiest expert is above the mean, over time. With a
/// window of one batch this is the batch's MaxVio, with one of the whole trace the global one,
/// which is lower where batches lean to different sides.
/// @throws std::invalid_argument as load_over_time()
/// Source: arXiv:2408.15664, section 4, MaxVio.
inline std::vector<double> max_violation_over_time(const Trace& trace, Index layer,
                                                   Index window = 1) {
    const Matrix<double> load = load_over_time(trace, layer, window);
    std::vector<double> violation;
    for (Index row = 0; row < load.rows(); ++row)
        violation.push_back(
            max_violation({load.data() + row * load.cols(), detail::at(load.cols())}));
    return violation;
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_STATS_LOAD_OVER_TIME_HPP
