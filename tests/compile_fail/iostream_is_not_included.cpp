// expect: cout
// SPDX-License-Identifier: MIT
// The library does not bring <iostream> along.
#include <moe/moe.hpp>
#ifdef MUST_COMPILE
#include <iostream>
#endif

int main() { std::cout << moe::Config{}.model_dim; }
