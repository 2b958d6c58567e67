// SPDX-License-Identifier: MIT
// Kernels for stored weights, written once: all but the products of integers, which are in
// storage_int8.inl. Included inside a namespace (and a target region) that defines the vectors V
// (16 floats) and I (16 dwords, or 64 bytes) with what they can do, what body.inl and bf16_pack.inl
// take from isa_avx2 or isa_avx512 (finish, transpose, ColumnsAhead, run_length),
// Control with flush_subnormals() and restore(), and
//
//     constexpr int tile_vectors;  // vectors in a row of a panel
//     constexpr int row_panels;    // KernelTable<float>::row_panels
//     constexpr int bf16_rows;     // most rows of a tile
//     constexpr const char* bf16_name;
//
// Only pointers, counts, V and I in here, as in body.inl.

inline constexpr Index lanes = 16;
inline constexpr Index panel_width = tile_vectors * lanes;
/// Bytes of an I or a V, of which a row of a panel has tile_vectors.
inline constexpr Index vector_bytes = 64;
inline constexpr Index row_bytes = tile_vectors * vector_bytes;

/// The last bits of each byte.
template <int bits>
constexpr std::int32_t code_mask = static_cast<std::int32_t>(((1U << bits) - 1) * 0x01010101U);

#include <moe/kernels/storage_decode.inl>
//
#include <moe/kernels/bf16_pack.inl>
//
#include <moe/kernels/storage_row.inl>

// ---- products ----

/// Bytes of a panel that all rows of a block are multiplied with before the next ones: they are
/// read from the first-level cache.
inline constexpr Index slice_bytes = 16384;
/// The same for a single tile: what all panels of a turn have is in that cache.
inline constexpr Index turn_bytes = 4096;
/// Rows of a block, about: their sums stay in the first-level cache too.
inline constexpr Index block_sums = 72;

/// Rows split into tiles as evenly as can be.
struct Tiles {
    Index count;           ///< 0 for no rows
    Index height, higher;  ///< the first `higher` tiles have one row more

    Tiles(Index rows, Index most)
        : count((rows + most - 1) / most),
          height(count == 0 ? 0 : rows / count),
          higher(rows - height * count) {}
    /// The first row of tile t.
    Index start(Index t) const { return height * t + (t < higher ? t : higher); }
};

/// What a tile prefetches: two lines of one stream each time, of the next one after that, and
/// further on in all of them after the last. Numbers, because addresses may be any.
struct Ahead {
    std::uintptr_t at;
    std::uintptr_t stream;  ///< bytes from stream to stream
    // Read when they are needed: there are no registers for them.
    volatile std::uintptr_t wrap;  ///< what is added behind the last one
    volatile Index streams;
    Index left;

    [[gnu::always_inline]] void touch() {
        __builtin_prefetch(reinterpret_cast<const void*>(at), 0, 3);
        __builtin_prefetch(reinterpret_cast<const void*>(at + 64), 0, 3);
        at += stream;
        if (--left == 0) {
            at += wrap;
            left = streams;
        }
    }
};

/// What the tiles of one turn prefetch, each its share: some records of as many panels as they
/// read themselves.
class Prefetch {
public:
    /// @param from     the first record; null if that is not known, or not to be prefetched: a
    ///                 tile then touches a line that it reads anyway
    /// @param here     what is read now
    /// @param bytes    of each panel
    /// @param touches  of all tiles for one panel
    Prefetch(const std::byte* from, const std::byte* here, Index panel_bytes, Index panels,
             Index bytes, Index touches)
        : at_(reinterpret_cast<std::uintptr_t>(from == nullptr ? here : from)),
          stream_(from == nullptr ? 0 : static_cast<std::uintptr_t>(panel_bytes)),
          share_(from == nullptr || touches == 0
                     ? 0
                     : static_cast<std::uintptr_t>((bytes + touches - 1) / touches)),
          panels_(panels) {}

