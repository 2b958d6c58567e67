// SPDX-License-Identifier: MIT
// Products and packing: the first part of body.inl, which includes it.

/// Elements of a cache line, and lines of a panel's row.
inline constexpr Index line = 64 / static_cast<Index>(sizeof(S));
inline constexpr int row_lines = static_cast<int>((panel_width + line - 1) / line);

/// One tile of `Rows` rows: Rows * tile_vectors accumulators stay in registers over all of k. The
/// unroll pragmas are what keeps them there at -O2.
template <int Rows>
void tile_of(Index, Index cols, Index k, const S* a, Index a_row, Index a_col, const S* b,
             Index b_row, S* c, Index c_row, bool add, const Ahead<S>& ahead) {
    const Index added = add ? cols : 0;  // columns whose chain starts from C
    V acc[Rows][tile_vectors];
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 2
        for (int v = 0; v < tile_vectors; ++v)
            acc[i][v] = load(c + i * c_row + v * lanes, added - v * lanes);
    // Rows in threes: a pointer each, the others by its address plus a_row once and twice.
    constexpr int groups = (Rows + 2) / 3;
    const S* group[groups];
#pragma GCC unroll 6
    for (int g = 0; g < groups; ++g) group[g] = a + 3 * g * a_row;
    auto next = reinterpret_cast<std::uintptr_t>(ahead.address);  // a number may be any
    Index left = ahead.streams;
    for (Index p = 0; p < k; ++p) {
        V row[tile_vectors];
#pragma GCC unroll 2
        for (int v = 0; v < tile_vectors; ++v) row[v] = load(b + v * lanes, lanes);
#pragma GCC unroll 16
        for (int i = 0; i < Rows; ++i) {
            const V x = splat(group[i / 3][i % 3 * a_row]);
#pragma GCC unroll 2
            for (int v = 0; v < tile_vectors; ++v) acc[i][v] = fma(x, row[v], acc[i][v]);
        }
#pragma GCC unroll 6
        for (int g = 0; g < groups; ++g) group[g] += a_col;
        b += b_row;
#pragma GCC unroll 4
        for (int l = 0; l < row_lines; ++l)
            __builtin_prefetch(
                reinterpret_cast<const void*>(next + static_cast<std::uintptr_t>(64 * l)));
        next += static_cast<std::uintptr_t>(ahead.step) * sizeof(S);
        if (--left == 0) {
            next += static_cast<std::uintptr_t>(ahead.wrap) * sizeof(S);
            left = ahead.streams;
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 2
        for (int v = 0; v < tile_vectors; ++v)
            store(c + i * c_row + v * lanes, acc[i][v], cols - v * lanes);
    finish();
}

template <class>
struct Tiles;
template <int... Less>
struct Tiles<std::integer_sequence<int, Less...>> {
    static constexpr decltype(KernelTable<S>::tile) of[] = {tile_of<Less + 1>...};
};

template <class>  // compiled where `table` is used, as `columns` is
void tile(Index rows, Index cols, Index k, const S* a, Index a_row, Index a_col, const S* b,
          Index b_row, S* c, Index c_row, bool add, const Ahead<S>& ahead) {
    Tiles<std::make_integer_sequence<int, tile_rows>>::of[rows - 1](rows, cols, k, a, a_row, a_col,
                                                                    b, b_row, c, c_row, add, ahead);
}

/// One row of row_panels panels: a tile of one row has too few chains. Nothing is prefetched: so
/// few streams the processor finds. 768 x 2048 came from memory at 25 GB/s so and at 19 panel by
/// panel, 0.89 and 0.64 of a plain read (tile_bench, AVX2, Zen 3).
template <class>
void row(Index k, const S* a, Index a_col, const S* b, Index b_panel, S* c, bool add) {
    V acc[row_panels][tile_vectors];
#pragma GCC unroll 4
    for (int j = 0; j < row_panels; ++j)
#pragma GCC unroll 2
        for (int v = 0; v < tile_vectors; ++v)
            acc[j][v] = load(c + j * panel_width + v * lanes, add ? lanes : 0);
    for (Index p = 0; p < k; ++p) {
        const V x = splat(*a);
#pragma GCC unroll 4
        for (int j = 0; j < row_panels; ++j)
#pragma GCC unroll 2
            for (int v = 0; v < tile_vectors; ++v)
                acc[j][v] = fma(x, load(b + j * b_panel + v * lanes, lanes), acc[j][v]);
        a += a_col;
        b += panel_width;
    }
#pragma GCC unroll 4
    for (int j = 0; j < row_panels; ++j)
#pragma GCC unroll 2
        for (int v = 0; v < tile_vectors; ++v)
            store(c + j * panel_width + v * lanes, acc[j][v], lanes);
    finish();
}

#include <moe/kernels/columns.inl>

inline void pack(Index k, Index cols, const S* b, Index b_row, Index b_col, S* panel) {
    for (Index j = 0; j < panel_width; j += lanes) {
        const Index here = cols - j < lanes ? (cols > j ? cols - j : 0) : lanes;
        const S* from = here > 0 ? b + j * b_col : b;
        S* to = panel + j;
        if (b_col == 1) {  // rows of B are contiguous
            for (Index p = 0; p < k; ++p)
                store(to + p * panel_width, load(from + p * b_row, here), lanes);
        } else if (b_row == 1) {  // columns are
            // The next columns, or what is below in these: k is then a slice of B.
            const bool more = j + lanes < panel_width || k == b_col;
            constexpr Index element = static_cast<Index>(sizeof(S));
            ColumnsAhead ahead(more ? from + lanes * b_col : b + k, b_col * element,
                               run_length(k * element));
            Index p = 0;
            for (; here == lanes && p + column_step <= k; p += column_step) {
                V row[column_step];
                read_columns(reinterpret_cast<const std::byte*>(from + p), b_col * element, row);
                ahead.step();
#pragma GCC unroll 4
                for (int q = 0; q < column_step; ++q)
                    store(to + (p + q) * panel_width, row[q], lanes);
            }
            for (; p < k; p += lanes)
                transpose(here, k - p < lanes ? k - p : lanes, from + p, b_col,
                          to + p * panel_width, panel_width);
        } else {
            for (Index p = 0; p < k; ++p)
                for (Index i = 0; i < lanes; ++i)
                    to[p * panel_width + i] = i < here ? from[p * b_row + i * b_col] : S(0);
        }
    }
    finish();
}

/// n of 16 elements that lie `step` apart, widened; the other lanes are zeros of any sign.
template <class T>
[[gnu::always_inline]] inline V gather(Index n, const T* from, Index step, V scale) {
    if (step == 1 && n >= lanes) return widen(from, scale);
    T some[lanes] = {};
    for (Index l = 0; l < n; ++l) __builtin_memcpy(some + l, from + l * step, sizeof(T));
    return widen(some, scale);
}

/// pack() of narrower elements, widened.
template <class T>
void pack_widened(Index k, Index cols, const T* b, Index b_row, Index b_col, const S* scales,
                  Index scale_row, Index scale_col, S* panel) {
    constexpr Index element = static_cast<Index>(sizeof(T));
    constexpr int step = column_step * parts<T>;  // elements in 16 bytes
    const bool by_row = has_scales<T> && scale_col == 0;
    for (Index j = 0; j < panel_width; j += lanes) {
        const Index here = cols - j < lanes ? (cols > j ? cols - j : 0) : lanes;
        const T* const from = here > 0 ? b + j * b_col : b;
        S* const to = panel + j;
        V scale = by_row ? splat(1) : scales_of<T>(scales, j, here);
        Index p = 0;
        if (b_row == 1 && here == lanes) {  // as in pack()
            const bool more = j + lanes < panel_width || k == b_col;
            ColumnsAhead ahead(more ? from + lanes * b_col : b + k, b_col * element,
                               run_length(k * element));
            for (; p + step <= k; p += step) {
                V words[column_step];
                read_columns(reinterpret_cast<const std::byte*>(from + p), b_col * element, words);
                ahead.step();
#pragma GCC unroll 4
                for (int w = 0; w < column_step; ++w)
#pragma GCC unroll 4
                    for (int q = 0; q < parts<T>; ++q) {
                        const Index row = p + w * parts<T> + q;
                        if (by_row) scale = splat(scales[row * scale_row]);
                        store(to + row * panel_width, part(T{}, words[w], q, scale), lanes);
                    }
            }
        }
        for (; p < k; ++p) {
            if (by_row) scale = splat(scales[p * scale_row]);
            store(to + p * panel_width, gather(here, from + p * b_row, b_col, scale), lanes);
        }
    }
    finish();
}

/// The same product by packing a little of B at a time: what columns_of leaves.
template <class T>
void columns_packed(Index rows, Index cols, Index k, const S* a, Index a_row, const T* b,
                    Index b_col, const S* scales, S* c, Index c_row, bool add) {
    S panel[lanes * panel_width];
    for (Index j = 0; j < cols; j += panel_width) {
        const Index here = cols - j < panel_width ? cols - j : panel_width;
        Index p = 0;
        do {
            const Index count = k - p < lanes ? k - p : lanes;
            const T* const from = b + j * b_col + p;
            if constexpr (std::is_same_v<T, S>)
                pack(count, here, from, 1, b_col, panel);
            else
                pack_widened(count, here, from, 1, b_col, scales + (has_scales<T> ? j : 0), 0, 1,
                             panel);
            tile<T>(rows, here, count, a + p, a_row, 1, panel, panel_width, c + j, c_row,
                    add || p > 0, {panel});
            p += lanes;
        } while (p < k);
    }
}

template <class T>
void columns_in_place(Index rows, Index cols, Index k, const S* a, Index a_row, const T* b,
                      Index b_col, const S* scales, S* c, Index c_row, bool add) {
    constexpr Index step = column_step * parts<T>;
    const Index wide = cols - cols % lanes, deep = k - k % step;
    Columns<T, std::make_integer_sequence<int, column_rows>>::of[rows - 1](
        wide, deep, a, a_row, b, b_col, scales, c, c_row, add);
    if (deep < k)
        columns_packed(rows, wide, k - deep, a + deep, a_row, b + deep, b_col, scales, c, c_row,
                       true);
    if (wide < cols)
        columns_packed(rows, cols - wide, k, a, a_row, b + wide * b_col, b_col,
                       scales + (has_scales<T> ? wide : 0), c + wide, c_row, add);
}

template <class>
void columns(Index rows, Index cols, Index k, const S* a, Index a_row, const S* b, Index b_col,
             S* c, Index c_row, bool add) {
    columns_in_place<S>(rows, cols, k, a, a_row, b, b_col, nullptr, c, c_row, add);
}
