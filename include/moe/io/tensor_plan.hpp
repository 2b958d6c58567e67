// SPDX-License-Identifier: MIT
#ifndef MOE_IO_TENSOR_PLAN_HPP
#define MOE_IO_TENSOR_PLAN_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <moe/core/block_codes.hpp>
#include <moe/core/dtype.hpp>
#include <moe/core/error.hpp>
#include <moe/core/types.hpp>
#include <moe/core/weights.hpp>
#include <moe/io/layout.hpp>
#include <moe/io/names.hpp>
#include <moe/io/tensor.hpp>
#include <moe/io/tensor_names.hpp>
#include <moe/io/text.hpp>

namespace moe::inline MOE_ABI::detail {

/// Inputs of MXFP4 that share a scale.
inline constexpr Index mxfp4_block = 32;

/// A matrix or vector of a layer, where a checkpoint has it. Its shape and dtypes are checked.
struct PlannedTensor {
    std::string parameter;
    TensorView tensor, scales;  ///< scales: only where the layout has a coding
    TensorSlice slice;

    bool is_mxfp4() const { return slice.layout.coding == Coding::mxfp4; }
    bool is_coded() const { return is_mxfp4() || tensor.dtype == Dtype::f8_e4m3; }

    /// Rows and columns of codes that share a scale, and rows and columns of an expert's scales.
    Index block_rows() const { return is_mxfp4() ? 1 : slice.layout.block; }
    Index block_cols() const { return is_mxfp4() ? mxfp4_block : slice.layout.block; }
    Index scale_rows() const { return parts(slice.outputs(), block_rows()); }
    Index scale_cols() const { return parts(slice.cols, block_cols()); }

    /// A view of the elements for a layer of S.
    /// @throws FormatError if that cannot read them where they lie
    template <class S>
    WeightView view() const {
        const bool narrow = tensor.dtype == Dtype::bf16 || tensor.dtype == Dtype::f16;
        if (is_coded() || (tensor.dtype != dtype_of<S> && !(std::is_same_v<S, float> && narrow)))
            fail<FormatError>("moe::bind: tensor ", in_quotes(tensor.name), " for ", parameter,
                              " holds ", dtype_name(tensor.dtype), ", a layer of ",
                              dtype_name(dtype_of<S>),
                              " cannot read that where it lies; moe::load converts it");
        const Index size = element_size(tensor.dtype);
        const std::byte* const data = tensor.bytes.data() + slice.offset() * size;
        if (reinterpret_cast<std::uintptr_t>(data) % static_cast<std::uintptr_t>(size) != 0)
            fail<FormatError>("moe::bind: tensor ", in_quotes(tensor.name),
                              " is at an address that is no multiple of ", size,
                              " and cannot be read where it lies; moe::load copies it");
        return {.data = data,
                .dtype = tensor.dtype,
                .rows = slice.rows,
                .cols = slice.cols,
                .row_stride = slice.row_stride(),
                .col_stride = slice.col_stride()};
    }

    /// A view of codes and scales.
    BlockCodes codes() const {
        const TensorSlice& s = slice;
        const Index first_scale =
            (s.index * scale_rows() + s.first_output() / block_rows()) * scale_cols();
        return {.data = tensor.bytes.data() + s.offset() / (is_mxfp4() ? 2 : 1),
                .dtype = tensor.dtype,
                .rows = s.rows,
                .cols = s.cols,
                .row_stride = s.row_stride(),
                .scales = {.data = scales.bytes.data() + first_scale * element_size(scales.dtype),
                           .dtype = scales.dtype,
                           .block_rows = block_rows(),
                           .block_cols = block_cols(),
                           .row_stride = s.output_step() * scale_cols()}};
    }

