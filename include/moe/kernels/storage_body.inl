// SPDX-License-Identifier: MIT
// Kernels for stored weights, written once: all but the products of integers, which are in
// storage_int8.inl. Included inside a namespace (and a target region) that defines the vectors V
// (16 floats) and I (16 dwords, or 64 bytes) with what they can do, and
//
//     constexpr int tile_vectors;  // vectors in a row of a panel
//     constexpr int bf16_rows;     // most rows of a tile
//
// Only pointers, counts, V and I in here, as in body.inl.

inline constexpr Index lanes = 16;
inline constexpr Index panel_width = tile_vectors * lanes;
/// Bytes of an I or a V, of which a row of a panel has tile_vectors.
inline constexpr Index vector_bytes = 64;
inline constexpr Index row_bytes = tile_vectors * vector_bytes;

/// Bytes between what is read and what is prefetched where weights are read once. An EPYC 9005 core
/// read them at 80 % of the rate of a plain loop with 2 kB, 83 % with 4 kB and 85 % with 8 kB; on a
/// Xeon 8 kB were slower than 2.
inline constexpr Index read_ahead = 4096;

/// Bits of a code.
constexpr int code_bits(Storage storage) {
    return storage == Storage::ternary                                 ? 2
           : storage == Storage::int4 || storage == Storage::int4_zero ? 4
                                                                       : 8;
}

/// The zero of all codes but those of int4_zero.
constexpr std::int32_t zero_of(Storage storage) {
    return code_bits(storage) == 8 ? 128 : code_bits(storage) == 4 ? 8 : 1;
}

/// The last bits of each byte.
template <int bits>
constexpr std::int32_t code_mask = static_cast<std::int32_t>(((1U << bits) - 1) * 0x01010101U);

#include <moe/kernels/storage_decode.inl>

// ---- products ----

/// Bytes of a panel that all rows of a block are multiplied with before the next ones: they are
/// read from the first-level cache.
inline constexpr Index slice_bytes = 16384;
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

/// What a tile prefetches: two lines each time, and the next ones after that. Numbers, because the
/// address may be any.
struct Ahead {
    std::uintptr_t at;
    std::uintptr_t between;  ///< bytes from the first to the second
    std::uintptr_t step;     ///< bytes

    [[gnu::always_inline]] void touch() {
        __builtin_prefetch(reinterpret_cast<const void*>(at), 0, 3);
        __builtin_prefetch(reinterpret_cast<const void*>(at + between), 0, 3);
        at += step;
    }
};

/// What the tiles of one product prefetch. A single tile reads from memory: it prefetches what it
/// will read itself, some records later. Several tiles prefetch what is read after this panel, each
/// its share.
class Prefetch {
public:
    /// @param record   the first one of this panel
    /// @param ahead    that of the panel which is read next
    /// @param touches  of a tile for one record
    Prefetch(const std::byte* record, const std::byte* ahead, Index records, Index record_bytes,
             Index tiles, Index touches)
        : record_(reinterpret_cast<std::uintptr_t>(record)),
          ahead_(reinterpret_cast<std::uintptr_t>(ahead)),
          records_(records),
          record_bytes_(record_bytes),
          touches_(touches),
          distance_(tiles == 1 ? (read_ahead + record_bytes - 1) / record_bytes : 0),
          half_(records * record_bytes / 2),
          step_(tiles == 0 ? 0 : (record_bytes / 2 + touches * tiles - 1) / (touches * tiles)) {}

    /// How many records from r on, `most` or fewer, are one slice.
    Index slice(Index r, Index most) const {
        const Index end = r + distance_ < records_ ? records_ - distance_ : records_;
        return end - r < most ? end - r : most;
    }

    /// For the next tile, of `count` records from r on.
    Ahead next(Index r, Index count) {
        if (distance_ != 0) {
            const Index later = r + distance_;
            const auto step = static_cast<std::uintptr_t>(record_bytes_ / touches_);
            return {later < records_ ? record_ + bytes(later) : ahead_ + bytes(later - records_),
                    step / 2, step};
        }
        const Ahead part{ahead_ + static_cast<std::uintptr_t>(done_),
                         static_cast<std::uintptr_t>(half_), static_cast<std::uintptr_t>(step_)};
        done_ += count * touches_ * step_;
        if (done_ >= half_) step_ = 0;
        return part;
    }

private:
    std::uintptr_t bytes(Index records) const {
        return static_cast<std::uintptr_t>(records * record_bytes_);
    }

    std::uintptr_t record_, ahead_;
    Index records_, record_bytes_, touches_;
    Index distance_;                ///< in records, of a single tile; else 0
    Index half_, step_, done_ = 0;  ///< in bytes, of several
};

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

inline void product_bf16(Index rows, Index cols, Index records, const std::byte* a, Index a_row,
                         const std::byte* panel, float* c, Index c_row, const std::byte* ahead) {
    constexpr Index record_bytes = panel_layout(Storage::bf16, panel_width).record_bytes;
    alignas(64) float sums[block_sums * panel_width];
    const Control before = flush_subnormals();
    const Tiles tiles(rows, bf16_rows);
    Prefetch prefetch(panel, ahead, records, record_bytes, tiles.count, record_rows / 2);
    for (Index first = 0; first < tiles.count; first += block_sums / bf16_rows) {
        const Index last = first + block_sums / bf16_rows < tiles.count
                               ? first + block_sums / bf16_rows
                               : tiles.count;
        const Index row = tiles.start(first), end = tiles.start(last);
        for (Index i = 0; i < (end - row) * panel_width; i += lanes) store(sums + i, splat(0));
        for (Index r = 0, count = 0; r < records; r += count) {
            count = prefetch.slice(r, tiles.count == 1 ? records : slice_bytes / record_bytes);
            for (Index t = first; t < last; ++t) {
                const Index i = tiles.start(t), after = tiles.start(t + 1);
                Bf16Tiles<std::make_integer_sequence<int, bf16_rows>>::of[after - i - 1](
                    count, a + i * a_row + r * record_rows * 4, a_row, panel + r * record_bytes,
                    sums + (i - row) * panel_width, prefetch.next(r, count));
            }
        }
        for (Index i = row; i < end; ++i)
            for (Index v = 0; v < tile_vectors; ++v)
                store(c + i * c_row + v * lanes, load(sums + (i - row) * panel_width + v * lanes),
                      cols - v * lanes);
    }
    restore(before);
    finish();
}
