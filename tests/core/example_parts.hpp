// SPDX-License-Identifier: MIT
#ifndef MOE_TESTS_CORE_EXAMPLE_PARTS_HPP
#define MOE_TESTS_CORE_EXAMPLE_PARTS_HPP

#include <moe/core/concepts.hpp>

/// Small parts that offer their hooks in either form.
namespace core_test {

using moe::Index;
using In = moe::In<float>;
using Out = moe::Out<float>;
using Call = moe::Call<float>;
using WeightGradients = moe::WeightGradients<float>;

// Routers and experts: the same members, for different matrices.

struct Short {
    float factor = 2;
    void forward(In x, Out y) const { y = factor * x; }
    void backward(In, In dy, Out dx, Short& grad) const { dx = factor * dy, grad.factor += 1; }
};
struct Long {
    void forward(In x, Out y, const Call& call) const {
        y = x.array() + static_cast<float>(call.context.step);
    }
    void backward(In, In dy, Out dx, Long&, const Call& call) const {
        dx = dy.array() + static_cast<float>(call.context.step);
    }
};
struct Both : Short {
    using Short::forward;
    void forward(In x, Out y, const Call&) const { y = -x; }
};
// Gates.

struct Selects {
    void select(In logits, moe::Routing& routing) const {
        for (Index t = 0; t < logits.rows(); ++t) routing.add(t, 0, 0.5);
    }
};
struct SelectsByCall {
    void select(In, moe::Routing& routing, const Call& call) const {
        routing.add(0, static_cast<Index>(call.context.step));
    }
    void weigh(In, moe::Routing& routing, const Call&) const { routing.set_weight(0, 7); }
    Index num_logits(Index experts) const { return 2 * experts; }
};
struct Trains : Selects {
    void backward(In, const moe::Routing&, const WeightGradients& dweights, Out dlogits) const {
        dlogits(0, 0) += dweights[0];
    }
    void weigh(In, moe::Routing& routing) const { routing.set_weight(0, 9); }
};
struct TrainsByCall : SelectsByCall {
    Index seen = 0;
    void backward(In, const moe::Routing&, const WeightGradients&, Out dlogits, TrainsByCall& grad,
                  const Call&) const {
        dlogits(0, 0) += 3, ++grad.seen;
    }
};
}  // namespace core_test

#endif
