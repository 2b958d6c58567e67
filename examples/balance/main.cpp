// SPDX-License-Identifier: MIT
// What each balance loss and controller does to the same collapsing layer: the tables of README.md
// beside this file.
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include <moe/gates.hpp>
#include <moe/losses.hpp>
#include <moe/moe.hpp>
#include <moe/routers.hpp>
#include <moe/stats/format.hpp>

#include "top_p.hpp"

namespace {

using moe::Index;
using moe::Matrix;

constexpr Index dim = 16, experts = 8, tokens = 256;
constexpr int steps = 1500, last_steps = 100;  // figures are means over the last ones

/// A stream of eight kinds of tokens, a quarter of them of kind 0 and a twentieth of kind 7; each
/// kind has a linear map of its own, which is what the experts have to learn.
class Stream {
public:
    Stream() {
        moe::Random random(1);
        for (Index k = 0; k < kinds; ++k) maps_.push_back(random.normal<float>(dim, dim, 0.5f));
    }

    void next() {
        x = random_.normal<float>(tokens, dim, 0.5f);
        Index t = 0;
        for (Index k = 0; k < kinds; ++k)
            for (int i = 0; i < tokens_of[k]; ++i, ++t) {
                x(t, k) += 3;
                target.row(t) = x.row(t) * maps_[static_cast<std::size_t>(k)];
            }
    }

    Matrix<float> x{tokens, dim}, target{tokens, dim};

private:
    static constexpr Index kinds = 8;
    static constexpr int tokens_of[kinds] = {64, 48, 40, 32, 24, 20, 16, 12};
    std::vector<Matrix<float>> maps_;
    moe::Random random_{2};
};

/// Trains a layer on the stream and prints a line of the table.
/// @param add     add(layer, ws), called between forward and backward: a loss
/// @param update  update(layer, ws), called after each step: a controller
template <class Router, class Gate, class Add, class Update>
void train(const std::string& name, const Router& router, const Gate& gate, Add&& add,
           Update&& update) {
    moe::Layer layer{moe::Config{.model_dim = dim, .seed = 5}, router, gate,
                     moe::Mlp{.count = experts, .ffn_dim = 16}};
    if constexpr (requires { layer.router().bias(0, 0); })
        layer.router().bias(0, 0) = 3;  // expert 0 has a lead that it does not deserve
    auto grad = moe::zeros_like(layer);
    moe::Workspace<float> ws;
    moe::LoadSum load(experts);
    Stream stream;
    Matrix<float> y(tokens, dim), dx(tokens, dim);
    double error = 0, entropy = 0;
    for (int step = 0; step < steps; ++step) {
        stream.next();
        const moe::Context context{.training = true, .step = static_cast<std::uint64_t>(step)};
        layer.forward(stream.x, y, ws, context);
        const Matrix<float> difference = y - stream.target;
        if (step >= steps - last_steps) {
            error += static_cast<double>(difference.squaredNorm()) / (tokens * dim * last_steps);
            entropy += moe::router_stats(ws).entropy / last_steps;
            load.add(ws.routing());
        }
        const Matrix<float> dy = difference * (2.0f / (tokens * dim));
        add(layer, ws);
        layer.backward(stream.x, dy, dx, grad, ws, context);
        moe::for_each_parameter(layer, grad, [](auto, std::span<float> w, std::span<float> g) {
            for (std::size_t i = 0; i < w.size(); ++i) w[i] -= 0.8f * std::exchange(g[i], 0.f);
        });
        update(layer, ws);
    }
    Index dead = 0;
    for (const double count : load.counts()) dead += count == 0;
    std::printf("| %s | %.3f | %.2f | %td | %.2f |\n", name.c_str(), error,
                moe::max_violation(load.counts()) + 1, dead, entropy);
}

const moe::LinearRouter leaning{.bias = true};

std::string figure(double value) { return moe::detail::significant(value, 2); }

template <class Gate, class Loss>
void with_loss(const std::string& name, const Gate& gate, Loss&& loss) {
    train(
        name, leaning, gate, [&](auto&, auto& ws) { loss(ws); }, [](auto&...) {});
}
template <class Gate, class Controller>
void with_controller(const std::string& name, const Gate& gate, Controller controller) {
    train(
        name, leaning, gate, [](auto&...) {},
        [&](auto& layer, auto& ws) { moe::update_bias(layer, ws.routing(), controller); });
}

/// Top-1 layers that begin with nearly everything at expert 0.
void collapse() {
    std::printf("| Remedy | error | busiest/mean | dead experts | router entropy |\n");
    std::printf("|---|---|---|---|---|\n");
    const moe::TopK top_1{.k = 1, .normalize = moe::Normalize::none};
    moe::TopK biased = top_1;
    biased.selection_bias = true;
    moe::TopK biased_logits = biased;
    biased_logits.biases_logits = true;

    with_loss("none", top_1, [](auto&) {});
    for (const double weight : {0.01, 0.1})
        with_loss("`load_balance_loss`, " + figure(weight), top_1,
                  [&](auto& ws) { moe::load_balance_loss(ws, weight); });
    with_loss("`mass_balance_loss`, 0.1", top_1, [](auto& ws) { moe::mass_balance_loss(ws, 0.1); });
    for (const double weight : {0.01, 0.1})
        with_loss("`importance_loss`, " + figure(weight), top_1,
                  [&](auto& ws) { moe::importance_loss(ws, weight); });
    const moe::Noisy noisy{top_1, moe::GateNoise{.kind = moe::GateNoise::Kind::fixed}};
    with_loss("`Noisy`", noisy, [](auto&) {});
    train(
        "`Noisy`, `load_loss`, 0.1", leaning, noisy,
        [](auto& layer, auto& ws) { moe::load_loss(layer.gate(), ws, 0.1); }, [](auto&...) {});
    with_loss("`z_loss`, 0.01", top_1, [](auto& ws) { moe::z_loss(ws, 0.01); });
    with_controller("`SignUpdate`, 0.01", biased, moe::SignUpdate{.rate = 0.01});
    with_controller("`ProportionalUpdate`, 0.01", biased, moe::ProportionalUpdate{.rate = 0.01});
    with_controller("`InverseStepUpdate`, 1", biased, moe::InverseStepUpdate{.rate = 1});
    train(
        "`QuantileUpdate`", leaning, biased_logits, [](auto&...) {},
        [quantile = moe::QuantileUpdate{.ema = 0.9}](auto& layer, auto& ws) mutable {
            quantile.add(layer, ws, 1);
            quantile.update(layer);
        });
    const auto nothing = [](auto&...) {};
    const auto per_token = moe::RandomRouter::Scope::token;
    train("`RandomRouter`", moe::RandomRouter{.training = per_token}, top_1, nothing, nothing);
    train("`BalancedRouter`", moe::BalancedRouter{.k = 1}, top_1, nothing, nothing);
}

}  // namespace

int main() {
    collapse();
    std::printf("\n");
    top_p();
}
