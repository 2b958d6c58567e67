// SPDX-License-Identifier: MIT
// The E that elementwise functions of body.inl take at once, as a single element: for double, whose
// exp and erf are the standard library's, and for the portable float kernels, because compilers
// make little of exp over an array, and a lot of code. Included inside a namespace that has `using
// S = float` or `double`; no guard on purpose.

/// One element.
struct E {
    S x;
};
inline constexpr Index elements = 1;

inline E each(S x) { return {x}; }
inline E load_each(const S* p, Index) { return {*p}; }
inline void store(S* p, E x, Index) { *p = x.x; }
inline E first(Index, E x, E) { return x; }  // loops end before n
/// x y + z, rounded once.
inline E fma(E x, E y, E z) { return {std::fma(x.x, y.x, z.x)}; }
inline E add(E x, E y) { return {x.x + y.x}; }
inline E sub(E x, E y) { return {x.x - y.x}; }
inline E mul(E x, E y) { return {x.x * y.x}; }
inline E div(E x, E y) { return {x.x / y.x}; }
/// y if either is NaN or both are zeros, like the instruction.
inline E max(E x, E y) { return {x.x > y.x ? x.x : y.x}; }
inline E min(E x, E y) { return {x.x < y.x ? x.x : y.x}; }
inline E negate(E x) { return {-x.x}; }
/// -|x|
inline E minus_abs(E x) { return {-std::fabs(x.x)}; }
/// a <= b ? x : y; y if either is NaN.
inline E where_le(E a, E b, E x, E y) { return a.x <= b.x ? x : y; }
