// expect: the expert's backward does not fit: it needs backward\(x, dy, dx, grad\) const
// SPDX-License-Identifier: MIT
// A backward with the wrong arguments is not taken for none.
#include <moe/experts/each.hpp>

struct Half {
    void forward(moe::In<float> x, moe::Out<float> y) const { y = 0.5f * x; }
#ifdef MUST_COMPILE
    void backward(moe::In<float>, moe::In<float> dy, moe::Out<float> dx, Half&) const {
        dx = 0.5f * dy;
    }
#else
    void backward(moe::In<float>, moe::In<float> dy, moe::Out<float> dx) const { dx = 0.5f * dy; }
#endif
};

int main() {
    const moe::EachModule<float, Half> group({Half{}});
    return group.num_experts() == 1 ? 0 : 1;
}
