// SPDX-License-Identifier: MIT
#ifndef MOE_TESTS_SUPPORT_DENSE_LAYER_HPP
#define MOE_TESTS_SUPPORT_DENSE_LAYER_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <numbers>
#include <stdexcept>
#include <utility>
#include <vector>

#include <moe/core/routing.hpp>
#include <moe/core/types.hpp>
#include <moe/kernels/table.hpp>

/// What a layer computes, as a student would write it: in double, every expert for every token, one
/// loop after the other. It shares no arithmetic with the library, so that it can be compared with.
///
///     y[t] = sum over e of weights(t, e) * expert_e(input_weights(t, e) * x[t])
///
/// A token that was not routed to an expert has weight 0 there. A shared expert is one whose column
/// of weights is 1.
namespace dense {

using moe::Activation;
using moe::Index;
using Matrix = moe::Matrix<double>;

enum class Kind { feed_forward, zero, copy, constant };

/// An expert, or the gradient at one. Matrices that its kind does not have are empty.
///
///     feed_forward, gated:  y = down (act(min(g, limit)) * (clamp(u, -limit, limit) + up_offset))
///                               + down_bias,  g = gate x + gate_bias, u = up x + up_bias
///     feed_forward, plain:  y = down act(up x + up_bias) + down_bias
///     zero:                 y = 0
///     copy:                 y = x
///     constant:             y = a x + b value,  [a, b] = softmax(mix x)
struct Expert {
    Kind kind = Kind::feed_forward;
    Activation activation = Activation::silu;
    Matrix gate;       // [F, D]
    Matrix up;         // [F, D]
    Matrix down;       // [O, F]
    Matrix gate_bias;  // [1, F]
    Matrix up_bias;    // [1, F]
    Matrix down_bias;  // [1, O]
    Matrix mix;        // [2, D]
    Matrix value;      // [1, D]
    double limit = std::numeric_limits<double>::infinity();
    double up_offset = 0;

    bool is_gated() const { return gate.size() > 0; }

