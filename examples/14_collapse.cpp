// SPDX-License-Identifier: MIT
// A router that collapses, the report that says so, and the remedy.
//     g++ -std=c++20 -O2 -I include -I /usr/include/eigen3 examples/14_collapse.cpp -o collapse && ./collapse
// prints: layer 0: collapsed: expert 0 gets 99.7 % of the tokens (mean 12.5 %)
// prints: layer 0: four dead experts: 3, 4, 5, 6
// prints: balanced: the busiest expert has
// prints: the error fell: yes
#include <cstdio>
#include <utility>

#include <moe/moe.hpp>
#include <moe/stats.hpp>

using moe::Matrix;

/// Tokens of eight kinds; what the experts have to learn is another map for each kind.
void next_batch(moe::Random& random, Matrix<float>& x, Matrix<float>& target) {
    static const Matrix<float> maps = moe::Random(1).normal<float>(8 * 16, 16, 0.5f);
    x = random.normal<float>(256, 16, 0.5f);
    for (moe::Index t = 0; t < 256; ++t) {
        x(t, t % 8) += 3;
        target.row(t) = x.row(t) * maps.middleRows(16 * (t % 8), 16);
    }
}

/// Trains, prints what a diagnosis of the last steps says, and returns their error.
float train(const char* name, double rate) {
    moe::Layer layer{moe::Config{.model_dim = 16, .seed = 5}, moe::LinearRouter{.bias = true},
                     moe::TopK{.k = 1, .normalize = moe::Normalize::none, .selection_bias = true},
                     moe::Mlp{.count = 8, .ffn_dim = 16}};
    layer.router().bias(0, 0) = 4;  // expert 0 gets everything at first, learns most, and keeps it
    auto grad = moe::zeros_like(layer);
    moe::Workspace<float> ws;
    moe::Random random(2);
    moe::Trace trace;
    Matrix<float> x(256, 16), target(256, 16), y(256, 16), dx(256, 16), dy;
    for (int step = 0; step < 800; ++step) {
        next_batch(random, x, target);
        layer.forward(x, y, ws, {.training = true, .step = std::uint64_t(step)});
        if (step >= 780) trace.record(0, ws);
        dy = (y - target) * (2.0f / (256 * 16));
        layer.backward(x, dy, dx, grad, ws, {.training = true, .step = std::uint64_t(step)});
        moe::for_each_parameter(layer, grad, [](auto, std::span<float> w, std::span<float> g) {
            for (std::size_t i = 0; i < w.size(); ++i) w[i] -= 0.8f * std::exchange(g[i], 0.f);
        });
        moe::update_bias(layer, ws.routing(), moe::SignUpdate{.rate = rate});  // the remedy, unless 0
    }
    std::printf("%s\n%s\n", name, moe::report(moe::diagnose(trace)).c_str());
    return (y - target).squaredNorm();
}

int main() {
    const float alone = train("-- no remedy --", 0), balanced = train("-- SignUpdate --", 0.01);
    std::printf("the error fell: %s\n", balanced < alone ? "yes" : "no");
}
