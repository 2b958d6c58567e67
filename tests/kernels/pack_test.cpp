// SPDX-License-Identifier: MIT
#include <moe/kernels/pack.hpp>

#include <cstdint>
#include <limits>
#include <memory>
#include <stdexcept>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <moe/kernels/dispatch.hpp>

#include "guarded.hpp"

namespace {

using kernel_test::same;
using moe::Index;
using moe::PackedMatrix;
using moe::Strided;

TEST(PackedMatrix, IsAlignedAndPadsWithZeros) {
    const auto& t = moe::kernels<float>();
    const Index k = 5, cols = t.panel_width + 1;
    const std::vector<float> b(static_cast<std::size_t>(k * cols), 3.0f);
    PackedMatrix<float> packed;
    packed.pack(t, {b.data(), cols, 1}, k, cols);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(packed.panel(0)) % 64, 0U);
    EXPECT_EQ(packed.bytes(), 2 * k * t.panel_width * 4);
    for (Index p = 0; p < k; ++p)
        for (Index j = 0; j < t.panel_width; ++j)
            EXPECT_EQ(packed.panel(1)[p * t.panel_width + j], j == 0 ? 3.0f : 0.0f);
}

TEST(PackedMatrix, KeepsItsMemoryForSmallerMatrices) {
    const auto& t = moe::kernels<float>();
    PackedMatrix<float> packed;
    packed.resize(t, 64, 64);
    const Index bytes = packed.bytes();
    const float* before = packed.panel(0);
    packed.resize(t, 32, 40);
    EXPECT_EQ(packed.panel(0), before);
    EXPECT_EQ(packed.bytes(), bytes);
    EXPECT_EQ(packed.rows(), 32);
    EXPECT_EQ(packed.cols(), 40);
    PackedMatrix<float> moved = std::move(packed);
    EXPECT_EQ(moved.panel(0), before);
}

TEST(PackedMatrix, WhatWasMovedFromIsEmptyAndMayBePackedAgain) {
    const auto& t = moe::kernels<float>();
    const std::vector<float> b = {1, 2, 3, 4, 5, 6};
    PackedMatrix<float> first, second;
    first.pack(t, {b.data(), 3, 1}, 2, 3);
    const PackedMatrix<float> constructed = std::move(first);
    second.pack(t, {b.data(), 3, 1}, 2, 3);
    PackedMatrix<float> assigned;
    assigned = std::move(second);
    for (PackedMatrix<float>* from : {&first, &second}) {  // NOLINT(bugprone-use-after-move)
        EXPECT_EQ(from->table(), nullptr);
        EXPECT_EQ(from->panels(), 0);
        EXPECT_EQ(from->rows(), 0);
        EXPECT_EQ(from->cols(), 0);
        EXPECT_EQ(from->bytes(), 0);
        EXPECT_EQ(PackedMatrix<float>(*from).table(), nullptr);
        from->pack(t, {b.data(), 3, 1}, 2, 3);
        EXPECT_TRUE(same(2 * t.panel_width, from->panel(0), constructed.panel(0)));
    }
    EXPECT_TRUE(same(2 * t.panel_width, assigned.panel(0), constructed.panel(0)));
}

TEST(PackedMatrix, CopiesItsPanels) {
    const auto& t = moe::kernels<float>();
    const std::vector<float> b = {1, 2, 3, 4, 5, 6};
    PackedMatrix<float> packed, copy;
    copy = packed;  // nothing yet
    EXPECT_EQ(copy.table(), nullptr);
    packed.pack(t, {b.data(), 3, 1}, 2, 3);
    copy = packed;
    ASSERT_EQ(copy.panels(), 1);
    EXPECT_NE(copy.panel(0), packed.panel(0));
    EXPECT_TRUE(same(2 * t.panel_width, copy.panel(0), packed.panel(0)));
}

TEST(PackedMatrix, RefusesExtentsThatOverflow) {
    const auto& t = moe::kernels<float>();
    PackedMatrix<float> packed;
    const Index huge = std::numeric_limits<Index>::max() / 2;
    EXPECT_THROW(packed.resize(t, huge, 64), std::length_error);
    EXPECT_THROW(packed.resize(t, 64, huge), std::length_error);
    EXPECT_THROW(packed.resize(t, huge / 32, 32), std::length_error);  // elements fit, bytes do not
    EXPECT_EQ(packed.table(), nullptr);
    EXPECT_EQ(packed.panels(), 0);
}

TEST(Strided, TransposesByExchangingItsStrides) {
    const float data[6] = {0, 1, 2, 3, 4, 5};
    const Strided<float> a{data, 3, 1};
    EXPECT_EQ(a.transpose().row_stride, 1);
    EXPECT_EQ(a.transpose().col_stride, 3);
    EXPECT_EQ(a.transpose().data, data);
}

#if !defined(NDEBUG)
TEST(PackDeathTest, ADebugBuildCatchesPanelsThatAreNotThere) {
    const auto& t = moe::kernels<float>();
    const std::vector<float> b(4);
    PackedMatrix<float> packed;
    EXPECT_DEATH(packed.panel(0), "a panel of the matrix");
    EXPECT_DEATH(packed.pack({b.data(), 2, 1}, 0, 1), "resize");
    packed.resize(t, 2, 2);
    EXPECT_DEATH(packed.pack({b.data(), 2, 1}, 0, 2), "panels of the matrix");
    EXPECT_DEATH(packed.panel(-1), "a panel of the matrix");
}
#endif

TEST(PackedMatrix, ViewsPanelsOfSomebodyElse) {
    const auto& t = moe::kernels<float>();
    const Index k = 5, cols = t.panel_width + 1;
    const std::vector<float> b(static_cast<std::size_t>(k * cols), 3.0f);
    PackedMatrix<float> packed;
    packed.pack(t, {b.data(), cols, 1}, k, cols);
    const auto owner = std::make_shared<PackedMatrix<float>>(packed);
    auto view = PackedMatrix<float>::of_view(t, k, cols, owner->panel(0), owner);
    EXPECT_TRUE(view.is_view());
    EXPECT_FALSE(packed.is_view());
    PackedMatrix<float> copy = view, moved = std::move(view);
    EXPECT_EQ(copy.panel(0), owner->panel(0));
    EXPECT_EQ(moved.panel(1), owner->panel(1));
    EXPECT_EQ(copy.bytes(), packed.bytes());
    EXPECT_EQ(owner.use_count(), 3);
    view = copy;  // what was moved from may be used again
    EXPECT_EQ(view.panel(0), owner->panel(0));
    copy.pack(t, {b.data(), cols, 1}, k, 1);
    EXPECT_FALSE(copy.is_view());
    EXPECT_NE(copy.panel(0), owner->panel(0));
    moved = packed;
    EXPECT_FALSE(moved.is_view());
    view = {};
    EXPECT_EQ(owner.use_count(), 1) << "what is packed or assigned lets the owner go";
    EXPECT_EQ(owner->panel(0)[0], 3.0f);
}

}  // namespace
