// SPDX-License-Identifier: MIT
// The layer of the package soft-moe-pytorch; see generate_soft_moe.py.

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <moe/compose/soft_moe.hpp>
#include <moe/experts/mlp.hpp>

#include "golden.hpp"

namespace {

using moe::Index;
using moe::Matrix;

std::string published_name(std::string_view ours) {
    if (ours == "slots.phi") return "slot_embeds";
    if (ours == "slots.token_gain") return "norm.gamma";
    if (ours == "slots.slot_gain") return "slot_norm.gamma";
    const std::size_t dot = ours.rfind('.');
    const std::string expert = "experts." + std::string(ours.substr(0, dot));
    if (ours.substr(dot) == ".up") return expert + ".0.weight";
    if (ours.substr(dot) == ".up_bias") return expert + ".0.bias";
    if (ours.substr(dot) == ".down") return expert + ".3.weight";
    if (ours.substr(dot) == ".down_bias") return expert + ".3.bias";
    throw std::invalid_argument("no published name for " + std::string(ours));
}

/// Our extents of what the package has as [E, slots, D], or as a vector.
template <class M>
auto reshaped(const M& values, Index rows, Index cols) {
    EXPECT_EQ(values.size(), rows * cols);
    return Matrix<typename M::Scalar>(
        Eigen::Map<const Matrix<typename M::Scalar>>(values.data(), rows, cols));
}

template <class S>
class SoftMoeGolden : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(SoftMoeGolden, Scalars);

TYPED_TEST(SoftMoeGolden, AgreesWithThePackage) {
    using S = TypeParam;
    const double tolerance = std::is_same_v<S, double> ? 1e-13 : 3e-6;
    const golden::File file("soft_moe");
    auto layer = moe::make_soft_moe<S>(
        {.model_dim = 12},
        {.slots_per_expert = 2,
         .norm = moe::SlotNorm::rms,
         .mix_normalized = true,
         .epsilon = 1e-24},
        moe::Mlp{.count = 3, .ffn_dim = 24, .activation = moe::Activation::gelu, .bias = true});
    moe::visit_parameters(layer, [&](std::string_view name, auto& matrix, moe::Role) {
        const auto values = reshaped(file.read<S>(std::string_view(published_name(name))),
                                     matrix.rows(), matrix.cols());
        std::copy_n(values.data(), values.size(), matrix.data());
    });
    const Matrix<S> x = file.read<S>(std::string_view("input"));
    const Matrix<S> dy = file.read<S>(std::string_view("grad_output"));
    const Matrix<std::int64_t> mask = file.view().integers("padding");
    const std::vector<std::uint8_t> padding(mask.data(), mask.data() + mask.size());
    const std::vector<Index> offsets{0, 7, 14};
    const moe::Context context{.padding = padding, .sequence_offsets = offsets};

    Matrix<S> y(x.rows(), x.cols()), dx(x.rows(), x.cols());
    moe::Workspace<S> ws;
    auto grad = moe::zeros_like(layer);
    layer.forward(x, y, ws, context);
    layer.backward(x, dy, dx, grad, ws, context);
    EXPECT_TRUE(moe::testing::compare(y, file.expected<S>({"output"}), tolerance));
    EXPECT_TRUE(moe::testing::compare(dx, file.expected<S>({"grad_input"}), tolerance));
    moe::visit_parameters(
        std::as_const(grad), [&](std::string_view name, const auto& matrix, moe::Role) {
            const auto expected = reshaped(file.expected<S>({"grad." + published_name(name)}),
                                           matrix.rows(), matrix.cols());
            const Eigen::Map<const Matrix<S>> found(matrix.data(), matrix.rows(), matrix.cols());
            EXPECT_TRUE(moe::testing::compare(found, expected, tolerance)) << name;
        });
}

}  // namespace
