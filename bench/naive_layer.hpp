// SPDX-License-Identifier: MIT
#ifndef MOE_BENCH_NAIVE_LAYER_HPP
#define MOE_BENCH_NAIVE_LAYER_HPP

#include <cstddef>
#include <vector>

/// The layer as one writes it with Eigen in an afternoon: a loop over experts, gathered rows, three
/// products, scattered outputs. Its file is compiled with -O3 -march=native; only plain pointers
/// cross the boundary. All matrices are row-major.
class NaiveLayer {
public:
    /// router: [E, D]; gate, up: [E][F, D]; down: [E][D, F], one pointer per expert
    struct WeightPointers {
        const float* router;
        std::vector<const float*> gate, up, down;
    };

    NaiveLayer(std::ptrdiff_t dim, std::ptrdiff_t ffn, std::ptrdiff_t experts, std::ptrdiff_t k,
               WeightPointers weights);
    ~NaiveLayer();

    /// Threads of Eigen's products.
    static void set_threads(int threads);

    /// y = layer(x), [T, D]
    void forward(const float* x, float* y, std::ptrdiff_t tokens);
    /// dx and all gradients (kept inside), after forward() of the same x
    void backward(const float* x, const float* dy, float* dx, std::ptrdiff_t tokens);

private:
    struct Impl;
    Impl* impl_;
};

#endif
