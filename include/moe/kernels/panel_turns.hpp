// SPDX-License-Identifier: MIT
#ifndef MOE_KERNELS_PANEL_TURNS_HPP
#define MOE_KERNELS_PANEL_TURNS_HPP

#include <cstddef>

#include <moe/core/types.hpp>

namespace moe::inline MOE_ABI::detail {

/// The panels of a product in runs that take turns, and what is read after each run:
///
///     for (PanelTurns turn(panel, bytes, width, cols, 8, ahead); turn.panels > 0; turn.next())
struct PanelTurns {
    const std::byte* at;    ///< the first panel of this run
    const std::byte* then;  ///< the first of the next one, or `ahead`
    Index panels;           ///< of this run; 0 behind the last
    Index column;           ///< the first of this run

    /// @param panel         the first, of `panel_bytes` bytes
    /// @param panel_width   columns of each
    /// @param cols          of all
    /// @param together      most panels of a run
    /// @param ahead_of_all  what is read behind the last run; may be null
    PanelTurns(const std::byte* panel, Index panel_bytes, Index panel_width, Index cols,
               Index together, const std::byte* ahead_of_all)
        : at(panel),
          column(0),
          bytes_(together * panel_bytes),
          width_(panel_width),
          cols_(cols),
          together_(together),
          ahead_(ahead_of_all) {
        look();
    }

    void next() {
        at += bytes_;
        column += together_ * width_;
        look();
    }

private:
    void look() {
        const Index left = column < cols_ ? (cols_ - column + width_ - 1) / width_ : 0;
        panels = left < together_ ? left : together_;
        then = left > together_ ? at + bytes_ : ahead_;
    }

    Index bytes_, width_, cols_, together_;
    const std::byte* ahead_;
};

}  // namespace moe::inline MOE_ABI::detail

#endif  // MOE_KERNELS_PANEL_TURNS_HPP
