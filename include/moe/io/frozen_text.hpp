// SPDX-License-Identifier: MIT
#ifndef MOE_IO_FROZEN_TEXT_HPP
#define MOE_IO_FROZEN_TEXT_HPP

#include <string>
#include <string_view>

#include <moe/core/activation.hpp>
#include <moe/core/context.hpp>
#include <moe/core/dtype.hpp>
#include <moe/core/error.hpp>
#include <moe/core/parameters.hpp>
#include <moe/core/types.hpp>
#include <moe/experts/feed_forward_state.hpp>
#include <moe/group_list.hpp>
#include <moe/io/bind.hpp>
#include <moe/io/names.hpp>
#include <moe/io/tensor.hpp>
#include <moe/kernels/dispatch.hpp>

/// What writer and reader of frozen layers agree on.

namespace moe::inline MOE_ABI::detail {

inline constexpr std::string_view frozen_text_name = "frozen";
inline constexpr std::string_view frozen_title = "moe-frozen 1";

/// "gated silu 64 128 64", then bounds if there are any: what else decides what panels mean.
inline std::string shape_text(const FeedForwardShape& shape) {
    const auto& [model_dim, ffn_dim, output_dim, activation, gated, limit, up_offset] = shape;
    std::string line = gated ? "gated " : "plain ";
    line += name(activation);
    for (const Index extent : {model_dim, ffn_dim, output_dim}) line += " " + text(extent);
    if (shape.is_bounded()) line += " limit " + text(limit) + " up_offset " + text(up_offset);
    return line;
}

inline std::string facts_text(const ExpertFacts& facts) {
    std::string line = facts.is_null ? "null" : facts.is_free ? "free" : "not packed";
    return line + " class " + text(facts.capacity_class) + " flops " + text(facts.flops_per_row);
}

/// The text that goes with the tensors of a frozen layer, line by line: line(text), and
/// packed_line(text, group, e) for the expert e of a packed group, whose line goes on with its
/// storage and compute. The writer makes them of the layer, the reader of what recipes say.
template <class S, class Bank, class Line, class PackedLine>
void for_each_frozen_line(const Bank& bank, Index num_parameters, const Line& line,
                          const PackedLine& packed_line) {
    line(std::string(frozen_title));
    line(std::string("scalar ") + dtype_name(dtype_of<S>));
    line("panels " + text(kernels<S>().panel_width));
    line("model_dim " + text(bank.config().model_dim));
    line("output_dim " + text(bank.output_dim()));
    line("input_scale " + text(bank.config().input_scale));
    line("parameters " + text(num_parameters));
    Index next = 0;  // routed expert
    const auto not_packed = [&](Index end) {
        for (; next < end; ++next)
            line("experts." + text(next) + " " + facts_text(bank.facts()[at(next)]));
    };
    visit_packed(bank, [&](const std::string& pattern, const auto& group, Index first) {
        const bool routed = pattern.starts_with('e');
        if (routed) not_packed(first);
        for (Index e = 0; e < group.num_experts(); ++e) {
            std::string start = Names::with_number(pattern, first + e);
            start.back() = ' ';
            packed_line(start + shape_text(group.shape()), group, e);
        }
        if (routed) next += group.num_experts();
    });
    not_packed(bank.num_experts());
}

/// f(name, matrix) for every parameter and state that a frozen layer does not pack.
template <class Head, class Bank, class F>
void for_each_unpacked(Head& head, Bank& bank, F&& f) {
    const auto pass = [&](std::string_view name, auto& matrix, Role) { f(name, matrix); };
    moe::visit_parameters(head, pass);
    moe::visit_parameters(bank, pass);
}

/// What such a matrix is in the file: one that is column-major is its transpose.
template <class M>
Extents shape_in_file(const M& matrix) {
    if (steps_of(matrix).col == 1) return {matrix.rows(), matrix.cols()};
    return {matrix.cols(), matrix.rows()};
}

/// Of an expert: "experts.3.gate_up" and "experts.3.down".
struct PanelNames {
    std::string up, down;

    PanelNames(std::string_view prefix, std::string_view pattern, bool gated, Index number) {
        const std::string expert = std::string(prefix) + Names::with_number(pattern, number);
        up = expert + (gated ? "gate_up" : "up");
        down = expert + "down";
    }
};

/// Panels as elements of 8 bytes: of the widest type, so that writers put them in front.
inline Extents panels_shape(Index bytes) { return {bytes / 8}; }

}  // namespace moe::inline MOE_ABI::detail

#endif  // MOE_IO_FROZEN_TEXT_HPP
