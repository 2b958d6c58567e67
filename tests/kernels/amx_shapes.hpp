// SPDX-License-Identifier: MIT
#ifndef MOE_TESTS_KERNELS_AMX_SHAPES_HPP
#define MOE_TESTS_KERNELS_AMX_SHAPES_HPP

#include <vector>

#include <gtest/gtest.h>

#include <moe/core/plan.hpp>
#include <moe/kernels/storage_table.hpp>

#include "guarded.hpp"
#include "stored_panels.hpp"

namespace kernel_test {

/// Products large enough for every loop over blocks, slices and chunks: `got` must have the bits
/// of `want`, a table with panels of the same width.
inline void expect_same_products(const StorageTable& got, const StorageTable& want) {
    Numbers random(21);
    const Index width = got.panel_width, most = 133;
    ASSERT_EQ(width, want.panel_width);
    const auto compare = [&](Storage storage, Index k, Index rows, Index cols, auto&& product) {
        std::vector<float> c[2];
        for (std::vector<float>& one : c) one.assign(size_of(most * width), -7.5f);
        product(got, c[0].data());
        product(want, c[1].data());
        EXPECT_TRUE(same(most * width, c[0].data(), c[1].data()))
            << name(storage) << " k " << k << " rows " << rows << " cols " << cols;
    };
    for (const Index k : {60, 500, 640, 1300, 4200}) {
        const Index records = StoredPanel::records(k), padded = records * moe::record_rows;
        std::vector<float> x(size_of(most * k));
        random.fill(most * k, x.data());
        for (const Storage storage : stored_forms) {
            if (storage == Storage::f16) continue;
            const StoredPanel panel(storage, width, k, width, random);
            for (const Index rows : {1, 5, 16, 17, 31, 32, 33, 48, 49, 64, 65, 128, 133}) {
                if (rows % 16 > 2 && k == 4200) continue;  // slow where tiles are emulated
                for (const Index cols : {width, width / 2 + 1, width / 2, Index(1)}) {
                    if (cols != width && rows % 32 != 1) continue;
                    compare(storage, k, rows, cols, [&](const StorageTable& t, float* c) {
                        if (storage == Storage::bf16) {
                            std::vector<std::byte> a(size_of(rows * padded * t.bf16_bytes));
                            for (Index i = 0; i < rows; ++i)
                                t.encode_bf16(k, x.data() + i * k,
                                              a.data() + i * padded * t.bf16_bytes);
                            t.product_bf16(rows, cols, records, a.data(), padded * t.bf16_bytes,
                                           panel.data(), c, width, panel.data(),
                                           moe::Plan{}.bf16_tile_rows);
                            return;
                        }
                        std::vector<std::int8_t> q(size_of(rows * padded));
                        std::vector<float> scale(size_of(rows));
                        std::vector<std::int32_t> sums(size_of(rows * records));
                        for (Index i = 0; i < rows; ++i)
                            t.encode_int8(k, x.data() + i * k, q.data() + i * padded,
                                          &scale[size_of(i)], sums.data() + i * records);
                        t.product_int8(storage, rows, cols, records,
                                       {q.data(), padded, scale.data(), sums.data(), records},
                                       panel.data(), c, width, panel.data(),
                                       moe::Plan{}.tile_rows(storage));
                    });
                }
            }
        }
    }
}

}  // namespace kernel_test

#endif  // MOE_TESTS_KERNELS_AMX_SHAPES_HPP
