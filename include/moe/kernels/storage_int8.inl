// SPDX-License-Identifier: MIT
// Products of integers, written once, and the table. Included inside a namespace in the one that
// includes storage_body.inl, in a target region of its own, that defines
//
//     constexpr const char* table_name;
//     constexpr int dot_rows;   // rows of B that `dot` adds up: 4 of bytes or 2 of 16 bits
//     constexpr int int8_rows, block_rows, int4_rows, ternary_rows;  // most rows of a tile of each
//     constexpr int chained_rows;  // rows of a tile that has two sums for each element
//     constexpr int kept_sums;     // vectors of floats that a tile keeps beside as many integers
//     I dot(I sum, I codes, I q);

/// What the integer sum of an element starts from: what the zeros add, or what the records before
/// gave.
/// @param tail  of the record, behind its codes
template <Storage storage>
[[gnu::always_inline]] inline I first_of(const std::byte* tail, int v, const std::int32_t* of_q,
                                         const std::byte* sum) {
    if constexpr (storage == Storage::int4_zero)
        return mul_low(and_bits(sub(splat_int(0), load_bytes(tail + 2 * panel_width + v * lanes)),
                                splat_int(0xFFFF)),
                       splat_int(*of_q));
    else if constexpr (has_block_scales(storage))
        return mul_low(splat_int(-code_zero(storage) & 0xFFFF), splat_int(*of_q));
    else
        return load_int(sum);
}

/// Adds the products of `records` records to `sums` [Rows, panel_width], whose rows follow one
/// another: floats if scales are per record, else integers without what the zeros add.
/// @param record  the first of them, as in a panel
/// @param q       as `dot` wants it: 4 bytes for each step
/// @param of_q    the sums of q, for scales per record
template <Storage storage, int Rows>
[[gnu::noinline]] void tile_int8(Index records, const std::int8_t* q, Index q_row,
                                 const std::int32_t* of_q, Index of_q_row, const std::byte* record,
                                 std::byte* sums, Ahead ahead) {
    constexpr int bits = code_bits(storage);
    constexpr bool by_record = has_block_scales(storage);
    constexpr Index tail_bytes = panel_layout(storage, panel_width).record_bytes - bits * row_bytes;
    constexpr bool narrow = dot_rows == 2 && bits < 8;
    constexpr int planes = 8 / bits, dots = narrow ? 1 : 4 / dot_rows;
    // A dot waits for the one before in the same sum: few rows have two sums for each element.
    constexpr int chains = bits < 8 && Rows * (by_record ? 2 : 1) <= chained_rows ? 2 : 1;
    // Floats stay in registers if they fit next to as many integers.
    constexpr bool keeps = by_record && Rows * tile_vectors <= kept_sums;
    constexpr int groups = (Rows + 2) / 3;
    const std::int8_t* group[groups];
    const std::int32_t* of_group[groups];
#pragma GCC unroll 6
    for (int g = 0; g < groups; ++g) {
        group[g] = q + 3 * g * q_row;
        of_group[g] = of_q + 3 * g * of_q_row;
    }
    V c[Rows][tile_vectors];
    if constexpr (keeps)
#pragma GCC unroll 16
        for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 2
            for (int v = 0; v < tile_vectors; ++v)
                c[i][v] = load(reinterpret_cast<float*>(sums) + i * panel_width + v * lanes);
    const I mask = splat_int(code_mask<bits>);
    const Index parts = by_record || narrow ? records : 1;
    const Index part_bytes = (by_record || narrow ? 1 : records) * bits * row_bytes;
    for (Index part = 0; part < parts; ++part) {
        I sum[chains][Rows][tile_vectors];
        const std::byte* const tail = record + part_bytes;
#pragma GCC unroll 16
        for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 2
            for (int v = 0; v < tile_vectors; ++v) {
                sum[0][i][v] =
                    narrow ? splat_int(0)
                           : first_of<storage>(tail, v, of_group[i / 3] + i % 3 * of_q_row,
                                               sums + (i * tile_vectors + v) * vector_bytes);
                if constexpr (chains == 2) sum[1][i][v] = splat_int(0);
            }
        const std::byte* end = tail;
        __asm__("" : "+r"(end));  // or clang unrolls all of a record, and spills
        for (; record != end; record += row_bytes) {
            I raw[tile_vectors], bytes[tile_vectors], row[tile_vectors];
#pragma GCC unroll 2
            for (int v = 0; v < tile_vectors; ++v) raw[v] = load_int(record + v * vector_bytes);
#pragma GCC unroll 8
            for (int step = 0; step < planes * dots; ++step) {
#pragma GCC unroll 2
                for (int v = 0; v < tile_vectors; ++v) {
                    if (step % dots == 0) {
                        bytes[v] = bits == 8 ? raw[v] : and_bits(raw[v], mask);
                        raw[v] = shift_right<bits>(raw[v]);
                    }
                    row[v] = dots == 1          ? bytes[v]
                             : step % dots == 0 ? low_halves(bytes[v])
                                                : high_halves(bytes[v]);
                }
#pragma GCC unroll 16
                for (int i = 0; i < Rows; ++i) {
                    const I x = splat_int_from(group[i / 3] + i % 3 * q_row + 4 * step);
#pragma GCC unroll 2
                    for (int v = 0; v < tile_vectors; ++v) {
                        I& to = sum[step % chains][i][v];
                        if constexpr (narrow)
                            to = dot_bytes(to, row[v], x);
                        else
                            to = dot(to, row[v], x);
                    }
                }
                // Or g++ loads q for all steps first, and spills.
                if constexpr (dots == 2) __asm__("" ::: "memory");
            }
#pragma GCC unroll 6
            for (int g = 0; g < groups; ++g) group[g] += 4 * planes * dots;
            ahead.touch();
        }
        V scale[tile_vectors];
        if constexpr (by_record)
#pragma GCC unroll 2
            for (int v = 0; v < tile_vectors; ++v) scale[v] = load_halves(record + 2 * v * lanes);
        __asm__("" ::: "memory");  // or g++ keeps in registers what it could read again
#pragma GCC unroll 16
        for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 2
            for (int v = 0; v < tile_vectors; ++v) {
                std::byte* const to = sums + (i * tile_vectors + v) * vector_bytes;
                I all = sum[0][i][v];
                if constexpr (chains == 2) all = add(all, sum[1][i][v]);
                if constexpr (narrow)
                    all = add(add_pairs(all),
                              first_of<storage>(record, v, of_group[i / 3] + i % 3 * of_q_row, to));
                if constexpr (keeps) {
                    c[i][v] = fma(to_float(all), scale[v], c[i][v]);
                } else if constexpr (by_record) {
                    float* const add_to = reinterpret_cast<float*>(to);
                    store(add_to, fma(to_float(all), scale[v], load(add_to)));
                } else {
                    store_int(to, all);
                }
            }
        record += tail_bytes;
#pragma GCC unroll 6
        for (int g = 0; g < groups; ++g) ++of_group[g];
    }
    if constexpr (keeps)
#pragma GCC unroll 16
        for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 2
            for (int v = 0; v < tile_vectors; ++v)
                store(reinterpret_cast<float*>(sums) + i * panel_width + v * lanes, c[i][v]);
    finish();
}

