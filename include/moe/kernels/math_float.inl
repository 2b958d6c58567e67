// SPDX-License-Identifier: MIT
// exp and the normal distribution in float over E, the same operations on every
// instruction set. Included after the vector's own functions, in the same namespace.

/// e^x within 1 ulp over the whole range: inf above 88.72, denormals down to -103.97, then 0.
/// NaN stays NaN.
[[gnu::always_inline]] inline E exp(E x) {
    namespace poly = detail::poly;
    x = max(each(poly::exp_low), min(each(poly::exp_high), x));
    const E shifted = fma(x, each(poly::log2_e), each(poly::round_shift));
    const E n = sub(shifted, each(poly::round_shift));
    E r = fma(n, each(-poly::ln2_high), x);
    r = fma(n, each(-poly::ln2_low), r);
    E p = each(poly::exp_q[4]);
    p = fma(p, r, each(poly::exp_q[3]));
    p = fma(p, r, each(poly::exp_q[2]));
    p = fma(p, r, each(poly::exp_q[1]));
    p = fma(p, r, each(poly::exp_q[0]));
    p = fma(p, r, each(1));
    p = fma(p, r, each(1));
    // 2^n in two factors, as 2^128 and 2^-150 are not floats. The first product is exact; the
    // second is an fma, because a plain product could be fused into an addition that follows.
    E low, high;
    powers_of_two(shifted, low, high);
    return fma(mul(p, low), high, each(-0.0f));
}

/// cdf = Phi(a), bell = exp(-a^2 / 2), both with a small relative error in the tails too.
[[gnu::always_inline]] inline void normal(E a, E& cdf, E& bell) {
    namespace poly = detail::poly;
    const E x = max(each(-detail::far<float>), minus_abs(a));
    const E square = mul(x, x);
    const E rest = fma(x, x, negate(square));  // x^2 = square + rest, exactly
    const E e = exp(mul(square, each(-0.5f)));
    bell = fma(mul(e, rest), each(-0.5f), e);
    const E t = div(each(1), fma(x, each(-poly::tail_scale), each(1)));
    E p = each(poly::tail_c[8]);
    p = fma(p, t, each(poly::tail_c[7]));
    p = fma(p, t, each(poly::tail_c[6]));
    p = fma(p, t, each(poly::tail_c[5]));
    p = fma(p, t, each(poly::tail_c[4]));
    p = fma(p, t, each(poly::tail_c[3]));
    p = fma(p, t, each(poly::tail_c[2]));
    p = fma(p, t, each(poly::tail_c[1]));
    p = fma(p, t, each(poly::tail_c[0]));
    p = mul(p, t);
    cdf = where_le(a, each(0), mul(bell, p), fma(negate(bell), p, each(1)));
}
