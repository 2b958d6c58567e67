// SPDX-License-Identifier: MIT
// Kernels for narrow elements, of products.inl. Included behind body.inl where S is float and the
// instruction set can
//
//     V widen(const T* from, V scale)         16 elements
//     V part(T, V words, int q, V scale)      element q of each word, which holds 4 bytes
//
// (and `part` of a Group<T> that is less) for T Bf16, F16 and std::int8_t, of which only the last
// looks at the scale. Templates all: a program that views no such weights compiles none of them.

template <class T>
void narrow_columns(Index rows, Index cols, Index k, const S* a, Index a_row, const void* b,
                    Index b_col, const S* scales, S* c, Index c_row, bool add) {
    columns_in_place(rows, cols, k, a, a_row, static_cast<const T*>(b), b_col, scales, c, c_row,
                     add);
}

template <class T>
void narrow_pack(Index k, Index cols, const void* b, Index b_row, Index b_col, const S* scales,
                 Index scale_row, Index scale_col, S* panel) {
    pack_widened(k, cols, static_cast<const T*>(b), b_row, b_col, scales, scale_row, scale_col,
                 panel);
}

template <class T>
inline constexpr NarrowKernels narrow_kernels{.element_size = static_cast<Index>(sizeof(T)),
                                              .panel_width = panel_width,
                                              .columns = narrow_columns<T>,
                                              .pack = narrow_pack<T>};

template <class Int8>  // std::int8_t; a template, so that it is compiled where it is used
inline constexpr NarrowTable narrow_table{narrow_kernels<Bf16>, narrow_kernels<F16>,
                                          narrow_kernels<Int8>};