    /// For the next tile.
    Ahead next(Index touches) {
        const Ahead ahead{at_, stream_, share_ - stream_ * streams(), panels_, panels_};
        at_ += static_cast<std::uintptr_t>(touches) / streams() * share_;
        return ahead;
    }

private:
    std::uintptr_t streams() const { return static_cast<std::uintptr_t>(panels_); }

    std::uintptr_t at_, stream_, share_;
    Index panels_;
};

/// Panels that take turns, some records of each at a time, while the next ones come in: memory
/// gives several streams that are walked together faster than one. Of what one core read from eight
/// plain streams, 1, 4 and 6 rows by 2048 by 1024 took 1.04, 0.90 and 0.81 in bf16, and 1.0, 1.0
/// and 0.9 in int8, where panel by panel it had been 0.67, 0.67 and 0.63, and 0.8, 0.8 and 0.7
/// (AVX-512, Emerald Rapids). More blocks of rows than one read their panels again: no turns.
inline constexpr Index panels_together = 8;

/// Most rows for which panels are read one after the other and nothing is prefetched, if the
/// processor fetches.
inline constexpr Index most_rows_alone = 4;

/// Whether that is done: also for less than a full tile only, and for no more rows than a weight
/// has bits. More of them compute long enough for prefetches to pay: 8 rows by 2048 by 1024 ran at
/// 95 GFLOP/s with and at 65 without in bf16 (AVX-512), 4 rows of a full tile of int8 at 117 and 93
/// (AVX2), 4 rows of ternary at 424 and 307, but 2 at 290 and 299 (Zen 4).
inline bool panels_alone(Index rows, Index tile_rows, Index bits) {
    const Index most = bits < most_rows_alone ? bits : most_rows_alone;
    return rows < tile_rows && rows <= most && detail::processor_fetches();
}

/// Adds the products of `records` records to c [Rows, panel_width], whose rows follow one another.
template <int Rows>
[[gnu::noinline]] void tile_bf16(Index records, const std::byte* a, Index a_row, const std::byte* b,
                                 float* c, Ahead ahead) {
    const I upper = splat_int(static_cast<std::int32_t>(0xFFFF0000U));
    constexpr int groups = (Rows + 2) / 3;  // rows in threes, as in tile_of of products.inl
    const std::byte* group[groups];
#pragma GCC unroll 6
    for (int g = 0; g < groups; ++g) group[g] = a + 3 * g * a_row;
    for (; records > 0; --records) {
        V even[Rows][tile_vectors], odd[Rows][tile_vectors];
#pragma GCC unroll 8
        for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 2
            for (int v = 0; v < tile_vectors; ++v) even[i][v] = odd[i][v] = splat(0);
        for (Index pair = 0; pair < record_rows / 2; ++pair) {
            V row[tile_vectors];
#pragma GCC unroll 2
            for (int v = 0; v < tile_vectors; ++v)
                row[v] = as_float(shift_left<16>(load_int(b + v * vector_bytes)));
#pragma GCC unroll 8
            for (int i = 0; i < Rows; ++i) {
                const V x = splat_from(group[i / 3] + i % 3 * a_row);
#pragma GCC unroll 2
                for (int v = 0; v < tile_vectors; ++v) even[i][v] = fma(x, row[v], even[i][v]);
            }
            const std::byte* again = b;
            __asm__("" : "+r"(again));  // or clang keeps B from above, and spills
#pragma GCC unroll 2
            for (int v = 0; v < tile_vectors; ++v)
                row[v] = as_float(and_bits(load_int(again + v * vector_bytes), upper));
#pragma GCC unroll 8
            for (int i = 0; i < Rows; ++i) {
                const V x = splat_from(group[i / 3] + i % 3 * a_row + 4);
#pragma GCC unroll 2
                for (int v = 0; v < tile_vectors; ++v) odd[i][v] = fma(x, row[v], odd[i][v]);
            }
#pragma GCC unroll 6
            for (int g = 0; g < groups; ++g) group[g] += 8;
            b += row_bytes;
            ahead.touch();
        }
#pragma GCC unroll 8
        for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 2
            for (int v = 0; v < tile_vectors; ++v) {
                float* const sum = c + i * panel_width + v * lanes;
                store(sum, add(load(sum), add(even[i][v], odd[i][v])));
            }
    }
    finish();
}

