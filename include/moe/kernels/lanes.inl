// SPDX-License-Identifier: MIT
// The portable V that body.inl is written over. Included inside a namespace that has
// `using S = float` or `double`; no guard on purpose. The headers in x86/ and arm/ define the same
// functions with intrinsics.

/// 16 columns of a tile.
struct V {
    S lane[16];
};
template <class>
using Group = V;

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

/// x y + z, rounded once.
[[gnu::always_inline]] inline V fma(V x, V y, V z) {
    for (int l = 0; l < 16; ++l) z.lane[l] = std::fma(x.lane[l], y.lane[l], z.lane[l]);
    return z;
}

/// to[p * to_row + j] = from[j * from_row + p] for j < rows and p < cols, 0 for rows <= j < 16;
/// rows and cols are at most 16.
inline void transpose(Index rows, Index cols, const S* from, Index from_row, S* to, Index to_row) {
    for (Index p = 0; p < cols; ++p)
        for (Index j = 0; j < 16; ++j)
            to[p * to_row + j] = j < rows ? from[j * from_row + p] : S(0);
}

/// The last call of every kernel; nothing to do here.
inline void finish() {}
