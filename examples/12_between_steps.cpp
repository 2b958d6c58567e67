// SPDX-License-Identifier: MIT
// What changes a routing between steps, without a gradient: loads, the number of experts, clusters.
//     g++ -std=c++20 -O2 -I include -I /usr/include/eigen3 examples/12_between_steps.cpp -o between && ./between
// prints: the busiest expert's load fell: yes
// prints: experts that nobody chose: 2; tokens that found nobody get a new one: yes
// prints: environments at the expert of their cluster: 64 of 64
#include <cstdio>
#include <vector>

#include <moe/gates.hpp>
#include <moe/moe.hpp>
#include <moe/routers.hpp>

int main() {
    moe::Matrix<float> x = moe::Random(1).normal<float>(64, 8, 0.2f);
    for (moe::Index t = 0; t < 64; ++t) x(t, t % 4) += 2;  // four clusters
    const std::vector<moe::ExpertFacts> four(4);
    const moe::Config config{.model_dim = 8};
    moe::Workspace<float> ws;

    // A bias that chooses and never weighs rises for experts with little to do, and falls for others.
    moe::Head balanced{config, moe::LinearRouter{}, moe::TopK{.k = 1, .selection_bias = true}, four};
    balanced.route(x, ws);
    const double crowded = moe::load_stats(ws.routing()).max_over_mean;
    for (int step = 0; step < 200; ++step) {
        moe::update_bias(balanced, ws.routing(), moe::SignUpdate{.rate = 0.01});
        balanced.route(x, ws);
    }
    std::printf("the busiest expert's load fell: %s\n",
                moe::load_stats(ws.routing()).max_over_mean < crowded ? "yes" : "no");

    // The number of experts. Record whom tokens chose, and those that chose nobody, for some steps.
    moe::Head growing{config, moe::LinearRouter{}, moe::TopAny{}, four};
    growing.gate().threshold(0, 1) = growing.gate().threshold(0, 2) = 9;  // as training may leave them
    moe::ActivationRecord record(4, 8);
    growing.route(x, ws, {.training = true});
    record.add(x, ws.routing());
    const moe::ExpertChanges changes = moe::update_experts(growing.gate(), record);
    std::printf("experts that nobody chose: %zu; tokens that found nobody get a new one: %s\n",
                changes.removed.size(), changes.added ? "yes" : "no");

    // A router of environments from the losses of every expert in each: here cluster c is best served
    // by expert 3 - c.
    moe::Random random(2);
    auto router = moe::LinearRouter{.bias = true}.build<float>({.model_dim = 8, .num_logits = 4}, random);
    moe::Matrix<float> losses = moe::Matrix<float>::Ones(64, 4), logits(64, 4);
    for (moe::Index t = 0; t < 64; ++t) losses(t, 3 - t % 4) = 0;
    moe::fit_by_k_means(router, x, losses);
    router.forward(x, logits, {{}, ws});
    int right = 0;
    for (moe::Index t = 0, best = 0; t < 64; ++t) {
        logits.row(t).maxCoeff(&best);
        right += best == 3 - t % 4;
    }
    std::printf("environments at the expert of their cluster: %d of 64\n", right);
}
