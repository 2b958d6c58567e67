// expect: a router and a gate need a default constructor
// SPDX-License-Identifier: MIT
// So that a gradient may hold none.
#include <moe/experts/copy.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/layer.hpp>

struct Router {
#ifdef MUST_COMPILE
    Router() = default;
#endif
    explicit Router(int) {}
    void forward(moe::In<float>, moe::Out<float> logits) const { logits.setZero(); }
    void backward(moe::In<float>, moe::In<float>, moe::Out<float> dx, Router&) const {
        dx.setZero();
    }
};

int main() {
    const moe::Layer layer{moe::Config{.model_dim = 4}, Router(1), moe::TopK{.k = 1}, moe::Copy{}};
    return layer.num_experts() == 1 ? 0 : 1;
}
