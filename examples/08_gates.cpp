// SPDX-License-Identifier: MIT
// Every gate, where TopK stands in a layer: how many experts six tokens get, and the weight of the first.
//     g++ -std=c++20 -O2 -I include -I /usr/include/eigen3 examples/08_gates.cpp -o gates && ./gates
// prints: TopK             2 2 2 2 2 2
// prints: ExpertChoice     1 2 3 2 3 1   looks at later tokens
#include <cstdio>
#include <vector>

#include <moe/gates.hpp>
#include <moe/moe.hpp>

const moe::Matrix<float> six_tokens = moe::Random(1).normal<float>(6, 8, 1.5);

template <class Gate>
void show(const char* name, const Gate& gate, const moe::Context& context = {}) {
    const moe::Head head{moe::Config{.model_dim = 8, .seed = 3}, moe::LinearRouter{}, gate,
                         std::vector<moe::ExpertFacts>(4)};
    moe::Workspace<float> ws;
    head.route(six_tokens, ws, context);
    std::printf("%-16s", name);
    for (moe::Index t = 0; t < 6; ++t) {
        int experts = 0;
        for (const moe::Assignment& a : ws.routing().of(t)) experts += a.dropped == moe::Dropped::no;
        std::printf(" %d", experts);
    }
    std::printf("%s\n", head.is_causal() ? "" : "   looks at later tokens");
}

int main() {
    const moe::Context training{.training = true, .step = 100};
    show("TopK", moe::TopK{.k = 2});
    show("TopP", moe::TopP{.p = 0.6});
    show("MinP", moe::MinP{.min_p = 0.3});
    show("Threshold", moe::Threshold{.threshold = 0.5});
    show("Relu", moe::Relu{});
    show("Ranks", moe::Ranks{.ranks = {1}});
    show("HybridEntropy", moe::HybridEntropy{.p = 0.75});
    show("DynamicCapacity", moe::DynamicCapacity{.p = 0.7, .num_fixed = 1});
    show("TopAny", moe::TopAny{});
    show("GShardTop2", moe::GShardTop2{}, training);
    show("SparseMixer", moe::SparseMixer{}, training);
    show("Noisy", moe::Noisy{moe::TopK{.k = 2}}, training);
    show("DenseToSparse", moe::DenseToSparse{.temperature = {.from = 2, .to = 0.3, .steps = 1000}}, training);
    show("OnlinePruning", moe::OnlinePruning{moe::TopK{.k = 2, .normalize_kept_only = true}, 0.5});
    show("KeepAny", moe::KeepAny{moe::TopK{.k = 2}});
    show("SequenceBudget", moe::SequenceBudget{.k = 1.5});
    show("ExpertChoice", moe::ExpertChoice{.capacity_factor = 2});
    show("Sinkhorn", moe::Sinkhorn{.k = 1}, training);
    show("Auction", moe::Auction{}, training);
    show("ProductKeyTopK", moe::ProductKeyTopK{.k = 2});
    show("WithCapacity", moe::WithCapacity{moe::TopK{.k = 1}, {.limit = moe::CapacityLimit::megatron(0.5)}});
}
