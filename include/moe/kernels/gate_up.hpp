// SPDX-License-Identifier: MIT
#ifndef MOE_KERNELS_GATE_UP_HPP
#define MOE_KERNELS_GATE_UP_HPP

#include <algorithm>

#include <moe/config.hpp>
#include <moe/kernels/pack.hpp>
#include <moe/kernels/table.hpp>

namespace moe::inline MOE_ABI {

/// 32 ceil(columns / 16): columns of gate and up together, the last 16 of each filled up.
inline Index gate_up_columns(Index columns) {
    return (columns + gate_up_run - 1) / gate_up_run * 2 * gate_up_run;
}

/// Two right-hand sides as one, gate and up of a gated expert, whose columns alternate: 16 of gate,
/// the same 16 of up, the next 16 of gate. A panel of 32 columns is half gate, half up; panels of
/// 16 alternate. One product makes both, from one stream of weights, and leaves them as
/// KernelTable::gate_up takes them.
///
/// PackedMatrix and StoredMatrix of gate_up_columns(columns) columns pack it; what the last 16 are
/// filled up with is 0. That takes longer than packing both alone, and is done once. Only viewed.
///
/// @tparam G, U  Strided<S> or NarrowStrided
template <class S, class G, class U>
struct GateUp {
    const KernelTable<S>* kernels;
    G gate;         ///< [k, columns]
    U up;           ///< [k, columns]
    Index columns;  ///< of gate, and of up
    Index row = 0;  ///< of both, where this begins
    Index col = 0;  ///< of gate_up_columns(columns), where this begins

    /// What begins at element (i, j).
    /// @param j  a multiple of 16
    GateUp from(Index i, Index j) const {
        MOE_ASSERT(j % gate_up_run == 0, "16 columns of a matrix stay together");
        return {kernels, gate, up, columns, row + i, col + j};
    }

    /// The first k rows of one panel, laid out as KernelTable::pack() does.
    /// @param cols  the panel width: these columns have no partial panel
    void pack(Index k, [[maybe_unused]] Index cols, S* panel) const {
        MOE_ASSERT(cols == kernels->panel_width, "whole panels");
        for (Index j = 0; j < kernels->panel_width; j += gate_up_run) {
            const Index run = (col + j) / gate_up_run, first = run / 2 * gate_up_run;
            if (run % 2 == 0)
                pack_run(gate, first, k, panel + j);
            else
                pack_run(up, first, k, panel + j);
        }
    }

private:
    /// Columns [first, first + 16) of b to `to`, rows panel_width elements apart.
    template <class B>
    void pack_run(const B& b, Index first, Index k, S* to) const {
        constexpr Index together = 16;  // rows of b; more were no faster
        S rows[together * 2 * gate_up_run];
        const Index width = kernels->panel_width;
        const Index here = std::clamp<Index>(columns - first, 0, gate_up_run);
        if (width == gate_up_run)
            return detail::pack_panel(*kernels, b.from(row, first), k, here, to);
        for (Index p = 0; p < k; p += together) {
            const Index count = std::min(together, k - p);
            detail::pack_panel(*kernels, b.from(row + p, first), count, here, rows);
            for (Index i = 0; i < count; ++i)
                std::copy_n(rows + i * width, gate_up_run, to + (p + i) * width);
        }
    }
};
template <class S, class G, class U>
GateUp(const KernelTable<S>*, G, U, Index) -> GateUp<S, G, U>;

}  // namespace moe::inline MOE_ABI

#endif  // MOE_KERNELS_GATE_UP_HPP
