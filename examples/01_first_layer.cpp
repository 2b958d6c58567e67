// SPDX-License-Identifier: MIT
// A Mixtral-like layer: build it, run it, ask its shape.
//     g++ -std=c++20 -O2 -I include -I /usr/include/eigen3 examples/01_first_layer.cpp -o first && ./first
// prints: 16 tokens in, 16 x 256 out, 3147776 parameters
#include <cstdio>

#include <moe/moe.hpp>

int main() {
    moe::Layer layer{
        moe::Config{.model_dim = 256},
        moe::LinearRouter{},
        moe::TopK{.k = 2},
        moe::Swiglu{.count = 8, .ffn_dim = 512},
    };

    moe::Matrix<float> x = moe::Matrix<float>::Random(16, 256);  // 16 tokens, one per row
    moe::Matrix<float> y = layer(x);                             // [16, 256]

    std::printf("%td tokens in, %td x %td out, %td parameters\n", x.rows(), y.rows(), y.cols(),
                moe::num_parameters(layer));
}
