// SPDX-License-Identifier: MIT
#ifndef MOE_EXAMPLES_BALANCE_TOP_P_HPP
#define MOE_EXAMPLES_BALANCE_TOP_P_HPP

#include <cstdint>
#include <cstdio>
#include <utility>

#include <moe/losses.hpp>
#include <moe/moe.hpp>

/// Knows the answer, 0, up to an error of its own. The errors of all eight sum to 0, and they are
/// as large as the token is hard, which its first element says: the more experts, the better.
struct Opinion {
    void forward(moe::In<float> x, moe::Out<float> y, const moe::Call<float>& call) const {
        for (moe::Index t = 0; t < x.rows(); ++t)
            for (moe::Index d = 0; d < 8; ++d) y(t, d) = x(t, 0) * error(call.expert, d);
    }
    void backward(moe::In<float>, moe::In<float> dy, moe::Out<float> dx, Opinion&,
                  const moe::Call<float>& call) const {
        dx.setZero();
        for (moe::Index t = 0; t < dy.rows(); ++t)
            for (moe::Index d = 0; d < 8; ++d) dx(t, 0) += dy(t, d) * error(call.expert, d);
    }
    static float error(moe::Index expert, moe::Index d) { return (d == expert) - 1.0f / 8; }
};

/// Trains the router of a top-p layer on tokens of which every second one is hard, ten times as
/// hard as the others, and prints a line of the table.
/// @param add  add(ws): losses
template <class Add>
void train_top_p(const char* name, Add&& add) {
    constexpr moe::Index tokens = 64;
    constexpr int steps = 300, last_steps = 50;
    moe::Layer layer{moe::Config{.model_dim = 8, .seed = 1}, moe::LinearRouter{},
                     moe::TopP{.p = 0.9}, moe::experts(8, Opinion{})};
    auto grad = moe::zeros_like(layer);
    moe::Workspace<float> ws;
    moe::Random random(9);
    moe::Matrix<float> y(tokens, 8), dx(tokens, 8);
    double first = 0, easy = 0, hard = 0, error = 0;
    for (int step = 0; step < steps; ++step) {
        moe::Matrix<float> x = random.normal<float>(tokens, 8, 1.0f);
        for (moe::Index t = 0; t < tokens; ++t) {
            x(t, 0) = t % 2 != 0 ? 1.0f : 0.1f;
            x(t, 1) = t % 2 != 0 ? 0.0f : 1.0f;
        }
        layer.forward(x, y, ws);
        if (step == 0) first = moe::load_stats(ws.routing()).experts_per_token;
        for (moe::Index t = 0; t < tokens && step >= steps - last_steps; ++t)
            (t % 2 != 0 ? hard : easy) +=
                2.0 * static_cast<double>(ws.routing().of(t).size()) / (tokens * last_steps);
        if (step >= steps - last_steps)
            error += static_cast<double>(y.squaredNorm()) / (tokens * last_steps);
        add(ws);
        const moe::Matrix<float> dy = y / static_cast<float>(tokens);
        layer.backward(x, dy, dx, grad, ws);
        moe::for_each_parameter(layer, grad, [](auto, std::span<float> w, std::span<float> g) {
            for (std::size_t i = 0; i < w.size(); ++i) w[i] -= 4 * std::exchange(g[i], 0.f);
        });
    }
    std::printf("| %s | %.1f | %.1f | %.1f | %.4f |\n", name, first, easy, hard, error);
}

inline void top_p() {
    std::printf(
        "| `TopP{.p = 0.9}` with | experts at first | easy tokens | hard tokens | error |\n");
    std::printf("|---|---|---|---|---|\n");
    train_top_p("nothing", [](auto&) {});
    train_top_p("`load_balance_loss`, 0.01", [](auto& ws) { moe::load_balance_loss(ws, 0.01); });
    train_top_p("`load_balance_loss`, 0.01, `entropy_loss`, 0.03", [](auto& ws) {
        moe::load_balance_loss(ws, 0.01);
        moe::entropy_loss(ws, 0.03);
    });
    train_top_p("`load_balance_loss`, 0.01, `tsallis_entropy_loss`, 0.03", [](auto& ws) {
        moe::load_balance_loss(ws, 0.01);
        moe::tsallis_entropy_loss(ws, 0.03);
    });
}

#endif  // MOE_EXAMPLES_BALANCE_TOP_P_HPP
