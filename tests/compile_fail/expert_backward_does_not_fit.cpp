// expect: the expert's backward does not fit: it needs backward\(x, dy, dx, grad\) const
// SPDX-License-Identifier: MIT
// A backward that cannot be called is a mistake, not an expert for inference only.
#include <moe/experts/each.hpp>
#include <moe/layer.hpp>
#include <moe/routers/linear.hpp>

struct Everything {
    void select(moe::In<float> logits, moe::Routing& routing) const {
        for (moe::Index t = 0; t < logits.rows(); ++t) routing.add(t, 0);
    }
};

struct Doubles {
    void forward(moe::In<float> x, moe::Out<float> y) const { y = 2 * x; }
#ifdef MUST_COMPILE
    void backward(moe::In<float>, moe::In<float> dy, moe::Out<float> dx, Doubles&) const {
        dx = 2 * dy;
    }
#else
    void backward(moe::In<float>, moe::In<float> dy, moe::Out<float> dx) const { dx = 2 * dy; }
#endif
};

int main() {
    const moe::Layer layer{moe::Config{.model_dim = 4}, moe::LinearRouter{}, Everything{},
                           moe::experts(2, Doubles{})};
    return static_cast<int>(layer.num_experts());
}
