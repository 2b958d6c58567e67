// SPDX-License-Identifier: MIT
// exp and the normal distribution in double: the standard library's, lane by lane. Included after
// lanes.inl, in the same namespace.

[[gnu::always_inline]] inline V exp(V x) {
    for (int l = 0; l < 16; ++l) x.lane[l] = std::exp(x.lane[l]);
    return x;
}

/// cdf = Phi(a), bell = exp(-a^2 / 2).
[[gnu::always_inline]] inline void normal(V a, V& cdf, V& bell) {
    for (int l = 0; l < 16; ++l) {
        cdf.lane[l] = 0.5 * std::erfc(-a.lane[l] * detail::inverse_sqrt_2<double>);
        bell.lane[l] = std::exp(-0.5 * a.lane[l] * a.lane[l]);
    }
}
