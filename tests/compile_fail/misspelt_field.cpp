// expect: num_experts_per_token
// SPDX-License-Identifier: MIT
// A setting that does not exist is not ignored.
#include <moe/gates/top_k.hpp>

int main() {
#ifdef MUST_COMPILE
    const moe::TopK gate{.k = 2};
#else
    const moe::TopK gate{.num_experts_per_token = 2};
#endif
    return gate.k == 2 ? 0 : 1;
}
