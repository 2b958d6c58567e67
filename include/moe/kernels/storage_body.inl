// SPDX-License-Identifier: MIT
// Every kernel for stored weights, written once. Included inside a namespace (and a target region)
// that defines the vectors V (16 floats) and I (16 dwords, or 64 bytes) with what they can do, and
//
//     constexpr const char* table_name;
//     constexpr int tile_vectors;  // vectors in a row of a panel
//     constexpr int bf16_rows;     // most rows of a tile of each kind
//     constexpr int int8_rows, block_rows, int4_rows, ternary_rows;
//     constexpr int kept_sums;     // vectors of floats that a tile keeps beside as many integers
//     constexpr int dot_rows;      // rows of B that `dot` adds up: 4 of bytes or 2 of 16 bits
//
// What it adds is `table`. Only pointers, counts, V and I in here, as in body.inl.

inline constexpr Index lanes = 16;
inline constexpr Index panel_width = tile_vectors * lanes;
/// Bytes of an I or a V, of which a row of a panel has tile_vectors.
inline constexpr Index vector_bytes = 64;
inline constexpr Index row_bytes = tile_vectors * vector_bytes;

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
//
#include <moe/kernels/storage_tiles.inl>

// ---- products ----

/// Bytes of a panel that all rows of a block are multiplied with before the next ones: they are
/// read from the first-level cache.
inline constexpr Index slice_bytes = 16384;
/// Rows of a block, about: their sums stay in the first-level cache too.
inline constexpr Index block_sums = 72;

/// The first row of tile t of `tiles` that `rows` rows are split into as evenly as can be.
inline Index tile_start(Index rows, Index tiles, Index t) {
    const Index longer = rows % tiles;
    return rows / tiles * t + (t < longer ? t : longer);
}

/// What the tiles of one product prefetch.
///
/// A single tile reads from memory: it prefetches what it will read itself some records later. 4 kB
/// later, because an EPYC 9005 core read 79 % as much as a plain loop with 2 kB, 83 % with 4 kB and
/// 85 % with 8 kB, and older ones slow down beyond 4 kB. Several tiles prefetch what is read after
/// this panel, each its share.
class Prefetch {
public:
    /// @param record, ahead  the first record of this panel, and of the one that is read next
    /// @param touches        of a tile for one record
    Prefetch(const std::byte* record, const std::byte* ahead, Index records, Index record_bytes,
             Index tiles, Index touches)
        : record_(record),
          ahead_(ahead),
          records_(records),
          record_bytes_(record_bytes),
          touches_(touches),
          distance_(tiles == 1 ? (4095 + record_bytes) / record_bytes : 0),
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
            const Index later = r + distance_, step = record_bytes_ / touches_;
            return {later < records_ ? record_ + later * record_bytes_
                                     : ahead_ + (later - records_) * record_bytes_,
                    step / 2, step};
        }
        const Ahead part{ahead_, half_, step_};
        ahead_ += count * touches_ * step_;
        done_ += count * touches_ * step_;
        if (done_ >= half_) step_ = 0;
        return part;
    }

private:
    const std::byte* record_;
    const std::byte* ahead_;
    Index records_, record_bytes_, touches_;
    Index distance_;                ///< in records, of a single tile; else 0
    Index half_, step_, done_ = 0;  ///< in bytes, of several
};

