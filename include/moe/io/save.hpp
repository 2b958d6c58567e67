// SPDX-License-Identifier: MIT
#ifndef MOE_IO_SAVE_HPP
#define MOE_IO_SAVE_HPP

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
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

/// The nearest T, ties to even. Eigen's narrow types go by way of float; that must not round first,
/// so the float is one with an odd last bit wherever `value` is between two: it then lies on the
/// same side of every border of T.
template <class T>
T narrowed(double value) {
    if constexpr (sizeof(T) >= sizeof(float)) {
        return static_cast<T>(value);
    } else {
        const auto near = static_cast<float>(value);
        auto bits = std::bit_cast<std::uint32_t>(near);
        const double back = near;
        if (std::isfinite(value) && back != value && bits % 2 == 0)
            bits += std::abs(back) > std::abs(value) ? ~std::uint32_t{0} : 1u;
        return static_cast<T>(std::bit_cast<float>(bits));
    }
}

/// [rows, cols] elements of S or of a view to the bytes of a tensor of T.
template <class T>
void store(const SavedMatrix& matrix, std::span<T> tensor) {
    const WeightView& w = matrix.from;
    const auto* const data = static_cast<const std::byte*>(w.data);
    const TensorSlice& s = matrix.slice;
    for (Index i = 0; i < w.rows; ++i)
        for (Index j = 0; j < w.cols; ++j) {
            auto value = read_element<double>(
                w.dtype, data + (i * w.row_stride + j * w.col_stride) * element_size(w.dtype));
            if (w.scales != nullptr)  // rounded once: the product is exact in double
                value = static_cast<float>(value * static_cast<double>(w.scales[i]));
            tensor[static_cast<std::size_t>(s.offset() + i * s.row_stride() + j * s.col_stride())] =
                narrowed<T>(value);
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

    /// A parameter without values: a tensor for all experts has a place for it.
    void leave_out(std::string_view parameter) {
        if (const auto place = place_of(parameter)) count_expert(*place);
    }

    void add(std::string parameter, const WeightView& from, Role role) {
        const std::optional<TensorPlace> place = place_of(parameter);
        if (!place)
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
        SavedMatrix& part = parts.back();
        if (part.slice.is_vector()) {
            part.slice.make_row("moe::save", part.parameter);
            if (from.rows != 1)  // a column
                part.from.rows = 1, part.from.cols = from.rows,
                part.from.col_stride = from.row_stride;
        }
        if (place->layout.stacking != Stacking::separate) part.slice.index = place->index;
        check_free(place->tensor, parts);
        count_expert(*place);
    }

    void write(SafetensorsWriter& writer) {
        for (auto& [name, parts] : tensors_) {
            const Index experts = experts_[name];
            for (SavedMatrix& part : parts) part.slice.experts = experts;
            for (const SavedMatrix& part : parts) check_shape(name, part, parts.front());
        }
        for (const auto& [name, parts] : tensors_) {
            const Extents shape = parts.front().slice.shape();
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
    /// Where a parameter is written, if the names say it.
    std::optional<TensorPlace> place_of(std::string_view parameter) const {
        for (TensorPlace& place : names_.places(parameter))
            if (place.layout.coding == Coding::plain) return std::move(place);
        return {};
    }
    /// A tensor for all experts holds this one, too.
    void count_expert(const TensorPlace& place) {
        Index& experts = experts_[options_.prefix + place.tensor];
        const bool separate = place.layout.stacking == Stacking::separate;
        experts = std::max(experts, separate ? Index{1} : place.index + 1);
    }

    static void check_shape(const std::string& name, const SavedMatrix& part,
                            const SavedMatrix& first) {
        const Extents one = part.slice.shape(), other = first.slice.shape();
        if (!(one == other))
            fail("moe::save: tensor ", in_quotes(name), " would be ", to_string(one), " for ",
                 part.parameter, " and ", to_string(other), " for ", first.parameter);
    }

    /// The last part must not go where another one is.
    static void check_free(const std::string& tensor, const std::vector<SavedMatrix>& parts) {
        const SavedMatrix& last = parts.back();
        const Part whole = Part::whole, part = last.slice.layout.part;
        for (const SavedMatrix& other : std::span(parts).first(parts.size() - 1)) {
            const Part of = other.slice.layout.part;
            if (other.slice.index == last.slice.index &&
                (of == part || of == whole || part == whole))
                fail("moe::save: ", other.parameter, " and ", last.parameter,
                     " would be the same elements of ", in_quotes(tensor),
                     "; the names are those of no such layer");
        }
    }

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
    std::map<std::string, Index, std::less<>> experts_;  // that each tensor holds
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
/// @throws std::invalid_argument if the names do not fit the layer, or if it is frozen, which
///         save_frozen() is for; or as SafetensorsWriter::add()
template <class Layer>
void save(const Layer& layer, const Names& names, SafetensorsWriter& writer,
          const SaveOptions& options = {}) {
    using S = typename Layer::Scalar;
    constexpr const char* packed =
        ": its experts are packed; save the layer that it was made of, or moe::save_frozen";
    if constexpr (requires { layer.bank(); })
        detail::visit_packed(layer.bank(), [&](const std::string&, const auto&, Index) {
            detail::fail("moe::save: the layer is frozen", packed);
        });
    if constexpr (requires { layer.is_trainable(); })  // AnyLayer
        if (!layer.is_trainable())
            detail::fail("moe::save: the layer inside is for inference only", packed);
    detail::SavePlan plan(names, options);
    bool shows = false;
    visit_parameters(layer, [&](std::string_view name, const auto& matrix, Role role) {
        using T = typename std::remove_cvref_t<decltype(matrix)>::Scalar;
        shows = true;
        if (matrix.size() == 0) return plan.leave_out(name);
        plan.add(std::string(name),
                 {.data = matrix.data(),
                  .dtype = dtype_of<T>,
                  .rows = matrix.rows(),
                  .cols = matrix.cols(),
                  .row_stride = detail::steps_of(matrix).row,
                  .col_stride = detail::steps_of(matrix).col},
                 role);
    });
    detail::visit_weights(
        layer, [&](const std::string& pattern, const Weights<S>& weights, Index first) {
            shows = true;
            if (weights.is_coded() || weights.is_deferred())
                detail::fail("moe::save: ", pattern,
                             weights.is_coded() ? " are codes; moe::load makes values of them"
                                                : " have no values yet");
            for (Index e = 0; weights.is_bound() && e < weights.count(); ++e)
                plan.add(Names::with_number(pattern, first + e), weights[e], Role::trainable);
        });
    if (const Index count = shows ? 0 : num_parameters(layer); count > 0)
        detail::fail("moe::save: the layer shows none of its ", count,
                     " parameters, as a frozen layer does; moe::save_frozen saves one");
    plan.write(writer);
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_IO_SAVE_HPP
