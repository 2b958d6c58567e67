// expect: side_vectors is a view; this matrix is gone before it is read
// SPDX-License-Identifier: MIT
// A context keeps a view, so the matrix must have a name.
#include <moe/core/context.hpp>

int main() {
    const moe::Matrix<float> v = moe::Matrix<float>::Zero(4, 3);
#ifdef MUST_COMPILE
    const moe::Context context{.side_vectors = v};
#else
    const moe::Context context{.side_vectors = moe::Matrix<float>(v)};
#endif
    return context.side_vectors.rows() == 4 ? 0 : 1;
}
