// SPDX-License-Identifier: MIT
// The types of all published layers: most of what there is to compile.
#include <optional>
#include <utility>

#include <moe/core/weights.hpp>
#include <moe/experts/constant.hpp>
#include <moe/experts/copy.hpp>
#include <moe/experts/glu.hpp>
#include <moe/experts/mlp.hpp>
#include <moe/experts/null.hpp>
#include <moe/experts/shared.hpp>
#include <moe/experts/swiglu.hpp>
#include <moe/experts/zero.hpp>
#include <moe/frozen.hpp>
#include <moe/gates/capacity.hpp>
#include <moe/gates/dynamic_capacity.hpp>
#include <moe/gates/gshard_top_2.hpp>
#include <moe/gates/sparse_mixer.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/gates/top_p.hpp>
#include <moe/io/bind.hpp>
#include <moe/layer.hpp>
#include <moe/routers/linear.hpp>
#include <moe/routers/mlp.hpp>
#include <moe/routers/residual.hpp>

#include "make_layer.hpp"

namespace run_layer {
namespace {

/// Whether a layer's weights are codes with block scales, which are decoded before they multiply.
template <class Layer>
bool is_coded(Layer& layer) {
    bool coded = false;
    layer.bank().visit_weights([&](const auto&, const moe::Weights<float>& weights, moe::Index) {
        coded = coded || weights.is_coded();
    });
    return coded;
}

}  // namespace

template <class... Parts>
moe::AnyLayer<float> make_layer(const moe::Checkpoint& checkpoint, const moe::Names& names,
                                const moe::Config& config, std::optional<moe::Storage> storage,
                                const Parts&... parts) {
    auto layer = moe::bind(checkpoint, names, config, parts...);
    if (storage) return moe::freeze(std::move(layer), {.storage = *storage});
    if (!is_coded(layer)) return layer;
    moe::Layer decoded{moe::deferred, config, parts...};
    moe::load(checkpoint, names, decoded);
    return decoded;
}

using moe::AnyLayer, moe::Checkpoint, moe::Config, moe::Names, moe::Storage, moe::Constant,
    moe::Copy, moe::DynamicCapacity, moe::GatingResidual, moe::Glu, moe::GShardTop2,
    moe::LinearRouter, moe::Mlp, moe::MlpRouter, moe::Null, moe::Shared, moe::SparseMixer,
    moe::Swiglu, moe::TopK, moe::TopP, moe::WithCapacity, moe::Zero;

#define RUN_LAYER_INSTANTIATE(...)                                                      \
    template AnyLayer<float> make_layer(const Checkpoint&, const Names&, const Config&, \
                                        std::optional<Storage>, __VA_ARGS__)

// Most of them; with shared experts; with experts that return the token: LongCat-Flash
RUN_LAYER_INSTANTIATE(const LinearRouter&, const TopK&, const Swiglu&);
RUN_LAYER_INSTANTIATE(const LinearRouter&, const TopK&, const Swiglu&, const Shared<Swiglu>&);
RUN_LAYER_INSTANTIATE(const LinearRouter&, const TopK&, const Swiglu&, const Copy&);
// gpt-oss; NLLB-MoE; Switch
RUN_LAYER_INSTANTIATE(const LinearRouter&, const TopK&, const Glu&);
RUN_LAYER_INSTANTIATE(const LinearRouter&, const GShardTop2&, const Mlp&);
RUN_LAYER_INSTANTIATE(const LinearRouter&, const WithCapacity<TopK>&, const Mlp&);
// Phi-3.5-MoE; Dynamic_MoE; Uni-MoE 2; MoE++
RUN_LAYER_INSTANTIATE(const LinearRouter&, const SparseMixer&, const Swiglu&);
RUN_LAYER_INSTANTIATE(const LinearRouter&, const TopP&, const Swiglu&);
RUN_LAYER_INSTANTIATE(const LinearRouter&, const DynamicCapacity&, const Swiglu&, const Zero&,
                      const Swiglu&);
RUN_LAYER_INSTANTIATE(const GatingResidual<MlpRouter>&, const TopK&, const Swiglu&, const Constant&,
                      const Copy&, const Null&);

}  // namespace run_layer
