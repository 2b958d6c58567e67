// expect: tokens are rows and matrices row-major; pass moe::Matrix
// SPDX-License-Identifier: MIT
// A column-major input is not silently copied at the layer's door.
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
    const Eigen::MatrixXf x(3, 4);
#endif
    moe::Matrix<float> y(3, 4);
    moe::Workspace<float> ws;
    layer.forward(x, y, ws);
}
