// expect: ^no matching function for call to 'write
// SPDX-License-Identifier: MIT
// Column-major memory is not silently copied where a result is to be written.
#include <moe/core/types.hpp>

void write(moe::Out<float> out) { out.setZero(); }

int main() {
#ifdef MUST_COMPILE
    moe::Matrix<float> y(4, 3);
#else
    Eigen::MatrixXf y(4, 3);
#endif
    write(y);
}
