// SPDX-License-Identifier: MIT
#ifndef MOE_KERNELS_TABLE_HPP
#define MOE_KERNELS_TABLE_HPP

#include <cstdint>

#include <moe/core/activation.hpp>
#include <moe/core/types.hpp>
#include <moe/kernels/narrow_table.hpp>

namespace moe::inline MOE_ABI {

/// What a tile prefetches while it computes: as many bytes as a row of a panel has in each step,
/// the next address `step` elements on, and `wrap` more after every `streams` steps. Any address.
template <class S>
struct Ahead {
    const S* address = nullptr;
    Index step = 0;
    Index streams = 1;
    Index wrap = 0;
};

/// Where gate and up are one right-hand side, so many columns of one follow those of the other.
inline constexpr Index gate_up_run = 16;

/// Everything arithmetic that a layer does per element, as plain functions over pointers, strides
/// and counts: one table per instruction set, the same bits from each for float.
///
/// Three rules make the bits equal:
///   - an element of a product is one chain of fused multiply-adds in the order of k;
///   - any other sum has 16 interleaved partials (element i goes to partial i mod 16), folded
///     8-4-2-1: p[i] += p[i + 8], then 4, 2, 1;
///   - exp, sigmoid and erf are the same operations everywhere, and a multiplication that feeds an
///     addition is an explicit fma.
/// Double uses the standard library's exp and erf; its bits are those of one binary.
///
/// No function checks its arguments; pointers may be unaligned; counts may be 0. Nothing is read
/// outside the stated extents.
///
/// A new kernel goes here, into body.inl (the function and the initialiser of `table`; products are
/// in products.inl), into reference.hpp (`exact`, element by element; and `plain`, the formula in
/// double, if rounding is not all that differs), and into tests/kernels/table_test.cpp,
/// bits_main.cpp and, where its speed matters, bench/kernels/tile_bench.cpp. It ends with finish().
/// What it needs of V or E is added to lanes.inl, single.inl, portable.hpp and the files in x86/
/// and arm/; a template in columns.inl can stand in for instruction sets that have nothing better,
/// as read_columns does. A new function of one element, like exp, goes to math_float.inl and
/// math_double.inl.
template <class S>
struct KernelTable {
    const char* name;   ///< "scalar", "avx2", "avx512", "neon"
    Index panel_width;  ///< columns of one packed panel, 16 or 32
    Index tile_rows;    ///< most rows that one `tile` call takes

    /// C = A B, or C += A B if `add`, for one tile.
    ///
    ///     C(i, j) = fma(A(i, k-1), B(k-1, j), ... fma(A(i, 0), B(0, j), add ? C(i, j) : 0))
    ///
    /// @param rows  1 to tile_rows
    /// @param cols  1 to panel_width; columns from `cols` on are neither read in C nor written
    /// @param k     length of the chain; 0 leaves 0 (or C, if `add`)
    /// @param a     A(i, p) = a[i * a_row + p * a_col]
    /// @param b     B(p, j) = b[p * b_row + j]; all panel_width columns of each row are readable
    /// @param c     C(i, j) = c[i * c_row + j]
    /// @param ahead what the next tiles will read comes in while this one computes
    void (*tile)(Index rows, Index cols, Index k, const S* a, Index a_row, Index a_col, const S* b,
                 Index b_row, S* c, Index c_row, bool add, const Ahead<S>& ahead);

    Index row_panels;  ///< panels that one `row` call takes; 1: there is no `row`, it is null

    /// As `tile`, for one row of A and row_panels whole panels of B, side by side.
    /// @param a  A(p) = a[p * a_col]
    /// @param b  the first panel; b_panel elements from one to the next
    /// @param c  [row_panels * panel_width]
    void (*row)(Index k, const S* a, Index a_col, const S* b, Index b_panel, S* c, bool add);

    Index column_rows;  ///< most rows that one `columns` call takes, at most tile_rows

    /// As `tile`, where the columns of B are contiguous, as in x W^T with W [out, in], from where
    /// they lie. The columns behind the last are prefetched.
    /// @param rows  1 to column_rows
    /// @param cols  any number
    /// @param a     A(i, p) = a[i * a_row + p]
    /// @param b     B(p, j) = b[j * b_col + p]
    void (*columns)(Index rows, Index cols, Index k, const S* a, Index a_row, const S* b,
                    Index b_col, S* c, Index c_row, bool add);

    /// panel[p * panel_width + j] = B(p, j) for j < cols, 0 from there to panel_width.
    /// @param b  B(p, j) = b[p * b_row + j * b_col]; quick when b_col or b_row is 1
    void (*pack)(Index k, Index cols, const S* b, Index b_row, Index b_col, S* panel);

    /// y = fma(a, x, y)
    void (*axpy)(Index n, S a, const S* x, S* y);
    /// y = a x; x may be y
    void (*scale)(Index n, S a, const S* x, S* y);
    /// sum of x y, each product fused into its partial
    S (*dot)(Index n, const S* x, const S* y);
    /// sum of x
    S (*sum)(Index n, const S* x);

    /// y = exp(x - max x) / sum of those; x may be y. -inf gives 0; a row of -inf only gives zeros;
    /// NaN anywhere, or +inf, gives NaN everywhere.
    void (*softmax)(Index n, const S* x, S* y);
    /// log of the sum of exp(x); -inf for a row of -inf only or n = 0; NaN if any is NaN
    S (*log_sum_exp)(Index n, const S* x);
    /// y = 1 / (1 + exp(-x)); x may be y
    void (*sigmoid)(Index n, const S* x, S* y);

    /// Whether no element is infinite or NaN
    bool (*is_finite)(Index n, const S* x);
    /// The k best keys, best first: higher ones first, of equal ones (0 and -0 are) the lower
    /// index, NaN behind all numbers. -inf is never chosen.
    /// @param best  [min(k, n)] their indices
    /// @return      how many there are
    Index (*top_k)(Index n, const S* keys, Index k, std::int32_t* best);
    /// The two largest numbers of each run of `size` keys: first >= second. NaN is passed over;
    /// -inf stands for what is not there.
    /// @param first, second  [runs]
    void (*top_two)(Index runs, Index size, const S* keys, S* first, S* second);

    /// h = act(a); h may be a
    void (*activate)(Activation act, Index n, const S* a, S* h);
    /// da = dh act'(a); da may be dh. relu' (0) = 0.
    void (*activate_backward)(Activation act, Index n, const S* a, const S* dh, S* da);
    /// h = act(g) u, the gated forms: SwiGLU with silu, GEGLU with gelu, ReGLU with relu
    void (*gate)(Activation act, Index n, const S* g, const S* u, S* h);
    /// The same of g and u as a product with GateUp leaves them, 16 and 16: g(i) = gu[i / 16 * 32 +
    /// i % 16], u(i) = gu[i / 16 * 32 + 16 + i % 16]. Nothing behind u(n - 1) is read; h is not gu.
    void (*gate_up)(Activation act, Index n, const S* gu, S* h);
    /// dg = dh u act'(g), du = dh act(g); dg may be g or dh, du may be u
    void (*gate_backward)(Activation act, Index n, const S* g, const S* u, const S* dh, S* dg,
                          S* du);
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_KERNELS_TABLE_HPP
