// SPDX-License-Identifier: MIT
#ifndef MOE_KERNELS_X86_STORAGE_AMX_HPP
#define MOE_KERNELS_X86_STORAGE_AMX_HPP

#include <cstddef>

#include <moe/kernels/x86/storage_amx_bf16.hpp>
#include <moe/kernels/x86/storage_amx_int8.hpp>
#include <moe/kernels/x86/storage_avx512.hpp>

namespace moe::inline MOE_ABI {
namespace storage_amx {

static_assert(panel_width == storage_avx512::panel_width);

/// Floats that a few rows of A are widened to: what the kernels of avx512 read.
inline constexpr Index wide_size = 16384;

/// Vectors read few rows of A, and much of B, faster than tiles.
template <class All>
void product_bf16(Index rows, Index cols, Index records, const std::byte* a, Index a_row,
                  const std::byte* panel, float* c, Index c_row, const std::byte* ahead,
                  Index tile_rows) {
    const Index k = records * record_rows;
    if (records > 0 && (rows >= tile_rows || rows * (k + 16) > wide_size))
        return tiles_bf16(rows, cols, records, a, a_row, panel, c, c_row, ahead);
    alignas(64) float wide[wide_size];
    for (Index i = 0; i < rows; ++i) widen_bf16(k, a + i * a_row, wide + i * (k + 16));
    storage_avx512::product_bf16<All>(rows, cols, records, reinterpret_cast<std::byte*>(wide),
                                      4 * (k + 16), panel, c, c_row, ahead, tile_rows);
}

template <class All>
void product_int8(Storage storage, Index rows, Index cols, Index records, const Int8Rows& a,
                  const std::byte* panel, float* c, Index c_row, const std::byte* ahead,
                  Index tile_rows) {
    if (rows < tile_rows || records == 0)
        storage_avx512::table<All>.product_int8(storage, rows, cols, records, a, panel, c, c_row,
                                                ahead, tile_rows);
    else if (storage == Storage::int8)
        product_by_output<false>(rows, cols, records, a, panel, c, c_row, ahead);
    else if (storage == Storage::ternary)
        product_by_output<true>(rows, cols, records, a, panel, c, c_row, ahead);
    else
        product_by_record(storage, rows, cols, records, a, panel, c, c_row, ahead);
}

template <class All>
inline constexpr StorageTable table{.name = "amx",
                                    .panel_width = panel_width,
                                    .decode = storage_avx512::table<All>.decode,
                                    .row_panels = storage_avx512::table<All>.row_panels,
                                    .row = storage_avx512::table<All>.row,
                                    .bf16_bytes = 2,
                                    .encode_bf16 = encode_bf16,
                                    .product_bf16 = product_bf16<All>,
                                    .encode_int8 = storage_avx512::table<All>.encode_int8,
                                    .product_int8 = product_int8<All>};

template <class All>
inline constexpr Bf16Table bf16_table{.name = "amx",
                                      .panel_width = panel_width,
                                      .row_bytes = 2,
                                      .encode = encode_bf16,
                                      .encode_columns = storage_avx512::encode_columns_bf16<2>,
                                      .pack = storage_avx512::pack_bf16,
                                      .product = product_bf16<All>};

}  // namespace storage_amx
}  // namespace moe::inline MOE_ABI

#endif  // MOE_KERNELS_X86_STORAGE_AMX_HPP
