// SPDX-License-Identifier: MIT
// Every kernel, written once. Included inside a namespace (and a target region) that defines the
// scalar S, the vectors V (16 columns of a tile) and E (`elements` numbers of an elementwise
// function) with what they can do, exp and normal, and
//
//     constexpr const char* table_name;
//     constexpr int tile_rows;     // most rows of a tile
//     constexpr int tile_vectors;  // vectors in a row of a panel
//     constexpr int row_panels;    // KernelTable::row_panels, 1 to 4; 1 if a tile of one row has
//                                  // chains enough
//     template <class T> Group;    // the columns of elements T that are read together where they
//                                  // lie: V, or a struct of the first 8 lanes of one
//
// A Group that is no V needs splat(Group, S), load(Group, const S*), store(S*, Group, Index), fma,
// part(S, Group, int, Group) and read_columns(from, from_row, Group (&)[column_step]).
//
// What it adds is `table`. Only pointers, counts, V and E in here: a standard container or a lambda
// would be compiled for the wrong instruction set. A product that feeds an addition is an fma.

/// Columns of a V, and partials of a sum.
inline constexpr Index lanes = 16;
inline constexpr Index panel_width = tile_vectors * lanes;
static_assert(panel_width == gate_up_run || panel_width == 2 * gate_up_run,
              "GateUp packs no others, and layers cut columns into 64s");
/// Elements of a buffer on the stack, for what needs a second pass; a multiple of 16.
inline constexpr Index block = 256;

#include <moe/kernels/products.inl>

// ---- sums ----

inline S larger(S a, S b) { return a > b ? a : b; }
inline S smaller(S a, S b) { return a < b ? a : b; }

/// The 16 partials of a sum or a maximum.
struct Partials {
    E part[lanes / elements];

    explicit Partials(S start) {
        for (E& p : part) p = each(start);
    }
    /// Those that element i and the ones after it in an E go to.
    E& at(Index i) { return part[i % lanes / elements]; }

    // Step by step: g++ makes vectors of loops whose counts it sees, and none of a loop over them.
    S fold() const {
        S p[lanes];
        write(p);
        for (int i = 0; i < 8; ++i) p[i] += p[i + 8];
        for (int i = 0; i < 4; ++i) p[i] += p[i + 4];
        return (p[0] + p[2]) + (p[1] + p[3]);
    }
    S fold_max() const {
        S p[lanes];
        write(p);
        for (int i = 0; i < 8; ++i) p[i] = larger(p[i], p[i + 8]);
        for (int i = 0; i < 4; ++i) p[i] = larger(p[i], p[i + 4]);
        return larger(larger(p[0], p[2]), larger(p[1], p[3]));
    }

private:
    void write(S* p) const {
        for (Index i = 0; i < lanes; i += elements) store(p + i, part[i / elements], elements);
        finish();
    }
};

inline void axpy(Index n, S a, const S* x, S* y) {
    for (Index i = 0; i < n; i += elements)
        store(y + i, fma(each(a), load_each(x + i, n - i), load_each(y + i, n - i)), n - i);
    finish();
}

inline void scale(Index n, S a, const S* x, S* y) {
    for (Index i = 0; i < n; i += elements)
        store(y + i, mul(each(a), load_each(x + i, n - i)), n - i);
    finish();
}

inline S dot(Index n, const S* x, const S* y) {
    Partials sum(0);
    for (Index i = 0; i < n; i += elements) {
        E& p = sum.at(i);
        p = first(n - i, fma(load_each(x + i, n - i), load_each(y + i, n - i), p), p);
    }
    return sum.fold();
}

/// Adds x to the partials of a sum.
inline void accumulate(Index n, const S* x, Partials& sum) {
    for (Index i = 0; i < n; i += elements) {
        E& p = sum.at(i);
        p = first(n - i, add(p, load_each(x + i, n - i)), p);
    }
}

inline S sum(Index n, const S* x) {
    Partials sum(0);
    accumulate(n, x, sum);
    return sum.fold();
}

// ---- softmax ----

/// The largest element, -inf if there is none. A NaN may be lost here; exp finds it again.
inline S largest(Index n, const S* x) {
    Partials most(-std::numeric_limits<S>::infinity());
    for (Index i = 0; i < n; i += elements) {
        E& p = most.at(i);
        p = first(n - i, max(p, load_each(x + i, n - i)), p);
    }
    return most.fold_max();
}

/// y = exp(x - shift)
[[gnu::noinline]] inline void shifted_exp(Index n, S shift, const S* x, S* y) {
    for (Index i = 0; i < n; i += elements)
        store(y + i, exp(sub(load_each(x + i, n - i), each(shift))), n - i);
}

/// What softmax subtracts. From a row of -inf only 0, as -inf - -inf would be NaN.
inline S softmax_shift(S most) { return most == -std::numeric_limits<S>::infinity() ? S(0) : most; }

