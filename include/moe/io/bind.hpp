// SPDX-License-Identifier: MIT
#ifndef MOE_IO_BIND_HPP
#define MOE_IO_BIND_HPP

#include <algorithm>
#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <moe/core/block_codes.hpp>
#include <moe/core/error.hpp>
#include <moe/core/parameters.hpp>
#include <moe/core/weights.hpp>
#include <moe/io/names.hpp>
#include <moe/io/tensor_plan.hpp>
#include <moe/layer.hpp>

namespace moe::inline MOE_ABI {
namespace detail {

/// What keeps a checkpoint's memory alive; null where the caller does.
template <class Checkpoint>
std::shared_ptr<const void> owner_of(const Checkpoint& checkpoint) {
    if constexpr (requires { checkpoint.owner(); })
        return checkpoint.owner();
    else
        return {};
}

/// Elements from row to row and from column to column of a parameter, which may be an Eigen object
/// of a user's type.
struct Steps {
    Index row, col;
};
template <class M>
Steps steps_of(const M& matrix) {
    if constexpr (requires { requires !M::IsRowMajor; })
        return {1, matrix.rows()};
    else
        return {matrix.cols(), 1};
}

/// Refuses counts and extents that a damaged file may give, before anything of that size is made:
/// each expert has model_dim weights at least, its own or the router's, of 4 bits at least.
template <class Checkpoint, class... Groups>
void check_size(const Checkpoint& checkpoint, const Config& config, const Groups&... groups) {
    double bytes = 0, experts = 0;
    for (const TensorView& tensor : checkpoint) bytes += static_cast<double>(tensor.bytes.size());
    const auto count = [&](const auto& group) {
        if constexpr (requires { group.count; }) experts += static_cast<double>(group.count);
    };
    (count(groups), ...);
    if (experts * static_cast<double>(config.model_dim) > 2 * bytes)
        fail<FormatError>("moe::bind: ", static_cast<Index>(std::min(experts, 1e18)),
                          " experts of model_dim ", config.model_dim,
                          " do not fit a checkpoint of ", static_cast<Index>(bytes),
                          " bytes; are extents, counts and names those of the model?");
}

/// A parameter that owns its memory.
struct OwnedParameter {
    std::string name;
    Index rows, cols;
    Steps steps;
    void* data;
    void (*convert)(const PlannedTensor& from, void* data, Steps steps);

