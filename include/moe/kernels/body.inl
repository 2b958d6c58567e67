// SPDX-License-Identifier: MIT
// Every kernel, written once over a vector V of 16 lanes. Included inside a namespace (and a target
// region) that defines S, V and its functions, exp and normal, and
//
//     constexpr const char* table_name;
//     constexpr int tile_rows;     // most rows of a tile
//     constexpr int tile_vectors;  // vectors in a row of a panel
//
// What it adds is `table`. Only pointers, counts and V in here: a standard container or a lambda
// would be compiled for the wrong instruction set. A product that feeds an addition is an fma.

/// Elements i of the arrays that vector number i / 16 holds; the last one may be partial.
inline constexpr Index lanes = 16;
inline constexpr Index panel_width = tile_vectors * lanes;

// ---- products ----

/// One tile of `Rows` rows: Rows * tile_vectors accumulators stay in registers over all of k. The
/// unroll pragmas are what keeps them there at -O2.
template <int Rows>
void tile_of(Index cols, Index k, const S* a, Index a_row, Index a_col, const S* b, Index b_row,
             S* c, Index c_row, bool add) {
    V acc[Rows][tile_vectors];
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 2
        for (int v = 0; v < tile_vectors; ++v)
            acc[i][v] = add ? load(c + i * c_row + v * lanes, cols - v * lanes) : splat(0);
    for (Index p = 0; p < k; ++p) {
        V row[tile_vectors];
#pragma GCC unroll 2
        for (int v = 0; v < tile_vectors; ++v) row[v] = load(b + v * lanes);
#pragma GCC unroll 16
        for (int i = 0; i < Rows; ++i) {
            const V x = splat(a[i * a_row]);
#pragma GCC unroll 2
            for (int v = 0; v < tile_vectors; ++v) acc[i][v] = fma(x, row[v], acc[i][v]);
        }
        a += a_col;
        b += b_row;
    }
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 2
        for (int v = 0; v < tile_vectors; ++v)
            store(c + i * c_row + v * lanes, acc[i][v], cols - v * lanes);
}

template <int Rows = tile_rows>
void tile(Index rows, Index cols, Index k, const S* a, Index a_row, Index a_col, const S* b,
          Index b_row, S* c, Index c_row, bool add) {
    if constexpr (Rows > 1)
        if (rows < Rows)
            return tile<Rows - 1>(rows, cols, k, a, a_row, a_col, b, b_row, c, c_row, add);
    tile_of<Rows>(cols, k, a, a_row, a_col, b, b_row, c, c_row, add);
}

inline void pack(Index k, Index cols, const S* b, Index b_row, Index b_col, S* panel) {
    for (Index j = 0; j < panel_width; j += lanes) {
        const Index here = cols - j < lanes ? (cols > j ? cols - j : 0) : lanes;
        const S* from = here > 0 ? b + j * b_col : b;
        S* to = panel + j;
        if (b_col == 1) {  // rows of B are contiguous
            for (Index p = 0; p < k; ++p) store(to + p * panel_width, load(from + p * b_row, here));
        } else if (b_row == 1) {  // columns are: weights stored [out, in]
            for (Index p = 0; p < k; p += lanes)
                transpose(here, k - p < lanes ? k - p : lanes, from + p, b_col,
                          to + p * panel_width, panel_width);
        } else {
            for (Index p = 0; p < k; ++p)
                for (Index i = 0; i < lanes; ++i)
                    to[p * panel_width + i] = i < here ? from[p * b_row + i * b_col] : S(0);
        }
    }
}

// ---- sums ----

inline S fold(V x) {
    S p[lanes];
    store(p, x);
    for (int half = 8; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) p[i] += p[i + half];
    return p[0];
}

inline S fold_max(V x) {
    S p[lanes];
    store(p, x);
    for (int half = 8; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) p[i] = p[i] > p[i + half] ? p[i] : p[i + half];
    return p[0];
}

inline void axpy(Index n, S a, const S* x, S* y) {
    const V factor = splat(a);
    for (Index i = 0; i < n; i += lanes)
        store(y + i, fma(factor, load(x + i, n - i), load(y + i, n - i)), n - i);
}

inline void scale(Index n, S a, const S* x, S* y) {
    const V factor = splat(a);
    for (Index i = 0; i < n; i += lanes) store(y + i, mul(factor, load(x + i, n - i)), n - i);
}