inline void product_bf16(Index rows, Index cols, Index records, const std::byte* a, Index a_row,
                         const std::byte* panel, float* c, Index c_row, const std::byte* ahead) {
    constexpr Index record_bytes = panel_layout(Storage::bf16, panel_width).record_bytes;
    alignas(64) float sums[block_sums * panel_width];
    const Control before = flush_subnormals();
    const Index tiles = (rows + bf16_rows - 1) / bf16_rows;
    Prefetch prefetch(panel, ahead, records, record_bytes, tiles, record_rows / 2);
    for (Index first = 0; first < tiles; first += block_sums / bf16_rows) {
        const Index last =
            first + block_sums / bf16_rows < tiles ? first + block_sums / bf16_rows : tiles;
        const Index row = tile_start(rows, tiles, first), end = tile_start(rows, tiles, last);
        for (Index i = 0; i < (end - row) * panel_width; i += lanes) store(sums + i, splat(0));
        for (Index r = 0, count = 0; r < records; r += count) {
            count = prefetch.slice(r, slice_bytes / record_bytes);
            for (Index t = first; t < last; ++t) {
                const Index i = tile_start(rows, tiles, t), after = tile_start(rows, tiles, t + 1);
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

/// C = C + float(sum - what the zeros add) for one chunk, or C = that if it is the first.
inline void add_chunk(Index cols, const std::byte* sums, std::int32_t of_zeros, bool first,
                      float* c) {
    for (Index v = 0; v < tile_vectors; ++v) {
        const V sum = to_float(sub(load_int(sums + v * vector_bytes), splat_int(of_zeros)));
        const Index here = cols - v * lanes;
        store(c + v * lanes, add(first ? splat(0) : load(c + v * lanes, here), sum), here);
    }
}

/// The sum of n numbers.
inline std::int32_t total_of(Index n, const std::int32_t* x) {
    I partial = splat_int(0);
    Index i = 0;
    for (; i + lanes <= n; i += lanes) partial = add(partial, load_int(x + i));
    std::int32_t sum = total(partial);
    for (; i < n; ++i) sum += x[i];
    return sum;
}

/// One product for all storages of integers.
template <Storage storage>
void product_of(Index rows, Index cols, Index records, const Int8Rows& a, const std::byte* panel,
                float* c, Index c_row, const std::byte* ahead) {
    constexpr int bits = code_bits(storage);
    constexpr bool by_record = has_block_scales(storage);
    constexpr Index chunk = StorageTable::row_chunk / record_rows;
    constexpr PanelLayout layout = panel_layout(storage, panel_width);
    constexpr int tile_rows = bits == 2   ? ternary_rows
                              : bits == 4 ? int4_rows
                              : by_record ? block_rows
                                          : int8_rows;
    constexpr Index block = block_sums / tile_rows;
    constexpr Index slice =
        slice_bytes / layout.record_bytes < chunk ? slice_bytes / layout.record_bytes : chunk;
    constexpr Index wide_row = dot_rows == 2 ? 2 * slice * record_rows : 0;
    alignas(64) std::byte sums[block * tile_rows * row_bytes];
    alignas(64) std::int8_t wide[tile_rows * wide_row + 1];
    const Index tiles = (rows + tile_rows - 1) / tile_rows;
    Prefetch prefetch(panel + layout.scale_bytes, ahead + layout.scale_bytes, records,
                      layout.record_bytes, tiles, bits);
    for (Index first = 0; first < tiles; first += block) {
        const Index last = first + block < tiles ? first + block : tiles;
        const Index row = tile_start(rows, tiles, first), end = tile_start(rows, tiles, last);
        for (Index i = 0; i < (end - row) * row_bytes; i += vector_bytes)
            store_int(sums + i, splat_int(0));
        Index begun = 0;  // the first record of this chunk
        for (Index r = 0, count = 0; r < records; r += count) {
            count = prefetch.slice(r, begun + chunk - r < slice ? begun + chunk - r : slice);
            const std::byte* const record = panel + layout.scale_bytes + r * layout.record_bytes;
            for (Index t = first; t < last; ++t) {
                const Index i = tile_start(rows, tiles, t), after = tile_start(rows, tiles, t + 1);
                const std::int8_t* q = a.q + i * a.q_row + r * record_rows;
                Index q_row = a.q_row;
                if constexpr (dot_rows == 2) {
                    for (Index l = 0; l < after - i; ++l)
                        for (Index p = 0; p < count * record_rows; p += record_rows)
                            store_int(wide + l * wide_row + 2 * p, widen(q + l * q_row + p));
                    q = wide;
                    q_row = wide_row;
                }
                Int8Tiles<storage, std::make_integer_sequence<int, tile_rows>>::of[after - i - 1](
                    count, q, q_row, a.sums + i * a.sums_row + r, a.sums_row, record,
                    sums + (i - row) * row_bytes, prefetch.next(r, count));
            }
            if (by_record || (r + count != begun + chunk && r + count != records)) continue;
            for (Index i = row; i < end; ++i) {
                std::byte* const sum = sums + (i - row) * row_bytes;
                const Index n = r + count - begun;
                add_chunk(cols, sum,
                          zero_of(storage) * total_of(n, a.sums + i * a.sums_row + begun),
                          begun == 0, c + i * c_row);
                for (Index v = 0; v < tile_vectors; ++v)
                    store_int(sum + v * vector_bytes, splat_int(0));
            }
            begun = r + count;
        }
        for (Index i = row; i < end; ++i)
            for (Index v = 0; v < tile_vectors; ++v) {
                const Index here = cols - v * lanes;
                float* const to = c + i * c_row + v * lanes;
                // What sums hold is a float, or 0: there is no record.
                V x = load(reinterpret_cast<float*>(sums) + (i - row) * panel_width + v * lanes);
                if constexpr (!by_record)
                    x = mul(records == 0 ? x : load(to, here),
                            load(reinterpret_cast<const float*>(panel) + v * lanes));
                store(to, mul(x, splat(a.scale[i])), here);
            }
    }
    finish();
}

inline void product_int8(Storage storage, Index rows, Index cols, Index records, const Int8Rows& a,
                         const std::byte* panel, float* c, Index c_row, const std::byte* ahead) {
    switch (storage) {
        case Storage::int8:
            return product_of<Storage::int8>(rows, cols, records, a, panel, c, c_row, ahead);
        case Storage::int8_block:
            return product_of<Storage::int8_block>(rows, cols, records, a, panel, c, c_row, ahead);
        case Storage::int4:
            return product_of<Storage::int4>(rows, cols, records, a, panel, c, c_row, ahead);
        case Storage::int4_zero:
            return product_of<Storage::int4_zero>(rows, cols, records, a, panel, c, c_row, ahead);
        case Storage::ternary:
            return product_of<Storage::ternary>(rows, cols, records, a, panel, c, c_row, ahead);
        default:
            return;
    }
}

inline constexpr StorageTable table{.name = table_name,
                                    .panel_width = panel_width,
                                    .decode = decode,
                                    .bf16_bytes = 4,
                                    .encode_bf16 = encode_bf16,
                                    .product_bf16 = product_bf16,
                                    .encode_int8 = encode_int8,
                                    .product_int8 = product_int8};
