// SPDX-License-Identifier: MIT
// Columns of B that are contiguous, as those of weights stored [out, in] are, read where they lie:
// a part of products.inl, which includes it.

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
static_assert(group_columns<S> == lanes || 2 * group_columns<S> == lanes);
static_assert(row_panels >= 1 && row_panels <= 4);  // what is unrolled

/// What else a Group can, where it is a V: splat and load by the type of the first parameter.
[[gnu::always_inline]] inline V splat(V, S x) { return splat(x); }
[[gnu::always_inline]] inline V load(V, const S* p) { return load(p, lanes); }

/// Groups that take turns, a line of each: two where a Group is half a V, elements are narrow and A
/// has at most two rows, as one Group has too few chains then: in bf16 with AVX2 a fused
/// multiply-add for each 16 bytes, and none starts before the last one's end.
template <int Rows, class T>
inline constexpr int groups_in_turn = parts<T> > 1 && Rows <= 2
                                          ? static_cast<int>(lanes / group_columns<T>)
                                          : 1;

/// What is prefetched where a Group is less than a V: of each column the line 512 bytes later,
/// behind its end that of the next columns.
/// @tparam all    false: only the latter, as the processor finds the rest by itself
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
/// 279 with float; from memory 322, 291, 171 and 497 (one core of a Sapphire Rapids). Where a Group
/// is a V, two in turn, so that two chains run at the same time, were no faster with one row of
/// narrow elements and slower with two.
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
