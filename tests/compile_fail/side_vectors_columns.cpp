// expect: side_vectors are rows of a row-major matrix; pass moe::Matrix
// SPDX-License-Identifier: MIT
// A column-major matrix is not silently copied where a view is kept.
#include <moe/core/context.hpp>

int main() {
    const Eigen::MatrixXf v = Eigen::MatrixXf::Zero(4, 3);
#ifdef MUST_COMPILE
    const moe::Context context{.side_vectors = v.transpose()};
#else
    const moe::Context context{.side_vectors = v};
#endif
    return context.side_vectors.rows() == 3 ? 0 : 1;
}