inline S dot(Index n, const S* x, const S* y) {
    V sum = splat(0);
    for (Index i = 0; i < n; i += lanes)
        sum = first(n - i, fma(load(x + i, n - i), load(y + i, n - i), sum), sum);
    return fold(sum);
}

inline S sum(Index n, const S* x) {
    V sum = splat(0);
    for (Index i = 0; i < n; i += lanes) sum = first(n - i, add(sum, load(x + i, n - i)), sum);
    return fold(sum);
}

// ---- softmax ----

/// The largest element, -inf if there is none. A NaN may be lost here; exp finds it again.
inline S largest(Index n, const S* x) {
    V most = splat(-std::numeric_limits<S>::infinity());
    for (Index i = 0; i < n; i += lanes) most = first(n - i, max(most, load(x + i, n - i)), most);
    return fold_max(most);
}

inline void softmax(Index n, const S* x, S* y) {
    const S most = largest(n, x);
    // A row of -inf only: exp(-inf - 0) = 0, where -inf - -inf would be NaN.
    const V shift = splat(most == -std::numeric_limits<S>::infinity() ? S(0) : most);
    V sum = splat(0);
    for (Index i = 0; i < n; i += lanes) {
        const V e = exp(sub(load(x + i, n - i), shift));
        sum = first(n - i, add(sum, e), sum);
        store(y + i, e, n - i);
    }
    const S total = fold(sum);
    const V divisor = splat(total == S(0) ? S(1) : total);
    for (Index i = 0; i < n; i += lanes) store(y + i, div(load(y + i, n - i), divisor), n - i);
}

inline S log_sum_exp(Index n, const S* x) {
    const S most = largest(n, x);
    const S infinity = std::numeric_limits<S>::infinity();
    const S shift = most == infinity || most == -infinity ? S(0) : most;
    V sum = splat(0);
    for (Index i = 0; i < n; i += lanes)
        sum = first(n - i, add(sum, exp(sub(load(x + i, n - i), splat(shift)))), sum);
    return static_cast<S>(double(shift) + std::log(double(fold(sum))));
}

// ---- elementwise ----

/// s = 1 / (1 + exp(-x)), rest = 1 - s, from exp(-|x|) so that neither overflows or cancels.
[[gnu::always_inline]] inline void logistic(V x, V& s, V& rest) {
    const V e = exp(minus_abs(x));
    const V r = div(splat(1), add(splat(1), e));
    const V er = mul(e, r);
    s = where_le(x, splat(0), er, r);
    rest = where_le(x, splat(0), r, er);
}

inline void sigmoid(Index n, const S* x, S* y) {
    for (Index i = 0; i < n; i += lanes) {
        V s, rest;
        logistic(load(x + i, n - i), s, rest);
        store(y + i, s, n - i);
    }
}

/// value = act(a), slope = act'(a). The compiler drops whichever is not used.
///
/// Limits: at -inf gelu, gelu_tanh and silu are -0 with slope 0, at +inf the value is inf and the
/// slope 1. NaN gives NaN, except that the slope of relu is then 1.
template <Activation act>
[[gnu::always_inline]] inline void evaluate(V a, V& value, V& slope) {
    const V zero = splat(0);
    const V largest_finite = splat(std::numeric_limits<S>::max());
    const V far = splat(detail::far<S>);
    if constexpr (act == Activation::relu) {
        value = max(zero, a);
        slope = where_le(a, zero, zero, splat(1));
    } else if constexpr (act == Activation::relu_squared) {
        const V positive = max(zero, a);
        value = mul(positive, positive);
        slope = add(positive, positive);
    } else if constexpr (act == Activation::gelu) {
        V cdf, bell, slope_cdf, slope_bell;
        normal(a, cdf, bell);
        value = mul(max(negate(largest_finite), a), cdf);
        const V near = max(negate(far), min(far, a));
        slope = fma(mul(near, bell), splat(detail::inverse_sqrt_2_pi<S>), cdf);
    } else if constexpr (act == Activation::gelu_tanh) {
        const V near = max(negate(far), min(far, a));
        const V square = mul(near, near);
        V s, rest;
        logistic(mul(near, fma(square, splat(detail::tanh_3<S>), splat(detail::tanh_1<S>))), s,
                 rest);
        value = mul(max(negate(largest_finite), a), s);
        const V inner = fma(square, splat(3 * detail::tanh_3<S>), splat(detail::tanh_1<S>));
        slope = fma(mul(mul(near, s), rest), inner, s);
    } else {
        V s, rest;
        logistic(a, s, rest);
        const V above = max(negate(largest_finite), a);
        value = mul(above, s);
        slope = fma(mul(min(largest_finite, above), s), rest, s);
    }
}

