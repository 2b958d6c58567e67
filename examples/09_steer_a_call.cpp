// SPDX-License-Identifier: MIT
// What a call may change without touching the layer: how many experts, which ones, how much, or all of it.
//     g++ -std=c++20 -O2 -I include -I /usr/include/eigen3 examples/09_steer_a_call.cpp -o steer && ./steer
// prints: k per sequence: 3 3 3 1 1 1
// prints: without expert 1, with expert 3 first: yes
// prints: twice the weight of expert 3: yes
// prints: replayed: same experts, same output
#include <cstdio>
#include <vector>

#include <moe/moe.hpp>

int main() {
    moe::Layer layer{moe::Config{.model_dim = 16}, moe::LinearRouter{}, moe::TopK{.k = 2},
                     moe::Swiglu{.count = 4, .ffn_dim = 32}};
    const moe::Matrix<float> x = moe::Random(1).normal<float>(6, 16, 1);
    moe::Matrix<float> y(6, 16), again(6, 16);
    moe::Workspace<float> ws;

    // More experts for one sequence of the batch than for the other; .k, or .p of top-p gates, is for all.
    const std::vector<moe::Index> sequences{0, 3, 6}, k{3, 1};
    layer.forward(x, y, ws, {.sequence_offsets = sequences, .dial = {.k_per_sequence = k}});
    std::printf("k per sequence:");
    for (moe::Index t = 0; t < 6; ++t) std::printf(" %zu", ws.routing().of(t).size());

    // Experts that nobody, or everybody, goes to: here for all tokens; [T * E] entries are for each, and
    // dial.allowed_per_sequence and dial.forced_per_sequence for those of a sequence.
    const std::vector<std::uint8_t> allowed{1, 0, 1, 1}, forced{0, 0, 0, 1};
    layer.forward(x, y, ws, {.allowed = allowed, .forced = forced});
    bool obeyed = true;
    for (moe::Index t = 0; t < 6; ++t) obeyed &= ws.routing().of(t)[0].expert == 3;
    std::printf("\nwithout expert 1, with expert 3 first: %s\n",
                obeyed && ws.routing().tokens_of(1).empty() ? "yes" : "no");

    // A nudge instead of an order: logits get an offset, weights a factor, before or after they are
    // normalized. Both have gradients (Context::gradients), so they can be learned.
    const std::vector<double> offset{0, 0, 0, 100}, factor{1, 1, 1, 2};
    layer.forward(x, y, ws, {.logit_offset = offset});
    layer.forward(x, again, ws, {.logit_offset = offset, .gate_multiplier = factor});
    std::printf("twice the weight of expert 3: %s\n", again.isApprox(2 * y, 1e-3f) ? "yes" : "no");

    // A routing is a value: keep it, edit it, and run the layer by it.
    layer.forward(x, y, ws);
    const moe::Routing plan = ws.routing();
    layer.reweigh(x, plan, ws);
    layer.apply(x, again, ws);
    std::printf("replayed: %s\n", ws.routing() == plan && again == y ? "same experts, same output" : "changed");
}
