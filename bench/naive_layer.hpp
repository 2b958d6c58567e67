// SPDX-License-Identifier: MIT
#ifndef MOE_BENCH_NAIVE_LAYER_HPP
#define MOE_BENCH_NAIVE_LAYER_HPP

#include <cstddef>

#include "peer_layer.hpp"

/// The layer as one writes it with Eigen in an afternoon: a loop over experts, gathered rows, three
/// products, scattered outputs.
class NaiveLayer final : public TrainedPeerLayer {
public:
    NaiveLayer(const Shape& shape, Weights weights);
    ~NaiveLayer() override;

    /// Threads of Eigen's products.
    void set_threads(int threads) override;
    void forward(const float* x, float* y, std::ptrdiff_t tokens) override;
    void backward(const float* x, const float* dy, float* dx, std::ptrdiff_t tokens) override;

private:
    struct Impl;
    Impl* impl_;
};

#endif
