// SPDX-License-Identifier: MIT
// The portable vectors that body.inl is written over. Included inside a namespace, and possibly
// inside a target region, that has `using S = float` or `double`; no guard on purpose.
// x86/avx2.hpp and x86/avx512.hpp define the same functions with intrinsics.

/// V holds 16 elements: the columns of a tile, the partials of a sum.
struct V {
    S lane[16];
};

[[gnu::always_inline]] inline V splat(S x) {
    V r;
    for (int l = 0; l < 16; ++l) r.lane[l] = x;
    return r;
}

/// The first min(n, 16) elements at p; 0 in the other lanes.
[[gnu::always_inline]] inline V load(const S* p, Index n) {
    V r;
    if (n >= 16) {
        for (int l = 0; l < 16; ++l) r.lane[l] = p[l];
    } else {
        for (int l = 0; l < 16; ++l) r.lane[l] = l < n ? p[l] : S(0);
    }
    return r;
}

/// Writes the first min(n, 16) lanes.
[[gnu::always_inline]] inline void store(S* p, V x, Index n) {
    for (Index l = 0; l < (n < 16 ? n : 16); ++l) p[l] = x.lane[l];
}

/// x in the first n lanes, y in the others.
[[gnu::always_inline]] inline V first(Index n, V x, V y) {
    for (Index l = 0; l < 16; ++l) x.lane[l] = l < n ? x.lane[l] : y.lane[l];
    return x;
}

/// x y + z, rounded once.
[[gnu::always_inline]] inline V fma(V x, V y, V z) {
    for (int l = 0; l < 16; ++l) z.lane[l] = std::fma(x.lane[l], y.lane[l], z.lane[l]);
    return z;
}

[[gnu::always_inline]] inline V add(V x, V y) {
    for (int l = 0; l < 16; ++l) x.lane[l] += y.lane[l];
    return x;
}

/// y if either is NaN or both are zeros, like the instruction.
[[gnu::always_inline]] inline V max(V x, V y) {
    for (int l = 0; l < 16; ++l) x.lane[l] = x.lane[l] > y.lane[l] ? x.lane[l] : y.lane[l];
    return x;
}

/// E holds the elements that elementwise functions take at once: one, as compilers make little of
/// exp over an array, and a lot of code.
struct E {
    S x;
};
inline constexpr Index elements = 1;

inline E each(S x) { return {x}; }
inline E load_each(const S* p, Index) { return {*p}; }
inline void store(S* p, E x, Index) { *p = x.x; }
inline E fma(E x, E y, E z) { return {std::fma(x.x, y.x, z.x)}; }
inline E add(E x, E y) { return {x.x + y.x}; }
inline E sub(E x, E y) { return {x.x - y.x}; }
inline E mul(E x, E y) { return {x.x * y.x}; }
inline E div(E x, E y) { return {x.x / y.x}; }
inline E max(E x, E y) { return {x.x > y.x ? x.x : y.x}; }
inline E min(E x, E y) { return {x.x < y.x ? x.x : y.x}; }
inline E negate(E x) { return {-x.x}; }
/// -|x|
inline E minus_abs(E x) { return {-std::fabs(x.x)}; }
/// a <= b ? x : y; y if either is NaN.
inline E where_le(E a, E b, E x, E y) { return a.x <= b.x ? x : y; }

/// to[p * to_row + j] = from[j * from_row + p] for j < rows and p < cols, 0 for rows <= j < 16;
/// rows and cols are at most 16.
inline void transpose(Index rows, Index cols, const S* from, Index from_row, S* to, Index to_row) {
    for (Index p = 0; p < cols; ++p)
        for (Index j = 0; j < 16; ++j) to[p * to_row + j] = j < rows ? from[j * from_row + p] : S(0);
}
