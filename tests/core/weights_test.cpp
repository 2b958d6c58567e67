// SPDX-License-Identifier: MIT
#include <moe/core/weights.hpp>

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "support/message.hpp"

namespace weights_test {
namespace {

using moe::Dtype;
using moe::Index;
using moe::Weights;
using moe::WeightView;
using support::message;

template <class S>
class StackedWeights : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(StackedWeights, Scalars);

TYPED_TEST(StackedWeights, AreZerosInOneAllocation) {
    Weights<TypeParam> weights(3, 4, 5);
    EXPECT_EQ(weights.count(), 3);
    EXPECT_EQ(weights.rows(), 4);
    EXPECT_EQ(weights.cols(), 5);
    EXPECT_FALSE(weights.is_bound());
    const TypeParam* const first = weights.owned(0).data();
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(first) % moe::cache_line, 0u);
    for (Index e = 0; e < 3; ++e) {
        EXPECT_EQ(weights.owned(e).data(), first + e * 20);
        EXPECT_EQ(weights.gradient(e), first + e * 20);
        for (Index i = 0; i < 20; ++i) EXPECT_EQ(weights.owned(e).data()[i], TypeParam(0));
        const WeightView view = weights[e];
        EXPECT_EQ(view.data, first + e * 20);
        EXPECT_EQ(view.dtype, moe::dtype_of<TypeParam>);
        EXPECT_EQ(view.rows, 4);
        EXPECT_EQ(view.cols, 5);
        EXPECT_EQ(view.row_stride, 5);
        EXPECT_EQ(view.col_stride, 1);
        EXPECT_EQ(view.scales, nullptr);
    }
}

TYPED_TEST(StackedWeights, StayTogetherWhenCopied) {
    Weights<TypeParam> original(3, 2, 2);
    moe::Random random(1);
    original.fill_normal(random, 1);
    Weights<TypeParam> copy = original;
    const TypeParam* const first = copy.owned(0).data();
    EXPECT_NE(first, original.owned(0).data());
    for (Index e = 0; e < 3; ++e) {
        EXPECT_EQ(copy.owned(e).data(), first + e * 4);
        for (Index i = 0; i < 4; ++i)
            EXPECT_EQ(copy.owned(e).data()[i], original.owned(e).data()[i]);
    }
    copy.owned(1)(0, 0) = 7;
    EXPECT_NE(original.owned(1)(0, 0), TypeParam(7));
}

TYPED_TEST(StackedWeights, AreStackedAgainWhenTheyHadBeenMovedApart) {
    Weights<TypeParam> original(2, 1, 3);
    std::vector<TypeParam> elsewhere(10, TypeParam(5));
    original.owned(0).place(elsewhere.data() + 6, nullptr);
    original.owned(1).place(elsewhere.data(), nullptr);
    original.owned(1)(0, 2) = 8;
    Weights<TypeParam> copy = original;
    EXPECT_EQ(copy.owned(1).data(), copy.owned(0).data() + 3);
    EXPECT_EQ(copy.owned(0)(0, 0), TypeParam(0));
    EXPECT_EQ(copy.owned(1)(0, 2), TypeParam(8));
    EXPECT_EQ(elsewhere[2], TypeParam(8));
    EXPECT_EQ(elsewhere[3], TypeParam(5));
}

TEST(Weights, GradientsThatAreNotWantedAreNull) {
    Weights<float> grad(3, 2, 2);
    grad.owned(1) = {};
    EXPECT_NE(grad.gradient(0), nullptr);
    EXPECT_EQ(grad.gradient(1), nullptr);
    EXPECT_EQ(grad.gradient(3), nullptr);
    Weights<float> copy = grad;
    EXPECT_EQ(copy.gradient(1), nullptr);
    EXPECT_EQ(copy.gradient(2), copy.gradient(0) + 8);
    EXPECT_EQ(copy.count(), 3);
    EXPECT_EQ(Weights<float>().gradient(0), nullptr);
    EXPECT_EQ(Weights<float>(2, 0, 5).gradient(0), nullptr);
}

TEST(Weights, MovingKeepsAddresses) {
    Weights<float> original(2, 3, 3);
    const float* const data = original.owned(1).data();
    Weights<float> moved = std::move(original);
    EXPECT_EQ(moved.owned(1).data(), data);
    Weights<float> assigned;
    assigned = std::move(moved);
    EXPECT_EQ(assigned.owned(1).data(), data);
    EXPECT_EQ(assigned.rows(), 3);
    static_assert(std::is_nothrow_move_constructible_v<Weights<float>>);
}

TEST(Weights, AreFilledExpertByExpert) {
    Weights<double> weights(2, 2, 3);
    moe::Random random(5), same(5);
    weights.fill_normal(random, 0.25);
    for (Index e = 0; e < 2; ++e)
        for (Index i = 0; i < 6; ++i) EXPECT_EQ(weights.owned(e).data()[i], 0.25 * same.normal());
}

TEST(Weights, MayBeEmpty) {
    EXPECT_EQ(Weights<float>().count(), 0);
    EXPECT_FALSE(Weights<float>().is_bound());
    const Weights<float> none(0, 4, 5);
    EXPECT_EQ(none.count(), 0);
    EXPECT_EQ(Weights<float>(none).rows(), 4);
    const Weights<float> no_views((std::vector<WeightView>()));
    EXPECT_EQ(no_views.count(), 0);
    EXPECT_FALSE(no_views.is_bound());
    const Weights<float> no_columns(2, 3, 0);
    EXPECT_EQ(no_columns.count(), 2);
    EXPECT_EQ(no_columns[1].cols, 0);
}

TEST(Weights, ExtentsThatOverflowAreLengthErrors) {
    constexpr Index most = std::numeric_limits<Index>::max();
    EXPECT_THROW(Weights<float>(1, most, 2), std::length_error);
    EXPECT_THROW(Weights<float>(2, most, 1), std::length_error);
    EXPECT_THROW(Weights<float>(1, most, 1), std::length_error);  // in bytes
    EXPECT_THROW(Weights<float>(-1, 2, 2), std::length_error);
}

TEST(Weights, RefuseWhatIsNotThere) {
    const float data[6] = {};
    WeightView view{.data = data, .dtype = Dtype::f32, .rows = 2, .cols = 3};
    Weights<float> views({view}), own(2, 2, 3);
    EXPECT_EQ(views[0].row_stride, 3) << "not given: rows follow one another";
    EXPECT_EQ(message([&] { views.owned(0); }),
              "moe::Weights::owned: these weights are views, which are only read, by weights[e]; "
              "assign Weights(count, rows, cols) to have matrices to write to");
    for (const Index e : {-1, 2})
        EXPECT_EQ(message([&] { own[e]; }), "moe::Weights: there is no matrix of expert " +
                                                std::to_string(e) + ", there are 2");
    view.dtype = Dtype::unknown;
    EXPECT_NE(message([&] { Weights<float>({view}); }).find("; set WeightView::dtype"),
              std::string::npos);
}

struct Bound {
    std::vector<float> a = std::vector<float>(6, 1.0f), b = std::vector<float>(12, 2.0f);
    std::vector<WeightView> views{
        {.data = a.data(), .dtype = Dtype::f32, .rows = 2, .cols = 3, .row_stride = 3},
        {.data = b.data(),
         .dtype = Dtype::f32,
         .rows = 2,
         .cols = 3,
         .row_stride = 1,
         .col_stride = 4}};
};

TEST(Weights, BoundOnesAreTheCallersViews) {
    const Bound memory;
    const Weights<float> weights(memory.views);
    EXPECT_TRUE(weights.is_bound());
    EXPECT_EQ(weights.count(), 2);
    EXPECT_EQ(weights.rows(), 2);
    EXPECT_EQ(weights.cols(), 3);
    EXPECT_EQ(weights[0].data, memory.a.data());
    EXPECT_EQ(weights[1].data, memory.b.data());
    EXPECT_EQ(weights[1].dtype, Dtype::f32);
    EXPECT_FALSE(weights.has_contiguous_rows());
    EXPECT_FALSE(Weights<float>(weights).has_contiguous_rows());
    EXPECT_TRUE(Weights<float>({memory.views[0]}).has_contiguous_rows());
    EXPECT_EQ(weights[1].row_stride, 1);
    EXPECT_EQ(weights[1].col_stride, 4);
    Weights<float> copy = weights;
    EXPECT_EQ(copy[0].data, memory.a.data());
    EXPECT_EQ(copy.gradient(0), nullptr);
    moe::Random random(1);
    copy.fill_normal(random, 1);
    EXPECT_EQ(memory.a[0], 1.0f);
}

TEST(Weights, BoundOnesHaveOneShape) {
    Bound memory;
    memory.views[1].cols = 4;
    EXPECT_EQ(message([&] { Weights<float> weights(memory.views); }),
              "moe::Weights: expert 1's matrix is [2, 4], the first one's is [2, 3]");
}

TEST(Weights, BoundOnesOfFloatsMayBeNarrower) {
    const std::vector<std::uint16_t> halves(6, 0x3C00);
    const std::vector<std::int8_t> integers(6, -128);
    const std::vector<float> scales{0.5f, -2};
    Bound memory;
    memory.views.push_back(memory.views[0]);
    memory.views.push_back(memory.views[0]);
    memory.views[1].data = memory.views[2].data = halves.data();
    memory.views[1].dtype = Dtype::f16;
    memory.views[2].dtype = Dtype::bf16;
    memory.views[3].data = integers.data();
    memory.views[3].dtype = Dtype::i8;
    memory.views[3].scales = scales.data();
    Weights<float> weights(memory.views);
    const Weights<float> copy = weights;
    for (const Weights<float>* both : std::initializer_list<const Weights<float>*>{&weights, &copy})
        for (Index e = 0; e < 4; ++e) {
            EXPECT_EQ((*both)[e].data, memory.views[static_cast<std::size_t>(e)].data);
            EXPECT_EQ((*both)[e].dtype, memory.views[static_cast<std::size_t>(e)].dtype);
            EXPECT_EQ(both->is_narrow(e), e != 0);
        }
    EXPECT_EQ(weights[3].scales, scales.data());

    const moe::NarrowStrided half = weights.narrow(1, moe::Isa::scalar);
    EXPECT_EQ(static_cast<const void*>(half.data), memory.views[1].data);
    EXPECT_EQ(half.row_stride, memory.views[1].row_stride);
    EXPECT_EQ(half.col_stride, memory.views[1].col_stride);
    EXPECT_EQ(half.scales, nullptr);
    EXPECT_EQ(half.kernels->element_size, 2);
    const moe::NarrowStrided integer = weights.narrow(3, moe::Isa::scalar);
    EXPECT_EQ(integer.scales, scales.data());
    EXPECT_EQ(integer.scale_row, 1);
    EXPECT_EQ(integer.scale_col, 0);
    EXPECT_EQ(integer.kernels->element_size, 1);

    weights.own_gradients();
    EXPECT_FALSE(weights.is_narrow(1));
    EXPECT_EQ(weights[1].dtype, Dtype::f32);
    EXPECT_EQ(weights.gradient(1)[0], 0.0f);
    weights = copy;
    EXPECT_TRUE(weights.is_narrow(1));
    weights = Weights<float>(4, 2, 3);
    EXPECT_FALSE(weights.is_narrow(1));
}

TEST(Weights, BoundOnesAreOfADtypeThatIsRead) {
    Bound memory;
    for (const Dtype dtype : {Dtype::f64, Dtype::f8_e4m3, Dtype::u8, Dtype::i32}) {
        memory.views[1].dtype = dtype;
        EXPECT_EQ(message([&] { Weights<float> weights(memory.views); }),
                  std::string("moe::Weights: expert 1's matrix holds ") + moe::dtype_name(dtype) +
                      ", only F32, BF16, F16 and I8 can be read where they lie; convert it and "
                      "view the copy");
    }
    memory.views[1].dtype = Dtype::unknown;
    EXPECT_THROW(Weights<float> weights(memory.views), std::invalid_argument);
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16, Dtype::f16, Dtype::i8}) {
        memory.views[0].dtype = dtype;
        EXPECT_EQ(message([&] { Weights<double> weights(memory.views); }),
                  std::string("moe::Weights: expert 0's matrix holds ") + moe::dtype_name(dtype) +
                      ", only F64 can be read where it lies; convert it and view the copy");
    }
}

