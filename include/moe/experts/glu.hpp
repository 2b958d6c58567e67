// SPDX-License-Identifier: MIT
#ifndef MOE_EXPERTS_GLU_HPP
#define MOE_EXPERTS_GLU_HPP

#include <cmath>
#include <limits>

#include <moe/core/activation.hpp>
#include <moe/experts/feed_forward.hpp>

namespace moe::inline MOE_ABI {
namespace detail {

/// @throws std::invalid_argument unless limit > 0 and up_offset is finite in S
template <class S>
void check_gate_bounds(const char* who, double limit, double up_offset) {
    if (!(limit > 0))
        fail(who, ": limit is ", limit, ", it must be > 0; leave it infinite for no bounds");
    if (!(std::abs(up_offset) <= static_cast<double>(std::numeric_limits<S>::max())))
        fail(who, ": up_offset is ", up_offset,
             ", it must be finite in the scalar of the layer; 0 adds none");
}

}  // namespace detail

/// Recipe for `count` gated linear units: any activation, with biases and bounds if wanted.
///
///     y = down (act(min(g, limit)) * (clamp(u, -limit, limit) + up_offset)) + down_bias
///     g = gate x + gate_bias,  u = up x + up_bias         gate, up: [F, D], down: [O, F]
///
/// g has no lower bound: act is small there. Gradients pass where g <= limit and |u| <= limit, the
/// bounds included, and are 0 beyond. NaN passes through; only its own gradient is 0. Source of
/// GEGLU (gelu), ReGLU (relu) and the like: Shazeer, "GLU variants improve transformer"
/// (arXiv:2002.05202). The experts of gpt-oss (arXiv:2508.10925) are
///
///     moe::Glu{.ffn_dim = 2880, .activation = moe::Activation::quick_gelu, .bias = true,
///              .limit = 7, .up_offset = 1}
///
/// those of MiniMax-M3 the same without biases, and those of DeepSeek-V4 have .limit = 10 only.
/// With the defaults it is Swiglu, the same bits. Initial weights are normal with variance 1 / D
/// (gate, up) and 1 / F (down), biases 0.
struct Glu {
    Index count = 1;                           ///< experts
    Index ffn_dim = 0;                         ///< F, required
    Activation activation = Activation::silu;  ///< of the gate
    bool bias = false;  ///< gate_bias [F], up_bias [F], down_bias [O]; the weight multiplies it too
    double limit = std::numeric_limits<double>::infinity();  ///< > 0; infinite: no bounds
    double up_offset = 0;                                    ///< finite

    template <class S>
    FeedForwardModule<S> build(const Shape& shape, Random& random) const {
        detail::check_feed_forward("moe::Glu", count, ffn_dim);
        detail::check_gate_bounds<S>("moe::Glu", limit, up_offset);
        return FeedForwardModule<S>(count,
                                    {.model_dim = shape.model_dim,
                                     .ffn_dim = ffn_dim,
                                     .output_dim = shape.output_dim,
                                     .activation = activation,
                                     .gated = true,
                                     .limit = limit,
                                     .up_offset = up_offset},
                                    bias, random, shape.deferred);
    }
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_EXPERTS_GLU_HPP
