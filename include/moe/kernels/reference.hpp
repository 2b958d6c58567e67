// SPDX-License-Identifier: MIT
#ifndef MOE_KERNELS_REFERENCE_HPP
#define MOE_KERNELS_REFERENCE_HPP

#include <cmath>
#include <cstdint>
#include <limits>

#include <moe/kernels/plain.hpp>
#include <moe/kernels/polynomials.hpp>
#include <moe/kernels/table.hpp>

/// The kernels as one would write them on paper, with the same operations in the same order and
/// std::fma: every table must equal these bit for bit, except for the sign and payload of a NaN.
/// Reading them is the quickest way to learn what the kernels compute. Slow on purpose; for tests.
/// Arguments are those of KernelTable. The formulas alone, in double, are in plain.hpp.
namespace moe::inline MOE_ABI::exact {

/// An element of a product is one chain of fused multiply-adds in the order of k.
template <class S>
void tile(Index rows, Index cols, Index k, const S* a, Index a_row, Index a_col, const S* b,
          Index b_row, S* c, Index c_row, bool add) {
    for (Index i = 0; i < rows; ++i)
        for (Index j = 0; j < cols; ++j) {
            S sum = add ? c[i * c_row + j] : S(0);
            for (Index p = 0; p < k; ++p)
                sum = std::fma(a[i * a_row + p * a_col], b[p * b_row + j], sum);
            c[i * c_row + j] = sum;
        }
}

/// The same chain.
template <class S>
void columns(Index rows, Index cols, Index k, const S* a, Index a_row, const S* b, Index b_col,
             S* c, Index c_row, bool add) {
    for (Index i = 0; i < rows; ++i)
        for (Index j = 0; j < cols; ++j) {
            S sum = add ? c[i * c_row + j] : S(0);
            for (Index p = 0; p < k; ++p) sum = std::fma(a[i * a_row + p], b[j * b_col + p], sum);
            c[i * c_row + j] = sum;
        }
}

template <class S>
void pack(Index k, Index cols, Index panel_width, const S* b, Index b_row, Index b_col, S* panel) {
    for (Index p = 0; p < k; ++p)
        for (Index j = 0; j < panel_width; ++j)
            panel[p * panel_width + j] = j < cols ? b[p * b_row + j * b_col] : S(0);
}

template <class S>
void axpy(Index n, S a, const S* x, S* y) {
    for (Index i = 0; i < n; ++i) y[i] = std::fma(a, x[i], y[i]);
}

template <class S>
void scale(Index n, S a, const S* x, S* y) {
    for (Index i = 0; i < n; ++i) y[i] = a * x[i];
}

/// The 16 partials of a sum, folded 8-4-2-1.
template <class S>
S fold(S (&p)[16]) {
    for (int half = 8; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) p[i] += p[i + half];
    return p[0];
}

template <class S>
S dot(Index n, const S* x, const S* y) {
    S partial[16] = {};
    for (Index i = 0; i < n; ++i) partial[i % 16] = std::fma(x[i], y[i], partial[i % 16]);
    return fold(partial);
}

template <class S>
S sum(Index n, const S* x) {
    S partial[16] = {};
    for (Index i = 0; i < n; ++i) partial[i % 16] += x[i];
    return fold(partial);
}

inline double exp(double x) { return std::exp(x); }

/// See polynomials.hpp for the formula.
inline float exp(float x) {
    namespace poly = detail::poly;
    if (std::isnan(x)) return x;
    x = x < poly::exp_low ? poly::exp_low : x > poly::exp_high ? poly::exp_high : x;
    const float n = std::fma(x, poly::log2_e, poly::round_shift) - poly::round_shift;
    const float r = std::fma(n, -poly::ln2_low, std::fma(n, -poly::ln2_high, x));
    float p = poly::exp_q[4];
    for (int i = 3; i >= 0; --i) p = std::fma(p, r, poly::exp_q[i]);
    p = std::fma(p, r, 1.0f);
    p = std::fma(p, r, 1.0f);
    return std::ldexp(p, static_cast<int>(n));
}

/// cdf = Phi(a), bell = exp(-a^2 / 2)
inline void normal(double a, double& cdf, double& bell) {
    cdf = 0.5 * std::erfc(-a * detail::inverse_sqrt_2<double>);
    bell = std::exp(-0.5 * a * a);
}

inline void normal(float a, float& cdf, float& bell) {
    namespace poly = detail::poly;
    const float x = std::fabs(a) > detail::far<float> ? detail::far<float> : std::fabs(a);
    const float square = x * x;
    const float rest = std::fma(x, x, -square);
    const float e = exp(-0.5f * square);
    bell = std::fma(e * rest, -0.5f, e);
    const float t = 1 / std::fma(x, poly::tail_scale, 1.0f);
    float p = poly::tail_c[8];
    for (int i = 7; i >= 0; --i) p = std::fma(p, t, poly::tail_c[i]);
    p *= t;
    cdf = a <= 0 ? bell * p : std::fma(-bell, p, 1.0f);
}

template <class S>
S largest(Index n, const S* x) {
    S most = -std::numeric_limits<S>::infinity();
    for (Index i = 0; i < n; ++i) most = x[i] > most ? x[i] : most;
    return most;
}

template <class S>
void softmax(Index n, const S* x, S* y) {
    const S most = largest(n, x);
    const S shift = most == -std::numeric_limits<S>::infinity() ? S(0) : most;
    for (Index i = 0; i < n; ++i) y[i] = exp(x[i] - shift);
    const S total = sum(n, y);
    for (Index i = 0; i < n; ++i) y[i] = y[i] / (total == 0 ? S(1) : total);
}

template <class S>
S log_sum_exp(Index n, const S* x) {
    const S most = largest(n, x);
    const S shift = std::isinf(most) ? S(0) : most;
    S partial[16] = {};
    for (Index i = 0; i < n; ++i) partial[i % 16] += exp(x[i] - shift);
    return static_cast<S>(double(shift) + std::log(double(fold(partial))));
}

/// s = 1 / (1 + exp(-x)), rest = 1 - s
template <class S>
void logistic(S x, S& s, S& rest) {
    const S e = exp(-std::fabs(x));
    const S r = 1 / (1 + e);
    s = x <= 0 ? e * r : r;
    rest = x <= 0 ? r : e * r;
}

template <class S>
S sigmoid(S x) {
    S s, rest;
    logistic(x, s, rest);
    return s;
}

template <class S>
S clamp(S low, S x, S high) {
    return x < low ? low : x > high ? high : x;  // NaN stays
}

/// value = act(a), slope = act'(a)
template <class S>
void evaluate(Activation act, S a, S& value, S& slope) {
    const S finite = clamp(-std::numeric_limits<S>::max(), a, std::numeric_limits<S>::infinity());
    const S near = clamp(-detail::far<S>, a, detail::far<S>);
    switch (act) {
        case Activation::relu:
            value = a <= 0 ? S(0) : a;
            slope = a <= 0 ? S(0) : S(1);
            return;
        case Activation::relu_squared: {
            const S positive = a <= 0 ? S(0) : a;
            value = positive * positive;
            slope = positive + positive;
            return;
        }
        case Activation::gelu: {
            S cdf, bell;
            normal(a, cdf, bell);
            value = finite * cdf;
            slope = std::fma(near * bell, detail::inverse_sqrt_2_pi<S>, cdf);
            return;
        }
        case Activation::gelu_tanh: {
            const S square = near * near;
            S s, rest;
            logistic(near * std::fma(square, detail::tanh_3<S>, detail::tanh_1<S>), s, rest);
            value = finite * s;
            const S inner = std::fma(square, 3 * detail::tanh_3<S>, detail::tanh_1<S>);
            slope = std::fma(near * s * rest, inner, s);
            return;
        }
        case Activation::silu: {
            S s, rest;
            logistic(a, s, rest);
            value = finite * s;
            slope = std::fma(clamp(finite, finite, std::numeric_limits<S>::max()) * s, rest, s);
            return;
        }
        case Activation::quick_gelu: {
            const S scaled = a * detail::quick_scale<S>;
            S s, rest;
            logistic(scaled, s, rest);
            value = finite * s;
            constexpr S most = std::numeric_limits<S>::max();
            slope = std::fma(clamp(-most, scaled, most) * s, rest, s);
            return;
        }
    }
}

template <class S>
void activate(Activation act, Index n, const S* a, S* h) {
    for (Index i = 0; i < n; ++i) {
        S value, slope;
        evaluate(act, a[i], value, slope);
        h[i] = value;
    }
}

template <class S>
void activate_backward(Activation act, Index n, const S* a, const S* dh, S* da) {
    for (Index i = 0; i < n; ++i) {
        S value, slope;
        evaluate(act, a[i], value, slope);
        da[i] = dh[i] * slope;
    }
}

template <class S>
void gate(Activation act, Index n, const S* g, const S* u, S* h) {
    for (Index i = 0; i < n; ++i) {
        S value, slope;
        evaluate(act, g[i], value, slope);
        h[i] = value * u[i];
    }
}

template <class S>
void gate_up(Activation act, Index n, const S* gu, S* h) {
    for (Index i = 0; i < n; ++i) {
        const S* const g = gu + i / gate_up_run * 2 * gate_up_run + i % gate_up_run;
        gate(act, 1, g, g + gate_up_run, h + i);
    }
}

template <class S>
void gate_backward(Activation act, Index n, const S* g, const S* u, const S* dh, S* dg, S* du) {
    for (Index i = 0; i < n; ++i) {
        S value, slope;
        evaluate(act, g[i], value, slope);
        const S d = dh[i];
        dg[i] = d * u[i] * slope;
        du[i] = d * value;
    }
}

template <class S>
bool is_finite(Index n, const S* x) {
    for (Index i = 0; i < n; ++i)
        if (!std::isfinite(x[i])) return false;
    return true;
}

/// In each turn the first of the best that are left.
template <class S>
Index top_k(Index n, const S* keys, Index k, std::int32_t* best) {
    constexpr S dead = -std::numeric_limits<S>::infinity();
    const auto before = [&](Index a, Index b) {  // a comes before b
        if (std::isnan(keys[a]) || std::isnan(keys[b]))
            return std::isnan(keys[a]) == std::isnan(keys[b]) ? a < b : std::isnan(keys[b]);
        return keys[a] > keys[b] || (keys[a] == keys[b] && a < b);
    };
    Index count = 0;
    for (; count < k; ++count) {
        Index next = -1;
        for (Index i = 0; i < n; ++i)
            if (keys[i] != dead && (count == 0 || before(best[count - 1], i)) &&
                (next < 0 || before(i, next)))
                next = i;
        if (next < 0) break;
        best[count] = static_cast<std::int32_t>(next);
    }
    return count;
}

template <class S>
void top_two(Index runs, Index size, const S* keys, S* first, S* second) {
    for (Index r = 0; r < runs; ++r) {
        first[r] = second[r] = -std::numeric_limits<S>::infinity();
        for (Index i = r * size; i < (r + 1) * size; ++i) {
            if (!(keys[i] > second[r])) continue;
            second[r] = keys[i] > first[r] ? first[r] : keys[i];
            if (keys[i] > first[r]) first[r] = keys[i];
        }
    }
}

}  // namespace moe::inline MOE_ABI::exact

#endif  // MOE_KERNELS_REFERENCE_HPP
