// expect: side_vectors is a view; pass a matrix, not an expression
// SPDX-License-Identifier: MIT
// A view of what an expression evaluates to would outlive it.
#include <moe/core/context.hpp>

int main() {
    const moe::Matrix<float> v = moe::Matrix<float>::Zero(3, 4);
#ifdef MUST_COMPILE
    const moe::Context context{.side_vectors = v};
#else
    const moe::Context context{.side_vectors = 2 * v};
#endif
    return context.side_vectors.rows() == 3 ? 0 : 1;
}
