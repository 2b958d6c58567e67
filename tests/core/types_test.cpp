// SPDX-License-Identifier: MIT
#include <moe/core/types.hpp>

#include <type_traits>
#include <vector>

#include <gtest/gtest.h>

namespace types_test {
namespace {

using moe::Index;

const float* read(moe::In<float> x) { return x.data(); }
float* written(moe::Out<float> y) { return y.data(); }

TEST(Types, IndexIsSignedAndAsWideAsAPointer) {
    static_assert(std::is_signed_v<Index>);
    static_assert(sizeof(Index) == sizeof(void*));
}

TEST(Types, ScalarsAreFloatAndDouble) {
    static_assert(moe::is_scalar<float> && moe::is_scalar<double>);
    static_assert(!moe::is_scalar<int> && !moe::is_scalar<long double> &&
                  !moe::is_scalar<Eigen::half>);
    static_assert(!moe::is_scalar<const float> && !moe::is_scalar<float&>);
}

TEST(Types, AMatrixIsRowMajor) {
    moe::Matrix<float> x(2, 3);
    EXPECT_EQ(&x(0, 1), x.data() + 1);
    EXPECT_EQ(&x(1, 0), x.data() + 3);
    moe::RowVector<double> row(4);
    EXPECT_EQ(row.rows(), 1);
    EXPECT_EQ(row.cols(), 4);
}

TEST(Types, ReadArgumentsAreTheCallersMemory) {
    moe::Matrix<float> x = moe::Matrix<float>::Random(6, 8);
    EXPECT_EQ(read(x), x.data());
    EXPECT_EQ(read(x.topRows(2)), x.data());
    EXPECT_EQ(read(x.middleRows(2, 3)), x.data() + 16);
    EXPECT_EQ(read(x.leftCols(3)), x.data());
    EXPECT_EQ(read(x.block(1, 2, 3, 4)), x.data() + 10);
    EXPECT_EQ(read(x.row(4)), x.data() + 32);
    EXPECT_EQ(read(Eigen::Map<const moe::Matrix<float>>(x.data() + 1, 3, 5)), x.data() + 1);
    const Eigen::MatrixXf columns = Eigen::MatrixXf::Random(8, 6);
    EXPECT_EQ(read(columns.transpose()), columns.data());
    EXPECT_EQ(read(columns.middleCols(2, 2).transpose()), columns.data() + 16);
    const Eigen::RowVectorXf one = Eigen::RowVectorXf::Random(8);
    EXPECT_EQ(read(one), one.data());
}

TEST(Types, WrittenArgumentsAreTheCallersMemory) {
    moe::Matrix<float> y(6, 8);
    EXPECT_EQ(written(y), y.data());
    EXPECT_EQ(written(y.middleRows(2, 3)), y.data() + 16);
    EXPECT_EQ(written(y.block(1, 2, 3, 4)), y.data() + 10);
    Eigen::MatrixXf columns(8, 6);
    EXPECT_EQ(written(columns.transpose()), columns.data());
}

TEST(Types, WhatDoesNotFitWithoutACopyIsNotWritten) {
    using Out = moe::Out<float>;
    static_assert(std::is_constructible_v<Out, moe::Matrix<float>&>);
    static_assert(!std::is_constructible_v<Out, const moe::Matrix<float>&>);
    static_assert(!std::is_constructible_v<Out, Eigen::MatrixXf&>);
    static_assert(!std::is_constructible_v<Out, moe::Matrix<double>&>);
}

TEST(Types, AnExpressionIsEvaluatedForTheCall) {
    const moe::Matrix<float> x = moe::Matrix<float>::Ones(2, 3);
    const auto sum = [](moe::In<float> m) { return m.sum(); };
    EXPECT_EQ(sum(2 * x), 12.0f);
}

TEST(Types, EmptyMatricesPass) {
    const moe::Matrix<float> no_rows(0, 5), no_columns(5, 0);
    const auto extents = [](moe::In<float> m) { return std::pair(m.rows(), m.cols()); };
    EXPECT_EQ(extents(no_rows), std::pair(Index{0}, Index{5}));
    EXPECT_EQ(extents(no_columns), std::pair(Index{5}, Index{0}));
}

TEST(Types, AViewLeavesTheGapsBetweenItsRowsAlone) {
    std::vector<float> memory(3 * 7, -1.0f);
    moe::View<float> view(memory.data(), 3, 4, Eigen::OuterStride<>(7));
    view.setConstant(2);
    for (int i = 0; i < 21; ++i)
        EXPECT_EQ(memory[static_cast<std::size_t>(i)], i % 7 < 4 ? 2.0f : -1.0f) << i;
    const moe::ConstView<float> same(memory.data(), 3, 4, Eigen::OuterStride<>(7));
    EXPECT_EQ(read(same), memory.data());
    EXPECT_EQ(written(view), memory.data());
}

}  // namespace
}  // namespace types_test
