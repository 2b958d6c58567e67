// SPDX-License-Identifier: MIT
// Training: a layer with experts of different kinds, as in MoE++, its gradient, and SGD by hand.
//     g++ -std=c++20 -O2 -I include -I /usr/include/eigen3 examples/02_train_a_layer.cpp -o train && ./train
// prints: the loss fell
#include <cstdio>
#include <utility>

#include <moe/moe.hpp>

int main() {
    moe::Layer layer{
        moe::Config{.model_dim = 64, .seed = 7},
        moe::LinearRouter{},
        moe::TopP{.p = 0.6f, .max_experts = 3},    // as many experts as the token needs, at most 3
        moe::Swiglu{.count = 6, .ffn_dim = 128},   // compute
        moe::Zero{},                               // discard
        moe::Copy{},                               // skip
        moe::Constant{.count = 2},                 // replace
    };
    auto grad = moe::zeros_like(layer);  // same type, holds d(loss)/d(parameter)
    moe::Workspace<float> ws;

    moe::Random random(1);
    const moe::Matrix<float> x = random.normal<float>(32, 64, 1), target = random.normal<float>(32, 64, 1);
    moe::Matrix<float> y(32, 64), dx(32, 64);

    float first = 0, loss = 0;
    for (int step = 0; step < 100; ++step) {
        layer.forward(x, y, ws);
        const moe::Matrix<float> dy = (y - target) / 32;  // gradient of your loss at the layer's output
        layer.backward(x, dy, dx, grad, ws);              // dx goes on to whatever comes before the layer

        moe::for_each_parameter(layer, grad, [](auto, std::span<float> w, std::span<float> g) {
            for (std::size_t i = 0; i < w.size(); ++i) w[i] -= 0.1f * std::exchange(g[i], 0.f);
        });
        loss = (y - target).squaredNorm() / 64;
        if (step == 0) first = loss;
    }
    std::printf("loss %.2f -> %.2f: %s\n", first, loss, loss < first / 4 ? "the loss fell" : "no");
}
