// SPDX-License-Identifier: MIT
#ifndef MOE_BENCH_PEER_LAYER_HPP
#define MOE_BENCH_PEER_LAYER_HPP

#include <cstddef>
#include <memory>
#include <vector>

/// The layer as one writes it by hand around the matrix products of another library: a loop over
/// experts, gathered rows, products for gate, up and down, outputs added to y. Weights are prepared
/// once. These files are compiled with -O3 -march=native; only plain pointers cross the boundary.
/// All matrices are row-major.
class PeerLayer {
public:
    struct Shape {
        std::ptrdiff_t dim, ffn, experts, k;
    };
    /// router: [E, D]; gate, up: [E][F, D]; down: [E][D, F], one pointer per expert
    struct Weights {
        const float* router;
        std::vector<const float*> gate, up, down;
    };

    virtual ~PeerLayer() = default;
    /// Threads of its products.
    virtual void set_threads(int threads) = 0;
    /// y = layer(x), [T, D]
    virtual void forward(const float* x, float* y, std::ptrdiff_t tokens) = 0;
};

/// One that also makes gradients, and keeps them inside.
class TrainedPeerLayer : public PeerLayer {
public:
    /// dx and all gradients, after forward() of the same x
    virtual void backward(const float* x, const float* dy, float* dx, std::ptrdiff_t tokens) = 0;
};

/// oneDNN's matmul primitives on weights in its own order, in float or with bf16 inputs and
/// weights. Null if the library has no kernel for this machine.
std::unique_ptr<PeerLayer> make_onednn_layer(const PeerLayer::Shape& shape,
                                             const PeerLayer::Weights& weights, bool bf16);

/// cblas_sgemm of OpenBLAS on weights as they are. It has threads of its own, which after a call
/// wait for the next one on all cores for a while.
std::unique_ptr<PeerLayer> make_openblas_layer(const PeerLayer::Shape& shape,
                                               const PeerLayer::Weights& weights);

/// PyTorch as it runs without a compiler of its own ("eager"), with its autograd. Its threads are
/// those of the OpenMP library that comes with it, which is then the whole program's.
std::unique_ptr<TrainedPeerLayer> make_torch_layer(const PeerLayer::Shape& shape,
                                                   const PeerLayer::Weights& weights);

#endif  // MOE_BENCH_PEER_LAYER_HPP
