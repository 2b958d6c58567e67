// SPDX-License-Identifier: MIT
#ifndef MOE_BENCH_LAYER_SUBJECT_HPP
#define MOE_BENCH_LAYER_SUBJECT_HPP

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <moe/moe.hpp>

#include "naive_layer.hpp"
#include "peer_layer.hpp"
#include "shapes.hpp"

namespace bench {

using Layer = moe::Layer<float, moe::LinearRouter, moe::TopK, moe::Swiglu>;
using Frozen = decltype(moe::freeze(std::declval<const Layer&>()));

/// The layer of one shape and all that is compared with it. Layers are large: only the subject that
/// was asked for last is kept, and of it only what the last variant needs.
class Subject {
public:
    static Subject& get(const LayerShape& shape) {
        static std::unique_ptr<Subject> current;
        if (!current || current->shape.name != shape.name) {
            current.reset();
            current = std::make_unique<Subject>(shape);
        }
        return *current;
    }

    explicit Subject(const LayerShape& s)
        : shape(s),
          layer(moe::Config{.model_dim = s.dim, .seed = 1}, moe::LinearRouter{},
                moe::TopK{.k = s.k}, moe::Swiglu{.count = s.experts, .ffn_dim = s.ffn}),
          naive(peer_shape(), weights()) {}

    const Frozen& frozen(const Variant& variant) {
        use(variant);
        if (!frozen_)
            frozen_.emplace(
                moe::freeze(layer, {.storage = variant.storage, .compute = variant.compute}));
        return *frozen_;
    }

    /// The same layer around other libraries, those that were found when this was built: its
    /// counter and the layer.
    using Peers = std::vector<std::pair<std::string, std::unique_ptr<PeerLayer>>>;
    Peers& peers(const Variant& variant) {
        use(variant);
        if (!peers_) {
            peers_.emplace();
            [[maybe_unused]] const auto add = [this](const char* counter,
                                                     std::unique_ptr<PeerLayer> peer) {
                if (peer) peers_->emplace_back(counter, std::move(peer));
            };
#if defined(MOE_BENCH_ONEDNN)
            if (variant.is_float() || variant.compute == moe::Compute::bf16)
                add("vs_onednn", make_onednn_layer(peer_shape(), weights(), !variant.is_float()));
#endif
#if defined(MOE_BENCH_OPENBLAS)
            if (variant.is_float())
                add("vs_openblas", make_openblas_layer(peer_shape(), weights()));
#endif
        }
        return *peers_;
    }

    /// Frees what only rows of this shape need.
    void forget() {
        variant_.clear(), frozen_.reset(), peers_.reset(), gradient_.reset(), bf16_.reset();
        torch_.reset();
    }

    Layer& gradient() {
        if (!variant_.empty()) forget();
        if (!gradient_) gradient_.emplace(moe::zeros_like(layer));
        return *gradient_;
    }

    /// The same layer around PyTorch, null if this was configured without MOE_TORCH.
    TrainedPeerLayer* torch() {
#if defined(MOE_BENCH_TORCH)
        if (!torch_) torch_ = make_torch_layer(peer_shape(), weights());
#endif
        return torch_.get();
    }

    /// The same layer with products in bf16; views the weights of the first.
    const Layer& bf16() {
        if (bf16_) return *bf16_;
        bf16_.emplace(moe::Config{.model_dim = shape.dim, .seed = 1}, moe::LinearRouter{},
                      moe::TopK{.k = shape.k},
                      moe::Swiglu{.count = shape.experts, .ffn_dim = shape.ffn});
        const auto view = [](const moe::Weights<float>& weights) {
            std::vector<moe::WeightView> views;
            for (Index e = 0; e < weights.count(); ++e) views.push_back(weights[e]);
            return moe::Weights<float>(std::move(views));
        };
        auto& to = bf16_->bank().group<0>();
        to.use(moe::detail::bf16_passes<float>);
        const auto& from = std::as_const(layer).bank().group<0>();
        to.gate = view(from.gate), to.up = view(from.up), to.down = view(from.down);
        return *bf16_;
    }

    LayerShape shape;
    Layer layer;
    NaiveLayer naive;

private:
    void use(const Variant& variant) {
        if (variant.name() == variant_) return;
        forget();
        variant_ = variant.name();
    }

    PeerLayer::Shape peer_shape() const { return {shape.dim, shape.ffn, shape.experts, shape.k}; }
    PeerLayer::Weights weights() const {
        PeerLayer::Weights all{layer.router().weight.data(), {}, {}, {}};
        const auto& group = layer.bank().group<0>();
        for (Index e = 0; e < shape.experts; ++e) {
            all.gate.push_back(group.gate.owned(e).data());
            all.up.push_back(group.up.owned(e).data());
            all.down.push_back(group.down.owned(e).data());
        }
        return all;
    }

    std::string variant_;
    std::optional<Frozen> frozen_;
    std::optional<Peers> peers_;
    std::optional<Layer> gradient_, bf16_;
    std::unique_ptr<TrainedPeerLayer> torch_;
};

}  // namespace bench

#endif  // MOE_BENCH_LAYER_SUBJECT_HPP
