// SPDX-License-Identifier: MIT
// Tiles of the products with stored weights. Included by storage_body.inl.

/// What a tile prefetches: two lines each time, and the next ones after that.
struct Ahead {
    const std::byte* at;
    Index between;  ///< bytes from the first to the second
    Index step;     ///< bytes

    [[gnu::always_inline]] void touch() {
        __builtin_prefetch(at, 0, 2);  // into the second-level cache
        __builtin_prefetch(at + between, 0, 2);
        at += step;
    }
};

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
    constexpr int planes = 8 / bits, dots = 4 / dot_rows;
    // One dot waits for the one before in the same sum; few rows have two sums for each element.
    constexpr int chains = bits < 8 && Rows <= 2 ? 2 : 1;
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
    const Index parts = by_record ? records : 1;
    const Index part_bytes = (by_record ? 1 : records) * bits * row_bytes;
    for (Index part = 0; part < parts; ++part) {
        I sum[chains][Rows][tile_vectors], minus_zero[tile_vectors];
        const std::byte* const tail = record + part_bytes;
#pragma GCC unroll 2
        for (int v = 0; v < tile_vectors; ++v)
            minus_zero[v] =
                storage == Storage::int4_zero
                    ? and_bits(sub(splat_int(0), load_bytes(tail + 2 * panel_width + v * lanes)),
                               splat_int(0xFFFF))
                    : splat_int(-zero_of(storage) & 0xFFFF);
#pragma GCC unroll 16
        for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 2
            for (int v = 0; v < tile_vectors; ++v) {
                sum[0][i][v] =
                    by_record ? mul_low(minus_zero[v], splat_int(of_group[i / 3][i % 3 * of_q_row]))
                              : load_int(sums + (i * tile_vectors + v) * vector_bytes);
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
                    for (int v = 0; v < tile_vectors; ++v)
                        sum[step % chains][i][v] = dot(sum[step % chains][i][v], row[v], x);
                }
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
                const I all = chains == 2 ? add(sum[0][i][v], sum[chains - 1][i][v]) : sum[0][i][v];
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
