// SPDX-License-Identifier: MIT
#ifndef MOE_STATS_REPORT_HPP
#define MOE_STATS_REPORT_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <ostream>
#include <string>
#include <vector>

#include <moe/core/error.hpp>
#include <moe/core/routing.hpp>
#include <moe/core/types.hpp>
#include <moe/core/workspace.hpp>
#include <moe/stats/format.hpp>
#include <moe/stats/load.hpp>
#include <moe/stats/router.hpp>

namespace moe::inline MOE_ABI {

/// How a report of the load looks.
struct ReportOptions {
    Index width = 80;                  ///< columns of an expert's line, if names are short; >= 40
    bool ascii = false;                ///< bars of '#' and '-' instead of blocks
    std::vector<std::string> names{};  ///< [E] of the experts, UTF-8; empty: their numbers
};

namespace detail {

/// `length` columns of a bar, in eighths of a column where blocks can show them.
inline std::string bar(double length, bool ascii) {
    static constexpr const char* eighths[] = {"", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};
    const auto units = static_cast<Index>(std::lround(std::max(0.0, length) * 8));
    std::string text;
    if (ascii) return std::string(static_cast<std::size_t>((units + 4) / 8), '#');
    for (Index i = 0; i < units / 8; ++i) text += "█";
    return text + eighths[units % 8];
}

inline std::string summary(const LoadStats& load) {
    std::string text = counted(load.num_tokens, "token") + ", " +
                       counted(static_cast<Index>(load.tokens_per_expert.size()), "expert") + ", " +
                       fixed(load.experts_per_token, 2) + " experts per token";
    if (load.dropped_fraction > 0) text += ", " + percent(load.dropped_fraction) + " dropped";
    if (load.unrouted_tokens > 0)
        text += ", " + counted(load.unrouted_tokens, "token") + " routed nowhere";
    return text;
}

/// One line per expert: name, load, share of all, bar. The mean is a line through the bars.
inline std::string load_bars(const LoadStats& load, const ReportOptions& options) {
    const auto at = [](Index e) { return static_cast<std::size_t>(e); };
    const auto experts = static_cast<Index>(load.tokens_per_expert.size());
    Index name_columns = 6, kept = 0, most = 1;
    std::vector<Index> dropped_per_expert = load.dropped_per_expert;
    dropped_per_expert.resize(at(experts));
    std::vector<std::string> names = options.names;
    if (names.empty())
        for (Index e = 0; e < experts; ++e) names.push_back(std::to_string(e));
    for (Index e = 0; e < experts; ++e) {
        name_columns = std::max(name_columns, columns_of(names[at(e)]));
        kept += load.tokens_per_expert[at(e)];
        most = std::max(most, load.tokens_per_expert[at(e)] + dropped_per_expert[at(e)]);
    }
    const Index count_columns = std::max<Index>(6, columns_of(std::to_string(most)));
    const Index room =
        std::max<Index>(8, options.width - name_columns - 2 - count_columns - 2 - 7 - 2);
    const double scale = static_cast<double>(room - 1) / static_cast<double>(most);
    const double mean = experts == 0 ? 0 : static_cast<double>(kept) / static_cast<double>(experts);
    const Index mean_column = static_cast<Index>(mean * scale);

    std::string text = right_aligned("expert", name_columns) + "  " +
                       right_aligned("tokens", count_columns) + "    share\n";
    for (Index e = 0; e < experts; ++e) {
        const Index tokens = load.tokens_per_expert[at(e)], dropped = dropped_per_expert[at(e)];
        const double share =
            kept == 0 ? 0 : static_cast<double>(tokens) / static_cast<double>(kept);
        std::string line = right_aligned(names[at(e)], name_columns) + "  " +
                           right_aligned(std::to_string(tokens), count_columns) + "  " +
                           right_aligned(percent(share), 7) + "  ";
        std::string blocks = bar(static_cast<double>(tokens) * scale, options.ascii);
        const auto with_dropped =
            static_cast<Index>(std::lround(static_cast<double>(tokens + dropped) * scale));
        for (Index i = columns_of(blocks); i < with_dropped; ++i)
            blocks += options.ascii ? "-" : "░";
        if (kept > 0 && columns_of(blocks) <= mean_column)
            blocks += std::string(at(mean_column - columns_of(blocks)), ' ') +
                      (options.ascii ? "|" : "│");
        line += blocks;
        line.erase(line.find_last_not_of(' ') + 1);
        text += line + "\n";
    }
    return text;
}

}  // namespace detail

/// The load as text with bars, one line per expert.
///
///     256 tokens, 4 experts, 1.94 experts per token, 3.1 % dropped
///     busiest/mean 1.61, variation 0.39, entropy 0.948, busiest expert 2, 0 dead
///     expert  tokens    share
///          0      91   18.3 %  ██████████████████████▊        │
///          1     130   26.2 %  ████████████████████████████████▌
///          2     200   40.3 %  ██████████████████████████████████████████████████░░░░
///          3      75   15.1 %  ██████████████████▊            │
///
/// Full blocks are tokens, light blocks were dropped, the thin line is the mean load. Variation is
/// LoadStats::coefficient_of_variation, entropy normalized_entropy.
/// @param load  dropped_per_expert may be empty: nothing was dropped
/// @throws std::invalid_argument if options.names or dropped_per_expert has neither one entry per
///         expert nor none
inline std::string report(const LoadStats& load, const ReportOptions& options = {}) {
    if (!options.names.empty() && options.names.size() != load.tokens_per_expert.size())
        detail::fail("moe::report: names has ", options.names.size(), " entries, there are ",
                     load.tokens_per_expert.size(), " experts");
    if (!load.dropped_per_expert.empty() &&
        load.dropped_per_expert.size() != load.tokens_per_expert.size())
        detail::fail("moe::report: dropped_per_expert has ", load.dropped_per_expert.size(),
                     " entries, tokens_per_expert has ", load.tokens_per_expert.size(),
                     "; it must have as many, or none");
    if (options.width < 40)
        detail::fail("moe::report: width is ", options.width, ", it must be >= 40");
    std::string text = detail::summary(load) + "\n";
    if (load.busiest_expert >= 0)
        text += "busiest/mean " + detail::fixed(load.max_over_mean, 2) + ", variation " +
                detail::fixed(load.coefficient_of_variation, 2) + ", entropy " +
                detail::fixed(load.normalized_entropy, 3) + ", busiest expert " +
                std::to_string(load.busiest_expert) + ", " + std::to_string(load.dead_experts) +
                " dead\n";
    return text + detail::load_bars(load, options);
}

/// The same of a grouped routing.
inline std::string report(const Routing& routing, const ReportOptions& options = {}) {
    return report(load_stats(routing), options);
}

/// What the router thought, in one line.
inline std::string report(const RouterStats& router) {
    std::string text = "router entropy " + detail::fixed(router.entropy, 3) + " nats, margin " +
                       detail::significant(router.margin, 3) + ", weight sum " +
                       detail::fixed(router.weight_sum, 3);
    if (router.null_fraction > 0) text += ", " + detail::percent(router.null_fraction) + " null";
    if (router.nan_fraction > 0)
        text += ", NaN in " + detail::percent(router.nan_fraction) + " of the tokens";
    return text + "\n";
}

/// The batch that `ws` holds: load and router.
/// @throws std::logic_error if it holds none; std::invalid_argument as for a load
template <class S>
std::string report(const Workspace<S>& ws, const ReportOptions& options = {}) {
    return report(load_stats(ws.routing(), ws.context()), options) + report(router_stats(ws));
}

/// The report of the load.
inline std::ostream& operator<<(std::ostream& out, const LoadStats& load) {
    return out << report(load);
}
/// One line: extents, experts per token, drops.
inline std::ostream& operator<<(std::ostream& out, const Routing& routing) {
    return out << detail::summary(load_stats(routing));
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_STATS_REPORT_HPP
