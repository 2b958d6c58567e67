// SPDX-License-Identifier: MIT
// exp and the normal distribution in double: the standard library's. Included after single.inl, in
// the same namespace.

inline E exp(E x) { return {std::exp(x.x)}; }

/// cdf = Phi(a), bell = exp(-a^2 / 2).
inline void normal(E a, E& cdf, E& bell) {
    cdf.x = 0.5 * std::erfc(-a.x * detail::inverse_sqrt_2<double>);
    bell.x = std::exp(-0.5 * a.x * a.x);
}