/// softmax where one E holds the row: memory holds nothing in between but what is folded. Twice as
/// fast for the 8 experts of a small layer.
inline void softmax_of_one(Index n, const S* x, S* y) {
    const E row = load_each(x, n);
    Partials most(-std::numeric_limits<S>::infinity()), sum(0);
    most.part[0] = first(n, row, most.part[0]);
    const E e = exp(sub(row, each(softmax_shift(most.fold_max()))));
    sum.part[0] = first(n, e, sum.part[0]);
    const S total = sum.fold();
    store(y, div(e, each(total == S(0) ? S(1) : total)), n);
    finish();
}

inline void softmax(Index n, const S* x, S* y) {
    if (elements == lanes && 0 < n && n <= lanes) return softmax_of_one(n, x, y);
    shifted_exp(n, softmax_shift(largest(n, x)), x, y);
    const S total = sum(n, y);
    const E divisor = each(total == S(0) ? S(1) : total);
    for (Index i = 0; i < n; i += elements)
        store(y + i, div(load_each(y + i, n - i), divisor), n - i);
    finish();
}

inline S log_sum_exp(Index n, const S* x) {
    const S infinity = std::numeric_limits<S>::infinity();
    const S most = largest(n, x);
    const S shift = most == infinity || most == -infinity ? S(0) : most;
    S e[block];
    Partials sum(0);
    for (Index from = 0; from < n; from += block) {
        const Index count = n - from < block ? n - from : block;
        shifted_exp(count, shift, x + from, e);
        accumulate(count, e, sum);
    }
    return static_cast<S>(double(shift) + std::log(double(sum.fold())));
}

// ---- elementwise ----

/// s = 1 / (1 + exp(-x)), rest = 1 - s, from exp(-|x|) so that neither overflows or cancels.
[[gnu::always_inline]] inline void logistic(E x, E& s, E& rest) {
    const E e = exp(minus_abs(x));
    const E r = div(each(1), add(each(1), e));
    const E er = mul(e, r);
    s = where_le(x, each(0), er, r);
    rest = where_le(x, each(0), r, er);
}

inline void sigmoid(Index n, const S* x, S* y) {
    for (Index i = 0; i < n; i += elements) {
        E s, rest;
        logistic(load_each(x + i, n - i), s, rest);
        store(y + i, s, n - i);
    }
    finish();
}

/// value = act(a), slope = act'(a).
///
/// Limits: at -inf gelu, gelu_tanh, silu and quick_gelu are -0 with slope 0, at +inf the value is
/// inf and the slope 1. NaN gives NaN, except that the slope of relu is then 1. relu takes no max:
/// clang 14 makes of max(0, -0) another zero on ARM than elsewhere.
template <Activation act>
[[gnu::always_inline]] inline void evaluate(E a, E& value, E& slope) {
    const E zero = each(0);
    const E largest_finite = each(std::numeric_limits<S>::max());
    const E far = each(detail::far<S>);
    if constexpr (act == Activation::relu) {
        value = where_le(a, zero, zero, a);
        slope = where_le(a, zero, zero, each(1));
    } else if constexpr (act == Activation::relu_squared) {
        const E positive = where_le(a, zero, zero, a);
        value = mul(positive, positive);
        slope = add(positive, positive);
    } else if constexpr (act == Activation::gelu) {
        E cdf, bell;
        normal(a, cdf, bell);
        value = mul(max(negate(largest_finite), a), cdf);
        const E near = max(negate(far), min(far, a));
        slope = fma(mul(near, bell), each(detail::inverse_sqrt_2_pi<S>), cdf);
    } else if constexpr (act == Activation::gelu_tanh) {
        const E near = max(negate(far), min(far, a));
        const E square = mul(near, near);
        E s, rest;
        logistic(mul(near, fma(square, each(detail::tanh_3<S>), each(detail::tanh_1<S>))), s, rest);
        value = mul(max(negate(largest_finite), a), s);
        const E inner = fma(square, each(3 * detail::tanh_3<S>), each(detail::tanh_1<S>));
        slope = fma(mul(mul(near, s), rest), inner, s);
    } else if constexpr (act == Activation::silu) {
        E s, rest;
        logistic(a, s, rest);
        const E above = max(negate(largest_finite), a);
        value = mul(above, s);
        slope = fma(mul(min(largest_finite, above), s), rest, s);
    } else if constexpr (act == Activation::quick_gelu) {
        const E scaled = mul(a, each(detail::quick_scale<S>));
        E s, rest;
        logistic(scaled, s, rest);
        value = mul(max(negate(largest_finite), a), s);
        const E finite = min(largest_finite, max(negate(largest_finite), scaled));
        slope = fma(mul(finite, s), rest, s);
    } else {
        static_assert(act == Activation::silu, "an Activation without a formula");
    }
}

/// Writes act'(a) too, if there is a place for it. (One loop for both uses halves the code.)
template <Activation act>
[[gnu::noinline]] void evaluate(Index n, const S* a, S* values, S* slopes) {
    for (Index i = 0; i < n; i += elements) {
        E value, slope;
        evaluate<act>(load_each(a + i, n - i), value, slope);
        store(values + i, value, n - i);
        if (slopes != nullptr) store(slopes + i, slope, n - i);
    }
    finish();
}

