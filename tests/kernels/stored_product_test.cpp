// SPDX-License-Identifier: MIT
#include <moe/kernels/stored_product.hpp>

#include <algorithm>
#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <moe/kernels/storage_dispatch.hpp>
#include <moe/testing/compare.hpp>
#include <moe/testing/random.hpp>

#include "scoped_fetcher.hpp"

namespace {

using moe::Compute;
using moe::Index;
using moe::Matrix;
using moe::Storage;
using moe::StoredMatrix;
using moe::Strided;
using moe::testing::random_matrix;
using moe::testing::same_bits;

constexpr auto storages = std::span(moe::all_storages).subspan(1);  // all but fp32

StoredMatrix stored(Storage storage, const moe::StorageTable& table, const Matrix<float>& w) {
    StoredMatrix matrix;
    matrix.pack(storage, table, {w.data(), 1, w.cols()}, w.cols(), w.rows());
    return matrix;
}

/// f(kernels, table) for every instruction set.
template <class F>
void for_each_isa(F&& f) {
    for (const moe::Isa isa : moe::supported_isas()) {
        SCOPED_TRACE(moe::name(isa));
        f(moe::kernels<float>(isa), moe::storage_kernels(isa));
    }
}

/// Around the ends of records, and longer than the slices that are decoded at once.
constexpr Index lengths[] = {1, 31, 32, 33, 64, 100, 1100};

/// Around those from which on rows are no longer few, and around one block of rows.
std::vector<Index> row_counts(const moe::KernelTable<float>& kernels) {
    const Index few = moe::detail::few_rows, height = kernels.tile_rows;
    return {0, 1, few - 1, few, few + 1, height - 1, height, height + 1, 29};
}

TEST(StoredProduct, HasTheBitsOfTheDecodedWeights) {
    for_each_isa([](const moe::KernelTable<float>& kernels, const moe::StorageTable& table) {
        for (const Index k : lengths) {
            const Index cols = 2 * kernels.panel_width + 5;
            const auto w = random_matrix<float>(cols, k, 3);
            for (const Storage storage : storages) {
                SCOPED_TRACE(std::string(moe::name(storage)) + " " + std::to_string(k));
                const StoredMatrix b = stored(storage, table, w);
                const Matrix<float> decoded = b.decode();
                std::vector<float> scratch(
                    static_cast<std::size_t>(moe::product_scratch(kernels, cols)));
                for (const Index rows : row_counts(kernels)) {
                    const auto a = random_matrix<float>(rows, k, 4);
                    const Strided<float> left{a.data(), k, 1};
                    for (const bool add : {false, true}) {
                        Matrix<float> c = random_matrix<float>(rows, cols, 5), wanted = c;
                        moe::product(kernels, rows, cols, k, left, b, 0, c.data(), cols, add,
                                     scratch.data());
                        moe::product(kernels, rows, cols, k, left,
                                     Strided<float>{decoded.data(), cols, 1}, wanted.data(), cols,
                                     add, scratch.data());
                        EXPECT_TRUE(same_bits(c, wanted, {.allow_zeros = true})) << rows;
                    }
                    // Some columns, through the operand.
                    const Index from = kernels.panel_width, some = kernels.panel_width + 1;
                    Matrix<float> c(rows, some), wanted(rows, some);
                    moe::product(kernels, rows, some, k, left,
                                 moe::WeightOperand<float>(b).columns_from(from), c.data(), some,
                                 false, scratch.data());
                    moe::product(kernels, rows, some, k, left,
                                 moe::WeightOperand<float>(
                                     moe::Operand<float>(Strided<float>{decoded.data(), cols, 1}))
                                     .columns_from(from),
                                 wanted.data(), some, false, scratch.data());
                    EXPECT_TRUE(same_bits(c, wanted, {.allow_zeros = true})) << rows;
                }
            }
        }
    });
}

/// One row, of so many panels that some are read together, and lengths that end within a record.
TEST(StoredProduct, OfOneRowHasThemToo) {
    for_each_isa([](const moe::KernelTable<float>& kernels, const moe::StorageTable& table) {
        for (const Index k : lengths)
            for (const Index cols : {4 * kernels.panel_width, 9 * kernels.panel_width - 3}) {
                const auto w = random_matrix<float>(cols, k, 3), a = random_matrix<float>(1, k, 4);
                // The same row where its elements are not next to each other.
                const Matrix<float> column = a.replicate(2, 1).transpose();
                for (const Storage storage : {Storage::bf16, Storage::f16, Storage::int8}) {
                    const StoredMatrix b = stored(storage, table, w);
                    const Matrix<float> decoded = b.decode();
                    std::vector<float> scratch(
                        static_cast<std::size_t>(moe::product_scratch(kernels, cols)));
                    for (const bool add : {false, true})
                        for (const kernel_test::Fetcher fetcher : kernel_test::fetchers) {
                            const kernel_test::ScopedFetcher scoped(fetcher);
                            const Matrix<float> start = random_matrix<float>(1, cols, 5);
                            Matrix<float> c = start, wanted = start, other = start;
                            moe::product(kernels, 1, cols, k, Strided<float>{a.data(), k, 1}, b, 0,
                                         c.data(), cols, add, scratch.data());
                            moe::product(kernels, 1, cols, k, Strided<float>{column.data(), 1, 2},
                                         b, 0, other.data(), cols, add, scratch.data());
                            moe::product(kernels, 1, cols, k, Strided<float>{a.data(), k, 1},
                                         Strided<float>{decoded.data(), cols, 1}, wanted.data(),
                                         cols, add, scratch.data());
                            EXPECT_TRUE(same_bits(c, wanted, {.allow_zeros = true}))
                                << moe::name(storage) << " " << k << " by " << cols;
                            EXPECT_TRUE(same_bits(other, wanted, {.allow_zeros = true}))
                                << moe::name(storage) << " " << k << " by " << cols;
                        }
                }
            }
    });
}

/// Each element is off by at most 2^-24 per operation, of the sum of magnitudes.
TEST(StoredProduct, IsCloseToDouble) {
    for_each_isa([](const moe::KernelTable<float>& kernels, const moe::StorageTable& table) {
        const Index k = 1100, cols = 37, rows = 5;
        const auto w = random_matrix<float>(cols, k, 3), a = random_matrix<float>(rows, k, 4);
        for (const Storage storage : storages) {
            const StoredMatrix b = stored(storage, table, w);
            const Matrix<double> right = b.decode().cast<double>(), left = a.cast<double>();
            const Matrix<double> wanted = left * right, size = left.cwiseAbs() * right.cwiseAbs();
            std::vector<float> scratch(
                static_cast<std::size_t>(moe::product_scratch(kernels, cols)));
            Matrix<float> c(rows, cols);
            moe::product(kernels, rows, cols, k, Strided<float>{a.data(), k, 1}, b, 0, c.data(),
                         cols, false, scratch.data());
            const Matrix<double> bound = static_cast<double>(k) * 0x1p-24 * size;
            EXPECT_TRUE(moe::testing::compare_within(c, wanted, bound)) << moe::name(storage);
        }
    });
}

/// Rows encoded and multiplied, all panels.
Matrix<float> encoded_product(const StoredMatrix& b, Compute compute, const Matrix<float>& a,
                              Matrix<float>* scales = nullptr) {
    const moe::detail::RowEncoding encoding{b.table(), compute, a.cols()};
    std::vector<std::byte> rows(static_cast<std::size_t>(a.rows() * encoding.stride()),
                                std::byte{0xff});
    std::vector<float> row_scales(static_cast<std::size_t>(a.rows()));
    const moe::detail::EncodedRows encoded{rows.data(), row_scales.data()};
    for (Index i = 0; i < a.rows(); ++i)
        encoding.encode(a.data() + i * a.cols(), encoded.from(i, encoding.stride()));
    Matrix<float> c = Matrix<float>::Constant(a.rows(), b.cols(), -7);
    const Index width = b.table()->panel_width;
    for (Index j = 0; j < b.panels(); ++j)
        encoding.multiply(a.rows(), std::min(width, b.cols() - j * width), encoded, b, j,
                          c.data() + j * width, b.cols(), b.panel(j));
    if (scales != nullptr)
        *scales = Eigen::Map<const Matrix<float>>(row_scales.data(), a.rows(), 1);
    return c;
}

TEST(StoredProduct, WithEncodedRowsIsWithinWhatRoundingThemLeaves) {
    for_each_isa([](const moe::KernelTable<float>&, const moe::StorageTable& table) {
        for (const Index k : lengths) {
            const Index cols = table.panel_width + 5, rows = 7;
            const auto w = random_matrix<float>(cols, k, 3), a = random_matrix<float>(rows, k, 4);
            const Matrix<double> left = a.cast<double>();
            for (const Storage storage : storages)
                for (const Compute compute : {Compute::bf16, Compute::int8}) {
                    if (!moe::fits(storage, compute)) continue;
                    SCOPED_TRACE(std::string(moe::name(storage)) + " " + moe::name(compute) + " " +
                                 std::to_string(k));
                    const StoredMatrix b = stored(storage, table, w);
                    const Matrix<double> right = b.decode().cast<double>();
                    Matrix<float> scales;
                    const Matrix<float> c = encoded_product(b, compute, a, &scales);
                    // bf16: 2^-8 of each input; int8: half a step. Then sums in float.
                    Matrix<double> off = 0x1p-8 * left.cwiseAbs();
                    if (compute == Compute::int8)
                        for (Index i = 0; i < rows; ++i) {
                            EXPECT_FLOAT_EQ(scales(i, 0), a.row(i).cwiseAbs().maxCoeff() / 127);
                            off.row(i).setConstant(0.5 * scales(i, 0));
                        }
                    off += static_cast<double>(k + 4) * 0x1p-23 * left.cwiseAbs();
                    const Matrix<double> wanted = left * right, bound = off * right.cwiseAbs();
                    EXPECT_TRUE(
                        moe::testing::compare_within(c, wanted, bound, {.allow_zeros = k == 1}));
                }
        }
    });
}

TEST(StoredProduct, EncodedRowsLieApart) {
    for_each_isa([](const moe::KernelTable<float>&, const moe::StorageTable& table) {
        for (const Compute compute : {Compute::bf16, Compute::int8})
            for (const Index n : {1, 64, 65, 1000, 1984, 2048, 4096, 7000}) {
                const moe::detail::RowEncoding encoding{&table, compute, n};
                EXPECT_EQ(encoding.padded() % 64, 0);
                EXPECT_GE(encoding.padded(), n);
                EXPECT_LT(encoding.padded(), n + 64);
                const Index bytes = compute == Compute::bf16 ? table.bf16_bytes * encoding.padded()
                                                             : encoding.padded() * 9 / 8;
                EXPECT_GE(encoding.stride(), bytes);
                EXPECT_LE(encoding.stride(), bytes + 192);
                EXPECT_EQ(encoding.stride() % 64, 0);
                EXPECT_NE(encoding.stride() % 4096, 0);
            }
    });
}

}  // namespace
