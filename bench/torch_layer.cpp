// SPDX-License-Identifier: MIT
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include <torch/torch.h>

#include "peer_layer.hpp"

namespace {

using torch::Tensor;

Tensor view(const float* data, std::ptrdiff_t rows, std::ptrdiff_t columns) {
    return torch::from_blob(const_cast<float*>(data), {rows, columns});
}

// As the blocks of Hugging Face transformers do it: a loop over experts, index_select, three
// linear, index_add_.
class TorchLayer final : public TrainedPeerLayer {
public:
    TorchLayer(const Shape& shape, const Weights& weights)
        : shape_(shape), router_(view(weights.router, shape.experts, shape.dim)) {
        for (std::size_t e = 0; e < weights.gate.size(); ++e)
            experts_.push_back({view(weights.gate[e], shape.ffn, shape.dim),
                                view(weights.up[e], shape.ffn, shape.dim),
                                view(weights.down[e], shape.dim, shape.ffn)});
        for_each_weight([](Tensor& weight) { weight.requires_grad_(); });
    }

    void set_threads(int threads) override { at::set_num_threads(threads); }

    void forward(const float* x, float* y, std::ptrdiff_t tokens) override {
        x_ = view(x, tokens, shape_.dim).requires_grad_();
        y_ = run(x_);
        view(y, tokens, shape_.dim).copy_(y_.detach());
    }

    // A step of the usual loop: gradients are forgotten before it, as zero_grad() does, and made
    // anew, not added to.
    void backward(const float*, const float* dy, float* dx, std::ptrdiff_t tokens) override {
        for_each_weight([](Tensor& weight) { weight.mutable_grad() = Tensor(); });
        y_.backward(view(dy, tokens, shape_.dim));
        view(dx, tokens, shape_.dim).copy_(x_.grad());
        x_ = y_ = Tensor();
    }

private:
    struct Expert {
        Tensor gate, up, down;
    };

    Tensor run(const Tensor& x) const {
        const Tensor scores = torch::softmax(torch::linear(x, router_), 1);
        auto [weights, selected] = torch::topk(scores, shape_.k, 1);
        weights = weights / weights.sum(1, true);
        Tensor y = torch::zeros_like(x);
        for (std::size_t e = 0; e < experts_.size(); ++e) {
            const std::vector<Tensor> found =
                torch::where(selected == static_cast<std::int64_t>(e));
            if (found[0].numel() == 0) continue;
            const auto& [gate, up, down] = experts_[e];
            const Tensor rows = x.index_select(0, found[0]);
            const Tensor hidden = torch::silu(torch::linear(rows, gate)) * torch::linear(rows, up);
            const Tensor weight = weights.index({found[0], found[1]}).unsqueeze(1);
            y.index_add_(0, found[0], torch::linear(hidden, down) * weight);
        }
        return y;
    }

    template <class F>
    void for_each_weight(F visit) {
        visit(router_);
        for (Expert& expert : experts_) visit(expert.gate), visit(expert.up), visit(expert.down);
    }

    Shape shape_;
    Tensor router_;
    std::vector<Expert> experts_;
    Tensor x_, y_;  // of the last forward
};

}  // namespace

std::unique_ptr<TrainedPeerLayer> make_torch_layer(const PeerLayer::Shape& shape,
                                                   const PeerLayer::Weights& weights) {
    return std::make_unique<TorchLayer>(shape, weights);
}
