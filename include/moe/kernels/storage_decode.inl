// SPDX-License-Identifier: MIT
// What is not a product: weights to floats and activations to bf16 and int8. Included by
// storage_body.inl.

/// Bytes between what is read and what is prefetched where weights are read once. An EPYC 9005 core
/// read them at 80 % of the rate of a plain loop with 2 kB, 83 % with 4 kB and 85 % with 8 kB; on a
/// Xeon 8 kB were slower than 2.
inline constexpr Index read_ahead = 4096;

/// weight = (code - zero) s for the `bits` of each code. A code goes into the last bits of 2^23, a
/// float whose steps are 1.
template <Storage storage>
[[gnu::always_inline]] inline void decode_codes(const std::byte* record, const float* scales,
                                                float* to) {
    constexpr int bits = code_bits(storage);
    constexpr Index planes = 8 / bits;
    const std::byte* const tail = record + record_rows * panel_width * bits / 8;
    const I mask = splat_int((1 << bits) - 1), magic = splat_int(0x4B000000);
#pragma GCC unroll 2
    for (int v = 0; v < tile_vectors; ++v) {
        V offset = splat(0x1p23f + static_cast<float>(code_zero(storage)));
        if constexpr (storage == Storage::int4_zero)
            offset = as_float(or_bits(load_bytes(tail + 2 * panel_width + v * lanes), magic));
        const V s = has_block_scales(storage) ? load_halves(tail + 2 * v * lanes)
                                              : load(scales + v * lanes);
        for (Index chunk = 0; chunk < 8 / planes; ++chunk) {
            const std::byte* const from = record + (chunk * tile_vectors + v) * vector_bytes;
            __builtin_prefetch(from + read_ahead, 0, 3);
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
                __builtin_prefetch(from + read_ahead, 0, 3);
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

template <class>
void decode(Storage storage, Index records, const std::byte* record, const float* scales,
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

// ---- activations ----

/// x rounded to bf16, to nearest even, in the upper half of each lane; NaN stays NaN. The lower
/// half is whatever is left over.
[[gnu::always_inline]] inline I round_bf16(V x) {
    const I bits = as_int(x);
    const I odd = and_bits(shift_right<16>(bits), splat_int(1));
    const I rounded = add(add(bits, splat_int(0x7FFF)), odd);
    const I quiet = or_bits(bits, splat_int(0x400000));
    return as_int(where_le(x, x, as_float(rounded), as_float(quiet)));
}

/// Floats whose lower half is 0.
inline void encode_bf16(Index n, const float* x, std::byte* to) {
    const I upper = splat_int(static_cast<std::int32_t>(0xFFFF0000U));
    for (Index i = 0; i < padded_length(n); i += lanes)
        store_int(to + 4 * i, and_bits(round_bf16(load(x + (i < n ? i : 0), n - i)), upper));
    finish();
}

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
    for (Index i = 0; i < padded_length(n); i += record_rows) {
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
