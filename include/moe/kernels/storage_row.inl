// SPDX-License-Identifier: MIT
// One row of floats by panels of 16-bit weights. Included by storage_body.inl.

/// `row` of one storage: a V of each panel is widened in registers.
template <Storage storage>
[[gnu::noinline]] void row_of(Index records, const float* a, const std::byte* b, Index b_panel,
                              float* c, bool add) {
    constexpr int panels = row_panels;
    [[maybe_unused]] const I upper = splat_int(static_cast<std::int32_t>(0xFFFF0000U));
    V acc[panels][tile_vectors];
#pragma GCC unroll 4
    for (int j = 0; j < panels; ++j)
#pragma GCC unroll 2
        for (int v = 0; v < tile_vectors; ++v)
            acc[j][v] = load(c + j * panel_width + v * lanes, add ? lanes : 0);
    for (Index pair = 0; pair < records * (record_rows / 2); ++pair) {
        const V even = splat(a[0]), odd = splat(a[1]);
#pragma GCC unroll 4
        for (int j = 0; j < panels; ++j)
#pragma GCC unroll 2
            for (int v = 0; v < tile_vectors; ++v) {
                const std::byte* const from = b + j * b_panel + v * vector_bytes;
                V& sum = acc[j][v];
                if constexpr (storage == Storage::bf16) {
                    const I both = load_int(from);
                    sum = fma(even, as_float(shift_left<16>(both)), sum);
                    sum = fma(odd, as_float(and_bits(both, upper)), sum);
                } else {
                    const std::byte* const half = from - v * (vector_bytes / 2);
                    sum = fma(even, load_halves(half), sum);
                    sum = fma(odd, load_halves(half + row_bytes / 2), sum);
                }
            }
        a += 2;
        b += row_bytes;
    }
#pragma GCC unroll 4
    for (int j = 0; j < panels; ++j)
#pragma GCC unroll 2
        for (int v = 0; v < tile_vectors; ++v)
            store(c + j * panel_width + v * lanes, acc[j][v], lanes);
    finish();
}

template <class>
void row(Storage storage, Index records, const float* a, const std::byte* b, Index b_panel,
         float* c, bool add) {
    if (storage == Storage::bf16)
        row_of<Storage::bf16>(records, a, b, b_panel, c, add);
    else
        row_of<Storage::f16>(records, a, b, b_panel, c, add);
}
