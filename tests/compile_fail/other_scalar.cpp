// expect: ^no matching function for call to 'read
// SPDX-License-Identifier: MIT
// double does not quietly become float on the way in.
#include <moe/core/types.hpp>

moe::Index read(moe::In<float> in) { return in.size(); }

int main() {
#ifdef MUST_COMPILE
    const moe::Matrix<float> x = moe::Matrix<float>::Zero(4, 3);
#else
    const moe::Matrix<double> x = moe::Matrix<double>::Zero(4, 3);
#endif
    return read(x) == 12 ? 0 : 1;
}
