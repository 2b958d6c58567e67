// SPDX-License-Identifier: MIT
#include <moe/kernels/grouped_gemm.hpp>

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <moe/kernels/dispatch.hpp>
#include <moe/kernels/reference.hpp>

#include "guarded.hpp"

namespace {

using kernel_test::Guarded;
using kernel_test::Numbers;
using kernel_test::same;
using moe::Index;
using moe::Isa;
using moe::KernelTable;
using moe::PackedMatrix;
using moe::Strided;

template <class S>
class Product : public ::testing::Test {
protected:
    template <class F>
    void each_isa(const F& f) {
        for (const Isa isa : moe::supported_isas()) {
            SCOPED_TRACE(moe::name(isa));
            f(moe::kernels<S>(isa));
            if (this->HasFatalFailure()) return;
        }
    }
};

using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(Product, Scalars);

/// Packed and unpacked, B by rows and by columns, A by rows and by columns.
TYPED_TEST(Product, IsTheReferenceForAnyShapeAndStrides) {
    using S = TypeParam;
    struct Shape {
        Index rows, cols, k;
    };
    const Shape shapes[] = {{1, 1, 1},     {1, 33, 7},    {2, 3, 5},    {7, 31, 11},
                            {13, 37, 29},  {14, 32, 64},  {15, 65, 3},  {31, 17, 61},
                            {32, 64, 257}, {61, 97, 101}, {3, 5, 1031}, {29, 41, 607}};
    Guarded<S> a_memory(70000), b_memory(80000), c_memory(10000), scratch_memory(60000);
    this->each_isa([&](const KernelTable<S>& t) {
        Numbers random(1);
        for (const auto& [rows, cols, k] : shapes)
            for (int layout = 0; layout < 4; ++layout) {
                const bool a_by_rows = layout % 2 == 0, b_by_rows = layout / 2 == 0;
                const Index a_row = a_by_rows ? k + 1 : 1, a_col = a_by_rows ? 1 : rows + 2;
                const Index b_row = b_by_rows ? cols + 3 : 1, b_col = b_by_rows ? 1 : k + 4;
                const Index a_size = (rows - 1) * a_row + (k - 1) * a_col + 1;
                const Index b_size = (k - 1) * b_row + (cols - 1) * b_col + 1;
                const Index c_row = cols + 2, c_size = (rows - 1) * c_row + cols;
                S* a = a_memory.last(a_size);
                S* b = b_memory.last(b_size);
                S* c = c_memory.last(c_size);
                S* scratch = scratch_memory.last(moe::product_scratch(t));
                random.fill(a_size, a);
                random.fill(b_size, b);
                const Strided<S> left{a, a_row, a_col}, right{b, b_row, b_col};

                std::vector<S> dense(static_cast<std::size_t>(k * cols));  // for the reference
                moe::exact::pack(k, cols, cols, b, b_row, b_col, dense.data());
                PackedMatrix<S> packed;
                packed.pack(t, right, k, cols);
                ASSERT_EQ(packed.panels(), moe::num_panels(t, cols));
                ASSERT_EQ(packed.table(), &t);

                for (const bool add : {false, true}) {
                    std::vector<S> start(static_cast<std::size_t>(c_size));
                    random.fill(c_size, start.data());
                    std::vector<S> want = start;
                    moe::exact::tile(rows, cols, k, a, a_row, a_col, dense.data(), cols,
                                     want.data(), c_row, add);

                    std::copy(start.begin(), start.end(), c);
                    moe::product(rows, left, packed, c, c_row, add);
                    ASSERT_TRUE(same(c_size, c, want.data()))
                        << "packed " << rows << " " << cols << " " << k << " " << layout;

                    std::copy(start.begin(), start.end(), c);
                    moe::product(t, rows, cols, k, left, right, c, c_row, add, scratch, Index{0},
                                 moe::num_panels(t, cols));
                    ASSERT_TRUE(same(c_size, c, want.data()))
                        << "in place " << rows << " " << cols << " " << k << " " << layout;
                }
            }
    });
}

TYPED_TEST(Product, PanelsMayBeComputedInAnyOrder) {
    using S = TypeParam;
    this->each_isa([&](const KernelTable<S>& t) {
        Numbers random(2);
        const Index rows = 19, cols = 3 * t.panel_width + 5, k = 43;
        std::vector<S> a(static_cast<std::size_t>(rows * k)), b(static_cast<std::size_t>(k * cols));
        std::vector<S> whole(static_cast<std::size_t>(rows * cols)), parts(whole);
        std::vector<S> scratch(static_cast<std::size_t>(moe::product_scratch(t)));
        random.fill(rows * k, a.data());
        random.fill(k * cols, b.data());
        const Strided<S> left{a.data(), k, 1}, right{b.data(), 1, k};
        moe::product(t, rows, cols, k, left, right, whole.data(), cols, false, scratch.data(),
                     Index{0}, Index{4});
        PackedMatrix<S> packed;
        packed.resize(t, k, cols);
        for (const Index j : {2, 0, 3, 1}) packed.pack(right, j, j + 1);
        for (const Index j : {3, 1, 0, 2})
            moe::product(t, rows, cols, k, left, packed.view(), parts.data(), cols, false, j,
                         j + 1);
        EXPECT_TRUE(same(rows * cols, parts.data(), whole.data()));
        EXPECT_EQ(packed.panel(2), packed.view().data + 2 * k * t.panel_width);
    });
}

/// The same bits from one tile call over all of k as from blocks of it.
TYPED_TEST(Product, DoesNotDependOnHowKIsSplit) {
    using S = TypeParam;
    this->each_isa([&](const KernelTable<S>& t) {
        Numbers random(3);
        const Index rows = t.tile_rows, cols = t.panel_width, k = 3 * moe::k_block(t) + 17;
        std::vector<S> a(static_cast<std::size_t>(rows * k)), b(static_cast<std::size_t>(k * cols));
        std::vector<S> one(static_cast<std::size_t>(rows * cols)), blocks(one), by_hand(one);
        random.fill(rows * k, a.data());
        random.fill(k * cols, b.data());
        t.tile(rows, cols, k, a.data(), k, 1, b.data(), cols, one.data(), cols, false, nullptr, 0);
        PackedMatrix<S> packed;
        packed.pack(t, {b.data(), cols, 1}, k, cols);
        moe::product(rows, Strided<S>{a.data(), k, 1}, packed, blocks.data(), cols, false);
        EXPECT_TRUE(same(rows * cols, blocks.data(), one.data()));
        for (Index from = 0; from < k; from += 101)
            t.tile(rows, cols, std::min<Index>(101, k - from), a.data() + from, k, 1,
                   b.data() + from * cols, cols, by_hand.data(), cols, from > 0, nullptr, 0);
        EXPECT_TRUE(same(rows * cols, by_hand.data(), one.data()));
    });
}

/// A row's result does not depend on the rows it is computed with.
TYPED_TEST(Product, DoesNotDependOnTheBatch) {
    using S = TypeParam;
    this->each_isa([&](const KernelTable<S>& t) {
        Numbers random(4);
        const Index rows = 37, cols = 45, k = 300;
        std::vector<S> a(static_cast<std::size_t>(rows * k)), b(static_cast<std::size_t>(k * cols));
        std::vector<S> all(static_cast<std::size_t>(rows * cols)), single(all);
        random.fill(rows * k, a.data());
        random.fill(k * cols, b.data());
        PackedMatrix<S> packed;
        packed.pack(t, {b.data(), cols, 1}, k, cols);
        moe::product(rows, Strided<S>{a.data(), k, 1}, packed, all.data(), cols, false);
        for (Index i = 0; i < rows; ++i)
            moe::product(Index{1}, Strided<S>{a.data() + i * k, k, 1}, packed,
                         single.data() + i * cols, cols, false);
        EXPECT_TRUE(same(rows * cols, single.data(), all.data()));
    });
}

TYPED_TEST(Product, OfNothingIsZeroOrUnchanged) {
    using S = TypeParam;
    this->each_isa([&](const KernelTable<S>& t) {
        std::vector<S> c(15, S(7)), scratch(static_cast<std::size_t>(moe::product_scratch(t)));
        const std::vector<S> data(64);
        const Strided<S> none{data.data(), 1, 1};
        moe::product(t, 0, 5, 4, none, none, c.data(), 5, false, scratch.data(), Index{0},
                     Index{1});
        EXPECT_EQ(c, std::vector<S>(15, S(7)));
        moe::product(t, 3, 0, 4, none, none, c.data(), 5, false, scratch.data(), Index{0},
                     Index{0});
        EXPECT_EQ(c, std::vector<S>(15, S(7)));
        moe::product(t, 3, 5, 0, none, none, c.data(), 5, true, scratch.data(), Index{0}, Index{1});
        EXPECT_EQ(c, std::vector<S>(15, S(7)));
        moe::product(t, 3, 5, 0, none, none, c.data(), 5, false, scratch.data(), Index{0},
                     Index{1});
        EXPECT_EQ(c, std::vector<S>(15, S(0)));
    });
}

TYPED_TEST(Product, BlocksFitTheCacheTheyAreMadeFor) {
    using S = TypeParam;
    this->each_isa([&](const KernelTable<S>& t) {
        const Index block = moe::k_block(t);
        EXPECT_GE(block, 16);
        EXPECT_LE(block * (t.panel_width + t.tile_rows) * static_cast<Index>(sizeof(S)), 46 * 1024);
        EXPECT_GE(moe::product_scratch(t), block * t.panel_width);
    });
    if (moe::best_isa() == Isa::avx512) {
        EXPECT_EQ(moe::k_block(moe::kernels<float>(Isa::avx512)), 256);
    }
}

TEST(PackedMatrix, IsAlignedAndPadsWithZeros) {
    const auto& t = moe::kernels<float>();
    const Index k = 5, cols = t.panel_width + 1;
    const std::vector<float> b(static_cast<std::size_t>(k * cols), 3.0f);
    PackedMatrix<float> packed;
    packed.pack(t, {b.data(), cols, 1}, k, cols);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(packed.panel(0)) % 64, 0U);
    EXPECT_EQ(packed.bytes(), 2 * k * t.panel_width * 4);
    for (Index p = 0; p < k; ++p)
        for (Index j = 0; j < t.panel_width; ++j)
            EXPECT_EQ(packed.panel(1)[p * t.panel_width + j], j == 0 ? 3.0f : 0.0f);
}

