// SPDX-License-Identifier: MIT
// What teaches a router and a gate beside your own loss: labels of tokens, and a price on experts.
//     g++ -std=c++20 -O2 -I include -I /usr/include/eigen3 examples/11_teach_the_router.cpp -o teach && ./teach
// prints: tokens at the expert of their label: 64 of 64
// prints: experts per token fell: yes
#include <cstdio>
#include <utility>
#include <vector>

#include <moe/gates.hpp>
#include <moe/moe.hpp>

/// Forward, the loss that `add` adds, backward, and a step against the gradient.
void train(auto& layer, const moe::Matrix<float>& x, moe::Workspace<float>& ws, int steps, const auto& add) {
    auto grad = moe::zeros_like(layer);
    moe::Matrix<float> y(64, 8), dx(64, 8), dy = moe::Matrix<float>::Zero(64, 8);  // dy: of your own loss
    for (int step = 0; step < steps; ++step) {
        const moe::Context context{.training = true, .step = std::uint64_t(step)};
        layer.forward(x, y, ws, context);
        add(grad);
        layer.backward(x, dy, dx, grad, ws, context);
        moe::for_each_parameter(layer, grad, [](auto, std::span<float> w, std::span<float> g) {
            for (std::size_t i = 0; i < w.size(); ++i) w[i] -= 0.5f * std::exchange(g[i], 0.f);
        });
    }
    layer.forward(x, y, ws);  // as it will be used
}

int main() {
    moe::Matrix<float> x = moe::Random(1).normal<float>(64, 8, 0.2f);
    std::vector<std::int32_t> label(64);  // four kinds of tokens; -1 would be a token without a label
    for (moe::Index t = 0; t < 64; ++t) {
        label[std::size_t(t)] = std::int32_t(t % 4);
        x(t, t % 4) += 2;
    }
    moe::Workspace<float> ws;

    moe::Layer supervised{moe::Config{.model_dim = 8}, moe::LinearRouter{}, moe::TopK{.k = 1},
                          moe::Copy{.count = 4}};
    train(supervised, x, ws, 100, [&](auto&) { moe::label_loss(ws, label, 1.0); });
    int right = 0;
    for (moe::Index t = 0; t < 64; ++t) right += ws.routing().of(t)[0].expert == label[std::size_t(t)];
    std::printf("tokens at the expert of their label: %d of 64\n", right);

    moe::Layer sparing{moe::Config{.model_dim = 8}, moe::LinearRouter{}, moe::KeepAny{moe::TopK{.k = 3}},
                       moe::Copy{.count = 4}};
    train(sparing, x, ws, 0, [](auto&) {});
    const double before = moe::load_stats(ws.routing()).experts_per_token;
    train(sparing, x, ws, 100, [&](auto& grad) { moe::mask_loss(sparing.gate(), ws, 0.3, grad.gate()); });
    const double after = moe::load_stats(ws.routing()).experts_per_token;
    std::printf("experts per token fell: %s\n", after < before ? "yes" : "no");
}
