// expect: a batch is a matrix with one token per row; view memory as one: Eigen::Map
// SPDX-License-Identifier: MIT
// What is not a matrix is refused by name.
#include <vector>

#include <moe/experts/copy.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/layer.hpp>
#include <moe/routers/linear.hpp>

int main() {
    const moe::Layer layer{moe::Config{.model_dim = 4}, moe::LinearRouter{}, moe::TopK{.k = 1},
                           moe::Copy{}};
    const std::vector<float> x(12);
    moe::Matrix<float> y(3, 4);
    moe::Workspace<float> ws;
#ifdef MUST_COMPILE
    layer.forward(Eigen::Map<const moe::Matrix<float>>(x.data(), 3, 4), y, ws);
#else
    layer.forward(x, y, ws);
#endif
}
