// expect: an expert needs backward\(x, dy, dx, grad\) const to be trained
// SPDX-License-Identifier: MIT
// An expert that only runs forward is good for inference; training asks for the rest.
#include <moe/experts/each.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/layer.hpp>
#include <moe/routers/linear.hpp>

struct Half {
    void forward(moe::In<float> x, moe::Out<float> y) const { y = 0.5f * x; }
};

int main() {
    const moe::Layer layer{moe::Config{.model_dim = 4}, moe::LinearRouter{}, moe::TopK{.k = 1},
                           moe::experts(2, Half{})};
    const moe::Matrix<float> x(3, 4), dy(3, 4);
    moe::Matrix<float> y(3, 4), dx(3, 4);
    moe::Workspace<float> ws;
    layer.forward(x, y, ws);
#ifndef MUST_COMPILE
    auto grad = moe::zeros_like(layer);
    layer.backward(x, dy, dx, grad, ws);
#endif
}
