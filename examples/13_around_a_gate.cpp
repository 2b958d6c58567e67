// SPDX-License-Identifier: MIT
// A gate around any other: it lets the inner gate choose, then changes what it does not like.
//     g++ -std=c++20 -O2 -I include -I /usr/include/eigen3 examples/13_around_a_gate.cpp -o around && ./around
// prints: most tokens of an expert: 3
#include <algorithm>
#include <cstdio>
#include <vector>

#include <moe/moe.hpp>

/// The first tokens that choose an expert get it, the others are turned away. All that is not written
/// here, weights and gradients among it, is the inner gate's.
template <class S, class Inner>
struct FirstComeModule : moe::GateWrapper<S, Inner> {
    static constexpr bool per_token = false;  // a choice depends on those of other tokens ...
    bool is_causal() const {                  // ... but not on those of later ones: it may decode
        return moe::hooks::is_causal(this->inner);
    }
    moe::Index most = 0;

    void select(moe::In<S> logits, moe::Routing& routing, const moe::Call<S>& call) const {
        moe::GateWrapper<S, Inner>::select(logits, routing, call);
        routing.group();  // by expert
        std::vector<moe::Index> late;
        for (moe::Index e = 0; e < routing.num_experts(); ++e)
            for (std::size_t i = std::size_t(most); i < routing.assignments_of(e).size(); ++i)
                late.push_back(routing.assignments_of(e)[i]);
        for (const moe::Index a : late) routing.set_dropped(a, moe::Dropped::capacity);
    }
};

/// What goes into a layer: FirstCome{moe::TopK{.k = 1}, 3}.
template <class Gate>
struct FirstCome {
    Gate inner;
    moe::Index most;

    template <class S>
    auto build(const moe::Shape& shape, moe::Random& random) const {
        auto gate = inner.template build<S>(shape, random);
        return FirstComeModule<S, decltype(gate)>{{gate}, most};
    }
};
template <class Gate>
FirstCome(Gate, moe::Index) -> FirstCome<Gate>;

int main() {
    moe::Layer layer{moe::Config{.model_dim = 16}, moe::LinearRouter{}, FirstCome{moe::TopK{.k = 1}, 3},
                     moe::Swiglu{.count = 4, .ffn_dim = 32}};
    moe::Workspace<float> ws;
    moe::Matrix<float> x = moe::Random(1).normal<float>(32, 16, 1), y(32, 16);
    layer.forward(x, y, ws);
    std::size_t most = 0;
    for (moe::Index e = 0; e < 4; ++e) most = std::max(most, ws.routing().tokens_of(e).size());
    std::printf("most tokens of an expert: %zu\n", most);
}
