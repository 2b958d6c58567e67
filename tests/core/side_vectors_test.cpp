// SPDX-License-Identifier: MIT
#include <moe/core/side_vectors.hpp>

#include <stdexcept>
#include <type_traits>

#include <gtest/gtest.h>

#include <moe/core/context.hpp>

#include "support/message.hpp"

namespace side_vectors_test {
namespace {

using moe::Context;
using moe::SideGradients;
using moe::SideVectors;
using support::message;

TEST(SideVectors, AreTheCallersMemory) {
    moe::Matrix<float> v = moe::Matrix<float>::Random(4, 6);
    const Context context{.side_vectors = v};  // a matrix converts as it is
    const moe::ConstView<float> view = context.side_vectors.as<float>();
    EXPECT_EQ(view.data(), v.data());
    EXPECT_EQ(view.rows(), 4);
    EXPECT_EQ(view.cols(), 6);
    EXPECT_FALSE(context.side_vectors.empty());
    v(3, 5) = 7;
    EXPECT_EQ(view(3, 5), 7);
}

TEST(SideVectors, KeepTheStrideOfTheirRows) {
    const moe::Matrix<double> wide = moe::Matrix<double>::Random(5, 9);
    const Eigen::MatrixXd columns = Eigen::MatrixXd::Random(9, 5);
    const auto same = [](const SideVectors& vectors, const auto& expected) {
        const auto view = vectors.as<double>();
        return view.rows() == expected.rows() && view.cols() == expected.cols() &&
               view.cwiseEqual(expected).all();
    };
    EXPECT_TRUE(same(wide.block(1, 2, 3, 4), wide.block(1, 2, 3, 4)));
    EXPECT_TRUE(same(wide.row(2), wide.row(2)));
    EXPECT_TRUE(same(wide.col(2), wide.col(2)));  // one number per token
    EXPECT_TRUE(same(columns.col(2), columns.col(2)));
    EXPECT_TRUE(same(columns.transpose(), columns.transpose()));
    EXPECT_TRUE(same(columns.middleCols(1, 2).transpose(), columns.middleCols(1, 2).transpose()));
    EXPECT_TRUE(same(Eigen::Map<const moe::Matrix<double>>(wide.data(), 9, 5),
                     Eigen::Map<const moe::Matrix<double>>(wide.data(), 9, 5)));
    const Eigen::Ref<const moe::Matrix<double>> in(wide);
    EXPECT_EQ(SideVectors(in).as<double>().data(), wide.data());
}

TEST(SideVectors, AreReadElementByElementToo) {
    const moe::Matrix<double> wide = moe::Matrix<double>::Random(5, 9);
    const moe::Matrix<float> f32 = moe::Matrix<float>::Random(2, 3);
    EXPECT_EQ(SideVectors(wide.block(1, 2, 3, 4)).at(2, 3), wide(3, 5));
    EXPECT_EQ(SideVectors(f32).at(1, 2), static_cast<double>(f32(1, 2)));
}

TEST(SideVectors, AreOfOneScalar) {
    static_assert(!std::is_constructible_v<SideVectors, moe::Matrix<int>>);
    const moe::Matrix<float> f32 = moe::Matrix<float>::Zero(2, 3);
    const moe::Matrix<double> f64 = moe::Matrix<double>::Zero(2, 3);
    EXPECT_TRUE(SideVectors(f32).holds<float>() && SideVectors(f64).holds<double>());
    EXPECT_FALSE(SideVectors(f32).holds<double>() || SideVectors(f64).holds<float>());
    EXPECT_EQ(
        message([&] { SideVectors(f32).as<double>(); }),
        "moe::Context: side_vectors is of another scalar, the part that reads it wants double");
    EXPECT_EQ(
        message([&] { SideVectors(f64).as<float>(); }),
        "moe::Context: side_vectors is of another scalar, the part that reads it wants float");
}

TEST(SideVectors, OfNoTokensAreGivenAllTheSame) {
    const moe::Matrix<float> none(0, 5);
    const SideVectors vectors = none;
    EXPECT_FALSE(vectors.empty());
    EXPECT_EQ(vectors.as<float>().rows(), 0);
    EXPECT_EQ(vectors.as<float>().cols(), 5);
    EXPECT_THROW(vectors.as<double>(), std::invalid_argument);
}

TEST(SideVectors, ThatWereNotGivenAreMissedByName) {
    EXPECT_TRUE(SideVectors().empty());
    EXPECT_EQ(message([] { SideVectors().as<float>(); }),
              "moe::Context: side_vectors is empty, the part that reads it wants float; set "
              "Context::side_vectors, one row per token or per sequence");
    EXPECT_EQ(message([] { SideVectors().as<double>(); }),
              "moe::Context: side_vectors is empty, the part that reads it wants double; set "
              "Context::side_vectors, one row per token or per sequence");
}

TEST(SideGradients, AreWrittenWhereTheCallerSays) {
    Eigen::MatrixXf columns = Eigen::MatrixXf::Zero(3, 4);
    const SideGradients gradients = columns.transpose();
    moe::View<float> view = gradients.as<float>();
    view(2, 1) += 5;
    EXPECT_EQ(columns(1, 2), 5);
    EXPECT_EQ(
        message([] { SideGradients().as<float>(); }),
        "moe::Context: gradients->side_vectors is empty, the part that writes it wants float");
}

TEST(SideGradients, AreLikeTheVectors) {
    const moe::Matrix<float> v = moe::Matrix<float>::Zero(4, 3);
    moe::Matrix<float> narrow = moe::Matrix<float>::Zero(4, 2), right = v;
    moe::ContextGradients gradients{.side_vectors = narrow};
    Context context{.side_vectors = v, .gradients = &gradients};
    const auto check = [&] { moe::detail::check_context(context, 4, 3, 5, false); };
    EXPECT_EQ(message(check),
              "moe::Context: gradients->side_vectors is [4, 2], side_vectors is [4, 3]");
    gradients.side_vectors = right;
    EXPECT_NO_THROW(check());
    context.side_vectors = {};
    EXPECT_EQ(message(check),
              "moe::Context: gradients->side_vectors is [4, 3], side_vectors is [0, 0]");
}

}  // namespace
}  // namespace side_vectors_test
