// SPDX-License-Identifier: MIT
#ifndef MOE_KERNELS_PLAIN_HPP
#define MOE_KERNELS_PLAIN_HPP

#include <cmath>
#include <limits>

#include <moe/core/activation.hpp>
#include <moe/core/types.hpp>
#include <moe/kernels/polynomials.hpp>

/// The formulas of the kernels in double, in whatever order: they say how far off a kernel is. For
/// tests. Arguments are those of KernelTable.
namespace moe::inline MOE_ABI::plain {

template <class S>
void tile(Index rows, Index cols, Index k, const S* a, Index a_row, Index a_col, const S* b,
          Index b_row, double* c, Index c_row, bool add) {
    for (Index i = 0; i < rows; ++i)
        for (Index j = 0; j < cols; ++j) {
            double sum = add ? c[i * c_row + j] : 0;
            for (Index p = 0; p < k; ++p)
                sum += double(a[i * a_row + p * a_col]) * double(b[p * b_row + j]);
            c[i * c_row + j] = sum;
        }
}

template <class S>
void columns(Index rows, Index cols, Index k, const S* a, Index a_row, const S* b, Index b_col,
             double* c, Index c_row, bool add) {
    for (Index i = 0; i < rows; ++i)
        for (Index j = 0; j < cols; ++j) {
            double sum = add ? c[i * c_row + j] : 0;
            for (Index p = 0; p < k; ++p)
                sum += double(a[i * a_row + p]) * double(b[j * b_col + p]);
            c[i * c_row + j] = sum;
        }
}

template <class S>
double dot(Index n, const S* x, const S* y) {
    double sum = 0;
    for (Index i = 0; i < n; ++i) sum += double(x[i]) * double(y[i]);
    return sum;
}

template <class S>
double sum(Index n, const S* x) {
    double sum = 0;
    for (Index i = 0; i < n; ++i) sum += double(x[i]);
    return sum;
}

template <class S>
double log_sum_exp(Index n, const S* x) {
    double most = -std::numeric_limits<double>::infinity();
    for (Index i = 0; i < n; ++i)
        if (double(x[i]) > most) most = double(x[i]);
    if (most == -std::numeric_limits<double>::infinity()) return most;
    double sum = 0;
    for (Index i = 0; i < n; ++i) sum += std::exp(double(x[i]) - most);
    return most + std::log(sum);
}

template <class S>
void softmax(Index n, const S* x, double* y) {
    const double all = log_sum_exp(n, x);
    for (Index i = 0; i < n; ++i) y[i] = std::exp(double(x[i]) - all);
}

inline double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

inline double act(Activation act, double a) {
    switch (act) {
        case Activation::relu:
            return a > 0 ? a : 0;
        case Activation::relu_squared:
            return a > 0 ? a * a : 0;
        case Activation::gelu:
            return a * 0.5 * std::erfc(-a * std::sqrt(0.5));
        case Activation::gelu_tanh:
            return a *
                   sigmoid(2 * detail::inverse_sqrt_2_pi<double> * 2 * (a + 0.044715 * a * a * a));
        case Activation::silu:
            return a * sigmoid(a);
        case Activation::quick_gelu:
            return a * sigmoid(1.702 * a);
    }
    return 0;
}

/// act'(a)
inline double slope(Activation act, double a) {
    switch (act) {
        case Activation::relu:
            return a > 0 ? 1 : 0;
        case Activation::relu_squared:
            return a > 0 ? 2 * a : 0;
        case Activation::gelu:
            return 0.5 * std::erfc(-a * std::sqrt(0.5)) +
                   a * detail::inverse_sqrt_2_pi<double> * std::exp(-0.5 * a * a);
        case Activation::gelu_tanh: {
            const double scale = 4 * detail::inverse_sqrt_2_pi<double>;  // 2 sqrt(2 / pi)
            const double s = sigmoid(scale * (a + 0.044715 * a * a * a));
            return s + a * s * (1 - s) * scale * (1 + 3 * 0.044715 * a * a);
        }
        case Activation::silu: {
            const double s = sigmoid(a);
            return s + a * s * (1 - s);
        }
        case Activation::quick_gelu: {
            const double s = sigmoid(1.702 * a);
            return s + 1.702 * a * s * (1 - s);
        }
    }
    return 0;
}

}  // namespace moe::inline MOE_ABI::plain

#endif  // MOE_KERNELS_PLAIN_HPP
