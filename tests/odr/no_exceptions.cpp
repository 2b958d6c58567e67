// SPDX-License-Identifier: MIT
// Compiled with -fno-exceptions -fno-rtti: a layer runs, and a wrong argument ends in MOE_ON_ERROR
// with the sentence that an exception would have held.
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

/// Ends the program: with 0 if the sentence is the one that is expected.
[[noreturn]] void stop(const char* text) {
    const char* expected =
        "moe::Layer::forward: x has 7 columns, model_dim is 8; a token is a row of x";
    std::printf("MOE_ON_ERROR: %s\n", text);
    std::exit(std::strcmp(text, expected) == 0 ? 0 : 1);
}

}  // namespace

#define MOE_ON_ERROR(text) stop(text)
#include <moe/compose.hpp>
#include <moe/gates.hpp>
#include <moe/moe.hpp>
#include <moe/routers.hpp>
#include <moe/testing/gradient_check.hpp>

#if defined(__cpp_exceptions) || defined(__cpp_rtti)
#error "this program tests a build without exceptions and without type information"
#endif

int main() {
    const moe::Layer layer{moe::Config{.model_dim = 8}, moe::LinearRouter{}, moe::TopK{.k = 2},
                           moe::Swiglu{.count = 4, .ffn_dim = 16}};
    const moe::Matrix<float> x = moe::Matrix<float>::Constant(3, 8, 0.5f);
    moe::Matrix<float> y(3, 8), dx(3, 8);
    moe::Workspace<float> ws;
    ws.threads(2);
    auto grad = moe::zeros_like(layer);
    layer.forward(x, y, ws);
    layer.backward(x, y, dx, grad, ws);
    if (!y.allFinite() || !(y.squaredNorm() > 0) || !(dx.squaredNorm() > 0)) return 2;

    layer.forward(x.leftCols(7), y, ws);
    return 3;  // not reached
}