template <Storage storage, class>
struct Int8Tiles;
template <Storage storage, int... Less>
struct Int8Tiles<storage, std::integer_sequence<int, Less...>> {
    static constexpr decltype(&tile_int8<storage, 1>) of[] = {tile_int8<storage, Less + 1>...};
};

/// The sum of n numbers.
inline std::int32_t total_of(Index n, const std::int32_t* x) {
    I partial = splat_int(0);
    Index i = 0;
    for (; i + lanes <= n; i += lanes) partial = add(partial, load_int(x + i));
    std::int32_t sum = total(partial);
    for (; i < n; ++i) sum += x[i];
    return sum;
}

inline Int8Rows rows_from(const Int8Rows& a, Index i) {
    return {a.q + i * a.q_row, a.q_row, a.scale + i, a.sums + i * a.sums_row, a.sums_row};
}

inline void clear(Index rows, std::byte* sums) {
    for (Index i = 0; i < rows * row_bytes; i += vector_bytes) store_int(sums + i, splat_int(0));
}

/// For one row: C = C + float(sum - what the zeros add) for the n records from `begun` on, where C
/// counts as 0 for the first ones; in the end times the scales.
/// @param a  at this row
template <Storage storage>
void add_chunk(Index cols, const Int8Rows& a, Index begun, Index n, bool end, const float* scales,
               const std::byte* sums, float* c) {
    const I extra = splat_int(code_zero(storage) * total_of(n, a.sums + begun));
    const V a_scale = splat(*a.scale);
    for (Index v = 0; v < tile_vectors; ++v) {
        const Index at = v * lanes, here = cols - at;
        V sum = to_float(sub(load_int(sums + v * vector_bytes), extra));
        sum = add(begun == 0 ? splat(0) : load(c + at, here), sum);
        store(c + at, end ? mul(mul(sum, load(scales + at)), a_scale) : sum, here);
    }
}

