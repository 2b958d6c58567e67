// SPDX-License-Identifier: MIT
#ifndef MOE_EXPERTS_SWIGLU_HPP
#define MOE_EXPERTS_SWIGLU_HPP

#include <moe/experts/feed_forward.hpp>

namespace moe::inline MOE_ABI {

/// Recipe for `count` SwiGLU experts, the feed-forward block of nearly all language models:
///
///     y = down (silu(gate x) * (up x))        gate, up: [F, D], down: [O, F], no biases
///
/// Source: Shazeer, "GLU variants improve transformer" (arXiv:2002.05202).
/// With another activation, biases or bounds it is Glu. Initial weights are normal with variance 1
/// / D (gate, up) and 1 / F (down).
struct Swiglu {
    Index count = 1;    ///< experts
    Index ffn_dim = 0;  ///< F, required

    template <class S>
    FeedForwardModule<S> build(const Shape& shape, Random& random) const {
        detail::check_feed_forward("moe::Swiglu", count, ffn_dim);
        return FeedForwardModule<S>(count,
                                    {.model_dim = shape.model_dim,
                                     .ffn_dim = ffn_dim,
                                     .output_dim = shape.output_dim,
                                     .activation = Activation::silu,
                                     .gated = true},
                                    false, random, shape.deferred);
    }
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_EXPERTS_SWIGLU_HPP
