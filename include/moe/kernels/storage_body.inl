// SPDX-License-Identifier: MIT
// Every kernel for stored weights, written once. Included inside a namespace (and a target region)
// that defines the vectors V (16 floats) and I (16 dwords, or 64 bytes) with what they can do, and
//
//     constexpr const char* table_name;
//     constexpr int tile_vectors;  // vectors in a row of a panel
//     constexpr int bf16_rows;     // most rows of a tile of each kind
//     constexpr int int8_rows;
//     constexpr int dot_rows;      // rows of B that `dot` adds up: 4 of bytes or 2 of 16 bits
//
// What it adds is `table`. Only pointers, counts, V and I in here, as in body.inl.

inline constexpr Index lanes = 16;
inline constexpr Index panel_width = tile_vectors * lanes;
/// Steps of a tile of int8 for one record.
inline constexpr Index record_steps = record_rows / dot_rows;
/// Bytes of an I or a V, of which a row of a panel has tile_vectors.
inline constexpr Index vector_bytes = 64;
inline constexpr Index row_bytes = tile_vectors * vector_bytes;

/// Records that all rows of a block are multiplied with before the next ones, so that they are read
/// from the first-level cache. Few rows take fewer: memory should not wait while they are unpacked.
inline constexpr Index slice_records = dot_rows == 4 ? 16 : 8;
inline constexpr Index few_rows_records = 2;
/// Tiles of rows in a block: their sums stay in the first-level cache, 6 to 10 kB.
inline constexpr Index bf16_block = 12;
inline constexpr Index int8_block = 5;

/// What a product prefetches, spread evenly over its work: two lines in each step of a tile.
struct Ahead {
    const std::byte* at;
    Index half;  ///< bytes between the two lines, half of all
    Index step;  ///< bytes

    /// @param bytes  of a panel, which `times` tiles of `steps` steps share
    Ahead(const std::byte* from, Index bytes, Index times, Index steps)
        : at(from),
          half((bytes + 1) / 2),
          step(times > 0 ? (half + times * steps - 1) / (times * steps) : 0) {}

    [[gnu::always_inline]] void touch() {
        __builtin_prefetch(at, 0, 2);  // into the second-level cache
        __builtin_prefetch(at + half, 0, 2);
        at += step;
    }
    void skip(Index steps) { at += steps * step; }
};

/// Bits of a code.
constexpr int code_bits(Storage storage) {
    return storage == Storage::ternary                                 ? 2
           : storage == Storage::int4 || storage == Storage::int4_zero ? 4
                                                                       : 8;
}

/// The sum of n numbers, an even number.
inline std::int32_t total_of(Index n, const std::int32_t* x) {
    I partial = splat_int(0);
    Index i = 0;
    for (; i + lanes <= n; i += lanes) partial = add(partial, load_int(x + i));
    std::int32_t sum = total(partial);
    for (; i < n; ++i) sum += x[i];
    return sum;
}

/// The first row of tile t of `tiles` that `rows` rows are split into as evenly as can be.
inline Index tile_start(Index rows, Index tiles, Index t) {
    const Index longer = rows % tiles;
    return rows / tiles * t + (t < longer ? t : longer);
}

// ---- decode ----

/// weight = (code - zero) s for the `bits` of each code. A code goes into the last bits of 2^23, a
/// float whose steps are 1.
template <Storage storage>
[[gnu::always_inline]] inline void decode_codes(const std::byte* record, const float* scales,
                                                float* to) {
    constexpr int bits = code_bits(storage);
    constexpr int zero = bits == 8 ? 128 : bits == 4 ? 8 : 1;
    constexpr Index planes = 8 / bits;
    const std::byte* const tail = record + record_rows * panel_width * bits / 8;
    const I mask = splat_int((1 << bits) - 1), magic = splat_int(0x4B000000);
#pragma GCC unroll 2
    for (int v = 0; v < tile_vectors; ++v) {
        V offset = splat(0x1p23f + zero);
        if constexpr (storage == Storage::int4_zero)
            offset = as_float(or_bits(load_bytes(tail + 2 * panel_width + v * lanes), magic));
        const V s = has_block_scales(storage) ? load_halves(tail + 2 * v * lanes)
                                              : load(scales + v * lanes);
        for (Index chunk = 0; chunk < 8 / planes; ++chunk) {
            const std::byte* const from = record + (chunk * tile_vectors + v) * vector_bytes;
            __builtin_prefetch(from + decode_ahead, 0, 3);
            float* const chunk_to = to + chunk * planes * 4 * panel_width + v * lanes;
            I codes = load_int(from);
#pragma GCC unroll 4
            for (int p = 0; p < 4; ++p)
#pragma GCC unroll 4
                for (int plane = 0; plane < planes; ++plane) {
                    const V code = as_float(and_or(codes, mask, magic));
                    store(chunk_to + (plane * 4 + p) * panel_width, mul(sub(code, offset), s));
                    codes = shift_right<bits>(codes);
                }
        }
    }
}

