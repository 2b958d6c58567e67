// SPDX-License-Identifier: MIT
#ifndef MOE_KERNELS_GATE_UP_HPP
#define MOE_KERNELS_GATE_UP_HPP

#include <algorithm>

#include <moe/config.hpp>
#include <moe/kernels/pack.hpp>
#include <moe/kernels/table.hpp>

namespace moe::inline MOE_ABI {

/// Columns of C = A B, for B of two matrices of `columns` columns each that take turns.
inline Index columns_in_turns(Index columns) {
    return (columns + turn_columns - 1) / turn_columns * 2 * turn_columns;
}

/// Two right-hand sides as one, gate and up of a gated expert: 16 columns of gate, the same 16 of
/// up, and so on, which is half a panel each or a panel each. One product makes both, from one
/// stream of weights, and leaves them as KernelTable::gate_up takes them.
///
/// To be packed: PackedMatrix and StoredMatrix take one of columns_in_turns(columns) columns. Those
/// that fill the last turns up are 0. Only viewed.
///
/// @tparam G, U  Strided<S> or NarrowStrided
template <class S, class G, class U>
struct GateUp {
    const KernelTable<S>* kernels;
    G gate;         ///< [k, columns]
    U up;           ///< [k, columns]
    Index columns;  ///< of each
    Index row = 0, col = 0;

    /// What begins at element (i, j).
    /// @param j  a multiple of 16
    GateUp from(Index i, Index j) const {
        MOE_ASSERT(j % turn_columns == 0, "turns are taken as a whole");
        return {kernels, gate, up, columns, row + i, col + j};
    }

    /// The first k rows of one panel.
    void pack(Index k, [[maybe_unused]] Index cols, S* panel) const {
        const Index width = kernels->panel_width;
        MOE_ASSERT(width % turn_columns == 0 && cols == width, "whole panels");
        for (Index j = 0; j < width; j += turn_columns) {
            const Index turn = (col + j) / turn_columns;
            if (turn % 2 == 0)
                pack_turn(gate, turn / 2 * turn_columns, k, panel + j);
            else
                pack_turn(up, turn / 2 * turn_columns, k, panel + j);
        }
    }

private:
    template <class B>
    void pack_turn(const B& b, Index first, Index k, S* to) const {
        constexpr Index together = 16, widest = 64;
        S rows[together * widest];
        const Index width = kernels->panel_width;
        const Index here = std::clamp<Index>(columns - first, 0, turn_columns);
        for (Index p = 0; p < k; p += together) {
            const Index count = std::min(together, k - p);
            detail::pack_panel(*kernels, b.from(row + p, first), count, here, rows);
            for (Index i = 0; i < count; ++i)
                std::copy_n(rows + i * width, turn_columns, to + (p + i) * width);
        }
    }
};

template <class S, class G, class U>
GateUp(const KernelTable<S>*, G, U, Index) -> GateUp<S, G, U>;

}  // namespace moe::inline MOE_ABI

#endif  // MOE_KERNELS_GATE_UP_HPP
