// expect: the matrix has another scalar than the layer; use x.cast
// SPDX-License-Identifier: MIT
// A layer of floats says what to do with doubles.
#include <moe/experts/copy.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/layer.hpp>
#include <moe/routers/linear.hpp>

int main() {
    const moe::Layer layer{moe::Config{.model_dim = 4}, moe::LinearRouter{}, moe::TopK{.k = 1},
                           moe::Copy{}};
#ifdef MUST_COMPILE
    const moe::Matrix<float> x(3, 4);
#else
    const moe::Matrix<double> x(3, 4);
#endif
    moe::Matrix<float> y(3, 4);
    moe::Workspace<float> ws;
    layer.forward(x, y, ws);
}
