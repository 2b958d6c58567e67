// SPDX-License-Identifier: MIT
#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <vector>

#include <moe/compose/unit_rows.hpp>
#include <moe/kernels/dispatch.hpp>
#include <moe/testing/finite_difference.hpp>
#include <moe/testing/random.hpp>

namespace {

using moe::Index;
using moe::Matrix;
using moe::testing::random_matrix;

constexpr Index columns = 19;
using Unit = moe::detail::UnitRows<double>;

TEST(UnitRows, DivideByTheLength) {
    const auto v = random_matrix<double>(1, columns, 1),
               gain = random_matrix<double>(1, columns, 2);
    const double length = std::sqrt(v.squaredNorm() + 0.5);
    Matrix<double> u(1, columns);
    const Unit plain{columns, 0.5, 3};
    EXPECT_NEAR(plain.forward(moe::kernels<double>(), v.data(), u.data()), 1 / length, 1e-15);
    EXPECT_TRUE(moe::testing::compare(u, (3 / length * v).eval(), 1e-15));
    const Unit gained{columns, 0.5, 3, gain.data()};
    gained.forward(moe::kernels<double>(), v.data(), u.data());
    EXPECT_TRUE(moe::testing::compare(u, (3 / length * v.cwiseProduct(gain)).eval(), 1e-15));
}

TEST(UnitRows, OfZerosAreZeros) {
    const Matrix<double> zeros = Matrix<double>::Zero(1, columns);
    Matrix<double> u(1, columns);
    const Unit unit{columns, 1e-24};
    EXPECT_TRUE(std::isfinite(unit.forward(moe::kernels<double>(), zeros.data(), u.data())));
    EXPECT_TRUE((u.array() == 0).all());
}

TEST(UnitRows, GradientsAreExactAndAdded) {
    auto v = random_matrix<double>(1, columns, 1), gain = random_matrix<double>(1, columns, 2);
    const auto wanted = random_matrix<double>(1, columns, 3);
    Matrix<double> u(1, columns);
    const Unit unit{columns, 0.5, 3, gain.data()};
    const auto loss = [&] {
        unit.forward(moe::kernels<double>(), v.data(), u.data());
        return u.cwiseProduct(wanted).sum();
    };
    const double inverse = unit.forward(moe::kernels<double>(), v.data(), u.data());
    Matrix<double> du = wanted, dv = Matrix<double>::Ones(1, columns), dgain = dv;
    for (const Index first : {0, 7})
        unit.backward_gain(first, first == 0 ? 7 : columns - 7, v.data(), inverse, du.data(),
                           dgain.data());
    unit.backward(moe::kernels<double>(), v.data(), inverse, du.data(), dv.data());
    EXPECT_TRUE(moe::testing::check_gradient(loss, v, (dv.array() - 1).matrix().eval()));
    EXPECT_TRUE(moe::testing::check_gradient(loss, gain, (dgain.array() - 1).matrix().eval()));
}

}  // namespace
