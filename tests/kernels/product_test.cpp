// SPDX-License-Identifier: MIT
#include <moe/kernels/product.hpp>

#include <algorithm>
#include <vector>

#include <gtest/gtest.h>

#include <moe/kernels/dispatch.hpp>
#include <moe/kernels/reference.hpp>

#include "guarded.hpp"
#include "scoped_fetcher.hpp"

namespace {

using kernel_test::Guarded;
using kernel_test::Numbers;
using kernel_test::same;
using moe::Index;
using moe::Isa;
using moe::KernelTable;
using moe::Operand;
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
    const Shape shapes[] = {{1, 1, 1},       {1, 33, 7},     {2, 3, 5},    {7, 31, 11},
                            {13, 37, 29},    {14, 32, 64},   {15, 65, 3},  {31, 17, 61},
                            {32, 64, 257},   {61, 97, 101},  {3, 5, 1031}, {29, 41, 607},
                            {65, 1130, 120}, {47, 1450, 21}, {57, 41, 300}};
    Guarded<S> a_memory(70000), b_memory(140000), c_memory(80000), scratch_memory(140000);
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
                S* scratch = scratch_memory.last(moe::product_scratch(t, cols));
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
                    moe::product(t, rows, cols, k, left, packed.view(), c, c_row, add);
                    ASSERT_TRUE(same(c_size, c, want.data()))
                        << "packed " << rows << " " << cols << " " << k << " " << layout;

                    std::copy(start.begin(), start.end(), c);
                    moe::product(t, rows, cols, k, left, right, c, c_row, add, scratch);
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
        std::vector<S> scratch(static_cast<std::size_t>(moe::product_scratch(t, cols)));
        random.fill(rows * k, a.data());
        random.fill(k * cols, b.data());
        const Strided<S> left{a.data(), k, 1}, right{b.data(), 1, k};
        moe::product(t, rows, cols, k, left, right, whole.data(), cols, false, scratch.data());
        PackedMatrix<S> packed;
        packed.resize(t, k, cols);
        for (const Index j : {2, 0, 3, 1}) packed.pack(right, j, j + 1);
        for (const Index j : {3, 1, 0, 2}) {
            const Index first = j * t.panel_width, width = std::min(t.panel_width, cols - first);
            moe::product(t, rows, width, k, left, packed.view(j), parts.data() + first, cols,
                         false);
        }
        EXPECT_TRUE(same(rows * cols, parts.data(), whole.data()));
        EXPECT_EQ(packed.panel(2), packed.view().data + 2 * k * t.panel_width);
    });
}

/// Panels take turns, some of them and some rows of B at a time, or are read one by one.
TYPED_TEST(Product, OfManyPanelsInAnyOrder) {
    using S = TypeParam;
    this->each_isa([&](const KernelTable<S>& t) {
        Numbers random(4);
        for (const Index panels : {9, 19})
            for (const Index rows : {Index{1}, t.tile_rows, t.tile_rows + 1, 2 * t.tile_rows + 1}) {
                const Index cols = panels * t.panel_width - 3, k = 300;
                const auto size = static_cast<std::size_t>(rows * cols);
                std::vector<S> a(static_cast<std::size_t>(rows * k)),
                    b(static_cast<std::size_t>(k * cols)), whole(size), expected(size);
                random.fill(rows * k, a.data());
                random.fill(k * cols, b.data());
                const Strided<S> left{a.data(), k, 1}, right{b.data(), cols, 1};
                PackedMatrix<S> packed;
                packed.pack(t, right, k, cols);
                for (const bool add : {false, true}) {
                    random.fill(rows * cols, expected.data());
                    const std::vector<S> start = expected;
                    moe::exact::tile(rows, cols, k, a.data(), k, 1, b.data(), cols, expected.data(),
                                     cols, add);
                    for (const kernel_test::Fetcher fetcher : kernel_test::fetchers) {
                        const kernel_test::ScopedFetcher scoped(fetcher);
                        whole = start;
                        moe::product(t, rows, cols, k, left, packed.view(), whole.data(), cols,
                                     add);
                        EXPECT_TRUE(same(rows * cols, whole.data(), expected.data()))
                            << rows << " rows, fetcher " << static_cast<int>(fetcher);
                    }
                }
            }
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
        t.tile(rows, cols, k, a.data(), k, 1, b.data(), cols, one.data(), cols, false, {});
        PackedMatrix<S> packed;
        packed.pack(t, {b.data(), cols, 1}, k, cols);
        moe::product(t, rows, cols, k, {a.data(), k, 1}, packed.view(), blocks.data(), cols, false);
        EXPECT_TRUE(same(rows * cols, blocks.data(), one.data()));
        for (Index from = 0; from < k; from += 101)
            t.tile(rows, cols, std::min<Index>(101, k - from), a.data() + from, k, 1,
                   b.data() + from * cols, cols, by_hand.data(), cols, from > 0, {});
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
        moe::product(t, rows, cols, k, {a.data(), k, 1}, packed.view(), all.data(), cols, false);
        for (Index i = 0; i < rows; ++i)
            moe::product(t, 1, cols, k, {a.data() + i * k, k, 1}, packed.view(),
                         single.data() + i * cols, cols, false);
        EXPECT_TRUE(same(rows * cols, single.data(), all.data()));
    });
}

