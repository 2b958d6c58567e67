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

// ---- contiguous columns of B: weights stored [out, in] ----

/// Words of the size of an S in what is read of each column at once, 16 bytes.
inline constexpr int column_step = 16 / static_cast<int>(sizeof(S));
/// Elements in a word: B may hold narrower ones than S, of type T.
template <class T>
inline constexpr int parts = static_cast<int>(sizeof(S) / sizeof(T));

/// to[p] lane j = the word at from + j * from_row + p * sizeof(S) bytes, for j < 16 and
/// p < column_step. An instruction set may have a function of its own, which is then preferred.
template <int Step>
[[gnu::always_inline]] inline void read_columns(const std::byte* from, Index from_row,
                                                V (&to)[Step]) {
    S words[lanes * Step], rows[Step * lanes];
    for (Index j = 0; j < lanes; ++j)
        __builtin_memcpy(words + j * Step, from + j * from_row, Step * sizeof(S));
    transpose(lanes, Step, words, Step, rows, lanes);
    for (int p = 0; p < Step; ++p) to[p] = load(rows + p * lanes, lanes);
}

/// Element q of each word, as narrow.inl has it for narrower types.
[[gnu::always_inline]] inline V part(S, V words, int, V) { return words; }

/// The scales of n of the 16 columns from j on, of types that have them.
template <class T>
[[gnu::always_inline]] inline V scales_of([[maybe_unused]] const S* scales,
                                          [[maybe_unused]] Index j, [[maybe_unused]] Index n) {
    if constexpr (has_scales<T>)
        return load(scales + j, n);
    else
        return splat(1);
}

/// What is prefetched while 16 columns are read: 16 others, `run` bytes of one after the other, as
/// memory gives long runs fastest: 36 GB/s, but 28 if 128 elements of each were taken in turn.
/// (Figures of this file: AVX-512 in float if they name no other, one core of a Zen 5.)
struct ColumnsAhead {
    const std::byte* at;
    Index col_stride;
    Index run;
    Index left;  ///< of the run

    ColumnsAhead(const void* from, Index stride, Index length)
        : at(static_cast<const std::byte*>(from)), col_stride(stride), run(length), left(length) {}

    /// The share of one step.
    [[gnu::always_inline]] void step() {
#pragma GCC unroll 4
        for (Index l = 0; l < share; l += 64) __builtin_prefetch(at + l, 0, 2);
        left -= share;
        at += left > 0 ? share : share - run + col_stride;
        left = left > 0 ? left : run;
    }

    static constexpr Index share = 16 * lanes;  ///< bytes
};

/// Bytes of a column that are prefetched in one piece: at most 8 KiB, of 16 columns at most 128
/// KiB, of all `bytes` in equal parts.
inline Index run_length(Index bytes) {
    constexpr Index share = ColumnsAhead::share, longest = 128 * 64;
    const Index pieces = bytes > longest ? (bytes + longest - 1) / longest : 1;
    return ((bytes + pieces - 1) / pieces + share - 1) / share * share;
}

// The columns that are read together are a Group<T>: a V, or less where 16 are too many.

template <class T>
inline constexpr Index group_columns = static_cast<Index>(sizeof(Group<T>) / sizeof(S));

/// What else a Group can, where it is a V: splat and load by the type of the first parameter.
[[gnu::always_inline]] inline V splat(V, S x) { return splat(x); }
[[gnu::always_inline]] inline V load(V, const S* p) { return load(p, lanes); }

/// Groups that take turns, a line of each: two where they are less than a V and A has so few rows
/// that the chains of one are too few for narrow elements. 1 row of 1024 x 2048 in bf16 took 15.6
/// GB/s of weights from the caches so and 12.7 without (AVX2, Zen 3).
template <int Rows, class T>
inline constexpr int groups_in_turn = parts<T> > 1 && Rows <= 2
                                          ? static_cast<int>(lanes / group_columns<T>)
                                          : 1;

/// What is prefetched where a Group is less than a V, which is few enough columns for the processor
/// to fetch by itself, but for the beginnings: a line of each, 512 bytes later.
/// @tparam all    a line of the next columns, where it is one, or any
/// @param from    a line of the columns now read, `left` bytes before their end
/// @param others  from the end of a column to the beginning of the next ones
template <int columns, bool all>
[[gnu::always_inline]] inline void lines_ahead(const std::byte* from, Index stride, Index left,
                                               Index others) {
    constexpr Index distance = 512;
    if (left > distance && !all) return;
    from += distance + (left > distance ? 0 : others);
#pragma GCC unroll 8
    for (int i = 0; i < columns; ++i) __builtin_prefetch(from + i * stride);
}

