// expect: no member named .?backward
// SPDX-License-Identifier: MIT
// A frozen layer is for inference.
#include <moe/experts/copy.hpp>
#include <moe/frozen.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/routers/linear.hpp>

int main() {
    const moe::Layer layer{moe::Config{.model_dim = 4}, moe::LinearRouter{}, moe::TopK{.k = 1},
                           moe::Copy{}};
    const moe::Matrix<float> x(3, 4), dy(3, 4);
    moe::Matrix<float> y(3, 4), dx(3, 4);
    moe::Workspace<float> ws;
    auto grad = moe::zeros_like(layer);
#ifdef MUST_COMPILE
    const auto& used = layer;
#else
    const auto used = moe::freeze(layer);
#endif
    used.forward(x, y, ws);
    used.backward(x, dy, dx, grad, ws);
}
