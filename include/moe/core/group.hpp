// SPDX-License-Identifier: MIT
#ifndef MOE_CORE_GROUP_HPP
#define MOE_CORE_GROUP_HPP

#include <algorithm>
#include <cstdint>
#include <span>

#include <moe/core/error.hpp>
#include <moe/core/executor.hpp>
#include <moe/core/rows.hpp>
#include <moe/core/types.hpp>
#include <moe/core/views.hpp>

/// What expert groups share.

namespace moe::inline MOE_ABI::detail {

/// @throws std::invalid_argument unless a recipe makes at least one expert: a group without
///         routed experts would be taken for a shared one
inline void check_count(const char* recipe, Index count) {
    if (count < 1) fail(recipe, ": count is ", count, ", it must be >= 1");
}

/// f(first, last, worker) for runs of rows that together are [0, count), one task each.
template <class F>
void for_row_runs(Executor& executor, Index count, double flops, F&& f) {
    const Index most = flops < executor.serial_flops() ? 1 : 4 * Index{executor.concurrency()};
    const Index tasks = std::min(count, most);
    parallel_for(executor, tasks, flops, [&](Index task, int worker) {
        f(count * task / tasks, count * (task + 1) / tasks, worker);
    });
}

/// f(e, r) for every row r of every local expert e, where f adds to row target[r] of a matrix with
/// `targets` rows.
///
/// Rows are split among tasks by what they add to, and each task keeps their order: experts
/// ascending, then rows ascending. So two rows may share a target, no two tasks do, and the split
/// does not show in the sums.
template <class S, class F>
void scatter_rows(Executor& executor, const Rows<S>& rows, std::span<const std::int32_t> target,
                  Index targets, double flops, F&& f) {
    for_row_runs(executor, targets, flops, [&](Index first, Index last, int) {
        for (Index e = 0; e < rows.num_experts(); ++e)
            for (Index r = rows.begin(e); r < rows.end(e); ++r) {
                const Index to = target[static_cast<std::size_t>(r)];
                if (first <= to && to < last) f(rows.first_expert + e, r);
            }
    });
}

/// f(at, width) for runs of columns that together are [0, count), one task each: for sums over
/// rows, which are never split.
template <class F>
void for_column_runs(Executor& executor, Index count, double flops, F&& f) {
    constexpr Index width = 128;
    parallel_for(executor, (count + width - 1) / width, flops,
                 [&](Index task, int) { f(task * width, std::min(width, count - task * width)); });
}

}  // namespace moe::inline MOE_ABI::detail

#endif  // MOE_CORE_GROUP_HPP
