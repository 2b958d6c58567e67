// SPDX-License-Identifier: MIT
#ifndef MOE_IO_NAMES_HPP
#define MOE_IO_NAMES_HPP

#include <algorithm>
#include <cstddef>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <moe/core/error.hpp>
#include <moe/core/types.hpp>
#include <moe/io/layout.hpp>
#include <moe/io/text.hpp>

namespace moe::inline MOE_ABI {

/// How a checkpoint calls a parameter of a layer, and how it lays it out.
///
///     {"experts.#.gate", "experts.#.w1.weight"}
///     {"experts.#.up", "experts.gate_up_proj",
///      {.orientation = Orientation::in_out, .stacking = Stacking::leading,
///       .part = Part::second_half}}
///
/// '#' stands for the number of an expert, in the layer's counting in `parameter`; in `tensor` it
/// is that number less `first`. A parameter may be named with its number, too: "shared.0.gate".
///
///     {"", "experts.#.gate_proj.weight"}
///
/// Without a parameter it is a tensor that nothing reads: it may be there, whatever its number.
struct TensorName {
    std::string parameter;  ///< of the layer: visit_parameters() says them
    std::string tensor;     ///< behind the prefix, less its last part for each leading "../"
    Layout layout{};
    std::string scales{};  ///< the tensor of their scales, for MXFP4 and F8_E4M3
    Index first = 0;       ///< the expert whose number in the checkpoint is 0,
    Index count = std::numeric_limits<Index>::max();  ///< and of how many this entry speaks
};

/// One place of a parameter in a checkpoint.
struct TensorPlace {
    std::string tensor, scales;  ///< whole names; no scales: empty
    Layout layout{};
    Index index = 0;  ///< of the expert within a stacked tensor
};

/// The names of one layer's tensors in a checkpoint.
///
///     moe::Names{"model.layers.0.block_sparse_moe.",
///                {{"router.weight", "gate.weight"},
///                 {"experts.#.gate", "experts.#.w1.weight"},
///                 {"experts.#.up", "experts.#.w3.weight"},
///                 {"experts.#.down", "experts.#.w2.weight"}}};
///
/// A parameter may have several entries: where releases differ, the first whose tensor exists
/// counts when reading, the first of all when writing. The same holds for prefixes: when reading,
/// the first under which the first entry of the table is found.
class Names {
public:
    Names() = default;
    /// @param prefix  goes in front of every tensor's name as it is, with its dot
    Names(std::string prefix, std::vector<TensorName> table)
        : Names(std::vector<std::string>{std::move(prefix)}, std::move(table)) {}
    /// @throws std::invalid_argument without prefix or table, if a '#' has no counterpart, or if a
    ///         number is out of range
    Names(std::vector<std::string> prefixes, std::vector<TensorName> table)
        : prefixes_(std::move(prefixes)), table_(std::move(table)) {
        if (prefixes_.empty() || table_.empty())
            detail::fail("moe::Names: there is no ", prefixes_.empty() ? "prefix" : "entry",
                         "; a checkpoint has names");
        for (const TensorName& entry : table_) {
            if (entry.parameter.empty()) continue;
            const bool one = entry.parameter.find('#') != std::string::npos;
            const bool by_name = entry.tensor.find('#') != std::string::npos;
            const bool stacked = entry.layout.stacking != Stacking::separate;
            if (stacked ? by_name || !one : by_name != one)
                detail::fail("moe::Names: ", detail::in_quotes(entry.parameter), " is to be ",
                             detail::in_quotes(entry.tensor),
                             stacked ? ", one tensor for all experts: only the first may hold '#'"
                                     : "; both must hold '#', or neither");
            if (entry.layout.block < 1 || entry.first < 0 || entry.count < 1)
                detail::fail("moe::Names: ", detail::in_quotes(entry.parameter), " has block ",
                             entry.layout.block, ", first ", entry.first, " and count ",
                             entry.count, ", they must be at least 1, 0 and 1");
        }
    }

    const std::vector<std::string>& prefixes() const { return prefixes_; }
    const std::vector<TensorName>& table() const { return table_; }

    /// Where a parameter may be, in the order in which to look.
    /// @param prefix  a number of prefixes()
    std::vector<TensorPlace> places(std::string_view parameter, std::size_t prefix = 0) const {
        const auto [pattern, number] = split(parameter);
        std::vector<TensorPlace> places;
        for (const TensorName& entry : table_) {
            if (entry.parameter.empty()) continue;
            const bool one = entry.parameter == parameter;  // by its own name, without '#'
            if (!one && (entry.parameter != pattern || number < entry.first ||
                         number - entry.first >= entry.count))
                continue;
            const Index index = one ? 0 : number - entry.first;
            const auto whole = [&](const std::string& name) {
                return name.empty() ? name : joined(prefixes_.at(prefix), with_number(name, index));
            };
            places.push_back({whole(entry.tensor), whole(entry.scales), entry.layout, index});
        }
        return places;
    }

    /// Whether a tensor, by its whole name, is one that nothing needs to read.
    bool is_unread(std::string_view tensor, std::size_t prefix = 0) const {
        for (const TensorName& entry : table_) {
            if (!entry.parameter.empty()) continue;
            const std::string whole = joined(prefixes_.at(prefix), entry.tensor);
            const std::string_view pattern = whole;
            const std::size_t at = pattern.find('#');
            if (at == std::string_view::npos
                    ? tensor == pattern
                    : tensor.size() >= pattern.size() &&
                          tensor.starts_with(pattern.substr(0, at)) &&
                          tensor.ends_with(pattern.substr(at + 1)) &&
                          is_number(tensor.substr(at, tensor.size() - pattern.size() + 1)))
                return true;
        }
        return false;
    }

    /// "experts.3.gate" for "experts.#.gate" and 3.
    static std::string with_number(std::string_view pattern, Index number) {
        std::string name(pattern);
        const std::size_t at = name.find('#');
        if (at != std::string::npos) name.replace(at, 1, detail::text(number));
        return name;
    }

private:
    static bool is_number(std::string_view text) {
        return std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
    }

    static std::string joined(std::string_view prefix, std::string_view name) {
        constexpr std::string_view up = "../";
        while (name.starts_with(up)) {
            name.remove_prefix(up.size());
            if (!prefix.empty()) prefix.remove_suffix(1);  // its dot
            const std::size_t dot = prefix.rfind('.');
            prefix = dot == std::string_view::npos ? "" : prefix.substr(0, dot + 1);
        }
        return std::string(prefix) + std::string(name);
    }

    /// The other way round: the first part of a name that is a number is that of an expert.
    static std::pair<std::string, Index> split(std::string_view parameter) {
        const std::size_t dot = parameter.find('.');
        std::size_t end = dot == std::string_view::npos ? dot : dot + 1;
        if (dot == std::string_view::npos) return {std::string(parameter), 0};
        Index number = 0;
        constexpr std::size_t digits = 9;  // more are no expert's
        while (end < parameter.size() && end - dot <= digits && parameter[end] >= '0' &&
               parameter[end] <= '9')
            number = 10 * number + (parameter[end++] - '0');
        if (end == dot + 1 || (end < parameter.size() && parameter[end] != '.'))
            return {std::string(parameter), 0};
        return {
            std::string(parameter.substr(0, dot + 1)) + "#" + std::string(parameter.substr(end)),
            number};
    }

    std::vector<std::string> prefixes_;
    std::vector<TensorName> table_;
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_IO_NAMES_HPP