template <Storage storage>
void decode_as(Index records, const std::byte* record, const float* scales, float* to) {
    constexpr Index bytes = panel_layout(storage, panel_width).record_bytes;
    for (; records > 0; --records, record += bytes, to += record_rows * panel_width) {
        if constexpr (is_coded(storage)) {
            decode_codes<storage>(record, scales, to);
        } else {
            const I upper = splat_int(static_cast<std::int32_t>(0xFFFF0000U));
            for (Index i = 0; i < record_rows / 2 * tile_vectors; ++i) {
                const std::byte* const from = record + i * vector_bytes;
                __builtin_prefetch(from + decode_ahead, 0, 3);
                if constexpr (storage == Storage::f16) {
                    store(to + 2 * i * lanes, load_halves(from));
                    store(to + (2 * i + 1) * lanes, load_halves(from + vector_bytes / 2));
                } else {
                    const I pairs = load_int(from);
                    float* const row =
                        to + (i / tile_vectors * 2 * tile_vectors + i % tile_vectors) * lanes;
                    store(row, as_float(shift_left<16>(pairs)));
                    store(row + panel_width, as_float(and_bits(pairs, upper)));
                }
            }
        }
    }
    finish();
}

inline void decode(Storage storage, Index records, const std::byte* record, const float* scales,
                   float* to) {
    switch (storage) {
        case Storage::fp32:
            return;
        case Storage::bf16:
            return decode_as<Storage::bf16>(records, record, scales, to);
        case Storage::f16:
            return decode_as<Storage::f16>(records, record, scales, to);
        case Storage::int8:
            return decode_as<Storage::int8>(records, record, scales, to);
        case Storage::int8_block:
            return decode_as<Storage::int8_block>(records, record, scales, to);
        case Storage::int4:
            return decode_as<Storage::int4>(records, record, scales, to);
        case Storage::int4_zero:
            return decode_as<Storage::int4_zero>(records, record, scales, to);
        case Storage::ternary:
            return decode_as<Storage::ternary>(records, record, scales, to);
    }
}

// ---- bf16 ----

/// Floats whose lower half is 0.
inline void encode_bf16(Index n, const float* x, std::byte* to) {
    const I half = splat_int(0x7FFF), one = splat_int(1), quiet = splat_int(0x400000);
    const I upper = splat_int(static_cast<std::int32_t>(0xFFFF0000U));
    for (Index i = 0; i < (n + padded_rows - 1) / padded_rows * padded_rows; i += lanes) {
        const V value = load(x + (i < n ? i : 0), n - i);
        const I bits = as_int(value);
        const I rounded = add(add(bits, half), and_bits(shift_right<16>(bits), one));
        const V kept = where_le(value, value, as_float(rounded), as_float(or_bits(bits, quiet)));
        store_int(to + 4 * i, and_bits(as_int(kept), upper));
    }
    finish();
}

