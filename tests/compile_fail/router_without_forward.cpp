// expect: the router needs forward\(x, logits\) const with x: moe::In<S>
// SPDX-License-Identifier: MIT
// A router's missing member is named.
#include <moe/experts/copy.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/layer.hpp>

struct Router {
#ifdef MUST_COMPILE
    void forward(moe::In<float>, moe::Out<float> logits) const { logits.setZero(); }
#endif
    void backward(moe::In<float>, moe::In<float>, moe::Out<float> dx, Router&) const {
        dx.setZero();
    }
};

int main() {
    const moe::Layer layer{moe::Config{.model_dim = 4}, Router{}, moe::TopK{.k = 1}, moe::Copy{}};
    return layer.num_experts() == 1 ? 0 : 1;
}
