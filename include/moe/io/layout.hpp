// SPDX-License-Identifier: MIT
#ifndef MOE_IO_LAYOUT_HPP
#define MOE_IO_LAYOUT_HPP

#include <string>

#include <moe/core/error.hpp>
#include <moe/core/types.hpp>
#include <moe/io/tensor.hpp>

namespace moe::inline MOE_ABI {

/// How a checkpoint stores the matrix W [out, in] of y = W x.
enum class Orientation {
    out_in,  ///< [out, in], as torch.nn.Linear
    in_out,  ///< [in, out], for y = x W
    vector,  ///< [out] or [1, out]: a bias, one value per output
};

/// Where the matrices of several experts are.
enum class Stacking {
    separate,  ///< a tensor for each: "experts.#.w1.weight"
    leading,   ///< one tensor with a dimension in front, of one entry per expert
    rows,      ///< one tensor, the first dimension of each expert behind that of the one before
};

/// Which outputs of the tensor are the matrix; the others are another's, up beside gate.
///
/// A new one goes here and into first_output() and output_step() below. One whose outputs are not
/// evenly apart (turns of 16 rows) has no row_stride, and no WeightView either: copy
/// such rows apart into memory of your own and view that.
enum class Part { whole, first_half, second_half, even, odd };

/// What an element is.
///
/// A new one goes here and into io/tensor_plan.hpp: PlannedTensor (is_coded() to codes()), want()
/// and check_coded(); with codes that are not those of BlockCodes into core/block_codes.hpp, too:
/// check_block_codes() and decode_row().
enum class Coding {
    plain,  ///< the dtype says it; F8_E4M3 has a scale per block in another tensor (DeepSeek-V3)
    mxfp4,  ///< U8, pairs of E2M1, and an E8M0 scale for every 32 inputs in another (gpt-oss)
};

/// Where a matrix lies within a tensor of a checkpoint: part of a model's description, never
/// guessed from extents, so that a square matrix is read the right way, too.
struct Layout {
    Orientation orientation = Orientation::out_in;
    Stacking stacking = Stacking::separate;
    Part part = Part::whole;
    Coding coding = Coding::plain;
    Index block = 128;  ///< rows and columns of F8_E4M3 that share a scale
};

namespace detail {

/// A matrix [out, in], or vector [1, out], of one expert in a tensor of all of them.
struct TensorSlice {
    Layout layout;
    Index rows, cols;  ///< of the matrix here: a vector is [1, out]
    Index experts;     ///< whose matrices the tensor holds
    Index index;       ///< which of them this is

    bool is_vector() const { return layout.orientation == Orientation::vector; }
    /// Turns a vector that is a column into a row.
    /// @throws std::invalid_argument if it is a matrix
    void make_row(const char* who, const std::string& parameter) {
        if (rows != 1 && cols != 1)
            fail(who, ": the names say that ", parameter, " is a vector, but it is [", rows, ", ",
                 cols, "]; give it another moe::Orientation");
        cols = checked_product(rows, cols);
        rows = 1;
    }
    /// Outputs of the tensor, those of the other part included.
    Index outputs() const {
        return checked_product(is_vector() ? cols : rows, layout.part == Part::whole ? 1 : 2);
    }

    /// The shape that the tensor must have.
    Extents shape() const {
        Extents shape;
        const bool leading = layout.stacking == Stacking::leading;
        const Index times = layout.stacking == Stacking::rows ? experts : 1;
        if (leading) shape.push_back(experts);
        if (layout.orientation == Orientation::in_out) {
            shape.push_back(checked_product(times, cols));
            shape.push_back(outputs());
        } else {
            shape.push_back(checked_product(times, outputs()));
            if (!is_vector()) shape.push_back(cols);
        }
        return shape;
    }
    /// Whether a tensor of that shape is laid out so: a vector may be a row, too.
    bool fits(const Extents& found) const {
        const Extents wanted = shape();
        if (found == wanted) return true;
        return is_vector() && wanted.size() == 1 && found.size() == 2 && found[0] == 1 &&
               found[1] == wanted[0];
    }

    /// Element (i, j) is element offset() + i row_stride() + j col_stride() of the tensor.
    Index offset() const { return index * outputs() * inputs() + first_output() * output_stride(); }
    Index row_stride() const { return is_vector() ? 0 : output_step() * output_stride(); }
    Index col_stride() const {
        if (is_vector()) return output_step();
        return layout.orientation == Orientation::in_out ? outputs() : 1;
    }

    /// The first output of the tensor that is one of the matrix, and the distance to the next.
    Index first_output() const {
        switch (layout.part) {  // no default: a new part is a warning here
            case Part::whole:
            case Part::first_half:
            case Part::even:
                return 0;
            case Part::second_half:
                return outputs() / 2;
            case Part::odd:
                return 1;
        }
        return 0;
    }
    Index output_step() const {
        switch (layout.part) {
            case Part::whole:
            case Part::first_half:
            case Part::second_half:
                return 1;
            case Part::even:
            case Part::odd:
                return 2;
        }
        return 1;
    }

private:
    Index inputs() const { return is_vector() ? 1 : cols; }
    /// Elements from one output of the tensor to the next.
    Index output_stride() const { return layout.orientation == Orientation::in_out ? 1 : inputs(); }
};

}  // namespace detail
}  // namespace moe::inline MOE_ABI

#endif  // MOE_IO_LAYOUT_HPP
