// SPDX-License-Identifier: MIT
#include <moe/kernels/operand.hpp>

#include <vector>

#include <gtest/gtest.h>

#include <moe/kernels/dispatch.hpp>
#include <moe/kernels/reference.hpp>

#include "guarded.hpp"

namespace {

using kernel_test::Numbers;
using kernel_test::same;
using moe::Index;
using moe::Isa;
using moe::Operand;
using moe::PackedMatrix;
using moe::Strided;

template <class S>
class OperandOf : public ::testing::Test {};

using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(OperandOf, Scalars);

/// A range of B's columns, packed and as it lies in memory, against the loop over all of them.
TYPED_TEST(OperandOf, GivesTheSameColumnsPackedAndUnpacked) {
    using S = TypeParam;
    for (const Isa isa : moe::supported_isas()) {
        SCOPED_TRACE(moe::name(isa));
        const auto& t = moe::kernels<S>(isa);
        const Index m = 17, k = 53, width = t.panel_width, n = 3 * width + 7;
        Numbers random(1);
        std::vector<S> a(static_cast<std::size_t>(m * k)), b(static_cast<std::size_t>(k * n));
        std::vector<S> whole(static_cast<std::size_t>(m * n));
        std::vector<S> scratch(static_cast<std::size_t>(moe::product_scratch(t)));
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
                    moe::multiply(t, m, k, left, operand, first, columns, c.data(), c_row, add,
                                  scratch.data());
                    for (Index i = 0; i < m; ++i) {
                        ASSERT_TRUE(
                            same(columns, c.data() + i * c_row, whole.data() + i * n + first))
                            << "row " << i << " columns from " << first << " add " << add;
                        ASSERT_EQ(c[static_cast<std::size_t>(i * c_row + columns)], S(0));
                    }
                }
    }
}

TYPED_TEST(OperandOf, ReadsTransposedWeights) {
    using S = TypeParam;
    for (const Isa isa : moe::supported_isas()) {
        SCOPED_TRACE(moe::name(isa));
        const auto& t = moe::kernels<S>(isa);
        const Index m = 5, k = 31, n = t.panel_width + 3;
        Numbers random(2);
        std::vector<S> x(static_cast<std::size_t>(m * k)), w(static_cast<std::size_t>(n * k));
        std::vector<S> y(static_cast<std::size_t>(m * n)), want(y), dense(w);
        std::vector<S> scratch(static_cast<std::size_t>(moe::product_scratch(t)));
        random.fill(m * k, x.data());
        random.fill(n * k, w.data());
        moe::exact::pack(k, n, n, w.data(), 1, k, dense.data());
        moe::exact::tile(m, n, k, x.data(), k, 1, dense.data(), n, want.data(), n, false);
        moe::multiply(t, m, k, Strided<S>{x.data(), k, 1}, Operand<S>(Strided<S>{w.data(), 1, k}),
                      Index{0}, n, y.data(), n, false, scratch.data());
        EXPECT_TRUE(same(m * n, y.data(), want.data()));
    }
}

}  // namespace
