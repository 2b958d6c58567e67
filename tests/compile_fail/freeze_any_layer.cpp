// expect: moe: freeze a layer before it goes into an AnyLayer
// SPDX-License-Identifier: MIT
#include <moe/any_layer.hpp>
#include <moe/experts/copy.hpp>
#include <moe/frozen.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/routers/linear.hpp>

int main() {
    const moe::Layer layer{moe::Config{.model_dim = 4}, moe::LinearRouter{}, moe::TopK{.k = 1},
                           moe::Copy{}};
    const moe::AnyLayer<float> any = layer;
#ifdef MUST_COMPILE
    const auto& used = layer;
#else
    const auto& used = any;
#endif
    moe::freeze(used);
}
