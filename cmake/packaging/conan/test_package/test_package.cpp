// SPDX-License-Identifier: MIT
#include <cstdio>

#include <moe/moe.hpp>

int main() {
    moe::Layer layer{moe::Config{.model_dim = 8}, moe::LinearRouter{}, moe::TopK{.k = 2},
                     moe::Swiglu{.count = 4, .ffn_dim = 16}};
    const moe::Matrix<float> x = moe::Matrix<float>::Constant(3, 8, 0.5f);
    const moe::Matrix<float> y = layer(x);
    std::printf("%d x %d\n", static_cast<int>(y.rows()), static_cast<int>(y.cols()));
    return y.squaredNorm() > 0 ? 0 : 1;
}
