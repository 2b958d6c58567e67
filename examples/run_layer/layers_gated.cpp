// SPDX-License-Identifier: MIT
// Layers of SwiGLU experts behind a linear router that chooses the best k.
#include <moe/experts/copy.hpp>
#include <moe/experts/shared.hpp>
#include <moe/experts/swiglu.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/routers/linear.hpp>

#include "define_make_layer.hpp"

namespace run_layer {

using moe::Copy, moe::LinearRouter, moe::Shared, moe::Swiglu, moe::TopK;

RUN_LAYER_MAKE_LAYER(const LinearRouter&, const TopK&, const Swiglu&);
RUN_LAYER_MAKE_LAYER(const LinearRouter&, const TopK&, const Swiglu&, const Shared<Swiglu>&);
RUN_LAYER_MAKE_LAYER(const LinearRouter&, const TopK&, const Swiglu&, const Copy&);

}  // namespace run_layer
