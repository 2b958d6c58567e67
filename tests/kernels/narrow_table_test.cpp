// SPDX-License-Identifier: MIT
#include <moe/kernels/narrow_table.hpp>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <moe/kernels/dispatch.hpp>
#include <moe/kernels/product.hpp>
#include <moe/kernels/reference.hpp>

#include "guarded.hpp"
#include "support/narrow_weights.hpp"

namespace {

using kernel_test::Guarded;
using kernel_test::Numbers;
using kernel_test::same;
using moe::Dtype;
using moe::Index;
using moe::Isa;
using moe::KernelTable;
using moe::NarrowKernels;
using moe::NarrowStrided;
using moe::Strided;
using narrow_weights::dtypes;

std::size_t size(Index n) { return static_cast<std::size_t>(n); }

/// f(kernels of float, kernels of the dtype, dtype) for every instruction set and dtype.
template <class F>
void for_each_table(F&& f) {
    for (const Isa isa : moe::supported_isas())
        for (const Dtype dtype : dtypes) {
            SCOPED_TRACE(std::string(moe::name(isa)) + " " + moe::dtype_name(dtype));
            const auto& tables = moe::detail::all_narrow_tables<std::int8_t>();
            f(moe::kernels<float>(isa), tables[static_cast<std::size_t>(isa)]->of(dtype), dtype);
            if (testing::Test::HasFatalFailure()) return;
        }
}

/// B [k, cols] with element (p, j) at p * b_row + j * b_col, right in front of a page that nobody
/// may touch.
struct Operand {
    std::byte* data;
    std::vector<float> scales;  // of the columns, or of the rows
    std::vector<float> values;  // [k, cols]

