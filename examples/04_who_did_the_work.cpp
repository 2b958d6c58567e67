// SPDX-License-Identifier: MIT
// After a call: which expert worked for which token, and how evenly the work was spread.
//     g++ -std=c++20 -O2 -I include -I /usr/include/eigen3 examples/04_who_did_the_work.cpp -o who && ./who
// prints: experts per token 2.00, dropped 0.0%
#include <cstdio>

#include <moe/moe.hpp>
#include <moe/stats/report.hpp>

int main() {
    moe::Layer layer{moe::Config{.model_dim = 32}, moe::LinearRouter{}, moe::TopK{.k = 2},
                     moe::Swiglu{.count = 8, .ffn_dim = 64}};
    const moe::Matrix<float> x = moe::Random(3).normal<float>(200, 32, 1);
    moe::Matrix<float> y(200, 32);
    moe::Workspace<float> ws;

    layer.forward(x, y, ws);
    const moe::Routing& routing = ws.routing();

    for (moe::Index e = 0; e < routing.num_experts(); ++e)
        std::printf("expert %2td: %4zu tokens\n", e, routing.tokens_of(e).size());

    const moe::LoadStats load = moe::load_stats(routing);
    std::printf("busiest/mean %.2f, experts per token %.2f, dropped %.1f%%\n",
                load.max_over_mean, load.experts_per_token, 100 * load.dropped_fraction);

    for (const moe::Assignment& a : routing.of(0))
        std::printf("token 0, choice %d: expert %d with weight %.3f\n", a.slot + 1, a.expert, a.weight);
    std::printf("%s", moe::report(load).c_str());
}
