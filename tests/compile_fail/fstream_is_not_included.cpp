// expect: ifstream
// SPDX-License-Identifier: MIT
// The library does not bring <fstream> along.
#include <moe/moe.hpp>
#ifdef MUST_COMPILE
#include <fstream>
#endif

int main() {
    std::ifstream file("weights");
    return moe::Config{}.model_dim == 0 ? 0 : 1;
}
