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
    const S* next = ahead.address;
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
        for (int l = 0; l < row_lines; ++l) __builtin_prefetch(next + l * line);
        next += ahead.step;
        if (--left == 0) {
            next += ahead.wrap;
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

inline void tile(Index rows, Index cols, Index k, const S* a, Index a_row, Index a_col, const S* b,
                 Index b_row, S* c, Index c_row, bool add, const Ahead<S>& ahead) {
    Tiles<std::make_integer_sequence<int, tile_rows>>::of[rows - 1](rows, cols, k, a, a_row, a_col,
                                                                    b, b_row, c, c_row, add, ahead);
}

// ---- contiguous columns of B: weights stored [out, in] ----

/// Rows of B that are read at once: 16 bytes of each column.
inline constexpr int column_step = 16 / static_cast<int>(sizeof(S));

/// to[p] lane j = from[j * from_row + p] for j < 16 and p < column_step. An instruction set may
/// have a function of its own, which is then preferred to this one.
template <int Step>
[[gnu::always_inline]] inline void read_columns(const S* from, Index from_row, V (&to)[Step]) {
    S rows[Step * lanes];
    transpose(lanes, Step, from, from_row, rows, lanes);
    for (int p = 0; p < Step; ++p) to[p] = load(rows + p * lanes, lanes);
}

/// What is prefetched while 16 columns are read: 16 others, `run` elements of one after the other,
/// as memory gives long runs fastest: 36 GB/s, but 28 if 128 elements of each were taken in turn.
/// (Figures of this file: AVX-512 in float if they name no other, one core of a Zen 5.)
struct ColumnsAhead {
    const S* at;
    Index col_stride;
    Index run;
    Index left;  ///< of the run

    ColumnsAhead(const S* from, Index stride, Index length)
        : at(from), col_stride(stride), run(length), left(length) {}

    /// The share of one step, 256 bytes.
    [[gnu::always_inline]] void step() {
        constexpr Index share = column_step * lanes;
#pragma GCC unroll 4
        for (Index l = 0; l < share; l += line) __builtin_prefetch(at + l, 0, 2);
        left -= share;
        at += left > 0 ? share : share - run + col_stride;
        left = left > 0 ? left : run;
    }
};

/// Elements of a column that are prefetched in one piece: at most 8 KiB, of 16 columns at most 128
/// KiB, of k in equal parts.
inline Index run_length(Index k) {
    constexpr Index share = column_step * lanes, longest = 128 * line;
    const Index parts = k > longest ? (k + longest - 1) / longest : 1;
    return ((k + parts - 1) / parts + share - 1) / share * share;
}

/// C (+)= A B from the columns of B where they lie, 16 at a time, for a multiple of 16 of them and
/// of column_step rows: a few rows of all 16 are transposed in registers, Rows accumulators are
/// kept.
template <int Rows>
void columns_of(Index, Index cols, Index k, const S* a, Index a_row, const S* b, Index b_col, S* c,
                Index c_row, bool add) {
    const Index run = run_length(k);
    constexpr int groups = (Rows + 2) / 3;  // rows in threes, as in tile_of
    for (Index j = 0; j < cols; j += lanes) {
        V acc[Rows];
#pragma GCC unroll 8
        for (int i = 0; i < Rows; ++i) acc[i] = load(c + i * c_row + j, add ? lanes : 0);
        const S* group[groups];
#pragma GCC unroll 3
        for (int g = 0; g < groups; ++g) group[g] = a + 3 * g * a_row;
        const S* from = b;
        for (Index p = 0; p < k; p += run) {
            ColumnsAhead ahead(p + run < k ? from + run : b + lanes * b_col, b_col, run);
            for (const S* const end = from + (k - p < run ? k - p : run); from != end;
                 from += column_step) {
                V row[column_step];
                read_columns(from, b_col, row);
#pragma GCC unroll 4
                for (int q = 0; q < column_step; ++q)
#pragma GCC unroll 8
                    for (int i = 0; i < Rows; ++i)
                        acc[i] = fma(splat(group[i / 3][i % 3 * a_row + q]), row[q], acc[i]);
#pragma GCC unroll 3
                for (int g = 0; g < groups; ++g) group[g] += column_step;
                ahead.step();
            }
        }
#pragma GCC unroll 8
        for (int i = 0; i < Rows; ++i) store(c + i * c_row + j, acc[i], lanes);
        b += lanes * b_col;
    }
    finish();
}

/// Most rows of A that columns_of takes. Up to there it is quicker than packing, where weights come
/// from memory: 8 rows with AVX-512 26 and 16 GB/s of them, 6 with AVX2 21 and 14, 8 in double with
/// AVX-512 32 and 18. More would take longer to compile than they gain.
inline constexpr int column_rows = tile_rows < 8 ? tile_rows : 8;

template <class>
struct Columns;
template <int... Less>
struct Columns<std::integer_sequence<int, Less...>> {
    static constexpr decltype(KernelTable<S>::columns) of[] = {columns_of<Less + 1>...};
};

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
            ColumnsAhead ahead(more ? from + lanes * b_col : b + k, b_col, run_length(k));
            Index p = 0;
            for (; here == lanes && p + column_step <= k; p += column_step) {
                V row[column_step];
                read_columns(from + p, b_col, row);
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

/// The same product by packing a little of B at a time: what columns_of leaves.
inline void columns_packed(Index rows, Index cols, Index k, const S* a, Index a_row, const S* b,
                           Index b_col, S* c, Index c_row, bool add) {
    S panel[lanes * panel_width];
    for (Index j = 0; j < cols; j += panel_width) {
        const Index here = cols - j < panel_width ? cols - j : panel_width;
        Index p = 0;
        do {
            const Index count = k - p < lanes ? k - p : lanes;
            pack(count, here, b + j * b_col + p, 1, b_col, panel);
            tile(rows, here, count, a + p, a_row, 1, panel, panel_width, c + j, c_row, add || p > 0,
                 {panel});
            p += lanes;
        } while (p < k);
    }
}

inline void columns(Index rows, Index cols, Index k, const S* a, Index a_row, const S* b,
                    Index b_col, S* c, Index c_row, bool add) {
    const Index wide = cols - cols % lanes, deep = k - k % column_step;
    Columns<std::make_integer_sequence<int, column_rows>>::of[rows - 1](rows, wide, deep, a, a_row,
                                                                        b, b_col, c, c_row, add);
    if (deep < k)
        columns_packed(rows, wide, k - deep, a + deep, a_row, b + deep, b_col, c, c_row, true);
    if (wide < cols)
        columns_packed(rows, cols - wide, k, a, a_row, b + wide * b_col, b_col, c + wide, c_row,
                       add);
}
