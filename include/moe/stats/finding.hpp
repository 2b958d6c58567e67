// SPDX-License-Identifier: MIT
#ifndef MOE_STATS_FINDING_HPP
#define MOE_STATS_FINDING_HPP

#include <algorithm>
#include <cstddef>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <moe/core/error.hpp>
#include <moe/core/types.hpp>
#include <moe/stats/format.hpp>

namespace moe::inline MOE_ABI {

/// What a diagnosis can find, with the figures that it gives.
enum class FindingKind {
    not_a_number,  ///< tokens, of: how many have a NaN, of how many
    collapsed,     ///< experts, share, mean: so many take this share; what balance would give them
    dead_experts,  ///< experts, of: how many nobody chooses
    unbalanced,    ///< expert, max_over_mean
    dropped,       ///< share of assignments, late: share of those that are late, see diagnose()
    unrouted,      ///< share of tokens
    undecided,     ///< entropy, of: in nats, and its largest value
    saturated,     ///< entropy, of
    wide_selection,  ///< slots, of, share: the last slots of k carry this share of the weight
    too_few_tokens,  ///< tokens, needed
    balanced,        ///< layers, max_over_mean: nothing of the above; the busiest of all experts
};

/// A number of a finding.
struct Figure {
    const char* name;
    double value;
};

/// One thing that a person should know of a layer.
struct Finding {
    FindingKind kind = FindingKind::balanced;
    Index layer = -1;  ///< its number in the trace; -1: of the one batch, or of several layers
    /// 0 (nothing) to 1: about the share of tokens, assignments or experts that is lost, less of it
    /// where that costs time rather than quality
    double severity = 0;
    std::vector<Figure> figures{};  ///< as FindingKind lists them
    std::string text{};             ///< what is so, as a clause
    std::string remedy{};           ///< what to try, as a clause; empty if nothing needs it

    /// The figure of that name; NaN if it has none.
    double figure(std::string_view name) const {
        for (const Figure& f : figures)
            if (name == f.name) return f.value;
        return std::numeric_limits<double>::quiet_NaN();
    }
};

/// How findings are written.
struct FindingReportOptions {
    Index most = 16;   ///< findings, >= 1; how many were left out is said
    Index width = 80;  ///< columns of a line, >= 40
};

namespace detail {

/// `text` and a line break, broken at blanks into lines of `width` columns; those after the first
/// are indented. A word that is longer stays whole.
inline std::string wrapped(std::string_view text, Index width) {
    constexpr Index indent = 4;
    std::string lines;
    Index column = 0;
    while (!text.empty()) {
        const std::string_view word = text.substr(0, text.find(' '));
        text.remove_prefix(std::min(word.size() + 1, text.size()));
        if (column > 0 && column + 1 + columns_of(word) > width) {
            lines += "\n";
            lines += std::string(indent, ' ');
            column = indent;
        } else if (column > 0) {
            lines += ' ';
            ++column;
        }
        lines += word;
        column += columns_of(word);
    }
    return lines + "\n";
}

}  // namespace detail

/// Findings as text: one paragraph each, in their order.
///
///     layer 2: collapsed: expert 3 gets 94.1 % of the tokens (mean 12.5 %); pull the
///         loads together with load_balance_loss, or with update_bias and SignUpdate
///     layer 2: two dead experts: 1, 6; ...
///
/// @throws std::invalid_argument if an option is out of range
inline std::string report(std::span<const Finding> findings,
                          const FindingReportOptions& options = {}) {
    if (options.most < 1) detail::fail("moe::report: most is ", options.most, ", it must be >= 1");
    if (options.width < 40)
        detail::fail("moe::report: width is ", options.width, ", it must be >= 40");
    std::string text;
    const std::size_t shown = std::min(findings.size(), detail::at(options.most));
    for (const Finding& finding : findings.first(shown)) {
        std::string line;
        if (finding.layer >= 0) line = "layer " + std::to_string(finding.layer) + ": ";
        line += finding.text;
        if (!finding.remedy.empty()) line += "; " + finding.remedy;
        text += detail::wrapped(line, options.width);
    }
    if (shown < findings.size())
        text += "and " + std::to_string(findings.size() - shown) + " more\n";
    return text;
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_STATS_FINDING_HPP
