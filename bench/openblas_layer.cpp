// SPDX-License-Identifier: MIT
#include <algorithm>

#include <cblas.h>
#include <Eigen/Core>

#include "peer_layer.hpp"
#include "peer_routing.hpp"

namespace {

/// C [m, n] = A [m, k] B^T, B [n, k]
void product(std::ptrdiff_t m, std::ptrdiff_t n, std::ptrdiff_t k, const float* a, const float* b,
             float* c, std::ptrdiff_t c_stride) {
    const auto extent = [](std::ptrdiff_t i) { return static_cast<blasint>(i); };
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, extent(m), extent(n), extent(k), 1, a,
                extent(k), b, extent(k), 0, c, extent(c_stride));
}

class OpenBlasLayer final : public PeerLayer {
public:
    OpenBlasLayer(const Shape& shape, const Weights& weights) : shape_(shape), weights_(weights) {}

    void set_threads(int threads) override { openblas_set_num_threads(threads); }

    void forward(const float* x, float* y, std::ptrdiff_t count) override {
        const auto [dim, ffn, experts, k] = shape_;
        logits_.resize(static_cast<std::size_t>(count * experts));
        product(count, experts, dim, x, weights_.router, logits_.data(), experts);
        routing_.route(logits_.data(), count, experts, k);
        std::fill_n(y, count * dim, 0.0f);
        for (std::size_t e = 0; e < routing_.tokens.size(); ++e) {
            const auto rows = static_cast<std::ptrdiff_t>(routing_.tokens[e].size());
            if (rows == 0) continue;
            gathered_.resize(static_cast<std::size_t>(rows * dim));
            out_.resize(gathered_.size());
            gate_.resize(static_cast<std::size_t>(rows * ffn));
            up_.resize(gate_.size());
            for (std::ptrdiff_t i = 0; i < rows; ++i)
                std::copy_n(x + routing_.tokens[e][static_cast<std::size_t>(i)] * dim, dim,
                            gathered_.data() + i * dim);
            product(rows, ffn, dim, gathered_.data(), weights_.gate[e], gate_.data(), ffn);
            product(rows, ffn, dim, gathered_.data(), weights_.up[e], up_.data(), ffn);
            Eigen::Map<Eigen::ArrayXf> gate(gate_.data(), rows * ffn), up(up_.data(), rows * ffn);
            gate = gate / (1 + (-gate).exp()) * up;
            product(rows, dim, ffn, gate_.data(), weights_.down[e], out_.data(), dim);
            for (std::ptrdiff_t i = 0; i < rows; ++i) {
                const auto row = static_cast<std::size_t>(i);
                Eigen::Map<Eigen::ArrayXf>(y + routing_.tokens[e][row] * dim, dim) +=
                    routing_.weights[e][row] *
                    Eigen::Map<Eigen::ArrayXf>(out_.data() + i * dim, dim);
            }
        }
    }

private:
    Shape shape_;
    Weights weights_;
    PeerRouting routing_;
    std::vector<float> logits_, gathered_, gate_, up_, out_;
};

}  // namespace

std::unique_ptr<PeerLayer> make_openblas_layer(const PeerLayer::Shape& shape,
                                               const PeerLayer::Weights& weights) {
    return std::make_unique<OpenBlasLayer>(shape, weights);
}
