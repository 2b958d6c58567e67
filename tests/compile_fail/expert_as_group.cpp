// expect: wrap a single expert type: moe::experts\(count, prototype\)
// SPDX-License-Identifier: MIT
// An expert where a group of them is wanted.
#include <moe/experts/each.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/layer.hpp>
#include <moe/routers/linear.hpp>

struct Half {
    void forward(moe::In<float> x, moe::Out<float> y) const { y = 0.5f * x; }
    void backward(moe::In<float>, moe::In<float> dy, moe::Out<float> dx, Half&) const {
        dx = 0.5f * dy;
    }
};

int main() {
#ifdef MUST_COMPILE
    const auto group = moe::experts(2, Half{});
#else
    const Half group;
#endif
    const moe::Layer layer{moe::Config{.model_dim = 4}, moe::LinearRouter{}, moe::TopK{.k = 1},
                           group};
    return layer.num_experts() == 2 ? 0 : 1;
}
