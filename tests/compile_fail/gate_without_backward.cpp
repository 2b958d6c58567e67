// expect: the gate needs backward\(logits, routing, dweights, dlogits\) const
// SPDX-License-Identifier: MIT
// A gate that only selects is good for inference; training asks for the rest.
#include <moe/experts/copy.hpp>
#include <moe/layer.hpp>
#include <moe/routers/linear.hpp>

struct Gate {
    void select(moe::In<float>, moe::Routing&) const {}
};

int main() {
    const moe::Layer layer{moe::Config{.model_dim = 4}, moe::LinearRouter{}, Gate{}, moe::Copy{}};
    const moe::Matrix<float> x(3, 4), dy(3, 4);
    moe::Matrix<float> y(3, 4), dx(3, 4);
    moe::Workspace<float> ws;
    layer.forward(x, y, ws);
#ifndef MUST_COMPILE
    auto grad = moe::zeros_like(layer);
    layer.backward(x, dy, dx, grad, ws);
#endif
}