template <class>
struct Bf16Tiles;
template <int... Less>
struct Bf16Tiles<std::integer_sequence<int, Less...>> {
    static constexpr decltype(&tile_bf16<1>) of[] = {tile_bf16<Less + 1>...};
};

template <class>
void product_bf16(Index rows, Index cols, Index records, const std::byte* a, Index a_row,
                  const std::byte* panel, float* c, Index c_row, const std::byte* ahead, Index) {
    constexpr PanelLayout layout = panel_layout(Storage::bf16, panel_width);
    constexpr Index slice = slice_bytes / layout.record_bytes, touches = record_rows / 2;
    constexpr Index block = block_sums / bf16_rows, block_rows = block * bf16_rows;
    alignas(64) float sums[panels_together][block_rows * panel_width];
    const Control before = flush_subnormals();
    const Tiles tiles(rows, bf16_rows);
    const Index panel_bytes = layout.bytes(records * record_rows);
    const bool alone = panels_alone(rows, bf16_rows, 16);
    const Index together = alone || tiles.count > block ? 1 : panels_together;
    const Index longest = tiles.count == 1 ? turn_bytes / layout.record_bytes : slice;
    for (detail::PanelTurns turn(panel, panel_bytes, panel_width, cols, together, ahead);
         turn.panels > 0; turn.next()) {
        const Index col = turn.column, panels = turn.panels;
        for (Index first = 0; first < tiles.count; first += block) {
            const Index last = first + block < tiles.count ? first + block : tiles.count;
            const Index row = tiles.start(first), end = tiles.start(last);
            for (Index j = 0; j < panels; ++j)
                for (Index i = 0; i < (end - row) * panel_width; i += lanes)
                    store(sums[j] + i, splat(0));
            for (Index r = 0, count = 0; r < records; r += count) {
                count = records - r < longest ? records - r : longest;
                const std::byte* const next =
                    r + count < records ? turn.at + (r + count) * layout.record_bytes : turn.then;
                Prefetch prefetch(alone ? nullptr : next, turn.at, panel_bytes, panels,
                                  count * layout.record_bytes, count * touches * (last - first));
                for (Index j = 0; j < panels; ++j)
                    for (Index t = first; t < last; ++t) {
                        const Index i = tiles.start(t), after = tiles.start(t + 1);
                        Bf16Tiles<std::make_integer_sequence<int, bf16_rows>>::of[after - i - 1](
                            count, a + i * a_row + r * record_rows * 4, a_row,
                            turn.at + j * panel_bytes + r * layout.record_bytes,
                            sums[j] + (i - row) * panel_width, prefetch.next(count * touches));
                    }
            }
            for (Index i = row; i < end; ++i)
                for (Index j = 0; j < panels; ++j)
                    for (Index v = 0; v < tile_vectors; ++v) {
                        const Index at = col + j * panel_width + v * lanes;
                        store(c + i * c_row + at,
                              load(sums[j] + (i - row) * panel_width + v * lanes), cols - at);
                    }
        }
    }
    restore(before);
    finish();
}

/// For products of vectors, which read floats. Tiles have a table of their own.
template <class All>
inline constexpr Bf16Table bf16_table{.name = bf16_name,
                                      .panel_width = panel_width,
                                      .row_bytes = 4,
                                      .encode = encode_bf16,
                                      .encode_columns = encode_columns_bf16<4>,
                                      .pack = pack_bf16,
                                      .product = product_bf16<All>};