    /// Converts all elements to S: (i, j) goes to to[i * to_row + j * to_col].
    template <class S>
    void copy(S* to, Index to_row, Index to_col) const {
        if (is_coded()) {
            MOE_ASSERT(to_col == 1, "codes are decoded row by row");
            const BlockCodes all = codes();
            for (Index i = 0; i < slice.rows; ++i) decode_row(all, i, to + i * to_row);
            return;
        }
        const Index row = slice.row_stride(), col = slice.col_stride();
        const std::byte* const first =
            tensor.bytes.data() + slice.offset() * element_size(tensor.dtype);
        with_dtype(tensor.dtype, [&](auto stored) {
            constexpr Dtype dtype = decltype(stored)::value;
            for (Index i = 0; i < slice.rows; ++i)
                for (Index j = 0; j < slice.cols; ++j)
                    to[i * to_row + j * to_col] = static_cast<S>(
                        decode<dtype>(first + (i * row + j * col) * element_size(dtype)));
        });
    }

private:
    /// n / size, rounded up.
    static Index parts(Index n, Index size) { return n / size + (n % size != 0 ? 1 : 0); }
};

/// Finds the tensors of a layer in a checkpoint: want() each parameter, then find() all of them.
/// @tparam Checkpoint  SafetensorsView or Checkpoint: find(name), at(name), size(), a range
///                     of TensorView
template <class Checkpoint>
class TensorPlan {
public:
    /// @param who  begins messages
    TensorPlan(const Checkpoint& checkpoint, const Names& names, const char* who)
        : checkpoint_(checkpoint), names_(names), who_(who), prefix_(choose_prefix()) {
        if (names.table().empty()) detail::fail(who, ": the names are empty; see moe::Names");
    }

    /// A vector may be a column, too.
    /// @throws FormatError if there is no such tensor, or as find() if it is this parameter's alone
    void want(std::string parameter, Index rows, Index cols) {
        const std::vector<TensorPlace> places = names_.places(parameter, prefix_);
        for (const TensorPlace& place : places) {
            const TensorView* const tensor = checkpoint_.find(place.tensor);
            const bool mxfp4 = place.layout.coding == Coding::mxfp4;
            if (tensor == nullptr || (mxfp4 && tensor->dtype != Dtype::u8)) continue;
            PlannedTensor found{
                .parameter = std::move(parameter),
                .tensor = *tensor,
                .scales = {},
                .slice = {
                    .layout = place.layout, .rows = rows, .cols = cols, .experts = 1, .index = 0}};
            if (found.is_coded()) {
                if (place.scales.empty())
                    refuse(found, " is of ", dtype_name(tensor->dtype),
                           ", and the names say nothing of its scales");
                found.scales = checkpoint_.at(place.scales);
            }
            if (found.slice.is_vector()) found.slice.make_row(who_, found.parameter);
            if (place.layout.stacking != Stacking::separate) {
                found.slice.index = place.index;
                Index& experts = stacked_[found.tensor.name];
                experts = std::max(experts, place.index + 1);
            } else {
                check(found);
            }
            tensors_.push_back(std::move(found));
            return;
        }
        fail_missing(parameter, places);
    }

    /// What was wanted, in that order.
    /// @throws FormatError if a tensor has another shape than its layout says or a dtype without
    ///         values, or if tensors of the layer are left over
    const std::vector<PlannedTensor>& find() {
        for (PlannedTensor& found : tensors_) {
            if (found.slice.layout.stacking == Stacking::separate) continue;  // checked by want()
            found.slice.experts = stacked_[found.tensor.name];
            check(found);
        }
        check_left_over();
        return tensors_;
    }

private:
    /// A parameter that the first entry of the table is of.
    std::string front() const {
        const TensorName& entry = names_.table().front();
        return Names::with_number(entry.parameter, entry.first);
    }
    std::size_t choose_prefix() const {
        for (std::size_t i = 0; i < names_.prefixes().size(); ++i)
            for (const TensorPlace& place : names_.places(front(), i))
                if (checkpoint_.find(place.tensor) != nullptr) return i;
        return 0;
    }

