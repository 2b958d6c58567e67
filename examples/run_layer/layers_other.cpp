// SPDX-License-Identifier: MIT
// Layers of other experts, or behind other routers and gates.
#include <moe/experts/constant.hpp>
#include <moe/experts/copy.hpp>
#include <moe/experts/glu.hpp>
#include <moe/experts/mlp.hpp>
#include <moe/experts/null.hpp>
#include <moe/experts/swiglu.hpp>
#include <moe/experts/zero.hpp>
#include <moe/gates/capacity.hpp>
#include <moe/gates/dynamic_capacity.hpp>
#include <moe/gates/gshard_top_2.hpp>
#include <moe/gates/sparse_mixer.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/gates/top_p.hpp>
#include <moe/routers/linear.hpp>
#include <moe/routers/mlp.hpp>
#include <moe/routers/residual.hpp>

#include "define_make_layer.hpp"

namespace run_layer {

using moe::LinearRouter, moe::TopK, moe::Swiglu, moe::Mlp;

// gpt-oss; NLLB-MoE; Switch
RUN_LAYER_MAKE_LAYER(const LinearRouter&, const TopK&, const moe::Glu&);
RUN_LAYER_MAKE_LAYER(const LinearRouter&, const moe::GShardTop2&, const Mlp&);
RUN_LAYER_MAKE_LAYER(const LinearRouter&, const moe::WithCapacity<TopK>&, const Mlp&);
// Phi-3.5-MoE; Dynamic_MoE; Uni-MoE 2; MoE++
RUN_LAYER_MAKE_LAYER(const LinearRouter&, const moe::SparseMixer&, const Swiglu&);
RUN_LAYER_MAKE_LAYER(const LinearRouter&, const moe::TopP&, const Swiglu&);
RUN_LAYER_MAKE_LAYER(const LinearRouter&, const moe::DynamicCapacity&, const Swiglu&,
                     const moe::Zero&, const Swiglu&);
RUN_LAYER_MAKE_LAYER(const moe::GatingResidual<moe::MlpRouter>&, const TopK&, const Swiglu&,
                     const moe::Constant&, const moe::Copy&, const moe::Null&);

}  // namespace run_layer
