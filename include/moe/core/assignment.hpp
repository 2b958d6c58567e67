// SPDX-License-Identifier: MIT
#ifndef MOE_CORE_ASSIGNMENT_HPP
#define MOE_CORE_ASSIGNMENT_HPP

#include <limits>
#include <vector>

#include <moe/core/error.hpp>
#include <moe/core/memory.hpp>
#include <moe/core/types.hpp>

namespace moe::inline MOE_ABI::detail {

/// Gives every row of a square cost matrix a column of its own so that the sum of costs is the
/// least there is: the Hungarian method, in O(n^3) steps.
///
/// Rows come in one after the other. Each takes the cheapest path of exchanges that frees a column,
/// by costs less the prices of rows and columns; prices then move so that every pair that is
/// matched stays the cheapest of its row. Which of several optima is found depends on the costs
/// alone; a row that is free to choose takes the lower column.
///
/// BalancedAssignment is for many rows per column and stops at nearly the least sum.
///
/// @param cost    [n, n] row-major, finite
/// @param column  [n] written: of each row
/// @return the sum
inline double least_cost_assignment(Index n, const double* cost, Index* column) {
    constexpr double infinity = std::numeric_limits<double>::infinity();
    // Column n stands for none: the row that looks for a column is there until it has one.
    std::vector<double> row_price(at(n), 0.0), column_price(at(n) + 1, 0.0), least(at(n));
    std::vector<Index> row(at(n) + 1, -1), before(at(n));
    std::vector<char> is_reached(at(n) + 1);
    for (Index added = 0; added < n; ++added) {
        row[at(n)] = added;
        least.assign(at(n), infinity);
        is_reached.assign(at(n) + 1, 0);
        Index here = n;
        while (row[at(here)] >= 0) {
            is_reached[at(here)] = 1;
            const Index from = row[at(here)];
            Index next = -1;
            for (Index j = 0; j < n; ++j) {
                if (is_reached[at(j)]) continue;
                const double reduced =
                    cost[from * n + j] - row_price[at(from)] - column_price[at(j)];
                if (reduced < least[at(j)]) {
                    least[at(j)] = reduced;
                    before[at(j)] = here;
                }
                if (next < 0 || least[at(j)] < least[at(next)]) next = j;
            }
            const double step = least[at(next)];
            for (Index j = 0; j <= n; ++j)
                if (is_reached[at(j)]) {
                    row_price[at(row[at(j)])] += step;
                    column_price[at(j)] -= step;
                } else {
                    least[at(j)] -= step;
                }
            here = next;
        }
        while (here != n) {
            row[at(here)] = row[at(before[at(here)])];
            here = before[at(here)];
        }
    }
    double sum = 0;
    for (Index j = 0; j < n; ++j) {
        column[row[at(j)]] = j;
        sum += cost[row[at(j)] * n + j];
    }
    return sum;
}

}  // namespace moe::inline MOE_ABI::detail

#endif  // MOE_CORE_ASSIGNMENT_HPP