    void check(const PlannedTensor& found) const {
        const TensorSlice& s = found.slice;
        if (found.is_coded()) return check_coded(found);
        check_shape(found, found.tensor, s.shape(), s.fits(found.tensor.shape));
        using enum Dtype;
        const Dtype dtype = found.tensor.dtype;
        if (dtype != f64 && dtype != f32 && dtype != bf16 && dtype != f16)
            refuse(found, " is of dtype ", in_quotes(found.tensor.dtype_text),
                   ", weights are F64, F32, BF16 or F16, or codes that the names say");
    }
    void check_coded(const PlannedTensor& found) const {
        const TensorSlice& s = found.slice;
        const bool fp8 = !found.is_mxfp4();
        if (s.layout.orientation != Orientation::out_in || s.layout.stacking == Stacking::rows ||
            (fp8 && s.layout.part != Part::whole) || (!fp8 && s.cols % mxfp4_block != 0))
            refuse(found, " is coded in blocks that do not follow its layout; see moe::Coding");
        Extents shape, scales;
        if (s.layout.stacking == Stacking::leading) {
            shape.push_back(s.experts);
            scales.push_back(s.experts);
        }
        shape.push_back(s.outputs());
        scales.push_back(found.scale_rows());
        scales.push_back(found.scale_cols());
        if (fp8) {
            shape.push_back(s.cols);
        } else {
            shape.push_back(s.cols / mxfp4_block);
            shape.push_back(mxfp4_block / 2);
        }
        check_shape(found, found.tensor, shape, found.tensor.shape == shape);
        check_shape(found, found.scales, scales, found.scales.shape == scales);
        using enum Dtype;
        const Dtype dtype = found.scales.dtype;
        if (dtype != u8 && (!fp8 || (dtype != f32 && dtype != bf16 && dtype != f16)))
            refuse(found, " has scales of dtype ", in_quotes(found.scales.dtype_text), ", ",
                   fp8 ? "F32, BF16, F16 or U8" : "U8", " can be read");
        check_block_codes(who_, found.codes());
    }
    void check_shape(const PlannedTensor& found, const TensorView& tensor, const Extents& wanted,
                     bool fits) const {
        if (!fits)
            detail::fail<FormatError>(
                who_, ": tensor ", in_quotes(tensor.name), " has shape ", to_string(tensor.shape),
                ", ", found.parameter, " [", found.slice.rows, ", ", found.slice.cols, "] needs ",
                to_string(wanted), "; are extents, counts and names those of the model?");
    }
    template <class... Parts>
    [[noreturn]] void refuse(const PlannedTensor& found, const Parts&... parts) const {
        detail::fail<FormatError>(who_, ": tensor ", in_quotes(found.tensor.name), " for ",
                                  found.parameter, parts...);
    }

    /// A tensor of the layer that nothing asked for would be left out of its results.
    void check_left_over() const {
        std::set<std::string_view> used;
        for (const PlannedTensor& found : tensors_) {
            used.insert(found.tensor.name);
            if (found.is_coded()) used.insert(found.scales.name);
        }
        const std::string& prefix = names_.prefixes()[prefix_];
        for (const TensorView& tensor : checkpoint_)
            if (tensor.name.starts_with(prefix) && !used.contains(tensor.name) &&
                !names_.is_unread(tensor.name, prefix_))
                detail::fail<FormatError>(
                    who_, ": the checkpoint has ", in_quotes(tensor.name), " ",
                    to_string(tensor.shape),
                    ", which no parameter of the layer is; are its recipes, counts and names those "
                    "of the model?");
    }

    [[noreturn]] void fail_missing(const std::string& parameter,
                                   const std::vector<TensorPlace>& places) const {
        if (places.empty())
            detail::fail(who_, ": the names say nothing of ", in_quotes(parameter),
                         ", which the layer has; are these the names of such a layer?");
        constexpr const char* remedy = "; are layer, recipes and counts those of the model?";
        if (places.size() == 1 && checkpoint_.find(places.front().tensor) == nullptr)
            detail::fail_missing(who_, checkpoint_, places.front().tensor, " for " + parameter,
                                 remedy);
        std::string tried;
        for (const TensorPlace& place : places)
            tried += (tried.empty() ? "" : " or ") + in_quotes(place.tensor);
        detail::fail<FormatError>(who_, ": the checkpoint has no tensor ", tried, " for ",
                                  parameter, ", or not of a dtype that its layout names", remedy);
    }

    const Checkpoint& checkpoint_;
    const Names& names_;
    const char* who_;
    std::size_t prefix_;
    std::vector<PlannedTensor> tensors_;
    std::map<std::string_view, Index> stacked_;  // experts that a tensor has to hold
};

}  // namespace moe::inline MOE_ABI::detail

#endif  // MOE_IO_TENSOR_PLAN_HPP
