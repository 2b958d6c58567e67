// SPDX-License-Identifier: MIT
#ifndef MOE_TESTS_ODR_STORAGE_HPP
#define MOE_TESTS_ODR_STORAGE_HPP

#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

#include <moe/core/plan.hpp>
#include <moe/kernels/storage_dispatch.hpp>

// Products with stored weights in every table of the machine, as bits; see forward.hpp.
namespace {

inline std::vector<std::uint32_t> bits_of_storage() {
    using moe::Index;
    constexpr Index rows = 9, k = 128, records = 4, most_columns = 32;
    float x[k], c[rows * most_columns], scale[rows];
    std::int8_t q[rows * k];
    std::int32_t sums[rows * records];
    std::vector<std::byte> a(rows * k * 4), panel(64 * most_columns * records);
    for (std::size_t i = 0; i < panel.size(); ++i)  // as halves or bf16 less than 2
        panel[i] = static_cast<std::byte>(i * i % 61);

    std::vector<std::uint32_t> bits;
    for (const moe::Isa isa : moe::supported_isas()) {
        const moe::StorageTable& t = moe::storage_kernels(isa);
        for (Index i = 0; i < rows; ++i) {
            for (Index p = 0; p < k; ++p) x[p] = static_cast<float>((p * 37 + i) % 101 - 50) / 64;
            t.encode_bf16(k, x, a.data() + i * k * t.bf16_bytes);
            t.encode_int8(k, x, q + i * k, scale + i, sums + i * records);
        }
        const auto keep = [&] {
            for (Index i = 0; i < rows; ++i)
                for (Index j = 0; j < 16; ++j)
                    bits.push_back(std::bit_cast<std::uint32_t>(c[i * most_columns + j]));
        };
        t.product_bf16(rows, 16, records, a.data(), k * t.bf16_bytes, panel.data(), c, most_columns,
                       nullptr, moe::Plan{}.bf16_tile_rows);
        keep();
        t.product_int8(moe::Storage::int4, rows, 16, records, {q, k, scale, sums, records},
                       panel.data(), c, most_columns, nullptr, moe::Plan{}.block_tile_rows);
        keep();
    }
    return bits;
}

}  // namespace

#endif  // MOE_TESTS_ODR_STORAGE_HPP