/// Adds the products of `records` records to c [Rows, panel_width], whose rows follow one another.
template <int Rows>
[[gnu::noinline]] void tile_bf16(Index records, const std::byte* a, Index a_row, const std::byte* b,
                                 float* c, Ahead ahead) {
    const I upper = splat_int(static_cast<std::int32_t>(0xFFFF0000U));
    constexpr int groups = (Rows + 2) / 3;  // rows in threes, as in tile_of of body.inl
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
            V low[tile_vectors], high[tile_vectors];
#pragma GCC unroll 2
            for (int v = 0; v < tile_vectors; ++v) {
                const I pairs = load_int(b + v * vector_bytes);
                low[v] = as_float(shift_left<16>(pairs));
                high[v] = as_float(and_bits(pairs, upper));
            }
#pragma GCC unroll 8
            for (int i = 0; i < Rows; ++i) {
                const V x = splat_from(group[i / 3] + i % 3 * a_row);
#pragma GCC unroll 2
                for (int v = 0; v < tile_vectors; ++v) even[i][v] = fma(x, low[v], even[i][v]);
                const V y = splat_from(group[i / 3] + i % 3 * a_row + 4);
#pragma GCC unroll 2
                for (int v = 0; v < tile_vectors; ++v) odd[i][v] = fma(y, high[v], odd[i][v]);
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
    alignas(64) float sums[bf16_block * bf16_rows * panel_width];
    const Control before = flush_subnormals();
    const Index tiles = (rows + bf16_rows - 1) / bf16_rows;
    Ahead next(ahead, records * record_bytes, tiles * records, record_rows / 2);
    for (Index first = 0; first < tiles; first += bf16_block) {
        const Index last = first + bf16_block < tiles ? first + bf16_block : tiles;
        const Index row = tile_start(rows, tiles, first), end = tile_start(rows, tiles, last);
        for (Index i = 0; i < (end - row) * panel_width; i += lanes) store(sums + i, splat(0));
        for (Index r = 0; r < records; r += slice_records) {
            const Index count = records - r < slice_records ? records - r : slice_records;
            for (Index t = first; t < last; ++t) {
                const Index i = tile_start(rows, tiles, t), after = tile_start(rows, tiles, t + 1);
                Bf16Tiles<std::make_integer_sequence<int, bf16_rows>>::of[after - i - 1](
                    count, a + i * a_row + r * record_rows * 4, a_row, panel + r * record_bytes,
                    sums + (i - row) * panel_width, next);
                next.skip(count * record_rows / 2);
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

// ---- int8 ----

inline void encode_int8(Index n, const float* x, std::int8_t* q, float* scale, std::int32_t* sums) {
    const I magnitude = splat_int(0x7FFFFFFF);
    I most = splat_int(0);  // bits of max|x|; those of inf and NaN are above all others
    for (Index i = 0; i < n; i += lanes)
        most = max(most, and_bits(as_int(load(x + i, n - i)), magnitude));
    alignas(64) std::int32_t lane[lanes];
    store_int(lane, most);
    std::int32_t bits = 0;
    for (const std::int32_t l : lane) bits = l > bits ? l : bits;
    const bool finite = bits < 0x7F800000;
    const bool any = finite && bits >= std::bit_cast<std::int32_t>(0x1p-100f);
    *scale = any      ? std::bit_cast<float>(bits) / 127
             : finite ? 0
                      : std::numeric_limits<float>::quiet_NaN();
    const V divisor = splat(any ? *scale : 1);
    const Index count = any ? n : 0;
    for (Index i = 0; i < (n + padded_rows - 1) / padded_rows * padded_rows; i += record_rows) {
        I both = splat_int(0);
        for (Index j = i; j < i + record_rows; j += lanes) {
            const I nearest = to_int(div(load(x + (j < count ? j : 0), count - j), divisor));
            store_bytes(q + j, nearest);
            both = add(both, nearest);
        }
        sums[i / record_rows] = total(both);
    }
    finish();
}

/// Unpacked records.
struct Codes {
    const std::byte* code;           ///< one step of a tile after the other, row_bytes each
    Index record_bytes;              ///< from one record to the next
    const float* scale;              ///< of each record and column, if there is one per 32 inputs
    const std::int32_t* minus_zero;  ///< likewise, modulo 2^16
};

/// Adds the products of `records` records to `sums` [Rows, panel_width], whose rows follow one
/// another: floats if scales are per record, else integers without what the zeros add.
/// @param q     as `dot` wants it: 4 bytes for each step
/// @param of_q  the sums of q, for scales per record
template <bool by_record, int Rows>
[[gnu::noinline]] void tile_int8(Index records, const std::int8_t* q, Index q_row,
                                 const std::int32_t* of_q, Index of_q_row, Codes b, std::byte* sums,
                                 Ahead ahead) {
    constexpr int groups = (Rows + 2) / 3;
    const std::int8_t* group[groups];
#pragma GCC unroll 6
    for (int g = 0; g < groups; ++g) group[g] = q + 3 * g * q_row;
    const Index parts = by_record ? records : 1;
    const Index part_bytes = (by_record ? 1 : records) * record_steps * row_bytes;
    for (Index part = 0; part < parts; ++part) {
        I sum[Rows][tile_vectors];
#pragma GCC unroll 16
        for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 2
            for (int v = 0; v < tile_vectors; ++v)
                sum[i][v] = by_record ? mul_low(load_int(b.minus_zero + v * lanes),
                                                splat_int(of_q[i * of_q_row]))
                                      : load_int(sums + (i * tile_vectors + v) * vector_bytes);
        for (const std::byte *code = b.code, *end = code + part_bytes; code != end;
             code += row_bytes) {
            I row[tile_vectors];
#pragma GCC unroll 2
            for (int v = 0; v < tile_vectors; ++v) row[v] = load_int(code + v * vector_bytes);
#pragma GCC unroll 16
            for (int i = 0; i < Rows; ++i) {
                const I x = splat_int_from(group[i / 3] + i % 3 * q_row);
#pragma GCC unroll 2
                for (int v = 0; v < tile_vectors; ++v) sum[i][v] = dot(sum[i][v], row[v], x);
            }
#pragma GCC unroll 6
            for (int g = 0; g < groups; ++g) group[g] += 4;
            ahead.touch();
        }
        __asm__("" ::: "memory");
#pragma GCC unroll 16
        for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 2
            for (int v = 0; v < tile_vectors; ++v) {
                std::byte* const to = sums + (i * tile_vectors + v) * vector_bytes;
                if constexpr (by_record) {
                    float* const c = reinterpret_cast<float*>(to);
                    store(c, fma(to_float(sum[i][v]), load(b.scale + v * lanes), load(c)));
                } else {
                    store_int(to, sum[i][v]);
                }
            }
        b.code += b.record_bytes;
        b.scale += panel_width;
        b.minus_zero += panel_width;
        ++of_q;
    }
    finish();
}

template <bool by_record, class>
struct Int8Tiles;
template <bool by_record, int... Less>
struct Int8Tiles<by_record, std::integer_sequence<int, Less...>> {
    static constexpr decltype(&tile_int8<by_record, 1>) of[] = {tile_int8<by_record, Less + 1>...};
};

/// What a slice of a panel is unpacked into.
struct Slice {
    alignas(64) std::byte code[slice_records * record_steps * row_bytes];
    alignas(64) float scale[slice_records * panel_width];
    alignas(64) std::int32_t minus_zero[slice_records * panel_width];
    alignas(64) std::int8_t q[int8_rows * slice_records * record_rows * (4 / dot_rows)];
};

/// Codes of `bits` bits as bytes, or as 16 bits each: two of four rows, then the other two.
template <int bits>
void unpack_codes(Index records, const std::byte* record, Index record_bytes, std::byte* to) {
    const I mask = splat_int(((1 << bits) - 1) * 0x01010101);
    for (; records > 0; --records, record += record_bytes, to += record_steps * row_bytes)
        for (Index chunk = 0; chunk < bits; ++chunk)
#pragma GCC unroll 2
            for (int v = 0; v < tile_vectors; ++v) {
                I codes = load_int(record + (chunk * tile_vectors + v) * vector_bytes);
#pragma GCC unroll 4
                for (Index plane = 0; plane < 8 / bits; ++plane) {
                    const I bytes = bits == 8 ? codes : and_bits(codes, mask);
                    std::byte* const step =
                        to + (chunk * (8 / bits) + plane) * (4 / dot_rows) * row_bytes +
                        v * vector_bytes;
                    if constexpr (dot_rows == 4) {
                        store_int(step, bytes);
                    } else {
                        store_int(step, low_halves(bytes));
                        store_int(step + row_bytes, high_halves(bytes));
                    }
                    codes = shift_right<bits>(codes);
                }
            }
}

template <Storage storage>
Codes unpack(Index records, const std::byte* record, Slice& slice) {
    constexpr int bits = code_bits(storage);
    constexpr Index record_bytes = panel_layout(storage, panel_width).record_bytes;
    if constexpr (has_block_scales(storage))
        for (Index r = 0; r < records; ++r)
#pragma GCC unroll 2
            for (int v = 0; v < tile_vectors; ++v) {
                const std::byte* const tail = record + r * record_bytes + bits * row_bytes;
                const Index at = r * panel_width + v * lanes;
                store(slice.scale + at, load_halves(tail + 2 * v * lanes));
                I zero = splat_int(bits == 8 ? 128 : 8);
                if constexpr (storage == Storage::int4_zero)
                    zero = load_bytes(tail + 2 * panel_width + v * lanes);
                store_int(slice.minus_zero + at,
                          and_bits(sub(splat_int(0), zero), splat_int(0xFFFF)));
            }
    if constexpr (bits == 8 && dot_rows == 4) {
        return {record, record_bytes, slice.scale, slice.minus_zero};
    } else {
        unpack_codes<bits>(records, record, record_bytes, slice.code);
        return {slice.code, record_steps * row_bytes, slice.scale, slice.minus_zero};
    }
}

/// One product for all storages of integers.
template <Storage storage>
void product_of(Index rows, Index cols, Index records, const Int8Rows& a, const std::byte* panel,
                float* c, Index c_row, const std::byte* ahead) {
    constexpr bool by_record = has_block_scales(storage);
    constexpr Index chunk = StorageTable::row_chunk / record_rows;
    constexpr PanelLayout layout = panel_layout(storage, panel_width);
    constexpr Index q_row = slice_records * record_rows * 2;  // of widened rows
    constexpr std::int32_t zero = code_bits(storage) == 2 ? 1 : 128;
    const float* const scales = reinterpret_cast<const float*>(panel);
    alignas(64) std::byte sums[int8_block * int8_rows * row_bytes];
    Slice slice;
    const Index tiles = (rows + int8_rows - 1) / int8_rows;
    const Index most = tiles == 1 ? few_rows_records : slice_records;
    Ahead next(ahead, layout.scale_bytes + records * layout.record_bytes, tiles * records,
               record_steps);
    for (Index first = 0; first < tiles; first += int8_block) {
        const Index last = first + int8_block < tiles ? first + int8_block : tiles;
        const Index row = tile_start(rows, tiles, first), end = tile_start(rows, tiles, last);
        const Index bytes = (end - row) * row_bytes;
        for (Index i = 0; i < bytes; i += vector_bytes) store_int(sums + i, splat_int(0));
        bool begun = false;  // C holds the chunks before
        for (Index r = 0; r < records; r += most) {
            const Index count = records - r < most ? records - r : most;
            const Codes codes =
                unpack<storage>(count, panel + layout.scale_bytes + r * layout.record_bytes, slice);
            for (Index t = first; t < last; ++t) {
                const Index i = tile_start(rows, tiles, t), after = tile_start(rows, tiles, t + 1);
                const std::int8_t* q = a.q + i * a.q_row + r * record_rows;
                if constexpr (dot_rows == 2) {
                    for (Index l = 0; l < after - i; ++l)
                        for (Index p = 0; p < count * record_rows; p += record_rows)
                            store_int(slice.q + l * q_row + 2 * p, widen(q + l * a.q_row + p));
                    q = slice.q;
                }
                Int8Tiles<by_record, std::make_integer_sequence<int, int8_rows>>::of[after - i - 1](
                    count, q, dot_rows == 2 ? q_row : a.q_row, a.sums + i * a.sums_row + r,
                    a.sums_row, codes, sums + (i - row) * row_bytes, next);
                next.skip(count * record_steps);
            }
            if (by_record || ((r + count) % chunk != 0 && r + count != records)) continue;
            const Index from = r / chunk * chunk;
            for (Index i = row; i < end; ++i) {
                const I extra =
                    splat_int(zero * total_of(r + count - from, a.sums + i * a.sums_row + from));
                for (Index v = 0; v < tile_vectors; ++v) {
                    std::byte* const sum = sums + (i - row) * row_bytes + v * vector_bytes;
                    float* const to = c + i * c_row + v * lanes;
                    const V more = to_float(sub(load_int(sum), extra));
                    store(to, begun ? add(load(to, cols - v * lanes), more) : add(splat(0), more),
                          cols - v * lanes);
                    store_int(sum, splat_int(0));
                }
            }
            begun = true;
        }
        for (Index i = row; i < end; ++i)
            for (Index v = 0; v < tile_vectors; ++v) {
                const std::byte* const sum = sums + (i - row) * row_bytes + v * vector_bytes;
                float* const to = c + i * c_row + v * lanes;
                V x = load(reinterpret_cast<const float*>(sum));
                if constexpr (!by_record)
                    x = mul(begun ? load(to, cols - v * lanes) : x, load(scales + v * lanes));
                store(to, mul(x, splat(a.scale[i])), cols - v * lanes);
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