    Operand(Dtype dtype, Guarded<std::byte>& memory, Index k, Index cols, Index b_row, Index b_col,
            bool scales_of_rows = false) {
        const Index element = moe::element_size(dtype);
        const Index length = k * cols == 0 ? 0 : (k - 1) * b_row + (cols - 1) * b_col + 1;
        data = memory.last(length * element);
        std::memset(data, 0x7F, size(length * element));
        if (dtype == Dtype::i8)
            for (Index i = 0; i < (scales_of_rows ? k : cols); ++i)
                scales.push_back(static_cast<float>(
                    moe::testing::random_value(9, static_cast<std::uint64_t>(i))));
        for (Index p = 0; p < k; ++p)
            for (Index j = 0; j < cols; ++j) {
                const Index at = p * b_row + j * b_col;
                narrow_weights::put(dtype, data, at,
                                    narrow_weights::random_bits(dtype, 5, p * cols + j));
                const float value = moe::read_element<float>(dtype, data + at * element);
                values.push_back(scales.empty() ? value
                                                : value * scales[size(scales_of_rows ? p : j)]);
            }
    }
};

TEST(NarrowTable, SaysTheSizeOfItsElements) {
    for_each_table([](const KernelTable<float>& table, const NarrowKernels& kernels, Dtype dtype) {
        EXPECT_EQ(kernels.element_size, moe::element_size(dtype));
        EXPECT_EQ(kernels.panel_width, table.panel_width);
    });
}

/// Exhaustive: subnormals, infinities, NaN and -128 among them; at an odd address.
TEST(NarrowTable, WidensEveryElement) {
    for_each_table([](const KernelTable<float>&, const NarrowKernels& kernels, Dtype dtype) {
        const Index width = kernels.panel_width, all = dtype == Dtype::i8 ? 256 : 65536;
        std::vector<std::byte> memory(size(all * kernels.element_size + 1));
        std::byte* const elements = memory.data() + 1;
        for (Index i = 0; i < all; ++i)
            narrow_weights::put(dtype, elements, i, static_cast<std::uint16_t>(i));
        const std::vector<float> scales(size(width), 0x1.234568p-3f);
        const auto value = [&](Index i) {
            const float x = moe::read_element<float>(dtype, elements + i * kernels.element_size);
            return dtype == Dtype::i8 ? x * scales[0] : x;
        };
        std::vector<float> panel(size(all)), one(size(all), 1.0f);
        const Index k = all / width;
        kernels.pack(k, width, elements, width, 1, scales.data(), 0, 1, panel.data());
        for (Index i = 0; i < all; ++i)
            ASSERT_TRUE(same(panel[size(i)], value(i)))
                << "row " << i << ": " << panel[size(i)] << ", should be " << value(i);
        kernels.pack(k, width, elements, 1, k, scales.data(), 0, 1, panel.data());
        for (Index p = 0; p < k; ++p)
            for (Index j = 0; j < width; ++j)
                ASSERT_TRUE(same(panel[size(p * width + j)], value(j * k + p)))
                    << "column " << j * k + p;
        // Each as the only weight of its output.
        const Index step = 16 / kernels.element_size;
        std::vector<std::byte> alone(size(all * 16));
        for (Index i = 0; i < all; ++i)
            std::memcpy(&alone[size(i * 16)], elements + i * kernels.element_size,
                        size(kernels.element_size));
        const std::vector<float> many(size(all), scales[0]);
        const float first[16] = {1};
        kernels.columns(1, all, step, first, step, alone.data(), step, many.data(), panel.data(),
                        all, false);
        for (Index i = 0; i < all; ++i)
            ASSERT_TRUE(same(panel[size(i)], std::fma(1.0f, value(i), 0.0f))) << "alone " << i;
    });
}

TEST(NarrowTable, ReadsIntegersAsTheirValueTimesTheScale) {
    const std::int8_t q[4] = {-128, 127, 0, -1};
    const float scales[1] = {0.1f};
    for (const Isa isa : moe::supported_isas()) {
        const auto& tables = moe::detail::all_narrow_tables<std::int8_t>();
        const NarrowKernels& kernels = tables[static_cast<std::size_t>(isa)]->int8;
        std::vector<float> panel(size(4 * kernels.panel_width), 7.0f);
        kernels.pack(4, 1, q, 1, 4, scales, 0, 1, panel.data());
        for (Index p = 0; p < 4; ++p) {
            EXPECT_EQ(panel[size(p * kernels.panel_width)], static_cast<float>(q[p]) * 0.1f);
            EXPECT_EQ(panel[size(p * kernels.panel_width + 1)], 0.0f);
        }
    }
}

constexpr Index extents[] = {1, 7, 15, 16, 17, 37, 63, 64, 65};

TEST(NarrowTable, ColumnsAreTheChainOfTheWidenedWeights) {
    Guarded<std::byte> memory(70000);
    Guarded<float> a_memory(20000), c_memory(2000);
    for_each_table([&](const KernelTable<float>& table, const NarrowKernels& kernels, Dtype dtype) {
        Numbers random(1);
        for (const Index cols : extents)
            for (const Index k : {0, 1, 3, 8, 16, 17, 61, 64, 129})
                for (const Index apart : {0, 1, 5}) {
                    const Index b_col = k + apart;
                    Operand b(dtype, memory, k, cols, 1, b_col);
                    const bool all_rows = apart == 0 || cols == 37;
                    for (Index rows = 1; rows <= table.column_rows; rows += all_rows ? 1 : 3) {
                        const Index a_row = k + 2, c_row = cols + 3;
                        const Index a_size = (rows - 1) * a_row + k;
                        const Index c_size = (rows - 1) * c_row + cols;
                        float* const a = a_memory.last(a_size);
                        float* const c = c_memory.last(c_size);
                        random.fill(a_size, a);
                        for (const bool add : {false, true}) {
                            random.fill(c_size, c);
                            std::vector<float> want(c, c + c_size);
                            moe::exact::tile(rows, cols, k, a, a_row, 1, b.values.data(), cols,
                                             want.data(), c_row, add);
                            kernels.columns(rows, cols, k, a, a_row, b.data, b_col, b.scales.data(),
                                            c, c_row, add);
                            ASSERT_TRUE(same(c_size, c, want.data()))
                                << rows << " rows, " << cols << " columns, k " << k << ", apart "
                                << apart;
                        }
                    }
                }
    });
}

/// Longer than what is prefetched in one piece.
TEST(NarrowTable, ColumnsMayBeLong) {
    const Index rows = 2, cols = 33, k = 20011;
    Guarded<std::byte> memory(2 * cols * k);
    for_each_table([&](const KernelTable<float>&, const NarrowKernels& kernels, Dtype dtype) {
        Operand b(dtype, memory, k, cols, 1, k);
        std::vector<float> a(size(rows * k)), c(size(rows * cols)), want(c);
        Numbers(2).fill(rows * k, a.data());
        moe::exact::tile(rows, cols, k, a.data(), k, 1, b.values.data(), cols, want.data(), cols,
                         false);
        kernels.columns(rows, cols, k, a.data(), k, b.data, k, b.scales.data(), c.data(), cols,
                        false);
        ASSERT_TRUE(same(rows * cols, c.data(), want.data()));
    });
}

TEST(NarrowTable, PackWidensAnyStridesAndPadsWithZeros) {
    Guarded<std::byte> memory(70000);
    Guarded<float> panel_memory(10000);
    for_each_table([&](const KernelTable<float>&, const NarrowKernels& kernels, Dtype dtype) {
        const Index width = kernels.panel_width;
        for (Index cols = 1; cols <= width; cols += cols + 6 > width && cols < width ? 1 : 5)
            for (const Index k : {0, 1, 7, 16, 31, 64, 65})
                for (int layout = 0; layout < 4; ++layout)
                    for (const bool scales_of_rows : {false, true}) {
                        const Index b_row = layout == 0 ? cols + 3 : layout == 1 ? 1 : 2 * cols + 1;
                        const Index b_col = layout == 0 ? 1 : layout == 1 ? k + 1 : 2;
                        const Index row = layout == 3 ? 2 : b_row,
                                    col = layout == 3 ? 2 * k : b_col;
                        Operand b(dtype, memory, k, cols, row, col, scales_of_rows);
                        float* const panel = panel_memory.last(k * width);
                        std::fill_n(panel, k * width, 5.0f);
                        kernels.pack(k, cols, b.data, row, col, b.scales.data(), scales_of_rows,
                                     !scales_of_rows, panel);
                        for (Index p = 0; p < k; ++p)
                            for (Index j = 0; j < width; ++j) {
                                const float got = panel[p * width + j];
                                if (j < cols)
                                    ASSERT_TRUE(same(got, b.values[size(p * cols + j)]))
                                        << p << " " << j << " of " << k << " " << cols << " layout "
                                        << layout << scales_of_rows;
                                else
                                    ASSERT_EQ(got, 0.0f) << p << " " << j << " of " << cols;
                            }
                    }
    });
}

/// Every way that product() takes, against the same one with a copy in float.
TEST(NarrowProduct, HasTheBitsOfTheWidenedWeights) {
    struct Shape {
        Index out, in;
    };
    const Shape shapes[] = {{1, 1}, {17, 61}, {65, 63}, {70, 300}, {300, 37}};
    Guarded<std::byte> memory(300000);
    Guarded<float> scratch_memory(140000);
    for_each_table([&](const KernelTable<float>& table, const NarrowKernels& kernels, Dtype dtype) {
        Numbers random(3);
        for (const auto& [out, in] : shapes)
            for (int layout = 0; layout < 5; ++layout) {  // of W [out, in]
                const bool transposed = layout == 3;
                const Index row = layout == 0   ? in
                                  : layout == 1 ? 2 * in  // interleaved with another
                                  : layout == 2 ? in + 3
                                  : transposed  ? 1
                                                : 2 * in + 1;
                const Index col = transposed ? out + 1 : layout == 4 ? 2 : 1;
                // W^T is B [in, out], of which the scales belong to the columns.
                Operand b(dtype, memory, in, out, col, row);
                const NarrowStrided whole{.data = b.data,
                                          .row_stride = col,
                                          .col_stride = row,
                                          .scales = b.scales.empty() ? nullptr : b.scales.data(),
                                          .scale_row = 0,
                                          .scale_col = b.scales.empty() ? 0 : 1,
                                          .kernels = &kernels};
                const Strided<float> widened{b.values.data(), out, 1};
                for (const bool backward : {false, true})
                    for (const Index rows : {1, 2, 3, 4, 5, 6, 7, 8, 9, 20}) {
                        const Index k = backward ? out : in, cols = backward ? in : out;
                        const Index from = cols > table.panel_width ? table.panel_width : 0;
                        const Index some = cols - from;
                        const NarrowStrided narrow = backward ? whole.transpose() : whole;
                        const Strided<float> wide = backward ? widened.transpose() : widened;
                        std::vector<float> a(size(rows * k)), c(size(rows * cols)), want;
                        random.fill(rows * k, a.data());
                        random.fill(rows * cols, c.data());
                        want = c;
                        float* const scratch =
                            scratch_memory.last(moe::product_scratch(table, cols));
                        const bool add = rows % 2 == 0;
                        moe::product(table, rows, cols, k, {a.data(), k, 1}, narrow, c.data(), cols,
                                     add, scratch);
                        moe::product(table, rows, cols, k, {a.data(), k, 1}, wide, want.data(),
                                     cols, add, scratch);
                        ASSERT_TRUE(same(rows * cols, c.data(), want.data()))
                            << rows << " rows, W [" << out << ", " << in << "], layout " << layout
                            << (backward ? " backward" : "");
                        // Some columns, through the operand.
                        std::vector<float> part(size(rows * some));
                        moe::product(table, rows, some, k, {a.data(), k, 1}, narrow.from(0, from),
                                     part.data(), some, false, scratch);
                        moe::product(table, rows, cols, k, {a.data(), k, 1}, wide, want.data(),
                                     cols, false, scratch);
                        for (Index i = 0; i < rows; ++i)
                            ASSERT_TRUE(
                                same(some, part.data() + i * some, want.data() + i * cols + from));
                        if (rows != 3 && rows != 20) continue;
                        // Columns of A that are contiguous.
                        std::vector<float> turned(a.size());
                        for (Index i = 0; i < rows; ++i)
                            for (Index p = 0; p < k; ++p)
                                turned[size(p * rows + i)] = a[size(i * k + p)];
                        moe::product(table, rows, cols, k, {turned.data(), 1, rows}, narrow,
                                     c.data(), cols, false, scratch);
                        ASSERT_TRUE(same(rows * cols, c.data(), want.data())) << "A by columns";
                    }
            }
    });
}

}  // namespace
