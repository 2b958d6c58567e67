// SPDX-License-Identifier: MIT
// Floats to the operands of products in bf16. Included by storage_body.inl.

/// Two rows side by side: the first in the lower half of each lane.
[[gnu::always_inline]] inline I pair_bf16(V first, V second) {
    const I upper = splat_int(static_cast<std::int32_t>(0xFFFF0000U));
    return and_or(round_bf16(second), upper, shift_right<16>(round_bf16(first)));
}

/// Bf16Table::pack for up to 16 columns that are not next to each other.
inline void pack_columns_bf16(Index k, Index cols, const float* b, Index b_row, Index b_col,
                              std::byte* to) {
    Index p = 0;
    if (b_row == 1 && cols == lanes) {
        constexpr Index element = sizeof(float);
        ColumnsAhead ahead(b + lanes * b_col, b_col * element, run_length(k * element));
        for (; p + 4 <= k; p += 4, to += 2 * row_bytes) {
            V row[4];
            read_columns(reinterpret_cast<const std::byte*>(b + p), b_col * element, row);
            ahead.step();
            store_int(to, pair_bf16(row[0], row[1]));
            store_int(to + row_bytes, pair_bf16(row[2], row[3]));
        }
    }
    for (; p < k; p += lanes) {
        alignas(64) float block[lanes * lanes] = {};  // rows of B
        const Index depth = k - p < lanes ? k - p : lanes;
        if (b_row == 1)
            transpose(cols, depth, b + p, b_col, block, lanes);
        else
            for (Index q = 0; q < depth; ++q)
                for (Index j = 0; j < cols; ++j)
                    block[q * lanes + j] = b[(p + q) * b_row + j * b_col];
        for (Index q = 0; q < depth; q += 2, to += row_bytes)
            store_int(to, pair_bf16(load(block + q * lanes), load(block + (q + 1) * lanes)));
    }
}

inline void pack_bf16(Index records, Index k, Index cols, const float* b, Index b_row, Index b_col,
                      std::byte* to) {
    std::byte* const end = to + records * (record_rows / 2) * row_bytes;
    if (b_col == 1) {
        for (Index p = 0; p < k; p += 2, to += row_bytes) {
            const float* const first = b + p * b_row;
            const bool pair = p + 1 < k;
#pragma GCC unroll 2
            for (int v = 0; v < tile_vectors; ++v) {  // a record later
                __builtin_prefetch(first + record_rows * b_row + v * lanes);
                __builtin_prefetch(first + (record_rows + 1) * b_row + v * lanes);
            }
#pragma GCC unroll 2
            for (int v = 0; v < tile_vectors; ++v) {
                const Index here = cols - v * lanes, at = here > 0 ? v * lanes : 0;
                store_int(to + v * vector_bytes,
                          pair_bf16(load(first + at, here),
                                    load(pair ? first + b_row + at : first, pair ? here : 0)));
            }
        }
    } else {
        std::byte* const begin = to;
        for (int v = 0; v < tile_vectors; ++v) {
            const Index here = cols - v * lanes < lanes ? cols - v * lanes : lanes;
            pack_columns_bf16(k, here > 0 ? here : 0, here > 0 ? b + v * lanes * b_col : b, b_row,
                              b_col, begin + v * vector_bytes);
        }
        to = begin + (k + 1) / 2 * row_bytes;
    }
    for (; to < end; to += vector_bytes) store_int(to, splat_int(0));
    finish();
}

/// Row p of x from column i on, 0 from row k on.
[[gnu::always_inline]] inline V row_or_zeros(Index p, Index k, const float* x, Index x_row, Index i,
                                             Index cols) {
    return load(p < k ? x + p * x_row + i : x, p < k ? cols : 0);
}

/// Bf16Table::encode_columns: 16 x 16 dwords at a time, of one element or of two.
/// @tparam bytes  of an element
template <int bytes>
void encode_columns_bf16(Index rows, Index k, const float* x, Index x_row, std::byte* to,
                         Index to_row) {
    constexpr Index step = lanes * 4 / bytes;
    alignas(64) float block[lanes * lanes];
    [[maybe_unused]] const I upper = splat_int(static_cast<std::int32_t>(0xFFFF0000U));
    for (Index i = 0; i < rows; i += lanes) {
        const Index here = rows - i < lanes ? rows - i : lanes;
        for (Index p = 0; p < padded_length(k); p += step) {
            for (Index q = 0; q < lanes; ++q) {
                const Index row = p + q * (4 / bytes);
                const V one = row_or_zeros(row, k, x, x_row, i, here);
                if constexpr (bytes == 2)
                    store_int(block + q * lanes,
                              pair_bf16(one, row_or_zeros(row + 1, k, x, x_row, i, here)));
                else
                    store_int(block + q * lanes, and_bits(round_bf16(one), upper));
            }
            transpose(lanes, here, block, lanes,
                      reinterpret_cast<float*>(to + i * to_row + p * bytes), to_row / 4);
        }
    }
    finish();
}