    void copy(const PlannedTensor& from) const {
        const bool as_it_is = from.slice.rows == rows && from.slice.cols == cols;
        convert(from, data, as_it_is ? steps : Steps{0, 1});
    }
};

/// All of a layer.
template <class Layer>
std::vector<OwnedParameter> owned_parameters(Layer& layer) {
    std::vector<OwnedParameter> all;
    visit_parameters(layer, [&](std::string_view name, auto& matrix, Role) {
        using S = scalar_of<decltype(matrix)>;
        all.push_back({std::string(name), matrix.rows(), matrix.cols(), steps_of(matrix),
                       matrix.data(), [](const PlannedTensor& from, void* data, Steps steps) {
                           from.copy(static_cast<S*>(data), steps.row, steps.col);
                       }});
    });
    return all;
}

/// Reads a layer: matrices of experts that have no memory as `take(weights, tensors)` says, one
/// PlannedTensor for each expert; all other parameters are copied. Everything is found and checked
/// before anything is written.
template <class Layer, class Checkpoint, class Take>
void read_layer(const Checkpoint& checkpoint, const Names& names, const char* who, Layer& layer,
                const Take& take) {
    using S = typename Layer::Scalar;
    TensorPlan<Checkpoint> plan(checkpoint, names, who);
    std::vector<Weights<S>*> deferred;
    visit_weights(layer, [&](const std::string& pattern, Weights<S>& weights, Index) {
        if (weights.is_bound() || weights.is_coded())
            fail(who, ": ", pattern,
                 " are views, which are only read; load into a layer that owns its weights");
        if (weights.is_deferred()) deferred.push_back(&weights);
    });
    // The router first: of a wrong count its shape says more than an expert that is missing.
    const std::vector<OwnedParameter> owned = owned_parameters(layer);
    for (const OwnedParameter& of : owned) plan.want(of.name, of.rows, of.cols);
    visit_weights(layer, [&](const std::string& pattern, Weights<S>& weights, Index first) {
        for (Index e = 0; weights.is_deferred() && e < weights.count(); ++e)
            plan.want(Names::with_number(pattern, first + e), weights.rows(), weights.cols());
    });

    const auto values = plan.find().begin();
    for (std::size_t i = 0; i < owned.size(); ++i)
        if (values[static_cast<std::ptrdiff_t>(i)].is_coded() && owned[i].steps.col != 1)
            fail(who, ": ", owned[i].name, " is column-major, and codes are read by rows");
    auto next = values + static_cast<std::ptrdiff_t>(owned.size());
    std::vector<Weights<S>> taken;
    for (const Weights<S>* const weights : deferred) {
        const auto end = next + weights->count();
        taken.push_back(take(*weights, std::vector<PlannedTensor>(next, end)));
        next = end;
    }

    // Nothing throws from here on.
    next = values;
    for (const OwnedParameter& to : owned) to.copy(*next++);
    for (std::size_t i = 0; i < deferred.size(); ++i) *deferred[i] = std::move(taken[i]);
}

}  // namespace detail

/// A layer of a model whose experts read their weights where a checkpoint has them; nothing of
/// them is copied. Router, biases, constants and states of gates are copied, as S.
///
///     const auto layer = moe::bind(
///         checkpoint, moe::names::mixtral("model.layers.0.block_sparse_moe"),
///         moe::Config{.model_dim = 4096}, moe::LinearRouter{}, moe::TopK{.k = 2},
///         moe::Swiglu{.count = 8, .ffn_dim = 14336});
///
/// The same bits as a layer that holds the values in float. It can be trained as far as nothing is
/// changed that is a view: zeros_like() owns gradients of everything. Weights in codes with block
/// scales (FP8, MXFP4) are not multiplied as they lie: freeze the layer, which decodes an expert at
/// a time, or moe::load() it.
///
/// @param checkpoint  a SafetensorsView, whose memory must outlive the layer, or a Checkpoint,
///                    which the layer keeps alive
/// @param names       where the parameters are; the layer must use every tensor under its prefix
/// @throws FormatError if a tensor is missing, left over, or of another shape or dtype than names
///         and recipes say; std::invalid_argument if recipes do not fit each other or the names
template <class S = float, class Checkpoint, class R, class G, class... Groups>
Layer<S, R, G, Groups...> bind(const Checkpoint& checkpoint, const Names& names,
                               const Config& config, const R& router, const G& gate,
                               const Groups&... groups) {
    detail::check_size(checkpoint, config, groups...);
    Layer<S, R, G, Groups...> layer{deferred, config, router, gate, groups...};
    const auto owner = detail::owner_of(checkpoint);
    detail::read_layer(checkpoint, names, "moe::bind", layer,
                       [&](const Weights<S>&, const std::vector<detail::PlannedTensor>& tensors) {
                           if (!tensors.front().is_coded()) {
                               std::vector<WeightView> views;
                               for (const auto& tensor : tensors)
                                   views.push_back(tensor.template view<S>());
                               return Weights<S>(std::move(views), owner);
                           }
                           std::vector<BlockCodes> codes;
                           for (const auto& tensor : tensors) {
                               if (!tensor.is_coded())
                                   detail::fail<FormatError>(
                                       "moe::bind: tensor ", detail::in_quotes(tensor.tensor.name),
                                       " holds ", dtype_name(tensor.tensor.dtype),
                                       " and those of other experts codes; moe::load takes both");
                               codes.push_back(tensor.codes());
                           }
                           return Weights<S>(std::move(codes), owner);
                       });
    return layer;
}

/// Copies a checkpoint's values into a layer, whatever they are stored as, rounded once to its
/// scalar; weights that are deferred get their memory.
///
///     moe::Layer layer{moe::deferred, moe::Config{.model_dim = 4096}, ...};
///     moe::load(checkpoint, moe::names::mixtral("model.layers.0.block_sparse_moe"), layer);
///
/// @throws as bind(); the layer is unchanged then
template <class Checkpoint, class Layer>
void load(const Checkpoint& checkpoint, const Names& names, Layer& layer) {
    using S = typename Layer::Scalar;
    detail::read_layer(
        checkpoint, names, "moe::load", layer,
        [](const Weights<S>& weights, const std::vector<detail::PlannedTensor>& tensors) {
            Weights<S> owned(weights.count(), weights.rows(), weights.cols());
            for (std::size_t e = 0; e < tensors.size(); ++e)
                tensors[e].copy(owned.owned(static_cast<Index>(e)).data(), weights.cols(), 1);
            return owned;
        });
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_IO_BIND_HPP
