// SPDX-License-Identifier: MIT
#include <gtest/gtest.h>

#include <vector>

#include <moe/compose/product_tiles.hpp>
#include <moe/testing/compare.hpp>
#include <moe/testing/random.hpp>

namespace {

using moe::Index;
using moe::Matrix;
using moe::Strided;
using moe::testing::random_matrix;

template <class S>
class ProductTiles : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(ProductTiles, Scalars);

/// Products of unequal heights, A below one another and transposed, results in columns of one wide
/// matrix.
template <class S>
Matrix<S> several(moe::Executor& executor, bool add) {
    const std::vector<Index> rows{300, 0, 1, 129};
    const Index k = 37, cols = 150;
    const Matrix<S> a = random_matrix<S>(k, 430, 1), b = random_matrix<S>(cols, k, 2);
    Matrix<S> c = random_matrix<S>(300, 4 * cols, 3);
    std::vector<Index> first{0, 300, 300, 301};
    moe::detail::ProductTiles<S> products;
    products.run(executor, 4, [&](Index i) {
        return moe::detail::MatrixProduct<S>{
            rows[static_cast<std::size_t>(i)],
            cols,
            k,
            {a.data() + first[static_cast<std::size_t>(i)], 1, 430},
            {b.data(), 1, k},
            c.data() + i * cols,
            4 * cols,
            add};
    });
    return c;
}

TYPED_TEST(ProductTiles, AreTheProducts) {
    using S = TypeParam;
    const Matrix<double> a = random_matrix<S>(37, 430, 1).template cast<double>(),
                         b = random_matrix<S>(150, 37, 2).template cast<double>();
    for (const bool add : {false, true}) {
        Matrix<double> expected = random_matrix<S>(300, 600, 3).template cast<double>();
        const Matrix<double> all = a.transpose() * b.transpose();
        const auto put = [&](Index i, Index first, Index rows) {
            auto block = expected.block(0, i * 150, rows, 150);
            block = (add ? 1.0 : 0.0) * block + all.middleRows(first, rows);
        };
        put(0, 0, 300), put(2, 300, 1), put(3, 301, 129);
        moe::SerialExecutor serial;
        EXPECT_TRUE(moe::testing::compare(several<S>(serial, add), expected,
                                          std::is_same_v<S, double> ? 1e-14 : 1e-5));
    }
}

TYPED_TEST(ProductTiles, HaveTheSameBitsForAnyNumberOfThreads) {
    using S = TypeParam;
    moe::SerialExecutor serial;
    moe::ThreadPool two(2), three(3);
    EXPECT_TRUE(moe::testing::same_bits(several<S>(two, true), several<S>(serial, true)));
    EXPECT_TRUE(moe::testing::same_bits(several<S>(three, true), several<S>(serial, true)));
}

TYPED_TEST(ProductTiles, OfNothingDoNothing) {
    using S = TypeParam;
    moe::SerialExecutor serial;
    moe::detail::ProductTiles<S> products;
    products.run(serial, 0, [](Index) { return moe::detail::MatrixProduct<S>{}; });
    products.run(serial, {0, 0, 0, {nullptr, 0, 1}, {nullptr, 0, 1}, nullptr, 0});
}

}  // namespace
