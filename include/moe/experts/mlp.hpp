// SPDX-License-Identifier: MIT
#ifndef MOE_EXPERTS_MLP_HPP
#define MOE_EXPERTS_MLP_HPP

#include <moe/core/activation.hpp>
#include <moe/experts/feed_forward.hpp>

namespace moe::inline MOE_ABI {

/// Recipe for `count` two-layer experts:
///
///     y = down act(up x + up_bias) + down_bias        up: [F, D], down: [O, F]
///
/// act is one of Activation: relu, relu_squared, gelu, gelu_tanh, silu, quick_gelu. ReLU without
/// biases is Switch (arXiv:2101.03961), ReLU with biases NLLB, GELU most vision models,
/// relu_squared Primer (arXiv:2109.08668). Initial weights are normal with variance 1 / D (up) and
/// 1 / F (down), biases 0.
struct Mlp {
    Index count = 1;    ///< experts
    Index ffn_dim = 0;  ///< F, required
    Activation activation = Activation::relu;
    bool bias = false;  ///< up_bias [F] and down_bias [O]; down_bias is multiplied by the weight

    template <class S>
    FeedForwardModule<S> build(const Shape& shape, Random& random) const {
        detail::check_feed_forward("moe::Mlp", count, ffn_dim);
        return FeedForwardModule<S>(count,
                                    {.model_dim = shape.model_dim,
                                     .ffn_dim = ffn_dim,
                                     .output_dim = shape.output_dim,
                                     .activation = activation,
                                     .gated = false},
                                    bias, random, shape.deferred);
    }
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_EXPERTS_MLP_HPP
