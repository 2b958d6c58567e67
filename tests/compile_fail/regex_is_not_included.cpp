// expect: regex
// SPDX-License-Identifier: MIT
// The library does not bring <regex> along.
#include <moe/moe.hpp>
#ifdef MUST_COMPILE
#include <regex>
#endif

int main() {
    const std::regex expression("x");
    return moe::Config{}.model_dim == 0 ? 0 : 1;
}