TEST(PackedMatrix, KeepsItsMemoryForSmallerMatrices) {
    const auto& t = moe::kernels<float>();
    PackedMatrix<float> packed;
    packed.resize(t, 64, 64);
    const Index bytes = packed.bytes();
    const float* before = packed.panel(0);
    packed.resize(t, 32, 40);
    EXPECT_EQ(packed.panel(0), before);
    EXPECT_EQ(packed.bytes(), bytes);
    EXPECT_EQ(packed.rows(), 32);
    EXPECT_EQ(packed.cols(), 40);
    PackedMatrix<float> moved = std::move(packed);
    EXPECT_EQ(moved.panel(0), before);
}

TEST(PackedMatrix, CopiesItsPanels) {
    const auto& t = moe::kernels<float>();
    const std::vector<float> b = {1, 2, 3, 4, 5, 6};
    PackedMatrix<float> packed, copy;
    copy = packed;  // nothing yet
    EXPECT_EQ(copy.table(), nullptr);
    packed.pack(t, {b.data(), 3, 1}, 2, 3);
    copy = packed;
    ASSERT_EQ(copy.panels(), 1);
    EXPECT_NE(copy.panel(0), packed.panel(0));
    EXPECT_TRUE(same(2 * t.panel_width, copy.panel(0), packed.panel(0)));
}

TEST(PackedMatrix, RefusesExtentsThatOverflow) {
    const auto& t = moe::kernels<float>();
    PackedMatrix<float> packed;
    const Index huge = std::numeric_limits<Index>::max() / 2;
    EXPECT_THROW(packed.resize(t, huge, 64), std::length_error);
    EXPECT_THROW(packed.resize(t, 64, huge), std::length_error);
    EXPECT_THROW(packed.resize(t, huge / 32, 32), std::length_error);  // elements fit, bytes do not
    EXPECT_EQ(packed.table(), nullptr);
    EXPECT_EQ(packed.panels(), 0);
    float c = 0;
    EXPECT_THROW(moe::product(1, Strided<float>{&c, 1, 1}, packed, &c, 1, false),
                 std::invalid_argument);
}

TEST(Strided, TransposesByExchangingItsStrides) {
    const float data[6] = {0, 1, 2, 3, 4, 5};
    const Strided<float> a{data, 3, 1};
    EXPECT_EQ(a.transpose().row_stride, 1);
    EXPECT_EQ(a.transpose().col_stride, 3);
    EXPECT_EQ(a.transpose().data, data);
}

}  // namespace
