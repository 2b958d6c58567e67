// SPDX-License-Identifier: MIT
#ifndef MOE_CORE_ACTIVATION_HPP
#define MOE_CORE_ACTIVATION_HPP

#include <moe/config.hpp>

namespace moe::inline MOE_ABI {

/// Elementwise nonlinearities of experts; a is what the first product of an expert gives.
///
///     relu          max(a, 0)
///     relu_squared  max(a, 0)^2
///     gelu          a Phi(a) = a (1 + erf(a / sqrt 2)) / 2
///     gelu_tanh     a (1 + tanh(sqrt(2 / pi) (a + 0.044715 a^3))) / 2
///     silu          a sigmoid(a)
///     quick_gelu    a sigmoid(1.702 a)
///
/// A new one goes here, into kernels/body.inl (the formula and both switches),
/// kernels/plain.hpp (act, slope), kernels/reference.hpp (exact::evaluate),
/// tests/support/dense_layer.hpp, tests/kernels/bits_main.cpp and polynomials_test.cpp, and
/// README.md.
enum class Activation { relu, relu_squared, gelu, gelu_tanh, silu, quick_gelu };
inline constexpr Activation all_activations[] = {Activation::relu, Activation::relu_squared,
                                                 Activation::gelu, Activation::gelu_tanh,
                                                 Activation::silu, Activation::quick_gelu};

/// nullptr if it is none of the enumerators.
constexpr const char* name(Activation activation) {
    switch (activation) {
        case Activation::relu:
            return "relu";
        case Activation::relu_squared:
            return "relu_squared";
        case Activation::gelu:
            return "gelu";
        case Activation::gelu_tanh:
            return "gelu_tanh";
        case Activation::silu:
            return "silu";
        case Activation::quick_gelu:
            return "quick_gelu";
    }
    return nullptr;
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_CORE_ACTIVATION_HPP
