// SPDX-License-Identifier: MIT
// What tests of SoftMoe do not show: the module by itself, as one who mixes otherwise uses it.
#include <moe/compose/soft_slots.hpp>

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <moe/core/random.hpp>
#include <moe/core/shape.hpp>
#include <moe/testing/compare.hpp>
#include <moe/testing/random.hpp>

#include "support/allocations.hpp"
#include "support/message.hpp"

namespace {

using moe::Context;
using moe::Index;
using moe::Matrix;
using moe::SlotNorm;
using moe::SoftSlots;
using moe::Workspace;
using moe::testing::compare;
using moe::testing::random_matrix;
using moe::testing::same_bits;

constexpr Index dim = 4, experts = 3;

template <class S>
auto make(const SoftSlots& settings) {
    moe::Random random(3, 1);
    return settings.build<S>(moe::Shape{.model_dim = dim, .num_experts = experts}, random);
}

template <class S>
class SoftSlotsModule : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(SoftSlotsModule, Scalars);

TYPED_TEST(SoftSlotsModule, SlotsOfAnExpertAreNextToEachOther) {
    const auto slots = make<TypeParam>({.slots_per_expert = 2});
    EXPECT_EQ(slots.num_slots(), 6);
    for (Index p = 0; p < 6; ++p) EXPECT_EQ(slots.expert_of(p), p / 2);
    EXPECT_EQ(slots.phi.rows(), 6);
    EXPECT_EQ(slots.phi.cols(), dim);
    EXPECT_TRUE(slots.token_gain.empty() && slots.slot_gain.empty());
    const auto gained = make<TypeParam>({.norm = SlotNorm::rms});
    EXPECT_TRUE(gained.scale.empty());
    for (Index d = 0; d < dim; ++d) EXPECT_EQ(gained.token_gain(0, d), TypeParam(1));
}

/// With a scale of 0 all tokens are alike: slots are means, and so is what tokens get.
TYPED_TEST(SoftSlotsModule, WithoutAnyDifferenceMixturesAreMeansOfTheirSequence) {
    using S = TypeParam;
    const auto slots = make<S>({.scale = 0});
    const Matrix<S> x = random_matrix<S>(5, dim, 1), outputs = random_matrix<S>(6, 2, 2);
    const std::vector<Index> offsets{0, 2, 5};
    const Context context{.sequence_offsets = offsets};
    Workspace<S> ws;
    const moe::Call<S> call{context, ws};
    Matrix<S> inputs(6, dim), y(5, 2), wanted(6, dim), wanted_y(5, 2);
    slots.dispatch(x, inputs, call);
    slots.combine(outputs, y, call);
    for (Index p = 0; p < 6; ++p)
        wanted.row(p) = p < 3 ? x.topRows(2).colwise().mean() : x.bottomRows(3).colwise().mean();
    for (Index t = 0; t < 5; ++t)
        wanted_y.row(t) =
            t < 2 ? outputs.topRows(3).colwise().mean() : outputs.bottomRows(3).colwise().mean();
    EXPECT_TRUE(compare(inputs, wanted, 1e-6));
    EXPECT_TRUE(compare(y, wanted_y, 1e-6));
}

TYPED_TEST(SoftSlotsModule, TakesAndWritesRowsOfWiderMatrices) {
    using S = TypeParam;
    for (const SoftSlots& settings :
         {SoftSlots{.scale = 2}, SoftSlots{.norm = SlotNorm::rms, .mix_normalized = true}}) {
        const auto slots = make<S>(settings);
        const Matrix<S> x = random_matrix<S>(5, dim, 1), outputs = random_matrix<S>(3, 2, 2),
                        dy = random_matrix<S>(5, 2, 3), dinputs = random_matrix<S>(3, dim, 4);
        const auto run = [&](Index extra) {
            const auto widened = [extra](const Matrix<S>& matrix) {
                Matrix<S> wide = Matrix<S>::Constant(matrix.rows(), matrix.cols() + extra, NAN);
                wide.leftCols(matrix.cols()) = matrix;
                return wide;
            };
            Matrix<S> wide_x = widened(x), wide_outputs = widened(outputs), wide_dy = widened(dy),
                      wide_dinputs = widened(dinputs), inputs = wide_dinputs, y = wide_dy,
                      doutputs = wide_outputs, dx = wide_x;
            Workspace<S> ws;
            const Context context;
            const moe::Call<S> call{context, ws};
            moe::SoftSlotsModule<S> grad = slots;
            grad.phi.view().setZero();
            slots.dispatch(wide_x.leftCols(dim), inputs.leftCols(dim), call);
            slots.combine(wide_outputs.leftCols(2), y.leftCols(2), call);
            slots.combine_backward(wide_outputs.leftCols(2), wide_dy.leftCols(2),
                                   doutputs.leftCols(2), call);
            slots.dispatch_backward(wide_x.leftCols(dim), wide_dinputs.leftCols(dim),
                                    dx.leftCols(dim), grad, call);
            for (const Matrix<S>* matrix : {&inputs, &y, &doutputs, &dx})
                EXPECT_TRUE(extra == 0 || matrix->rightCols(extra).array().isNaN().all());
            return std::vector<Matrix<S>>{inputs.leftCols(dim), y.leftCols(2), doutputs.leftCols(2),
                                          dx.leftCols(dim), grad.phi.view()};
        };
        const auto plain = run(0), wide = run(3);
        for (std::size_t i = 0; i < plain.size(); ++i) EXPECT_TRUE(same_bits(wide[i], plain[i]));
    }
}

TYPED_TEST(SoftSlotsModule, FewerTokensThanBeforeAllocateNothingAndSeeNothingOfThem) {
    using S = TypeParam;
    const auto slots = make<S>({.slots_per_expert = 2});
    const Matrix<S> many = Matrix<S>::Constant(30, dim, NAN), few = random_matrix<S>(4, dim, 1);
    moe::SerialExecutor serial;
    Workspace<S> ws(serial), fresh(serial);
    const Context context;
    Matrix<S> inputs(6, dim), wanted(6, dim);
    slots.dispatch(many, inputs, {context, ws});
    EXPECT_EQ(allocations::in([&] { slots.dispatch(few, inputs, {context, ws}); }), 0);
    slots.dispatch(few, wanted, {context, fresh});
    EXPECT_TRUE(same_bits(inputs, wanted));
}

TEST(SoftSlotsSettings, OutOfRangeAreASentence) {
    const auto expect = [](const SoftSlots& settings, const std::string& wanted) {
        const std::string found = support::message([&] { make<float>(settings); });
        EXPECT_NE(found.find("moe::SoftSlots: " + wanted), std::string::npos) << found;
    };
    expect({.slots_per_expert = 0}, "slots_per_expert is 0, it must be >= 1");
    expect({.norm = static_cast<SlotNorm>(9)}, "norm is number 9 of its choices");
    expect({.scale = INFINITY}, "scale is inf, it must be finite");
    expect({.norm = SlotNorm::rms, .scale = 2}, "scale is 2, it must be 1 with SlotNorm::rms");
    expect({.noise = -1}, "noise is -1, it must be finite and >= 0");
    expect({.epsilon = 0}, "epsilon is 0, it must be > 0");
}

}  // namespace
