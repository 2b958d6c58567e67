// SPDX-License-Identifier: MIT
// The portable vector of 16 lanes that body.inl is written over. Included inside a namespace, and
// possibly inside a target region, that has `using S = float` or `double`; no guard on purpose.
// x86/avx2.hpp and x86/avx512.hpp define the same functions with intrinsics.

struct V {
    S lane[16];
};

[[gnu::always_inline]] inline V splat(S x) {
    V r;
    for (int l = 0; l < 16; ++l) r.lane[l] = x;
    return r;
}

[[gnu::always_inline]] inline V load(const S* p) {
    V r;
    for (int l = 0; l < 16; ++l) r.lane[l] = p[l];
    return r;
}

/// The first min(n, 16) elements at p; 0 in the other lanes.
[[gnu::always_inline]] inline V load(const S* p, Index n) {
    if (n >= 16) return load(p);
    V r = splat(0);
    for (Index l = 0; l < n; ++l) r.lane[l] = p[l];
    return r;
}

[[gnu::always_inline]] inline void store(S* p, V x) {
    for (int l = 0; l < 16; ++l) p[l] = x.lane[l];
}

/// Writes the first min(n, 16) lanes.
[[gnu::always_inline]] inline void store(S* p, V x, Index n) {
    if (n >= 16) return store(p, x);
    for (Index l = 0; l < n; ++l) p[l] = x.lane[l];
}

/// x in the first n lanes, y in the others.
[[gnu::always_inline]] inline V first(Index n, V x, V y) {
    for (Index l = 0; l < 16; ++l) x.lane[l] = l < n ? x.lane[l] : y.lane[l];
    return x;
}

[[gnu::always_inline]] inline V fma(V x, V y, V z) {
    for (int l = 0; l < 16; ++l) z.lane[l] = std::fma(x.lane[l], y.lane[l], z.lane[l]);
    return z;
}

[[gnu::always_inline]] inline V add(V x, V y) {
    for (int l = 0; l < 16; ++l) x.lane[l] += y.lane[l];
    return x;
}

[[gnu::always_inline]] inline V sub(V x, V y) {
    for (int l = 0; l < 16; ++l) x.lane[l] -= y.lane[l];
    return x;
}

[[gnu::always_inline]] inline V mul(V x, V y) {
    for (int l = 0; l < 16; ++l) x.lane[l] *= y.lane[l];
    return x;
}

[[gnu::always_inline]] inline V div(V x, V y) {
    for (int l = 0; l < 16; ++l) x.lane[l] /= y.lane[l];
    return x;
}

/// y if either is NaN or both are zeros, like the instruction.
[[gnu::always_inline]] inline V max(V x, V y) {
    for (int l = 0; l < 16; ++l) x.lane[l] = x.lane[l] > y.lane[l] ? x.lane[l] : y.lane[l];
    return x;
}

[[gnu::always_inline]] inline V min(V x, V y) {
    for (int l = 0; l < 16; ++l) x.lane[l] = x.lane[l] < y.lane[l] ? x.lane[l] : y.lane[l];
    return x;
}

[[gnu::always_inline]] inline V negate(V x) {
    for (int l = 0; l < 16; ++l) x.lane[l] = -x.lane[l];
    return x;
}

/// -|x|
[[gnu::always_inline]] inline V minus_abs(V x) {
    for (int l = 0; l < 16; ++l) x.lane[l] = -std::fabs(x.lane[l]);
    return x;
}

/// a <= b ? x : y; y if either is NaN.
[[gnu::always_inline]] inline V where_le(V a, V b, V x, V y) {
    for (int l = 0; l < 16; ++l) x.lane[l] = a.lane[l] <= b.lane[l] ? x.lane[l] : y.lane[l];
    return x;
}

/// to[p * to_row + j] = from[j * from_row + p] for j < rows and p < cols, 0 for rows <= j < 16;
/// rows and cols are at most 16.
inline void transpose(Index rows, Index cols, const S* from, Index from_row, S* to, Index to_row) {
    for (Index p = 0; p < cols; ++p)
        for (Index j = 0; j < 16; ++j) to[p * to_row + j] = j < rows ? from[j * from_row + p] : S(0);
}
