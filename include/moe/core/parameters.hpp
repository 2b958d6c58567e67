// SPDX-License-Identifier: MIT
#ifndef MOE_CORE_PARAMETERS_HPP
#define MOE_CORE_PARAMETERS_HPP

#include <algorithm>
#include <array>
#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <moe/core/error.hpp>
#include <moe/core/memory.hpp>
#include <moe/core/types.hpp>

namespace moe::inline MOE_ABI {

/// What a parameter is for.
enum class Role {
    trainable,  ///< optimisers move it; it has a gradient
    frozen,     ///< a weight that stays as it is; its gradient is empty
    state,      ///< changed by explicit calls (a balance bias); no gradient, saved with the layer
};

/// A [rows, cols] row-major matrix of weights that owns its memory or lives in memory of the
/// user's (see flatten()). Copies own theirs. A gradient that is not wanted is empty.
template <class S>
class Parameter {
public:
    using Scalar = S;

    Parameter() = default;
    /// All zeros.
    Parameter(Index rows, Index cols) : rows_(rows), cols_(cols) {
        const Index count = detail::checked_product(rows, cols);
        memory_ = std::shared_ptr<S>(detail::allocate<S>(count));
        data_ = memory_.get();
        std::fill_n(data_, count, S(0));
    }
    /// The values at `at`, rows * cols elements that `owner` (may be null) keeps alive.
    Parameter(Index rows, Index cols, S* at, std::shared_ptr<S> owner)
        : memory_(std::move(owner)), data_(at), rows_(rows), cols_(cols) {}
    Parameter(const Parameter& other) : Parameter(other.rows_, other.cols_) {
        std::copy_n(other.data_, size(), data_);
    }
    Parameter(Parameter&& other) noexcept { swap(other); }
    Parameter& operator=(Parameter other) noexcept {
        swap(other);
        return *this;
    }
    ~Parameter() = default;

    Index rows() const { return rows_; }
    Index cols() const { return cols_; }
    Index size() const { return rows_ * cols_; }
    bool empty() const { return size() == 0; }
    S* data() { return data_; }
    const S* data() const { return data_; }
    S* row(Index i) { return data_ + i * cols_; }
    const S* row(Index i) const { return data_ + i * cols_; }
    S& operator()(Index i, Index j) { return data_[i * cols_ + j]; }
    const S& operator()(Index i, Index j) const { return data_[i * cols_ + j]; }
    View<S> view() { return View<S>(data_, rows_, cols_, Eigen::OuterStride<>(cols_)); }
    ConstView<S> view() const {
        return ConstView<S>(data_, rows_, cols_, Eigen::OuterStride<>(cols_));
    }

    /// Moves the values to `at`, size() elements that `owner` (may be null) keeps alive, and lives
    /// there from now on.
    void place(S* at, std::shared_ptr<S> owner) {
        std::copy_n(data_, size(), at);
        memory_ = std::move(owner);
        data_ = at;
    }

private:
    void swap(Parameter& other) noexcept {
        std::swap(memory_, other.memory_);
        std::swap(data_, other.data_);
        std::swap(rows_, other.rows_);
        std::swap(cols_, other.cols_);
    }

