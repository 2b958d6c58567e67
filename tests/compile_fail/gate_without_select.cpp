// expect: the gate needs select\(logits, routing\) const
// SPDX-License-Identifier: MIT
// A gate's missing member is named.
#include <moe/experts/copy.hpp>
#include <moe/layer.hpp>
#include <moe/routers/linear.hpp>

struct Gate {
#ifdef MUST_COMPILE
    void select(moe::In<float>, moe::Routing&) const {}
#else
    void choose(moe::In<float>, moe::Routing&) const {}
#endif
};

int main() {
    const moe::Layer layer{moe::Config{.model_dim = 4}, moe::LinearRouter{}, Gate{}, moe::Copy{}};
    return layer.num_experts() == 1 ? 0 : 1;
}
