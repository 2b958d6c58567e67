// SPDX-License-Identifier: MIT
// Which experts work on one kind of input and not on another, and what happens if they are switched off.
//     g++ -std=c++20 -O2 -I include -I /usr/include/eigen3 examples/15_steer_by_contrast.cpp -o contrast && ./contrast
// prints: layer 0, expert 4: in 100.0 % of the tokens that show the behaviour, in 0.0 % of the others
// prints: tokens that change if it is off: 64 of 64 with the behaviour, 0 of 64 without
// prints: the trace, saved and read back, replays to the same bits: yes
#include <cstdio>
#include <vector>

#include <moe/io/trace.hpp>
#include <moe/moe.hpp>
#include <moe/stats.hpp>

using moe::Index;
using moe::Matrix;

int main() {
    // A layer in which one expert is drawn by element 0 of a token, as training may leave it.
    moe::Layer layer{moe::Config{.model_dim = 8, .seed = 5}, moe::LinearRouter{},
                     moe::TopK{.k = 2, .score = moe::Score::softmax_of_selected},
                     moe::Swiglu{.count = 6, .ffn_dim = 16}};
    for (Index e = 0; e < 6; ++e) layer.router().weight(e, 0) = e == 4 ? 9.0f : 0.0f;

    // Inputs that show a behaviour, here an element 0 of 1, and others that do not.
    Matrix<float> with = moe::Random(1).normal<float>(64, 8, 1.0f), without = with;
    with.col(0).setConstant(1);
    without.col(0).setConstant(-1);

    moe::Workspace<float> ws;
    moe::Trace shows, control;  // of a whole model: record(l, ws) after each layer l
    Matrix<float> y_with(64, 8), y_without(64, 8), y(64, 8);
    layer.forward(with, y_with, ws);
    shows.record(0, ws);
    layer.forward(without, y_without, ws);
    control.record(0, ws);

    // The expert whose frequency differs most carries the behaviour.
    const auto found = moe::top_experts(moe::activation_contrast(shows, control), 1);
    const auto frequency = [&](const moe::Trace& trace) {
        return 100 * moe::activation_frequency(trace)(found[0].layer, found[0].expert);
    };
    std::printf("layer %td, expert %td: in %.1f %% of the tokens that show the behaviour, in %.1f %% of the others\n",
                found[0].layer, found[0].expert, frequency(shows), frequency(control));

    // Without it, others take its place, and tokens that never used it stay as they are.
    moe::Steering steer = moe::Steering::of(layer);
    steer.turn_off(found, 0);
    const auto changed = [&](const Matrix<float>& x, const Matrix<float>& before) {
        layer.forward(x, y, ws, steer.on());
        return (y.array() != before.array()).rowwise().any().count();
    };
    std::printf("tokens that change if it is off: %td of 64 with the behaviour, %td of 64 without\n",
                changed(with, y_with), changed(without, y_without));

    // A trace is a file, and each record a routing that can be applied again.
    const moe::Trace read = moe::load_trace(moe::save_trace(shows));
    layer.bank().apply(with, read.records()[0].routing(), y, ws);
    std::printf("the trace, saved and read back, replays to the same bits: %s\n", y == y_with ? "yes" : "no");
}