TYPED_TEST(Product, OfNothingIsZeroOrUnchanged) {
    using S = TypeParam;
    this->each_isa([&](const KernelTable<S>& t) {
        std::vector<S> c(15, S(7)), scratch(static_cast<std::size_t>(moe::product_scratch(t, 5)));
        const Index wide = 2 * t.panel_width + 1;
        std::vector<S> c_wide(static_cast<std::size_t>(3 * wide), S(7));
        PackedMatrix<S> empty;
        empty.resize(t, 0, wide);
        const std::vector<S> data(64);
        const Strided<S> none{data.data(), 1, 1};
        moe::product(t, 0, 5, 4, none, none, c.data(), 5, false, scratch.data());
        EXPECT_EQ(c, std::vector<S>(15, S(7)));
        moe::product(t, 3, 0, 4, none, none, c.data(), 5, false, scratch.data());
        EXPECT_EQ(c, std::vector<S>(15, S(7)));
        moe::product(t, 3, 5, 0, none, none, c.data(), 5, true, scratch.data());
        EXPECT_EQ(c, std::vector<S>(15, S(7)));
        moe::product(t, 3, 5, 0, none, none, c.data(), 5, false, scratch.data());
        EXPECT_EQ(c, std::vector<S>(15, S(0)));
        moe::product(t, 3, wide, 0, none, empty.view(), c_wide.data(), wide, true);
        EXPECT_EQ(c_wide, std::vector<S>(c_wide.size(), S(7)));
        moe::product(t, 3, wide, 0, none, empty.view(), c_wide.data(), wide, false);
        EXPECT_EQ(c_wide, std::vector<S>(c_wide.size(), S(0)));
        for (const Strided<S>& b : {Strided<S>{data.data(), 1, 0}, Strided<S>{data.data(), 0, 1}})
            for (const Index rows : {1, 9, 50}) {  // columns, slices and rows of B
                std::vector<S> all(static_cast<std::size_t>(rows * wide), S(7)), want(all);
                std::vector<S> room(static_cast<std::size_t>(moe::product_scratch(t, wide)));
                moe::product(t, rows, wide, 0, none, b, all.data(), wide, true, room.data());
                EXPECT_EQ(all, want);
                moe::product(t, rows, wide, 0, none, b, all.data(), wide, false, room.data());
                EXPECT_EQ(all, std::vector<S>(want.size(), S(0)));
            }
    });
}

TYPED_TEST(Product, BlocksFitTheCacheTheyAreMadeFor) {
    using S = TypeParam;
    this->each_isa([&](const KernelTable<S>& t) {
        const Index block = moe::k_block(t);
        EXPECT_GE(block, 16);
        EXPECT_LE(block * (t.panel_width + t.tile_rows) * static_cast<Index>(sizeof(S)), 46 * 1024);
        EXPECT_GE(moe::product_scratch(t, 0), block * t.panel_width);
        EXPECT_GE(moe::packed_elements<S>, moe::packed_rows * t.panel_width);
        EXPECT_EQ(moe::product_scratch(t, 1 << 20), moe::product_scratch(t, 1 << 21));
    });
    if (moe::best_isa() >= Isa::avx512 && moe::best_isa() <= Isa::amx) {
        EXPECT_EQ(moe::k_block(moe::kernels<float>(Isa::avx512)), 256);
    }
}

