// expect: grad is added to: it must be a variable that is not const
// SPDX-License-Identifier: MIT
// A gradient that cannot be added to.
#include <moe/experts/copy.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/layer.hpp>
#include <moe/routers/linear.hpp>

int main() {
    const moe::Layer layer{moe::Config{.model_dim = 4}, moe::LinearRouter{}, moe::TopK{.k = 1},
                           moe::Copy{}};
    const moe::Matrix<float> x(3, 4), dy(3, 4);
    moe::Matrix<float> y(3, 4), dx(3, 4);
    moe::Workspace<float> ws;
    layer.forward(x, y, ws);
#ifdef MUST_COMPILE
    auto grad = moe::zeros_like(layer);
#else
    const auto grad = moe::zeros_like(layer);
#endif
    layer.backward(x, dy, dx, grad, ws);
}
