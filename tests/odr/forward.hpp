// SPDX-License-Identifier: MIT
#ifndef MOE_TESTS_ODR_FORWARD_HPP
#define MOE_TESTS_ODR_FORWARD_HPP

#include <bit>
#include <cstdint>
#include <vector>

#include <moe/moe.hpp>

// One forward and backward pass of a small layer, as bits. Unnamed namespace: what is shared
// between the translation units is the library's code, not this function.
namespace {

inline std::vector<std::uint32_t> bits_of_a_step() {
    const moe::Layer layer{moe::Config{.model_dim = 24, .seed = 3}, moe::LinearRouter{},
                           moe::TopK{.k = 2}, moe::Swiglu{.count = 5, .ffn_dim = 40}};
    const moe::Index tokens = 11;
    moe::Matrix<float> x(tokens, 24), y(tokens, 24), dy(tokens, 24), dx(tokens, 24);
    for (moe::Index i = 0; i < x.size(); ++i) {
        x.data()[i] = static_cast<float>(i * 37 % 101 - 50) / 64;
        dy.data()[i] = static_cast<float>(i * 53 % 89 - 44) / 64;
    }
    moe::Workspace<float> ws;
    auto grad = moe::zeros_like(layer);
    layer.forward(x, y, ws);
    layer.backward(x, dy, dx, grad, ws);

    std::vector<std::uint32_t> bits;
    for (moe::Index i = 0; i < y.size(); ++i)
        bits.push_back(std::bit_cast<std::uint32_t>(y.data()[i]));
    for (moe::Index i = 0; i < dx.size(); ++i)
        bits.push_back(std::bit_cast<std::uint32_t>(dx.data()[i]));
    return bits;
}

}  // namespace

#endif  // MOE_TESTS_ODR_FORWARD_HPP
