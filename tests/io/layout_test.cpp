// SPDX-License-Identifier: MIT
#include <moe/io/layout.hpp>

#include <cstddef>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "io/stored.hpp"
#include "support/message.hpp"

namespace layout_test {
namespace {

using moe::Extents;
using moe::Index;
using moe::Layout;
using moe::Orientation;
using moe::Part;
using moe::Stacking;
using moe::detail::TensorSlice;
using stored::Rows;

/// Whether slice and tensor agree on every element of matrix `index`.
void expect_elements(const TensorSlice& slice, const std::vector<double>& tensor,
                     const Rows& matrix) {
    for (Index i = 0; i < slice.rows; ++i)
        for (Index j = 0; j < slice.cols; ++j)
            ASSERT_EQ(tensor.at(static_cast<std::size_t>(slice.offset() + i * slice.row_stride() +
                                                         j * slice.col_stride())),
                      matrix[static_cast<std::size_t>(i)][static_cast<std::size_t>(j)])
                << i << ", " << j;
}

/// The matrices [out, in] of an expert as a tensor has them: one, or two parts of a pair.
Rows as_stored(const Rows& a, const Rows& b, Part part, Orientation orientation) {
    Rows outputs = part == Part::whole ? a : stored::joined(a, b, part == Part::even);
    return orientation == Orientation::in_out ? stored::transposed(outputs) : outputs;
}

TEST(TensorSlice, FindsEveryElementOfEveryLayoutWhereTheDefinitionPutsIt) {
    constexpr Index experts = 3;
    for (const Index rows : {2, 5})  // 5 x 5 is square
        for (const Orientation orientation : {Orientation::out_in, Orientation::in_out})
            for (const Stacking stacking : {Stacking::separate, Stacking::leading, Stacking::rows})
                for (const Part part : {Part::whole, Part::first_half, Part::even}) {
                    const Index cols = 5, outputs = part == Part::whole ? rows : 2 * rows;
                    std::vector<Rows> all;
                    for (Index e = 0; e < experts; ++e)
                        all.push_back(as_stored(stored::matrix(rows, cols, e),
                                                stored::matrix(rows, cols, 10 + e), part,
                                                orientation));
                    const bool in_out = orientation == Orientation::in_out;
                    const Index first = in_out ? cols : outputs, second = in_out ? outputs : cols;
                    for (Index e = 0; e < experts; ++e) {
                        SCOPED_TRACE(e);
                        const bool alone = stacking == Stacking::separate;
                        const auto tensor = stored::elements<double>(
                            alone ? std::vector<Rows>{all[static_cast<std::size_t>(e)]} : all);
                        TensorSlice slice{.layout = {.orientation = orientation,
                                                     .stacking = stacking,
                                                     .part = part},
                                          .rows = rows,
                                          .cols = cols,
                                          .experts = alone ? 1 : experts,
                                          .index = alone ? 0 : e};
                        const Extents shape =
                            stacking == Stacking::leading ? Extents{experts, first, second}
                            : stacking == Stacking::rows  ? Extents{experts * first, second}
                                                          : Extents{first, second};
                        EXPECT_EQ(slice.shape(), shape);
                        EXPECT_TRUE(slice.fits(shape));
                        EXPECT_EQ(shape.product(), static_cast<Index>(tensor.size()));
                        expect_elements(slice, tensor, stored::matrix(rows, cols, e));
                        if (part == Part::whole) continue;
                        slice.layout.part = part == Part::even ? Part::odd : Part::second_half;
                        EXPECT_EQ(slice.shape(), shape);
                        expect_elements(slice, tensor, stored::matrix(rows, cols, 10 + e));
                    }
                }
}

TEST(TensorSlice, FindsVectors) {
    constexpr Index experts = 3, n = 4;
    for (const Stacking stacking : {Stacking::separate, Stacking::leading, Stacking::rows})
        for (const Part part : {Part::whole, Part::first_half, Part::even}) {
            std::vector<Rows> all;
            for (Index e = 0; e < experts; ++e)
                all.push_back(as_stored(stored::matrix(n, 1, e), stored::matrix(n, 1, 10 + e), part,
                                        Orientation::out_in));
            const Index size = part == Part::whole ? n : 2 * n;
            for (Index e = 0; e < experts; ++e) {
                const bool alone = stacking == Stacking::separate;
                const auto tensor = stored::elements<double>(
                    alone ? std::vector<Rows>{all[static_cast<std::size_t>(e)]} : all);
                TensorSlice slice{.layout = {.orientation = Orientation::vector,
                                             .stacking = stacking,
                                             .part = part},
                                  .rows = 1,
                                  .cols = n,
                                  .experts = alone ? 1 : experts,
                                  .index = alone ? 0 : e};
                const Extents shape = stacking == Stacking::leading ? Extents{experts, size}
                                      : stacking == Stacking::rows  ? Extents{experts * size}
                                                                    : Extents{size};
                EXPECT_EQ(slice.shape(), shape);
                expect_elements(slice, tensor, stored::transposed(stored::matrix(n, 1, e)));
                if (part == Part::whole) continue;
                slice.layout.part = part == Part::even ? Part::odd : Part::second_half;
                expect_elements(slice, tensor, stored::transposed(stored::matrix(n, 1, 10 + e)));
            }
        }
}

TEST(TensorSlice, TakesAVectorAsARowAndNothingElseOfAnotherShape) {
    const TensorSlice vector{.layout = {.orientation = Orientation::vector},
                             .rows = 1,
                             .cols = 4,
                             .experts = 1,
                             .index = 0};
    EXPECT_TRUE(vector.fits({4}));
    EXPECT_TRUE(vector.fits({1, 4}));
    for (const Extents& wrong : {Extents{4, 1}, Extents{1, 1, 4}, Extents{5}, Extents{}})
        EXPECT_FALSE(vector.fits(wrong)) << to_string(wrong);

    TensorSlice stacked = vector;
    stacked.layout.stacking = Stacking::leading;
    stacked.experts = 3;
    EXPECT_TRUE(stacked.fits({3, 4}));
    EXPECT_FALSE(stacked.fits({1, 12}));

    const TensorSlice matrix{.layout = {}, .rows = 2, .cols = 4, .experts = 1, .index = 0};
    EXPECT_TRUE(matrix.fits({2, 4}));
    for (const Extents& wrong : {Extents{4, 2}, Extents{8}, Extents{1, 2, 4}, Extents{2, 5}})
        EXPECT_FALSE(matrix.fits(wrong)) << to_string(wrong);
}

TEST(TensorSlice, TurnsAColumnIntoARowAndRefusesAMatrix) {
    TensorSlice slice{.layout = {.orientation = Orientation::vector},
                      .rows = 4,
                      .cols = 1,
                      .experts = 1,
                      .index = 0};
    slice.make_row("moe::load", "gate.bias");
    EXPECT_EQ(slice.rows, 1);
    EXPECT_EQ(slice.cols, 4);

    slice.rows = 2;
    const std::string text =
        support::message([&] { slice.make_row("moe::load", "router.weight"); });
    for (const char* const part : {"moe::load", "router.weight", "[2, 4]", "Orientation"})
        EXPECT_NE(text.find(part), std::string::npos) << text;
}

TEST(TensorSlice, RefusesExtentsThatOverflow) {
    constexpr Index most = std::numeric_limits<Index>::max();
    const auto slice = [](Index rows, Index cols, Index experts, Stacking stacking, Part part,
                          Orientation orientation) {
        return TensorSlice{
            .layout = {.orientation = orientation, .stacking = stacking, .part = part},
            .rows = rows,
            .cols = cols,
            .experts = experts,
            .index = 0};
    };
    using enum Orientation;
    EXPECT_THROW(slice(most / 2 + 1, 1, 1, Stacking::separate, Part::even, out_in).shape(),
                 std::length_error);
    EXPECT_THROW(slice(most / 2, 1, 3, Stacking::rows, Part::whole, out_in).shape(),
                 std::length_error);
    EXPECT_THROW(slice(1, most / 2, 3, Stacking::rows, Part::whole, in_out).shape(),
                 std::length_error);
    EXPECT_THROW(slice(1, most / 2 + 1, 1, Stacking::separate, Part::second_half, vector).shape(),
                 std::length_error);
    const Extents wide = slice(most / 2, 2, 1, Stacking::separate, Part::even, out_in).shape();
    EXPECT_THROW(wide.product(), std::length_error);
}

}  // namespace
}  // namespace layout_test
