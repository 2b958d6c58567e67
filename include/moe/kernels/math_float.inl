// SPDX-License-Identifier: MIT
// exp and the normal distribution in float over a vector of 16 lanes, the same operations on every
// instruction set. Included after the vector's own functions, in the same namespace.

/// e^x within 1 ulp over the whole range: inf above 88.72, denormals down to -103.97, then 0.
/// NaN stays NaN.
[[gnu::always_inline]] inline V exp(V x) {
    namespace poly = detail::poly;
    x = max(splat(poly::exp_low), min(splat(poly::exp_high), x));
    const V shifted = fma(x, splat(poly::log2_e), splat(poly::round_shift));
    const V n = sub(shifted, splat(poly::round_shift));
    V r = fma(n, splat(-poly::ln2_high), x);
    r = fma(n, splat(-poly::ln2_low), r);
    V p = splat(poly::exp_q[4]);
    p = fma(p, r, splat(poly::exp_q[3]));
    p = fma(p, r, splat(poly::exp_q[2]));
    p = fma(p, r, splat(poly::exp_q[1]));
    p = fma(p, r, splat(poly::exp_q[0]));
    p = fma(p, r, splat(1));
    p = fma(p, r, splat(1));
    // 2^n in two factors, as 2^128 and 2^-150 are not floats. The first product is exact; the
    // second is an fma, because a plain product could be fused into an addition that follows.
    V low, high;
    powers_of_two(shifted, low, high);
    return fma(mul(p, low), high, splat(-0.0f));
}

/// cdf = Phi(a), bell = exp(-a^2 / 2), both with a small relative error in the tails too.
[[gnu::always_inline]] inline void normal(V a, V& cdf, V& bell) {
    namespace poly = detail::poly;
    const V x = max(splat(-detail::far<float>), minus_abs(a));
    const V square = mul(x, x);
    const V rest = fma(x, x, negate(square));  // x^2 = square + rest, exactly
    const V e = exp(mul(square, splat(-0.5f)));
    bell = fma(mul(e, rest), splat(-0.5f), e);
    const V t = div(splat(1), fma(x, splat(-poly::tail_scale), splat(1)));
    V p = splat(poly::tail_c[8]);
    p = fma(p, t, splat(poly::tail_c[7]));
    p = fma(p, t, splat(poly::tail_c[6]));
    p = fma(p, t, splat(poly::tail_c[5]));
    p = fma(p, t, splat(poly::tail_c[4]));
    p = fma(p, t, splat(poly::tail_c[3]));
    p = fma(p, t, splat(poly::tail_c[2]));
    p = fma(p, t, splat(poly::tail_c[1]));
    p = fma(p, t, splat(poly::tail_c[0]));
    p = mul(p, t);
    cdf = where_le(a, splat(0), mul(bell, p), fma(negate(bell), p, splat(1)));
}
