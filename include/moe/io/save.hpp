// SPDX-License-Identifier: MIT
#ifndef MOE_IO_SAVE_HPP
#define MOE_IO_SAVE_HPP

#include <algorithm>
#include <cstddef>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <moe/core/dtype.hpp>
#include <moe/core/error.hpp>
#include <moe/core/parameters.hpp>
#include <moe/core/weights.hpp>
#include <moe/io/bind.hpp>
#include <moe/io/layout.hpp>
#include <moe/io/names.hpp>
#include <moe/io/safetensors_writer.hpp>
#include <moe/io/text.hpp>

namespace moe::inline MOE_ABI {

/// How moe::save() stores values.
struct SaveOptions {
    /// F32, F64, BF16 or F16, rounded to nearest. States (selection biases) are F32 at least, as
    /// published checkpoints have them.
    Dtype dtype = Dtype::f32;
    std::string prefix{};  ///< in front of every name: "grad."
};

namespace detail {

/// A parameter and where save() puts it.
struct SavedMatrix {
    std::string parameter;
    WeightView from;
    TensorSlice slice;
    Dtype dtype;
};

/// [rows, cols] elements of S or of a view to the bytes of a tensor of T.
template <class T>
void store(const SavedMatrix& matrix, std::span<T> tensor) {
    const WeightView& w = matrix.from;
    const auto* const data = static_cast<const std::byte*>(w.data);
    const TensorSlice& s = matrix.slice;
    for (Index i = 0; i < w.rows; ++i)
        for (Index j = 0; j < w.cols; ++j) {
            const auto value = read_element<double>(
                w.dtype, data + (i * w.row_stride + j * w.col_stride) * element_size(w.dtype));
            tensor[static_cast<std::size_t>(s.offset() + i * s.row_stride() + j * s.col_stride())] =
                static_cast<T>(value);
        }
}

/// The tensors that the parameters of a layer become.
class SavePlan {
public:
    SavePlan(const Names& names, const SaveOptions& options) : names_(names), options_(options) {
        using enum Dtype;
        if (options.dtype != f32 && options.dtype != f64 && options.dtype != bf16 &&
            options.dtype != f16)
            fail("moe::save: the dtype is ", dtype_name(options.dtype),
                 ", it must be F32, F64, BF16 or F16");
    }

    void add(std::string parameter, const WeightView& from, Role role) {
        const std::vector<TensorPlace> places = names_.places(parameter);
        const auto place = std::find_if(places.begin(), places.end(), [](const TensorPlace& p) {
            return p.layout.coding == Coding::plain;
        });
        if (place == places.end())
            fail("moe::save: the names say nothing of ", in_quotes(parameter),
                 ", which the layer has; are these the names of such a layer?");
        const bool wide = options_.dtype == Dtype::f32 || options_.dtype == Dtype::f64;
        std::vector<SavedMatrix>& parts = tensors_[options_.prefix + place->tensor];
        parts.push_back({.parameter = std::move(parameter),
                         .from = from,
                         .slice = {.layout = place->layout,
                                   .rows = from.rows,
                                   .cols = from.cols,
                                   .experts = 1,
                                   .index = 0},
                         .dtype = role == Role::state && !wide ? Dtype::f32 : options_.dtype});
        if (place->layout.stacking == Stacking::separate) return;
        parts.back().slice.index = place->index;
        const Index experts = std::max(parts.front().slice.experts, place->index + 1);
        for (SavedMatrix& part : parts) part.slice.experts = experts;
    }

    void write(SafetensorsWriter& writer) const {
        for (const auto& [name, parts] : tensors_) {
            const Extents shape = parts.front().slice.shape();
            for (const SavedMatrix& part : parts)
                if (!(part.slice.shape() == shape))
                    fail("moe::save: tensor ", in_quotes(name), " would be ",
                         to_string(part.slice.shape()), " for ", part.parameter, " and ",
                         to_string(shape), " for ", parts.front().parameter);
            switch (parts.front().dtype) {
                case Dtype::f64:
                    write<double>(name, shape, parts, writer);
                    break;
                case Dtype::bf16:
                    write<Eigen::bfloat16>(name, shape, parts, writer);
                    break;
                case Dtype::f16:
                    write<Eigen::half>(name, shape, parts, writer);
                    break;
                default:
                    write<float>(name, shape, parts, writer);
            }
        }
    }

private:
    template <class T>
    static void write(const std::string& name, const Extents& shape,
                      const std::vector<SavedMatrix>& parts, SafetensorsWriter& writer) {
        std::vector<T> values(static_cast<std::size_t>(shape.product()), T(0));
        for (const SavedMatrix& part : parts) store<T>(part, values);
        writer.add(name, std::span<const T>(values), shape);
    }

    const Names& names_;
    const SaveOptions& options_;
    std::map<std::string, std::vector<SavedMatrix>, std::less<>> tensors_;
};

}  // namespace detail

/// Adds all parameters and states of a layer, or of a gradient, to a file under the names of a
/// checkpoint and laid out as it has them: what a program that reads such models loads.
///
///     moe::SafetensorsWriter writer;
///     moe::save(layer, moe::names::mixtral("model.layers.0.block_sparse_moe"), writer);
///     moe::save(grad, names, writer, {.prefix = "grad."});     // of the same names
///
/// Gradients that are not wanted are left out; where they share a tensor with others, they are 0.
/// @throws std::invalid_argument if the names do not fit the layer, or as SafetensorsWriter::add()
template <class Layer>
void save(const Layer& layer, const Names& names, SafetensorsWriter& writer,
          const SaveOptions& options = {}) {
    using S = typename Layer::Scalar;
    detail::SavePlan plan(names, options);
    visit_parameters(layer, [&](std::string_view name, const auto& matrix, Role role) {
        using T = typename std::remove_cvref_t<decltype(matrix)>::Scalar;
        if (matrix.size() == 0) return;
        plan.add(std::string(name),
                 {.data = matrix.data(),
                  .dtype = dtype_of<T>,
                  .rows = matrix.rows(),
                  .cols = matrix.cols(),
                  .row_stride = matrix.cols()},
                 role);
    });
    detail::visit_weights(
        const_cast<Layer&>(layer),  // only read
        [&](const std::string& pattern, const Weights<S>& weights, Index first) {
            if (weights.is_coded() || weights.is_deferred())
                detail::fail("moe::save: ", pattern,
                             weights.is_coded() ? " are codes; moe::load makes values of them"
                                                : " have no values yet");
            for (Index e = 0; weights.is_bound() && e < weights.count(); ++e)
                plan.add(Names::with_number(pattern, first + e), weights[e], Role::trainable);
        });
    plan.write(writer);
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_IO_SAVE_HPP
