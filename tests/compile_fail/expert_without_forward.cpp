// expect: the expert needs forward\(x, y\) const
// SPDX-License-Identifier: MIT
// An expert must map rows to rows, and a const one must be able to.
#include <moe/experts/each.hpp>
#include <moe/layer.hpp>
#include <moe/routers/linear.hpp>

struct Everything {
    void select(moe::In<float> logits, moe::Routing& routing) const {
        for (moe::Index t = 0; t < logits.rows(); ++t) routing.add(t, 0);
    }
};

struct Doubles {
#ifdef MUST_COMPILE
    void forward(moe::In<float> x, moe::Out<float> y) const { y = 2 * x; }
#else
    void forward(moe::In<float> x, moe::Out<float> y) { y = 2 * x; }
#endif
};

int main() {
    const moe::Layer layer{moe::Config{.model_dim = 4}, moe::LinearRouter{}, Everything{},
                           moe::experts(2, Doubles{})};
    return static_cast<int>(layer.num_experts());
}