/// A range of B's columns, packed and as it lies in memory, against the loop over all of them.
TYPED_TEST(Product, GivesTheSameColumnsOfEitherOperand) {
    using S = TypeParam;
    for (const Isa isa : moe::supported_isas()) {
        SCOPED_TRACE(moe::name(isa));
        const auto& t = moe::kernels<S>(isa);
        const Index m = 17, k = 53, width = t.panel_width, n = 3 * width + 7;
        Numbers random(1);
        std::vector<S> a(static_cast<std::size_t>(m * k)), b(static_cast<std::size_t>(k * n));
        std::vector<S> whole(static_cast<std::size_t>(m * n));
        std::vector<S> scratch(static_cast<std::size_t>(moe::product_scratch(t, n)));
        random.fill(m * k, a.data());
        random.fill(k * n, b.data());
        moe::exact::tile(m, n, k, a.data(), k, 1, b.data(), n, whole.data(), n, false);
        const Strided<S> left{a.data(), k, 1}, right{b.data(), n, 1};
        PackedMatrix<S> packed;
        packed.pack(t, right, k, n);

        struct Range {
            Index first, columns;
        };
        for (const auto& [first, columns] :
             {Range{0, n}, Range{width, width}, Range{width, 2 * width + 7}, Range{3 * width, 7}})
            for (const Operand<S>& operand : {Operand<S>(right), Operand<S>(packed)})
                for (const bool add : {false, true}) {
                    const Index c_row = columns + 2;
                    std::vector<S> c(static_cast<std::size_t>(m * c_row), S(0));
                    moe::product(t, m, columns, k, left, operand.columns_from(first), c.data(),
                                 c_row, add, scratch.data());
                    for (Index i = 0; i < m; ++i) {
                        ASSERT_TRUE(
                            same(columns, c.data() + i * c_row, whole.data() + i * n + first))
                            << "row " << i << " columns from " << first << " add " << add;
                        ASSERT_EQ(c[static_cast<std::size_t>(i * c_row + columns)], S(0));
                    }
                }
    }
}

TYPED_TEST(Product, ReadsTransposedWeights) {
    using S = TypeParam;
    for (const Isa isa : moe::supported_isas()) {
        SCOPED_TRACE(moe::name(isa));
        const auto& t = moe::kernels<S>(isa);
        const Index m = 5, k = 31, n = t.panel_width + 3;
        Numbers random(2);
        std::vector<S> x(static_cast<std::size_t>(m * k)), w(static_cast<std::size_t>(n * k));
        std::vector<S> y(static_cast<std::size_t>(m * n)), want(y), dense(w);
        std::vector<S> scratch(static_cast<std::size_t>(moe::product_scratch(t, n)));
        random.fill(m * k, x.data());
        random.fill(n * k, w.data());
        moe::exact::pack(k, n, n, w.data(), 1, k, dense.data());
        moe::exact::tile(m, n, k, x.data(), k, 1, dense.data(), n, want.data(), n, false);
        moe::product(t, m, n, k, Strided<S>{x.data(), k, 1}, Operand<S>(Strided<S>{w.data(), 1, k}),
                     y.data(), n, false, scratch.data());
        EXPECT_TRUE(same(m * n, y.data(), want.data()));
    }
}

#if !defined(NDEBUG)
TEST(ProductDeathTest, ADebugBuildCatchesColumnsThatTheOperandLacks) {
    const auto& t = moe::kernels<float>();
    const Index cols = 2 * t.panel_width;
    const std::vector<float> b(static_cast<std::size_t>(3 * cols)), a(3);
    std::vector<float> c(static_cast<std::size_t>(2 * cols));
    PackedMatrix<float> packed;
    packed.pack(t, {b.data(), cols, 1}, 3, cols);
    const Operand<float> operand(packed);
    float* const none = nullptr;
    const Strided<float> left{a.data(), 3, 1};
    moe::product(t, 1, t.panel_width, 3, left, operand.columns_from(t.panel_width), c.data(), cols,
                 false, none);
    EXPECT_DEATH(moe::product(t, 1, cols, 3, left, operand.columns_from(t.panel_width), c.data(),
                              cols, false, none),
                 "columns of B");
    EXPECT_DEATH(moe::product(t, 1, cols, 2, left, operand, c.data(), cols, false, none),
                 "a row for each column of A");
    EXPECT_DEATH(operand.columns_from(1), "start a panel");
    EXPECT_DEATH(moe::product(t, -1, cols, 3, left, operand, c.data(), cols, false, none),
                 "extents of a product");
}
#endif

}  // namespace