    /// visit(name, matrix) for each matrix, empty ones included
    void visit(auto&& visit) {
        visit("gate", gate), visit("up", up), visit("down", down);
        visit("gate_bias", gate_bias), visit("up_bias", up_bias), visit("down_bias", down_bias);
        visit("mix", mix), visit("value", value);
    }
};

inline Expert swiglu(Matrix gate, Matrix up, Matrix down,
                     Activation activation = Activation::silu) {
    Expert expert;
    expert.activation = activation;
    expert.gate = std::move(gate);
    expert.up = std::move(up);
    expert.down = std::move(down);
    return expert;
}

inline Expert mlp(Activation activation, Matrix up, Matrix down, Matrix up_bias = {},
                  Matrix down_bias = {}) {
    Expert expert;
    expert.activation = activation;
    expert.up = std::move(up);
    expert.down = std::move(down);
    expert.up_bias = std::move(up_bias);
    expert.down_bias = std::move(down_bias);
    return expert;
}

inline Expert zero() {
    Expert expert;
    expert.kind = Kind::zero;
    return expert;
}

inline Expert copy() {
    Expert expert;
    expert.kind = Kind::copy;
    return expert;
}

inline Expert constant(Matrix mix, Matrix value) {
    Expert expert;
    expert.kind = Kind::constant;
    expert.mix = std::move(mix);
    expert.value = std::move(value);
    return expert;
}

inline double activate(Activation activation, double a) {
    switch (activation) {
        case Activation::relu:
            return a > 0 ? a : 0;
        case Activation::relu_squared:
            return a > 0 ? a * a : 0;
        case Activation::gelu:
            return a * 0.5 * (1 + std::erf(a / std::numbers::sqrt2));
        case Activation::gelu_tanh: {
            const double k = std::sqrt(2 / std::numbers::pi);
            return 0.5 * a * (1 + std::tanh(k * (a + 0.044715 * a * a * a)));
        }
        case Activation::silu:
            return a / (1 + std::exp(-a));
        case Activation::quick_gelu:
            return a / (1 + std::exp(-1.702 * a));
    }
    throw std::invalid_argument("dense: unknown activation");
}

inline double activation_slope(Activation activation, double a) {
    switch (activation) {
        case Activation::relu:
            return a > 0 ? 1 : 0;
        case Activation::relu_squared:
            return a > 0 ? 2 * a : 0;
        case Activation::gelu: {
            const double cumulative = 0.5 * (1 + std::erf(a / std::numbers::sqrt2));
            const double density = std::exp(-a * a / 2) / std::sqrt(2 * std::numbers::pi);
            return cumulative + a * density;
        }
        case Activation::gelu_tanh: {
            const double k = std::sqrt(2 / std::numbers::pi);
            const double tanh = std::tanh(k * (a + 0.044715 * a * a * a));
            return 0.5 * (1 + tanh) + 0.5 * a * (1 - tanh * tanh) * k * (1 + 3 * 0.044715 * a * a);
        }
        case Activation::silu: {
            const double sigmoid = 1 / (1 + std::exp(-a));
            return sigmoid * (1 + a * (1 - sigmoid));
        }
        case Activation::quick_gelu: {
            const double sigmoid = 1 / (1 + std::exp(-1.702 * a));
            return sigmoid * (1 + 1.702 * a * (1 - sigmoid));
        }
    }
    throw std::invalid_argument("dense: unknown activation");
}

namespace detail {

using Vector = std::vector<double>;

inline double& at(Vector& v, Index i) { return v[static_cast<std::size_t>(i)]; }
inline double at(const Vector& v, Index i) { return v[static_cast<std::size_t>(i)]; }
inline Vector zeros(Index count) { return Vector(static_cast<std::size_t>(count), 0.0); }
inline Index length(const Vector& v) { return static_cast<Index>(v.size()); }

/// weight v + bias; the bias may be empty
inline Vector affine(const Matrix& weight, const Vector& v, const Matrix& bias = {}) {
    if (weight.cols() != length(v)) throw std::invalid_argument("dense: a weight does not fit");
    Vector result = zeros(weight.rows());
    for (Index i = 0; i < weight.rows(); ++i) {
        for (Index j = 0; j < weight.cols(); ++j) at(result, i) += weight(i, j) * at(v, j);
        if (bias.size() > 0) at(result, i) += bias(0, i);
    }
    return result;
}

/// Adds the gradients of affine(): at the weight, at the bias, and at v.
inline void affine_backward(const Matrix& weight, const Vector& v, const Vector& dresult,
                            Matrix& dweight, Matrix& dbias, Vector& dv) {
    for (Index i = 0; i < weight.rows(); ++i) {
        for (Index j = 0; j < weight.cols(); ++j) {
            dweight(i, j) += at(dresult, i) * at(v, j);
            at(dv, j) += at(dresult, i) * weight(i, j);
        }
        if (dbias.size() > 0) dbias(0, i) += at(dresult, i);
    }
}

inline double dot(const Vector& a, const Vector& b) {
    double sum = 0;
    for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
    return sum;
}

/// [a, b] of a constant expert
inline Vector blend(const Expert& expert, const Vector& x) {
    const Vector logits = affine(expert.mix, x);
    const double most = std::max(logits[0], logits[1]);
    const double a = std::exp(logits[0] - most);
    const double b = std::exp(logits[1] - most);
    return {a / (a + b), b / (a + b)};
}

/// What the down projection of a feed-forward expert reads.
struct Hidden {
    Vector gate, up;  // before the bounds and the activation
    Vector h;
};

inline double bounded_gate(const Expert& expert, const Hidden& hidden, Index f) {
    return std::min(at(hidden.gate, f), expert.limit);
}
inline double bounded_up(const Expert& expert, const Hidden& hidden, Index f) {
    return std::clamp(at(hidden.up, f), -expert.limit, expert.limit) + expert.up_offset;
}

inline Hidden hidden(const Expert& expert, const Vector& x) {
    Hidden result;
    result.up = affine(expert.up, x, expert.up_bias);
    if (expert.is_gated()) result.gate = affine(expert.gate, x, expert.gate_bias);
    for (Index f = 0; f < length(result.up); ++f)
        result.h.push_back(expert.is_gated()
                               ? activate(expert.activation, bounded_gate(expert, result, f)) *
                                     bounded_up(expert, result, f)
                               : activate(expert.activation, at(result.up, f)));
    return result;
}

/// One token through one expert.
inline Vector expert_forward(const Expert& expert, const Vector& x, Index output_dim) {
    Vector y = zeros(output_dim);
    if (expert.kind == Kind::feed_forward)
        y = affine(expert.down, hidden(expert, x).h, expert.down_bias);
    if (expert.kind == Kind::copy) y = x;
    if (expert.kind == Kind::constant) {
        const Vector ab = blend(expert, x);
        y = zeros(length(x));
        for (Index d = 0; d < length(x); ++d)
            at(y, d) = ab[0] * at(x, d) + ab[1] * expert.value(0, d);
    }
    if (length(y) != output_dim) throw std::invalid_argument("dense: experts differ in width");
    return y;
}

/// Adds to grad; returns the gradient at x.
inline Vector expert_backward(const Expert& expert, const Vector& x, const Vector& dy,
                              Expert& grad) {
    Vector dx = zeros(length(x));
    if (expert.kind == Kind::copy) return dy;
    if (expert.kind == Kind::constant) {
        const Vector ab = blend(expert, x);
        double dab[2] = {};
        for (Index d = 0; d < length(x); ++d) {
            dab[0] += at(dy, d) * at(x, d);
            dab[1] += at(dy, d) * expert.value(0, d);
            grad.value(0, d) += ab[1] * at(dy, d);
            at(dx, d) += ab[0] * at(dy, d);
        }
        const double mean = ab[0] * dab[0] + ab[1] * dab[1];
        const Vector dlogits{ab[0] * (dab[0] - mean), ab[1] * (dab[1] - mean)};
        Matrix none;
        affine_backward(expert.mix, x, dlogits, grad.mix, none, dx);
    }
    if (expert.kind == Kind::feed_forward) {
        const Hidden mid = hidden(expert, x);
        Vector dh = zeros(length(mid.h));
        affine_backward(expert.down, mid.h, dy, grad.down, grad.down_bias, dh);
        Vector dup = zeros(length(mid.h));
        Vector dgate = zeros(length(mid.gate));
        for (Index f = 0; f < length(mid.h); ++f) {
            if (expert.is_gated()) {
                const double gate = bounded_gate(expert, mid, f);
                if (std::fabs(at(mid.up, f)) <= expert.limit)
                    at(dup, f) = at(dh, f) * activate(expert.activation, gate);
                if (at(mid.gate, f) <= expert.limit)
                    at(dgate, f) = at(dh, f) * bounded_up(expert, mid, f) *
                                   activation_slope(expert.activation, gate);
            } else {
                at(dup, f) = at(dh, f) * activation_slope(expert.activation, at(mid.up, f));
            }
        }
        affine_backward(expert.up, x, dup, grad.up, grad.up_bias, dx);
        if (expert.is_gated())
            affine_backward(expert.gate, x, dgate, grad.gate, grad.gate_bias, dx);
    }
    return dx;
}

/// Row t of a matrix, times a factor.
inline Vector row(const Matrix& matrix, Index t, double factor = 1) {
    Vector result = zeros(matrix.cols());
    for (Index d = 0; d < matrix.cols(); ++d) at(result, d) = factor * matrix(t, d);
    return result;
}

inline void check(const std::vector<Expert>& experts, const Matrix& x, const Matrix& weights,
                  const Matrix& input_weights) {
    const auto fits = [&](const Matrix& m) {
        return m.rows() == x.rows() && m.cols() == static_cast<Index>(experts.size());
    };
    if (!fits(weights) || (input_weights.size() > 0 && !fits(input_weights)))
        throw std::invalid_argument("dense: weights must be [tokens, experts]");
}

inline double input_weight(const Matrix& input_weights, Index t, Index e) {
    return input_weights.size() > 0 ? input_weights(t, e) : 1;
}

}  // namespace detail

/// @param x              [T, D]
/// @param weights        [T, E]
/// @param output_dim     O
/// @param input_weights  [T, E], or empty: all 1
/// @return               [T, O]
inline Matrix forward(const std::vector<Expert>& experts, const Matrix& x, const Matrix& weights,
                      Index output_dim, const Matrix& input_weights = {}) {
    detail::check(experts, x, weights, input_weights);
    Matrix y = Matrix::Zero(x.rows(), output_dim);
    for (Index t = 0; t < x.rows(); ++t)
        for (Index e = 0; e < weights.cols(); ++e) {
            const auto input = detail::row(x, t, detail::input_weight(input_weights, t, e));
            const auto output =
                detail::expert_forward(experts[static_cast<std::size_t>(e)], input, output_dim);
            for (Index o = 0; o < output_dim; ++o) y(t, o) += weights(t, e) * detail::at(output, o);
        }
    return y;
}

/// Gradients of the sum of dy * forward().
struct Gradients {
    Matrix dx;              // [T, D], what comes through the experts
    Matrix dweights;        // [T, E], at weights that are 0 too
    Matrix dinput_weights;  // [T, E]
    std::vector<Expert> experts;
};

inline Gradients backward(const std::vector<Expert>& experts, const Matrix& x,
                          const Matrix& weights, const Matrix& dy,
                          const Matrix& input_weights = {}) {
    detail::check(experts, x, weights, input_weights);
    Gradients result;
    result.dx = Matrix::Zero(x.rows(), x.cols());
    result.dweights = Matrix::Zero(weights.rows(), weights.cols());
    result.dinput_weights = Matrix::Zero(weights.rows(), weights.cols());
    result.experts = experts;
    for (Expert& gradient : result.experts)
        gradient.visit([](const char*, Matrix& matrix) { matrix.setZero(); });
    for (Index t = 0; t < x.rows(); ++t)
        for (Index e = 0; e < weights.cols(); ++e) {
            const Expert& expert = experts[static_cast<std::size_t>(e)];
            Expert& gradient = result.experts[static_cast<std::size_t>(e)];
            const double factor = detail::input_weight(input_weights, t, e);
            const auto input = detail::row(x, t, factor);
            const auto output = detail::expert_forward(expert, input, dy.cols());
            result.dweights(t, e) = detail::dot(output, detail::row(dy, t));
            const auto dinput =
                detail::expert_backward(expert, input, detail::row(dy, t, weights(t, e)), gradient);
            if (expert.kind == Kind::zero) continue;
            for (Index d = 0; d < x.cols(); ++d) {
                result.dx(t, d) += factor * detail::at(dinput, d);
                result.dinput_weights(t, e) += x(t, d) * detail::at(dinput, d);
            }
        }
    return result;
}

/// [T, E] combine weights of a plan: 0 where there is no assignment or it was dropped.
inline Matrix weights_of(const moe::Routing& routing) {
    Matrix weights = Matrix::Zero(routing.num_tokens(), routing.num_experts());
    for (const moe::Assignment& a : routing.assignments())
        if (a.dropped == moe::Dropped::no) weights(a.token, a.expert) += a.weight;
    return weights;
}

/// [T, E] input weights of a plan times `input_scale`; `input_scale` where there is no assignment.
inline Matrix input_weights_of(const moe::Routing& routing, double input_scale = 1) {
    Matrix weights = Matrix::Constant(routing.num_tokens(), routing.num_experts(), input_scale);
    for (const moe::Assignment& a : routing.assignments())
        if (a.dropped == moe::Dropped::no) weights(a.token, a.expert) *= a.input_weight;
    return weights;
}

/// Expert `e` of one of the library's feed-forward groups.
template <class Group>
Expert feed_forward_of(const Group& group, Index e) {
    const auto matrix = [e](const auto& weights) -> Matrix {
        if (weights.count() == 0) return {};
        return weights.owned(e).view().template cast<double>();
    };
    Expert expert;
    expert.activation = group.shape().activation;
    expert.limit = group.shape().limit;
    expert.up_offset = group.shape().up_offset;
    expert.gate = matrix(group.gate);
    expert.up = matrix(group.up);
    expert.down = matrix(group.down);
    expert.gate_bias = matrix(group.gate_bias);
    expert.up_bias = matrix(group.up_bias);
    expert.down_bias = matrix(group.down_bias);
    return expert;
}

}  // namespace dense

#endif  // MOE_TESTS_SUPPORT_DENSE_LAYER_HPP
