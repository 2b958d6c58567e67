// SPDX-License-Identifier: MIT
// The tables of amx on tiles in software: all of storage_table_test.cpp, the products of
// bf16_table_test.cpp, and shapes of its own. They are compiled a second time here, in a namespace
// of another name. Without what surrounds the tiles, AVX-512 with VNNI, every test of a table is
// skipped.
#if defined(__x86_64__)

#include <moe/config.hpp>

#undef MOE_ABI
#define MOE_ABI emulated
#define kernel_test kernel_test_emulated
#define StorageTable EmulatedStorageTable  // the names of the tests, too
#define StoredIntegers EmulatedStoredIntegers

#include "emulated_tiles.hpp"
//
#include <moe/kernels/storage_portable.hpp>
#include <moe/kernels/x86/cpuid.hpp>
#include <moe/kernels/x86/storage_amx.hpp>

#define storage_tables unused_storage_tables
#include "stored_panels.hpp"
#undef storage_tables

namespace kernel_test {

/// The one table for stored weights, if the machine has what surrounds the tiles.
inline std::vector<const StorageTable*> storage_tables() {
    if (!moe::cpu_features().vnni) return {};
    return {&moe::storage_amx::table<StorageTable>};
}

}  // namespace kernel_test

#include "amx_shapes.hpp"
#include "bf16_operands.hpp"
#include "storage_table_test.cpp"

namespace {

TEST(EmulatedTiles, GiveTheBitsOfVectors) {
    each_table([](const StorageTable& table) {
        kernel_test::expect_same_products(table, moe::storage_avx512::table<StorageTable>);
    });
}

TEST(EmulatedTiles, AreShapedOnceForBlocksOfOneHeightAndGivenBack) {
    each_table([](const StorageTable& table) {
        const Index records = 40, rows = 96;
        std::vector<std::byte> a(static_cast<std::size_t>(rows * records * 64));
        std::vector<std::byte> panel(static_cast<std::size_t>(records * 2048));
        std::vector<float> c(static_cast<std::size_t>(rows * 32));
        moe::amx::tiles() = {};
        table.product_bf16(rows, 32, records, a.data(), records * 64, panel.data(), c.data(), 32,
                           nullptr, moe::Plan{}.bf16_tile_rows);
        const moe::amx::Tiles& tiles = moe::amx::tiles();
        EXPECT_FALSE(tiles.configured);
        EXPECT_EQ(tiles.configurations, 1);
        EXPECT_EQ(tiles.products, 3 * records * 4);
        // Four operands for four products, and C again for each slice but the first.
        EXPECT_EQ(tiles.loads, 3 * records * 4 + 3 * 2 * 4);
    });
}

TEST(EmulatedTiles, AreGivenBackByProductsOfIntegers) {
    each_table([](const StorageTable& table) {
        const Index records = 2, rows = 17;
        const std::vector<std::int8_t> q(static_cast<std::size_t>(rows * 64), std::int8_t{1});
        const std::vector<std::int32_t> sums(static_cast<std::size_t>(rows * records), 32);
        const std::vector<float> scale(static_cast<std::size_t>(rows), 1.0f);
        std::vector<float> c(static_cast<std::size_t>(rows * 32));
        kernel_test::Numbers random(1);
        for (const Storage storage : kernel_test::stored_forms) {
            if (!moe::is_coded(storage)) continue;
            const StoredPanel panel(storage, 32, 64, 32, random);
            moe::amx::tiles() = {};
            table.product_int8(storage, rows, 32, records,
                               {q.data(), 64, scale.data(), sums.data(), records}, panel.data(),
                               c.data(), 32, nullptr, moe::Plan{}.tile_rows(storage));
            EXPECT_FALSE(moe::amx::tiles().configured) << moe::name(storage);
            EXPECT_GT(moe::amx::tiles().products, 0) << moe::name(storage);
        }
    });
}

TEST(EmulatedTiles, AreUsedFromAsManyRowsAsTheCallerSays) {
    each_table([](const StorageTable& table) {
        const Index records = 2, most = 20;
        const std::vector<std::byte> a(static_cast<std::size_t>(most * records * 64));
        const std::vector<std::int8_t> q(static_cast<std::size_t>(most * 64), std::int8_t{1});
        const std::vector<std::int32_t> sums(static_cast<std::size_t>(most * records), 32);
        const std::vector<float> scale(static_cast<std::size_t>(most), 1.0f);
        std::vector<float> c(static_cast<std::size_t>(most * 32));
        kernel_test::Numbers random(1);
        for (const Storage storage : kernel_test::stored_forms) {
            if (storage == Storage::f16) continue;
            const StoredPanel panel(storage, 32, 64, 32, random);
            for (const Index tile_rows : {1, 2, 5, 16, 17, 1000})
                for (const Index rows : {1, 2, 4, 5, 16, 17, 20}) {
                    moe::amx::tiles() = {};
                    if (storage == Storage::bf16)
                        table.product_bf16(rows, 32, records, a.data(), records * 64, panel.data(),
                                           c.data(), 32, nullptr, tile_rows);
                    else
                        table.product_int8(storage, rows, 32, records,
                                           {q.data(), 64, scale.data(), sums.data(), records},
                                           panel.data(), c.data(), 32, nullptr, tile_rows);
                    EXPECT_EQ(moe::amx::tiles().products > 0, rows >= tile_rows)
                        << moe::name(storage) << " " << rows << " from " << tile_rows;
                }
        }
    });
}

TEST(EmulatedTiles, MultiplyWhatTrainingPacks) {
    each_table([](const StorageTable&) {
        kernel_test::expect_encoded_columns(moe::storage_amx::bf16_table<StorageTable>);
        kernel_test::expect_bf16_products(moe::storage_amx::bf16_table<StorageTable>);
    });
}

}  // namespace

#endif