template <Activation act>
struct Elementwise {
    static void forward(Index n, const S* a, S* h) {
        for (Index i = 0; i < n; i += lanes) {
            V value, slope;
            evaluate<act>(load(a + i, n - i), value, slope);
            store(h + i, value, n - i);
        }
    }
    static void backward(Index n, const S* a, const S* dh, S* da) {
        for (Index i = 0; i < n; i += lanes) {
            V value, slope;
            evaluate<act>(load(a + i, n - i), value, slope);
            store(da + i, mul(load(dh + i, n - i), slope), n - i);
        }
    }
    static void gate(Index n, const S* g, const S* u, S* h) {
        for (Index i = 0; i < n; i += lanes) {
            V value, slope;
            evaluate<act>(load(g + i, n - i), value, slope);
            store(h + i, mul(value, load(u + i, n - i)), n - i);
        }
    }
    static void gate_backward(Index n, const S* g, const S* u, const S* dh, S* dg, S* du) {
        for (Index i = 0; i < n; i += lanes) {
            V value, slope;
            evaluate<act>(load(g + i, n - i), value, slope);
            const V up = load(u + i, n - i);
            const V d = load(dh + i, n - i);
            store(dg + i, mul(mul(d, up), slope), n - i);
            store(du + i, mul(d, value), n - i);
        }
    }
};

inline void activate(Activation act, Index n, const S* a, S* h) {
    switch (act) {
        case Activation::relu: return Elementwise<Activation::relu>::forward(n, a, h);
        case Activation::relu_squared:
            return Elementwise<Activation::relu_squared>::forward(n, a, h);
        case Activation::gelu: return Elementwise<Activation::gelu>::forward(n, a, h);
        case Activation::gelu_tanh: return Elementwise<Activation::gelu_tanh>::forward(n, a, h);
        case Activation::silu: return Elementwise<Activation::silu>::forward(n, a, h);
    }
}

inline void activate_backward(Activation act, Index n, const S* a, const S* dh, S* da) {
    switch (act) {
        case Activation::relu: return Elementwise<Activation::relu>::backward(n, a, dh, da);
        case Activation::relu_squared:
            return Elementwise<Activation::relu_squared>::backward(n, a, dh, da);
        case Activation::gelu: return Elementwise<Activation::gelu>::backward(n, a, dh, da);
        case Activation::gelu_tanh:
            return Elementwise<Activation::gelu_tanh>::backward(n, a, dh, da);
        case Activation::silu: return Elementwise<Activation::silu>::backward(n, a, dh, da);
    }
}

inline void gate(Activation act, Index n, const S* g, const S* u, S* h) {
    switch (act) {
        case Activation::relu: return Elementwise<Activation::relu>::gate(n, g, u, h);
        case Activation::relu_squared:
            return Elementwise<Activation::relu_squared>::gate(n, g, u, h);
        case Activation::gelu: return Elementwise<Activation::gelu>::gate(n, g, u, h);
        case Activation::gelu_tanh: return Elementwise<Activation::gelu_tanh>::gate(n, g, u, h);
        case Activation::silu: return Elementwise<Activation::silu>::gate(n, g, u, h);
    }
}

inline void gate_backward(Activation act, Index n, const S* g, const S* u, const S* dh, S* dg,
                          S* du) {
    switch (act) {
        case Activation::relu:
            return Elementwise<Activation::relu>::gate_backward(n, g, u, dh, dg, du);
        case Activation::relu_squared:
            return Elementwise<Activation::relu_squared>::gate_backward(n, g, u, dh, dg, du);
        case Activation::gelu:
            return Elementwise<Activation::gelu>::gate_backward(n, g, u, dh, dg, du);
        case Activation::gelu_tanh:
            return Elementwise<Activation::gelu_tanh>::gate_backward(n, g, u, dh, dg, du);
        case Activation::silu:
            return Elementwise<Activation::silu>::gate_backward(n, g, u, dh, dg, du);
    }
}

inline constexpr KernelTable<S> table{
    table_name, panel_width, tile_rows, tile<>,      pack,     axpy,
    scale,      dot,         sum,       softmax,     log_sum_exp, sigmoid,
    activate,   activate_backward,      gate,        gate_backward};