/// What 16 bytes of each column of a Group add to rows of C.
template <class T, int Rows>
[[gnu::always_inline]] inline void add_columns(const std::byte* from, Index stride, const S* a,
                                               Index a_row, Group<T> scale, Group<T> (&acc)[Rows]) {
    constexpr int threes = (Rows + 2) / 3;  // rows in threes, as in tile_of
    const S* three[threes];
#pragma GCC unroll 3
    for (int g = 0; g < threes; ++g) three[g] = a + 3 * g * a_row;
    Group<T> words[column_step];
    read_columns(from, stride, words);
#pragma GCC unroll 4
    for (int w = 0; w < column_step; ++w)
#pragma GCC unroll 4
        for (int q = 0; q < parts<T>; ++q) {
            const Group<T> row = part(T{}, words[w], q, scale);
            const Index p = w * parts<T> + q;
#pragma GCC unroll 8
            for (int i = 0; i < Rows; ++i)
                acc[i] = fma(splat(Group<T>{}, three[i / 3][i % 3 * a_row + p]), row, acc[i]);
        }
}

/// C (+)= A B from the columns of B where they lie, a Group at a time, for a multiple of 16 columns
/// and of 16 bytes of each: a few words of each are transposed in registers, and their elements
/// widened there; Rows accumulators are kept.
///
/// 1 row of 768 x 2048 took 160 us with bf16, 168 with f16 and 141 with int8, from the caches, and
/// 279 with float; from memory 322, 291, 171 and 497 (one core of a Sapphire Rapids). Two sixteens
/// in turn, so that two chains run at the same time, were no faster with one row of narrow elements
/// and slower with two.
template <int Rows, class T>
void columns_of(Index cols, Index k, const S* a, Index a_row, const T* b, Index b_col,
                const S* scales, S* c, Index c_row, bool add) {
    constexpr Index element = static_cast<Index>(sizeof(T)), group = group_columns<T>;
    constexpr int turns = groups_in_turn<Rows, T>;
    constexpr bool lines = group < lanes;
    const Index bytes = k * element, stride = b_col * element;
    const Index next = turns * group * stride;           // from columns to the next ones
    const Index piece = lines ? 64 : run_length(bytes);  // of each column at once
    const auto* column = reinterpret_cast<const std::byte*>(b);
    for (Index j = 0; j < cols; j += turns * group) {
        Group<T> acc[turns][Rows], scale[turns];
#pragma GCC unroll 2
        for (int t = 0; t < turns; ++t) {
            const Index first = j + t * group;
#pragma GCC unroll 8
            for (int i = 0; i < Rows; ++i)
                acc[t][i] = add ? load(Group<T>{}, c + i * c_row + first) : splat(Group<T>{}, 0);
            if constexpr (has_scales<T>)
                scale[t] = load(Group<T>{}, scales + first);
            else
                scale[t] = splat(Group<T>{}, 1);
        }
        for (Index p = 0; p < bytes; p += piece) {
            const Index left = bytes - p, here = left < piece ? left : piece;
#pragma GCC unroll 2
            for (int t = 0; t < turns; ++t) {
                const std::byte* from = column + t * group * stride + p;
                const std::byte* const end = from + here;
                const S* row = a + p / element;
                if constexpr (lines) {
                    lines_ahead<group, turns == 1>(from, stride, left, next - bytes);
#pragma GCC unroll 4
                    for (; from != end; from += 16, row += column_step * parts<T>)
                        add_columns<T>(from, stride, row, a_row, scale[t], acc[t]);
                } else {
                    ColumnsAhead ahead(left > piece ? end : column + next, stride, piece);
                    for (; from != end; from += 16, row += column_step * parts<T>) {
                        add_columns<T>(from, stride, row, a_row, scale[t], acc[t]);
                        ahead.step();
                    }
                }
            }
        }
#pragma GCC unroll 2
        for (int t = 0; t < turns; ++t)
#pragma GCC unroll 8
            for (int i = 0; i < Rows; ++i) store(c + i * c_row + j + t * group, acc[t][i], group);
        column += next;
    }
    finish();
}

/// Most rows of A that columns_of takes. Up to there it is quicker than packing, where weights come
/// from memory: 8 rows with AVX-512 26 and 16 GB/s of them, 6 with AVX2 21 and 14, 8 in double with
/// AVX-512 32 and 18. More would take longer to compile than they gain.
inline constexpr int column_rows = tile_rows < 8 ? tile_rows : 8;

template <class, class>
struct Columns;
template <class T, int... Less>
struct Columns<T, std::integer_sequence<int, Less...>> {
    static constexpr decltype(&columns_of<1, T>) of[] = {columns_of<Less + 1, T>...};
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
