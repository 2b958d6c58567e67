// SPDX-License-Identifier: MIT
// What stands where a layer does but routes otherwise: soft slots, and competing experts.
//     g++ -std=c++20 -O2 -I include -I /usr/include/eigen3 examples/10_instead_of_a_layer.cpp -o other && ./other
// prints: soft: 2 sequences, 16 tokens in, 16 out
// prints: competition: trained, and 2 experts per token
#include <cstdio>
#include <vector>

#include <moe/compose.hpp>
#include <moe/moe.hpp>

int main() {
    const moe::Matrix<float> x = moe::Random(1).normal<float>(16, 64, 1);
    moe::Matrix<float> y(16, 64), dx(16, 64);
    moe::Workspace<float> ws;

    // Every expert works on slots, softmax mixtures of a sequence's tokens; nothing is dropped.
    moe::SoftMoe soft{moe::Config{.model_dim = 64}, moe::SoftSlots{.slots_per_expert = 2},
                      moe::Swiglu{.count = 8, .ffn_dim = 128}};
    const std::vector<moe::Index> sequences{0, 10, 16};
    soft.forward(x, y, ws, {.sequence_offsets = sequences});
    std::printf("soft: 2 sequences, %td tokens in, %td out\n", x.rows(), y.rows());

    // In every second training call all experts work, those with the largest outputs win, and the
    // router is taught who won. Otherwise, and at inference, it is an ordinary layer.
    moe::Competition competition{moe::Config{.model_dim = 64}, moe::CompetitionRule{.k = 2, .frequency = 0.5},
                                 moe::LinearRouter{}, moe::TopK{.k = 2}, moe::Swiglu{.count = 8, .ffn_dim = 128}};
    auto grad = moe::zeros_like(competition);
    moe::Workspace<float> contest;
    for (std::uint64_t step = 0; step < 4; ++step) {
        const moe::Context training{.training = true, .step = step};
        competition.forward(x, y, contest, training);
        moe::competition_loss(contest, 0.01);
        competition.backward(x, y, dx, grad, contest, training);
    }
    const moe::Matrix<float> out = moe::freeze(competition)(x);  // both can be frozen
    std::printf("competition: trained, and %td experts per token\n", contest.routing().num_kept() / 16);
}