TEST(Weights, BoundOnesHaveScalesIfTheyAreIntegers) {
    Bound memory;
    std::vector<float> scales{1, 2};
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16, Dtype::f16}) {
        memory.views[1].dtype = dtype;
        memory.views[1].scales = scales.data();
        EXPECT_EQ(message([&] { Weights<float> weights(memory.views); }),
                  std::string("moe::Weights: expert 1's matrix holds ") + moe::dtype_name(dtype) +
                      " and has scales, which are applied to I8 only; multiply them into a copy "
                      "and view that without scales");
    }
    memory.views[1].dtype = Dtype::i8;
    EXPECT_NO_THROW(Weights<float> weights(memory.views));
    memory.views[1].scales = nullptr;
    EXPECT_EQ(message([&] { Weights<float> weights(memory.views); }),
              "moe::Weights: expert 1's matrix holds I8 but its scales are null; point them to one "
              "float for each of its 2 rows");
    memory.views[1].scales = scales.data();
    constexpr float most = std::numeric_limits<float>::max();
    scales = {-most, most};
    EXPECT_NO_THROW(Weights<float> weights(memory.views));
    for (const auto& [scale, word] : {std::pair{std::numeric_limits<float>::infinity(), "inf"},
                                      std::pair{-std::numeric_limits<float>::infinity(), "-inf"},
                                      std::pair{std::numeric_limits<float>::quiet_NaN(), "nan"}}) {
        scales[1] = scale;
        EXPECT_EQ(message([&] { Weights<float> weights(memory.views); }),
                  std::string("moe::Weights: expert 1's matrix has the scale ") + word +
                      " in row 1; scales must be finite, mend it");
    }
    const Weights<float> empty({WeightView{.dtype = Dtype::i8, .rows = 0, .cols = 3}});
    EXPECT_EQ(empty.count(), 1);
}