inline void evaluate(Activation act, Index n, const S* a, S* values, S* slopes) {
    switch (act) {
        case Activation::relu:
            return evaluate<Activation::relu>(n, a, values, slopes);
        case Activation::relu_squared:
            return evaluate<Activation::relu_squared>(n, a, values, slopes);
        case Activation::gelu:
            return evaluate<Activation::gelu>(n, a, values, slopes);
        case Activation::gelu_tanh:
            return evaluate<Activation::gelu_tanh>(n, a, values, slopes);
        case Activation::silu:
            return evaluate<Activation::silu>(n, a, values, slopes);
        case Activation::quick_gelu:
            return evaluate<Activation::quick_gelu>(n, a, values, slopes);
    }
}

/// h = act(g) u in one pass: a block of act(g) in between took 1.1 times as long with AVX-512 (Zen
/// 4, silu of 1024), 1.3 times with AVX2.
/// @param gap  elements that g and u skip after every 16
template <Activation act>
[[gnu::noinline]] void gate_of(Index n, const S* g, const S* u, Index gap, S* h) {
    static_assert(gate_up_run % elements == 0);
    for (Index i = 0; i < n; i += elements) {
        const Index at = i + i / gate_up_run * gap;
        E value, slope;
        evaluate<act>(load_each(g + at, n - i), value, slope);
        store(h + i, mul(value, load_each(u + at, n - i)), n - i);
    }
    finish();
}

inline void gate_of(Activation act, Index n, const S* g, const S* u, Index gap, S* h) {
    switch (act) {
        case Activation::relu:
            return gate_of<Activation::relu>(n, g, u, gap, h);
        case Activation::relu_squared:
            return gate_of<Activation::relu_squared>(n, g, u, gap, h);
        case Activation::gelu:
            return gate_of<Activation::gelu>(n, g, u, gap, h);
        case Activation::gelu_tanh:
            return gate_of<Activation::gelu_tanh>(n, g, u, gap, h);
        case Activation::silu:
            return gate_of<Activation::silu>(n, g, u, gap, h);
        case Activation::quick_gelu:
            return gate_of<Activation::quick_gelu>(n, g, u, gap, h);
    }
}

inline void gate(Activation act, Index n, const S* g, const S* u, S* h) {
    gate_of(act, n, g, u, 0, h);
}
inline void gate_up(Activation act, Index n, const S* gu, S* h) {
    gate_of(act, n, gu, gu + gate_up_run, gate_up_run, h);
}

inline void activate(Activation act, Index n, const S* a, S* h) { evaluate(act, n, a, h, nullptr); }

/// y = x z
inline void multiply(Index n, const S* x, const S* z, S* y) {
    for (Index i = 0; i < n; i += elements)
        store(y + i, mul(load_each(x + i, n - i), load_each(z + i, n - i)), n - i);
    finish();
}

// The two below go through a block on the stack: one pass for the function, one for the products.
// Writing the products into each activation's loop instead, as gate_of does for every forward,
// would double the code once more.

inline void activate_backward(Activation act, Index n, const S* a, const S* dh, S* da) {
    S value[block], slope[block];
    for (Index from = 0; from < n; from += block) {
        const Index count = n - from < block ? n - from : block;
        evaluate(act, count, a + from, value, slope);
        multiply(count, dh + from, slope, da + from);
    }
}

inline void gate_backward(Activation act, Index n, const S* g, const S* u, const S* dh, S* dg,
                          S* du) {
    S value[block], slope[block];
    for (Index from = 0; from < n; from += block) {
        const Index count = n - from < block ? n - from : block;
        evaluate(act, count, g + from, value, slope);
        for (Index i = 0; i < count; i += elements) {
            const Index left = count - i;
            const E d = load_each(dh + from + i, left);
            const E dgate = mul(mul(d, load_each(u + from + i, left)), load_each(slope + i, left));
            store(dg + from + i, dgate, left);
            store(du + from + i, mul(d, load_each(value + i, left)), left);
        }
    }
    finish();
}

// ---- choosing ----

#include <moe/kernels/top_k.inl>

template <class All>
inline constexpr KernelTable<S> table{.name = table_name,
                                      .panel_width = panel_width,
                                      .tile_rows = tile_rows,
                                      .tile = tile<All>,
                                      .row_panels = row_panels,
                                      .row = row_panels > 1 ? row<All> : nullptr,
                                      .column_rows = column_rows,
                                      .columns = columns<All>,
                                      .pack = pack,
                                      .axpy = axpy,
                                      .scale = scale,
                                      .dot = dot,
                                      .sum = sum,
                                      .softmax = softmax,
                                      .log_sum_exp = log_sum_exp,
                                      .sigmoid = sigmoid,
                                      .is_finite = is_finite,
                                      .top_k = top_k<All>,
                                      .top_two = top_two<All>,
                                      .activate = activate,
                                      .activate_backward = activate_backward,
                                      .gate = gate,
                                      .gate_up = gate_up,
                                      .gate_backward = gate_backward};