/// One product for all storages of integers; panels take turns as in product_bf16.
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
    constexpr Index block = block_sums / tile_rows, most_rows = block * tile_rows;
    constexpr Index slice =
        slice_bytes / layout.record_bytes < chunk ? slice_bytes / layout.record_bytes : chunk;
    constexpr Index short_slice = turn_bytes / layout.record_bytes;
    constexpr Index wide_row = dot_rows == 2 && bits == 8 ? 2 * slice * record_rows : 0;
    alignas(64) std::byte sums[panels_together][most_rows * row_bytes];
    alignas(64) std::int8_t wide[tile_rows * wide_row + 1];
    const Tiles tiles(rows, tile_rows);
    const Index panel_bytes = layout.bytes(records * record_rows);
    // Three tiles by record take longer than memory does, and want B from close by.
    constexpr Index few = by_record ? 2 : 1;
    const bool alone = panels_alone(rows, tile_rows, bits);
    const Index together = alone || tiles.count > (by_record ? few : block) ? 1 : panels_together;
    const Index longest = tiles.count > few ? slice : few * short_slice;
    for (detail::PanelTurns turn(panel, panel_bytes, panel_width, cols, together, ahead);
         turn.panels > 0; turn.next()) {
        const Index col = turn.column, panels = turn.panels;
        for (Index first = 0; first < tiles.count; first += block) {
            const Index last = first + block < tiles.count ? first + block : tiles.count;
            const Index row = tiles.start(first), end = tiles.start(last);
            for (Index j = 0; j < panels; ++j) clear(end - row, sums[j]);
            Index begun = 0;  // the first record of this chunk
            Index r = 0, count = 0;
            do {
                const Index most = by_record ? records - r : begun + chunk - r;
                count = records - r < most ? records - r : most;
                if (count > longest) count = longest;
                const std::byte* const from =
                    turn.at + layout.scale_bytes + r * layout.record_bytes;
                const std::byte* const next =
                    r + count < records ? from + count * layout.record_bytes : turn.then;
                Prefetch prefetch(alone ? nullptr : next, from, panel_bytes, panels,
                                  count * layout.record_bytes, count * bits * (last - first));
                for (Index j = 0; j < panels; ++j)
                    for (Index t = first; t < last; ++t) {
                        const Index i = tiles.start(t), height = tiles.start(t + 1) - i;
                        const std::int8_t* q = a.q + i * a.q_row + r * record_rows;
                        if constexpr (wide_row > 0) {
                            for (Index l = 0; l < height; ++l)
                                for (Index p = 0; p < count * record_rows; p += record_rows)
                                    store_int(wide + l * wide_row + 2 * p,
                                              widen(q + l * a.q_row + p));
                            q = wide;
                        }
                        Int8Tiles<storage, std::make_integer_sequence<int, tile_rows>>::of[height -
                                                                                           1](
                            count, q, wide_row > 0 ? wide_row : a.q_row,
                            a.sums + i * a.sums_row + r, a.sums_row, from + j * panel_bytes,
                            sums[j] + (i - row) * row_bytes, prefetch.next(count * bits));
                    }
                if constexpr (!by_record)
                    if (r + count == begun + chunk || r + count == records) {
                        const bool is_last = r + count == records;
                        for (Index j = 0; j < panels; ++j) {
                            const Index at = col + j * panel_width;
                            const auto* scales =
                                reinterpret_cast<const float*>(turn.at + j * panel_bytes);
                            for (Index i = row; i < end; ++i)
                                add_chunk<storage>(
                                    cols - at, rows_from(a, i), begun, r + count - begun, is_last,
                                    scales, sums[j] + (i - row) * row_bytes, c + i * c_row + at);
                            clear(end - row, sums[j]);
                        }
                        begun = r + count;
                    }
                r += count;
            } while (r < records);
            if constexpr (by_record)
                for (Index i = row; i < end; ++i)
                    for (Index at = col; at < col + panels * panel_width; at += lanes) {
                        const std::byte* const sum = sums[(at - col) / panel_width] +
                                                     (i - row) * row_bytes +
                                                     (at - col) % panel_width * 4;
                        store(c + i * c_row + at,
                              mul(load(reinterpret_cast<const float*>(sum)), splat(a.scale[i])),
                              cols - at);
                    }
        }
    }
    finish();
}

template <class>  // compiled where `table` is used, and so are the others
void product_int8(Storage storage, Index rows, Index cols, Index records, const Int8Rows& a,
                  const std::byte* panel, float* c, Index c_row, const std::byte* ahead, Index) {
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
        case Storage::fp32:
        case Storage::bf16:
        case Storage::f16:
            return;
    }
}

template <class All>
inline constexpr StorageTable table{.name = table_name,
                                    .panel_width = panel_width,
                                    .decode = decode<All>,
                                    .row_panels = row_panels,
                                    .row = row_panels > 1 ? row<All> : nullptr,
                                    .bf16_bytes = 4,
                                    .encode_bf16 = encode_bf16,
                                    .product_bf16 = product_bf16<All>,
                                    .encode_int8 = encode_int8,
                                    .product_int8 = product_int8<All>};
