// SPDX-License-Identifier: MIT
#include <moe/kernels/stored_matrix.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <stdexcept>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <moe/kernels/storage_dispatch.hpp>
#include <moe/kernels/storage_reference.hpp>
#include <moe/testing/compare.hpp>
#include <moe/testing/random.hpp>

namespace {

using moe::Index;
using moe::Matrix;
using moe::Storage;
using moe::StoredMatrix;
using moe::testing::same_bits;

constexpr auto storages = std::span(moe::all_storages).subspan(1);  // all but fp32

/// W [out, in] and its transpose as the right-hand side of a product.
struct Weights {
    Matrix<float> w;
    Weights(Index out, Index in) : w(moe::testing::random_matrix<float>(out, in, 3)) {}
    moe::Strided<float> transposed() const { return {w.data(), 1, w.cols()}; }
    StoredMatrix packed(Storage storage, const moe::StorageTable& table) const {
        StoredMatrix matrix;
        matrix.pack(storage, table, transposed(), w.cols(), w.rows());
        return matrix;
    }
};

TEST(StoredMatrix, DecodesToTheWeightsOfItsPanels) {
    const Weights weights(70, 101);
    for (const Storage storage : storages) {
        SCOPED_TRACE(moe::name(storage));
        Matrix<float> first;
        for (const moe::Isa isa : moe::supported_isas()) {
            const moe::StorageTable& table = moe::storage_kernels(isa);
            const StoredMatrix matrix = weights.packed(storage, table);
            EXPECT_EQ(matrix.rows(), 101);
            EXPECT_EQ(matrix.cols(), 70);
            EXPECT_EQ(matrix.storage(), storage);
            EXPECT_EQ(matrix.table(), &table);
            EXPECT_EQ(matrix.records(), 4);
            EXPECT_EQ(matrix.panels(), (70 + table.panel_width - 1) / table.panel_width);
            const Index bytes = moe::panel_layout(storage, table.panel_width).bytes(101);
            EXPECT_EQ(matrix.panel(1) - matrix.panel(0), bytes);
            EXPECT_EQ(reinterpret_cast<std::uintptr_t>(matrix.panel(1)) % 64, 0u);
            EXPECT_EQ(matrix.bytes(), matrix.panels() * bytes);
            const Matrix<float> decoded = matrix.decode();
            ASSERT_EQ(decoded.rows(), 101);
            ASSERT_EQ(decoded.cols(), 70);
            for (Index p = 0; p < 101; ++p)
                for (Index j = 0; j < 70; ++j)
                    ASSERT_EQ(decoded(p, j), moe::exact::weight(storage, table.panel_width,
                                                                matrix.panel(j / table.panel_width),
                                                                p, j % table.panel_width));
            if (isa == moe::Isa::scalar) first = decoded;
            EXPECT_TRUE(same_bits(decoded, first, {.allow_zeros = true}));
        }
    }
}

TEST(StoredMatrix, MayBePackedInParts) {
    const Weights weights(150, 40);
    const moe::StorageTable& table = moe::storage_kernels();
    for (const Storage storage : storages) {
        const StoredMatrix whole = weights.packed(storage, table);
        StoredMatrix parts;
        parts.resize(storage, table, 40, 150);
        for (Index j = parts.panels(); j-- > 0;) parts.pack(weights.transposed(), j, j + 1);
        EXPECT_TRUE(std::equal(whole.panel(0), whole.panel(whole.panels()), parts.panel(0)));
    }
}

TEST(StoredMatrix, CopiesAndWhatWasMovedFrom) {
    const Weights weights(33, 40);
    StoredMatrix matrix = weights.packed(Storage::int4, moe::storage_kernels());
    const Matrix<float> expected = matrix.decode();
    const StoredMatrix copy = matrix;
    EXPECT_NE(copy.panel(0), matrix.panel(0));
    StoredMatrix moved = std::move(matrix);
    EXPECT_TRUE(matrix.empty());  // NOLINT(bugprone-use-after-move)
    EXPECT_EQ(matrix.bytes(), 0);
    EXPECT_EQ(matrix.panels(), 0);
    StoredMatrix assigned = weights.packed(Storage::bf16, moe::storage_kernels());
    assigned = copy;
    EXPECT_EQ(assigned.storage(), Storage::int4);
    for (const StoredMatrix* each : {&copy, &std::as_const(moved), &std::as_const(assigned)})
        EXPECT_TRUE(same_bits(each->decode(), expected, {.allow_zeros = true}));
    assigned = {};
    EXPECT_TRUE(assigned.empty());
    EXPECT_TRUE(StoredMatrix(assigned).empty());
    EXPECT_EQ(StoredMatrix().decode().size(), 0);
}

TEST(StoredMatrix, HoldsMatricesWithoutRowsOrColumns) {
    const float none = 0;
    for (const Storage storage : storages) {
        StoredMatrix matrix;
        matrix.pack(storage, moe::storage_kernels(), {&none, 1, 0}, 0, 5);
        EXPECT_EQ(matrix.records(), 0);
        EXPECT_EQ(matrix.panels(), 1);
        EXPECT_EQ(matrix.decode().rows(), 0);
        matrix.pack(storage, moe::storage_kernels(), {&none, 1, 5}, 5, 0);
        EXPECT_EQ(matrix.panels(), 0);
        EXPECT_FALSE(matrix.empty());
        EXPECT_EQ(matrix.decode().cols(), 0);
    }
}

TEST(StoredMatrix, RefusesSizesThatDoNotFit) {
    const Index huge = std::numeric_limits<Index>::max();
    for (const auto& [k, cols] :
         {std::pair{huge / 64, huge / 64}, {huge, Index{1}}, {Index{1}, huge}}) {
        StoredMatrix matrix = Weights(3, 3).packed(Storage::int8, moe::storage_kernels());
        EXPECT_THROW(matrix.resize(Storage::int8, moe::storage_kernels(), k, cols),
                     std::length_error);
        EXPECT_EQ(matrix.rows(), 3) << "as it was";
    }
}

TEST(StoredMatrix, ViewsPanelsOfSomebodyElse) {
    const Weights weights(70, 101);
    const moe::StorageTable& table = moe::storage_kernels();
    for (const Storage storage : storages) {
        const auto owner = std::make_shared<StoredMatrix>(weights.packed(storage, table));
        EXPECT_EQ(StoredMatrix::size(storage, table.panel_width, 101, 70), owner->bytes());
        auto view = StoredMatrix::of_view(storage, table, 101, 70, owner->panel(0), owner);
        EXPECT_TRUE(view.is_view());
        EXPECT_TRUE(view.decode() == owner->decode());
        StoredMatrix copy = view;
        const StoredMatrix moved = std::move(view);
        EXPECT_EQ(copy.panel(0), owner->panel(0));
        EXPECT_EQ(moved.panel(1), owner->panel(1));
        EXPECT_EQ(copy.bytes(), owner->bytes());
        EXPECT_TRUE(view.empty());
        copy.pack(storage, table, weights.transposed(), 101, 70);
        EXPECT_FALSE(copy.is_view());
        EXPECT_TRUE(copy.decode() == owner->decode());
        EXPECT_EQ(owner.use_count(), 2) << "of the moved view";
    }
}

}  // namespace
