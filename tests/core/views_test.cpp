// SPDX-License-Identifier: MIT
#include <moe/core/views.hpp>

#include <utility>

#include <gtest/gtest.h>

namespace views_test {
namespace {

using moe::Index;
using moe::Matrix;

const float* read(const auto& x) { return moe::detail::readable<float>(x).data(); }
template <class Y>
float* written(Y&& y) {
    return moe::detail::writable<float>(std::forward<Y>(y)).data();
}

TEST(Views, WhatIsReadIsNotCopied) {
    moe::Matrix<float> x = moe::Matrix<float>::Random(6, 8);
    EXPECT_EQ(read(x), x.data());
    EXPECT_EQ(read(x.middleRows(1, 2)), x.data() + 8);
    EXPECT_EQ(read(x.block(1, 2, 3, 4)), x.data() + 10);
    EXPECT_EQ(read(x.row(3)), x.data() + 24);
    EXPECT_EQ(read(Eigen::Map<const moe::Matrix<float>>(x.data() + 3, 2, 5)), x.data() + 3);
    EXPECT_EQ(read(moe::ConstView<float>(x.data(), 3, 4, Eigen::OuterStride<>(8))), x.data());
    moe::In<float> argument = x;
    EXPECT_EQ(read(argument), x.data());
    const Eigen::MatrixXf columns = Eigen::MatrixXf::Random(8, 6);
    EXPECT_EQ(read(columns.transpose()), columns.data());
    EXPECT_EQ(read(columns.middleCols(2, 3).transpose()), columns.data() + 16);
    const Eigen::RowVectorXf row = Eigen::RowVectorXf::Random(5);
    EXPECT_EQ(read(row), row.data());
    const Eigen::VectorXf column = Eigen::VectorXf::Random(5);  // [5, 1], one feature per token
    EXPECT_EQ(read(column), column.data());
    const Eigen::Matrix<float, 2, 3, Eigen::RowMajor> fixed = Eigen::Matrix<float, 2, 3>::Random();
    EXPECT_EQ(read(fixed), fixed.data());
}

TEST(Views, ReadViewsKeepExtentsAndStrides) {
    const moe::Matrix<float> x = moe::Matrix<float>::Random(6, 8);
    const auto block = moe::detail::readable<float>(x.block(1, 2, 3, 4));
    EXPECT_EQ(block.rows(), 3);
    EXPECT_EQ(block.cols(), 4);
    EXPECT_EQ(block.outerStride(), 8);
    EXPECT_EQ(block(2, 3), x(3, 5));
    const Eigen::VectorXf column = Eigen::VectorXf::Random(5);
    const auto view = moe::detail::readable<float>(column);
    EXPECT_EQ(view.rows(), 5);
    EXPECT_EQ(view.cols(), 1);
    EXPECT_EQ(view(4, 0), column(4));
    EXPECT_EQ(moe::detail::readable<float>(x.topRows(0)).rows(), 0);
}

TEST(Views, AnExpressionIsEvaluatedOnceForTheReader) {
    const moe::Matrix<float> x = moe::Matrix<float>::Ones(2, 3);
    const auto twice = moe::detail::readable<float>(2 * x);
    EXPECT_EQ(twice(1, 2), 2.0f);
    EXPECT_NE(twice.data(), x.data());
}

TEST(Views, WhatIsWrittenIsTheCallersMemory) {
    moe::Matrix<float> y(6, 8);
    EXPECT_EQ(written(y), y.data());
    EXPECT_EQ(written(y.middleRows(1, 2)), y.data() + 8);
    EXPECT_EQ(written(y.block(1, 2, 3, 4)), y.data() + 10);
    EXPECT_EQ(written(Eigen::Map<moe::Matrix<float>>(y.data() + 3, 2, 5)), y.data() + 3);
    moe::View<float> view(y.data(), 3, 4, Eigen::OuterStride<>(8));
    EXPECT_EQ(written(view), y.data());
    Eigen::MatrixXf columns(8, 6);
    EXPECT_EQ(written(columns.transpose()), columns.data());
    Eigen::RowVectorXf row(5);
    EXPECT_EQ(written(row), row.data());
    const auto out = moe::detail::writable<float>(y);
    EXPECT_EQ(written(out), y.data());  // what is writable already
}

TEST(Views, ARowBeginsAtItsPointer) {
    Matrix<float> x = Matrix<float>::Random(4, 6);
    EXPECT_EQ(moe::row_data(x, 2), &x(2, 0));
    EXPECT_EQ(moe::row_data(x.middleCols(1, 3), 3), &x(3, 1));
    *moe::row_data(x, 1) = 5;
    EXPECT_EQ(x(1, 0), 5);
}

bool overlap(moe::In<float> a, moe::In<float> b) {
    const bool result = moe::detail::overlap<float>(a, b);
    EXPECT_EQ(result, (moe::detail::overlap<float>(b, a)));
    return result;
}

TEST(Views, SharedElementsAreSeen) {
    const Matrix<float> x = Matrix<float>::Zero(6, 8), y = x;
    EXPECT_TRUE(overlap(x, x));
    EXPECT_FALSE(overlap(x, y));
    EXPECT_TRUE(overlap(x.topRows(4), x.bottomRows(4)));
    EXPECT_FALSE(overlap(x.topRows(3), x.bottomRows(3)));
    EXPECT_TRUE(overlap(x.row(2), x.row(2)));
    EXPECT_FALSE(overlap(x.row(2), x.row(3)));
    EXPECT_TRUE(overlap(x.row(2).leftCols(5), x.row(2).rightCols(4)));
    EXPECT_FALSE(overlap(x.topRows(0), x));
}

TEST(Views, ColumnsOfOneMatrixAreApart) {
    const Matrix<float> x = Matrix<float>::Zero(6, 8);
    EXPECT_FALSE(overlap(x.leftCols(4), x.rightCols(4)));
    EXPECT_TRUE(overlap(x.leftCols(5), x.rightCols(4)));
    EXPECT_FALSE(overlap(x.leftCols(3), x.middleCols(3, 2)));
    EXPECT_TRUE(overlap(x.middleCols(2, 4), x.middleCols(3, 1)));
    EXPECT_FALSE(overlap(x.block(1, 0, 3, 4), x.block(2, 4, 3, 4)));
    EXPECT_TRUE(overlap(x.block(1, 1, 3, 4), x.block(2, 4, 3, 4)));
    EXPECT_FALSE(overlap(x.leftCols(4), x.block(2, 4, 1, 4)));
    EXPECT_TRUE(overlap(x.leftCols(5), x.block(2, 4, 1, 4)));
}

}  // namespace
}  // namespace views_test
