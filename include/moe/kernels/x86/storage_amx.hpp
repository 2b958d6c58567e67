// SPDX-License-Identifier: MIT
#ifndef MOE_KERNELS_X86_STORAGE_AMX_HPP
#define MOE_KERNELS_X86_STORAGE_AMX_HPP

#include <cstddef>

#include <moe/kernels/x86/storage_amx_bf16.hpp>
#include <moe/kernels/x86/storage_amx_int8.hpp>
#include <moe/kernels/x86/storage_avx512.hpp>

namespace moe::inline MOE_ABI {
namespace storage_amx {

static_assert(panel_width == storage_avx512::table.panel_width);

/// From this many rows on tiles are quicker than vectors.
inline constexpr Index tiles_from = 4;

inline void product_int8(Storage storage, Index rows, Index cols, Index records, const Int8Rows& a,
                         const std::byte* panel, float* c, Index c_row, const std::byte* ahead) {
    if (rows < tiles_from || records == 0)
        storage_avx512::table.product_int8(storage, rows, cols, records, a, panel, c, c_row, ahead);
    else if (storage == Storage::int8)
        product_by_output<false>(rows, cols, records, a, panel, c, c_row, ahead);
    else if (storage == Storage::ternary)
        product_by_output<true>(rows, cols, records, a, panel, c, c_row, ahead);
    else
        product_by_record(storage, rows, cols, records, a, panel, c, c_row, ahead);
}

inline constexpr StorageTable table{.name = "amx",
                                    .panel_width = panel_width,
                                    .decode = storage_avx512::table.decode,
                                    .bf16_bytes = 2,
                                    .encode_bf16 = encode_bf16,
                                    .product_bf16 = product_bf16,
                                    .encode_int8 = storage_avx512::table.encode_int8,
                                    .product_int8 = product_int8};

}  // namespace storage_amx
}  // namespace moe::inline MOE_ABI

#endif  // MOE_KERNELS_X86_STORAGE_AMX_HPP
