// SPDX-License-Identifier: MIT
// Every router, where LinearRouter stands in a layer: whom six tokens go to.
//     g++ -std=c++20 -O2 -I include -I /usr/include/eigen3 examples/07_routers.cpp -o routers && ./routers
// prints: LinearRouter     0 0 2 2 1 1
// prints: TokenTable       0 3 0 0 3 1
// prints: GatingResidual   0 3 2 0 3 1
#include <cstdio>
#include <vector>

#include <moe/moe.hpp>
#include <moe/routers.hpp>

const moe::Matrix<float> six_tokens = moe::Random(1).normal<float>(6, 8, 1);

/// The first half of a layer is enough to route: a router, a gate, and facts about four experts.
template <class Router>
void show(const char* name, const Router& router, const moe::Context& context, moe::Workspace<float>& ws) {
    const moe::Head head{moe::Config{.model_dim = 8, .seed = 3}, router, moe::TopK{.k = 1},
                         std::vector<moe::ExpertFacts>(4)};
    head.route(six_tokens, ws, context);
    std::printf("%-16s", name);
    for (moe::Index t = 0; t < 6; ++t) std::printf(" %d", ws.routing().of(t)[0].expert);
    std::printf("\n");
}

int main() {
    const std::vector<std::int64_t> ids{7, 3, 7, 0, 3, 1};            // vocabulary ids
    const std::vector<std::int32_t> kinds{0, 0, 1, 1, 0, 1}, table{0, 1, 2, 3, 3, 2, 1, 0};
    const std::vector<moe::Index> sequences{0, 2, 6};
    const moe::Matrix<float> side = moe::Random(2).normal<float>(6, 4, 1);  // one vector per token
    moe::Workspace<float> ws, next;
    const moe::Context context{.token_ids = ids, .token_groups = kinds, .sequence_offsets = sequences,
                               .side_vectors = side};
    const auto run = [&](const char* name, const auto& router) { show(name, router, context, ws); };

    run("LinearRouter", moe::LinearRouter{});
    run("MlpRouter", moe::MlpRouter{.hidden_dim = 16});
    run("CosineRouter", moe::CosineRouter{.projection_dim = 4});
    run("AttentionRouter", moe::AttentionRouter{});
    run("TokenTable", moe::TokenTable{.table = table});
    run("HashRouter", moe::HashRouter{});
    run("LabelRouter", moe::LabelRouter{});
    run("ExternalRouter", moe::ExternalRouter{});
    run("RandomRouter", moe::RandomRouter{});
    run("BalancedRouter", moe::BalancedRouter{.k = 1});
    run("Jitter", moe::Jitter{moe::LinearRouter{}, 0.01});
    run("PerTask", moe::PerTask{moe::LinearRouter{}, 2});
    run("PerModality", moe::PerModality{moe::LinearRouter{}, {{0, 3}, {1, 4}}});
    run("Pooled", moe::Pooled{moe::LinearRouter{}, moe::PoolScope::chunk, 2});
    run("Conditioned", moe::Conditioned{moe::LinearRouter{}, 4});
    run("PreGated", moe::PreGated{moe::LinearRouter{}});  // logits for the next layer, too:
    const moe::Context after{.previous = &ws};
    show(" ... the next", moe::PreGated{moe::LinearRouter{}, moe::PreGatePlace::last}, after, next);
    run("LinearRouter", moe::LinearRouter{});             // an ordinary layer, and one that hears it:
    show("GatingResidual", moe::GatingResidual{moe::MlpRouter{}}, after, next);
}