TEST(Weights, BoundOnesHaveDataUnlessTheyAreEmpty) {
    Bound memory;
    memory.views[1].data = nullptr;
    EXPECT_EQ(message([&] { Weights<float> weights(memory.views); }),
              "moe::Weights: expert 1's matrix is [2, 3] but its data is null; point it to the "
              "elements");
    const Weights<float> empty({WeightView{.dtype = Dtype::f32, .rows = 0, .cols = 3}});
    EXPECT_EQ(empty.count(), 1);
}

TEST(Weights, GradientsOfBoundOnesAreOwned) {
    const Bound memory;
    Weights<float> grad(memory.views);
    grad.own_gradients();
    EXPECT_FALSE(grad.is_bound());
    EXPECT_TRUE(grad.has_contiguous_rows());
    EXPECT_EQ(grad.count(), 2);
    EXPECT_EQ(grad.rows(), 2);
    EXPECT_EQ(grad.cols(), 3);
    EXPECT_EQ(grad.gradient(1), grad.gradient(0) + 6);
    for (Index i = 0; i < 12; ++i) EXPECT_EQ(grad.gradient(0)[i], 0.0f);
    EXPECT_EQ(memory.a[0], 1.0f);

    Weights<float> owned(1, 1, 1);
    owned.owned(0)(0, 0) = 3;
    owned.own_gradients();  // they already are
    EXPECT_EQ(owned.owned(0)(0, 0), 3.0f);
}

TEST(Weights, AreVisitedUnderTheNumberOfTheirExpert) {
    Weights<float> weights(3, 1, 1);
    std::vector<std::string> names;
    const auto visit = [&](const std::string& name, const moe::Parameter<float>& matrix,
                           moe::Role role) {
        EXPECT_EQ(role, moe::Role::trainable);
        EXPECT_EQ(matrix.size(), 1);
        names.push_back(name);
    };
    weights.visit(2, "gate", visit);
    weights.visit(0, "up", visit);
    weights.visit(3, "up", visit);  // there is none
    EXPECT_EQ(names, (std::vector<std::string>{"2.gate", "0.up"}));
    const Bound memory;
    Weights<float> bound(memory.views);
    bound.visit(0, "gate", visit);
    EXPECT_EQ(names.size(), 2u);
}

#if !defined(NDEBUG)
TEST(WeightsDeathTest, ADebugBuildCatchesGradientsOfOtherExtents) {
    Weights<float> weights(3, 2, 2);
    weights.owned(1) = moe::Parameter<float>(1, 2);
    EXPECT_DEATH(weights.gradient(1), "as large as its matrix");
}
#endif

}  // namespace
}  // namespace weights_test
