// SPDX-License-Identifier: MIT
// The calls that README.md shows and no example needs. Its block stands here as it is.
#include <cstdint>
#include <cstdio>
#include <span>
#include <string_view>
#include <vector>

#include <moe/moe.hpp>

namespace {

int failures = 0;

void expect(bool holds, const char* what) {
    if (!holds) std::printf("not so: %s\n", what);
    failures += !holds;
}

}  // namespace

int main() {
    moe::Random random(1);
    const moe::Matrix<double> x = random.normal<double>(6, 32, 1);
    moe::Matrix<double> y(6, 32), dx(6, 32), dy = x;
    const Eigen::MatrixXd columns = x.transpose();
    Eigen::MatrixXd out(32, 6);
    const std::vector<std::uint8_t> padding{0, 0, 0, 0, 1, 1};

    // clang-format off
    auto layer = moe::make_layer<double>(moe::Config{.model_dim = 32}, moe::LinearRouter{},
                                         moe::TopP{.p = 0.7}, moe::Swiglu{.count = 4, .ffn_dim = 48});
    moe::Workspace<double> ws;
    ws.reserve(layer, 128, 4 * 128);             // 128 tokens, 4 experts each: allocated now, not in the first call

    layer.forward(x, y, ws, {.padding = padding});              // padding[t] is 1: row t is not a token
    layer.forward(x, y, ws, {.dial = {.p = 0.3}});              // less work in this call; .k is TopK's
    layer.forward(columns.transpose(), out.transpose(), ws);    // tokens in columns: a view, no copy

    auto grad = moe::zeros_like(layer, [](std::string_view name) { return name != "router.weight"; });
    layer.forward(x, y, ws);
    layer.backward(x, dy, dx, grad, ws);                        // dx, and gradients of what is wanted
    layer.forward(x, y, ws);
    layer.backward(x, dy, dx, moe::no_gradient, ws);            // dx alone

    ws.keep(moe::Keep::recompute);                              // training in less memory: backward makes
    layer.forward(x, y, ws);                                    // the hidden layer again
    ws.keep(moe::Keep::nothing);                                // inference: backward would throw now
    layer.forward(x, y, ws);
    // clang-format on

    moe::for_each_parameter(layer, grad,
                            [](std::string_view name, std::span<double>, std::span<double> g) {
                                double sum = 0;
                                for (const double value : g) sum += value * value;
                                expect(name == "router.weight" ? g.empty() : sum > 0,
                                       "the gradient holds what is wanted");
                            });
    expect(out == y.transpose(), "columns give the same bits");
    expect(dx.squaredNorm() > 0, "dx is there without a gradient");

    const auto experts_per_token = [&](const moe::Context& context) {
        layer.forward(x, y, ws, context);
        return moe::load_stats(ws.routing()).experts_per_token;
    };
    expect(experts_per_token({.dial = {.p = 0.3}}) < experts_per_token({}), "the dial saves work");
    experts_per_token({.padding = padding});
    expect(y.bottomRows(2).isZero(0) && y.row(3).squaredNorm() > 0, "padding routes nowhere");
    return failures == 0 ? 0 : 1;
}