    std::shared_ptr<S> memory_;
    S* data_ = nullptr;
    Index rows_ = 0, cols_ = 0;
};

/// Calls visit(name, matrix, role) for every parameter of a layer or of one of its parts, in a
/// fixed order. `matrix` has data(), rows(), cols(), size() and a Scalar: a Parameter, or the
/// Eigen object of a user's type. From a const part it is const. A part whose
/// visit_parameters(visit) calls visit(name, matrix) has trainable parameters; a part without
/// visit_parameters has none.
template <class Part, class Visit>
void visit_parameters(Part& part, Visit&& visit) {
    using Plain = std::remove_const_t<Part>;
    auto pass = [&visit](std::string_view name, auto&& matrix, Role role = Role::trainable) {
        if constexpr (std::is_const_v<Part>)
            visit(name, std::as_const(matrix), role);
        else
            visit(name, matrix, role);
    };
    if constexpr (requires(Plain & p) { p.visit_parameters(pass); })
        const_cast<Plain&>(part).visit_parameters(pass);
}

namespace detail {

/// visit(pattern, weights, first) for the matrices of experts of a layer, if it has a bank, and
/// visit(name, weights) for those of a group of experts: also views and those without memory, which
/// are no parameters of the layer's own. From a const part they are const.
template <class Part, class Visit>
void visit_weights(Part& part, Visit&& visit) {
    using Plain = std::remove_const_t<Part>;
    auto pass = [&visit](const auto& name, auto& weights, auto... first) {
        if constexpr (std::is_const_v<Part>)
            visit(name, std::as_const(weights), first...);
        else
            visit(name, weights, first...);
    };
    Plain& plain = const_cast<Plain&>(part);
    if constexpr (requires { plain.visit_weights(pass); })
        plain.visit_weights(pass);
    else if constexpr (requires { plain.bank().visit_weights(pass); })
        plain.bank().visit_weights(pass);
}

/// f(prefix + name), a view; without the heap as far as it fits, since backward visits names.
template <class F>
void with_prefix(std::string_view prefix, std::string_view name, F&& f) {
    std::array<char, 128> room{};
    const std::size_t length = prefix.size() + name.size();
    if (length > room.size()) return f(std::string_view(std::string(prefix).append(name)));
    std::copy(name.begin(), name.end(), std::copy(prefix.begin(), prefix.end(), room.begin()));
    f(std::string_view(room.data(), length));
}

template <class M>
using scalar_of = typename std::remove_cvref_t<M>::Scalar;

template <class M>
auto span_of(M& matrix) {
    return std::span(matrix.data(), static_cast<std::size_t>(matrix.size()));
}

/// What cannot be empty, an Eigen object of fixed extents, becomes all zeros.
template <class M>
void make_empty(M& matrix) {
    constexpr bool is_fixed = requires { requires M::SizeAtCompileTime != Eigen::Dynamic; };
    if constexpr (!is_fixed && requires { matrix = M(); })
        matrix = M();
    else
        std::fill_n(matrix.data(), matrix.size(), scalar_of<M>(0));
}

template <class Layer>
using values_of = std::span<std::conditional_t<std::is_const_v<Layer>, const typename Layer::Scalar,
                                               typename Layer::Scalar>>;

}  // namespace detail

/// f(name, values) for every trainable parameter; `values` is a span, of const scalars if the
/// layer is const.
template <class Layer, class F>
    requires std::is_invocable_v<F, std::string_view, detail::values_of<Layer>>
void for_each_parameter(Layer& layer, F&& f) {
    visit_parameters(layer, [&](std::string_view name, auto& matrix, Role role) {
        if (role == Role::trainable) f(name, detail::span_of(matrix));
    });
}

/// f(name, values, gradient) for every trainable parameter whose gradient is wanted, that is, there
/// and not empty. The two are matched by name.
/// @param grad  made by zeros_like(layer)
/// @throws std::invalid_argument if grad holds what the layer has not, or of another size; f was
///         not called then
template <class Layer, class F>
void for_each_parameter(Layer& layer, Layer& grad, F&& f) {
    using S = typename Layer::Scalar;
    struct Pair {
        std::string name;
        std::span<S> values, gradient;
    };
    std::vector<Pair> pairs;
    visit_parameters(grad, [&](std::string_view name, auto& matrix, Role role) {
        if (role == Role::trainable && matrix.size() != 0)
            pairs.push_back({std::string(name), {}, detail::span_of(matrix)});
    });
    std::size_t matched = 0;  // they come in the layer's order, so only the next one is tried
    visit_parameters(layer, [&](std::string_view name, auto& matrix, Role role) {
        if (role != Role::trainable || matched == pairs.size() || pairs[matched].name != name)
            return;
        Pair& pair = pairs[matched++];
        pair.values = detail::span_of(matrix);
        if (pair.values.size() != pair.gradient.size())
            detail::fail("moe::for_each_parameter: the gradient of ", pair.name, " has ",
                         pair.gradient.size(), " elements, the parameter has ", pair.values.size());
    });
    if (matched != pairs.size())
        detail::fail("moe::for_each_parameter: grad is not like layer: there is no parameter for ",
                     pairs[matched].name,
                     "; make it with zeros_like(layer), and if the layer only views that matrix, "
                     "without its gradient: zeros_like(layer, wanted)");
    for (const Pair& pair : pairs) f(std::string_view(pair.name), pair.values, pair.gradient);
}

/// f(name, values) for every parameter whose role is state.
template <class Layer, class F>
void for_each_state(Layer& layer, F&& f) {
    visit_parameters(layer, [&](std::string_view name, auto& matrix, Role role) {
        if (role == Role::state) f(name, detail::span_of(matrix));
    });
}

/// An object of the same type that holds d(loss)/d(parameter), all zero. Gradients of parameters
/// that are not trainable, or for which `wanted(name)` is false, are empty: nothing is computed
/// for them.
template <class Layer, class Wanted>
Layer zeros_like(const Layer& layer, Wanted&& wanted) {
    Layer grad = layer;
    if constexpr (requires { grad.own_gradients(); }) grad.own_gradients();
    visit_parameters(grad, [&](std::string_view name, auto& matrix, Role role) {
        if (role == Role::trainable && wanted(name))
            std::fill_n(matrix.data(), matrix.size(), detail::scalar_of<decltype(matrix)>(0));
        else
            detail::make_empty(matrix);
    });
    return grad;
}
template <class Layer>
Layer zeros_like(const Layer& layer) {
    return zeros_like(layer, [](std::string_view) { return true; });
}

/// Sets every value of a gradient to zero, for the next batch. Gradients are added to, so several
/// batches may come between.
template <class Layer>
void set_zero(Layer& grad) {
    visit_parameters(grad, [](std::string_view, auto& matrix, Role) {
        std::fill_n(matrix.data(), matrix.size(), detail::scalar_of<decltype(matrix)>(0));
    });
}

namespace detail {

/// Number of trainable and frozen values that a layer owns.
template <class Layer>
Index num_owned(const Layer& layer) {
    Index count = 0;
    visit_parameters(layer, [&](std::string_view, const auto& matrix, Role role) {
        if (role != Role::state) count += matrix.size();
    });
    return count;
}

}  // namespace detail

/// Number of trainable and frozen values, of matrices that are views or have no memory yet too.
template <class Layer>
Index num_parameters(const Layer& layer) {
    Index count = detail::num_owned(layer);
    detail::visit_weights(
        layer, [&](const auto&, const auto& weights, auto...) { count += weights.num_unowned(); });
    return count;
}

// Below, the values are those that the layer owns: all of them, unless some are views.

/// Copies all values, trainable and frozen, in visiting order into `values`.
/// @throws std::invalid_argument unless values.size() is num_parameters(layer)
template <class Layer>
void copy_parameters(const Layer& layer, std::span<typename Layer::Scalar> values) {
    if (static_cast<Index>(values.size()) != detail::num_owned(layer))
        detail::fail("moe::copy_parameters: values has ", values.size(),
                     " elements, the layer has ", detail::num_owned(layer));
    auto next = values.begin();
    visit_parameters(layer, [&](std::string_view, const auto& matrix, Role role) {
        if (role != Role::state) next = std::copy_n(matrix.data(), matrix.size(), next);
    });
}

/// The other way round: copies `values` into the layer.
template <class Layer>
void copy_parameters(std::span<const typename Layer::Scalar> values, Layer& layer) {
    if (static_cast<Index>(values.size()) != detail::num_owned(layer))
        detail::fail("moe::copy_parameters: values has ", values.size(),
                     " elements, the layer has ", detail::num_owned(layer));
    auto next = values.begin();
    visit_parameters(layer, [&](std::string_view, auto& matrix, Role role) {
        if (role == Role::state) return;
        std::copy_n(next, matrix.size(), matrix.data());
        next += matrix.size();
    });
}

/// Moves all trainable and frozen values into `memory`, one after the other in visiting order,
/// where the layer reads and writes them from now on. `memory` must outlive the layer; copies of
/// the layer have memory of their own, and so has the layer after another was assigned to it. Call
/// it on a gradient too and one loop over two spans is an optimiser; a gradient some of whose
/// matrices are not wanted is shorter than the layer.
/// @throws std::invalid_argument unless memory.size() is num_parameters(layer), or if a parameter
///         is not a moe::Parameter (an Eigen matrix cannot live in foreign memory)
template <class Layer>
std::span<typename Layer::Scalar> flatten(
    Layer& layer, std::span<typename Layer::Scalar> memory,
    const std::shared_ptr<typename Layer::Scalar>& owner = nullptr) {
    using S = typename Layer::Scalar;
    visit_parameters(layer, [&](std::string_view name, auto& matrix, Role role) {
        if (role != Role::state &&
            !std::is_same_v<std::remove_cvref_t<decltype(matrix)>, Parameter<S>>)
            detail::fail("moe::flatten: ", std::string(name),
                         " is not a moe::Parameter and cannot move; make it one");
    });
    if (static_cast<Index>(memory.size()) != detail::num_owned(layer))
        detail::fail("moe::flatten: memory has ", memory.size(), " elements, the layer has ",
                     detail::num_owned(layer));
    S* next = memory.data();
    visit_parameters(layer, [&](std::string_view, auto& matrix, Role role) {
        if constexpr (std::is_same_v<std::remove_cvref_t<decltype(matrix)>, Parameter<S>>) {
            if (role == Role::state) return;
            matrix.place(next, owner);
            next += matrix.size();
        }
    });
    return memory;
}

/// flatten() into memory that the layer keeps alive.
template <class Layer>
std::span<typename Layer::Scalar> flatten(Layer& layer) {
    using S = typename Layer::Scalar;
    const Index count = detail::num_owned(layer);
    const std::shared_ptr<S> memory(detail::allocate<S>(count));
    return flatten(layer, std::span<S>(memory.get(), static_cast<std::size_t>(count)), memory);
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_CORE_PARAMETERS_HPP
