// SPDX-License-Identifier: MIT
#ifndef MOE_TESTS_SUPPORT_USERS_PARTS_HPP
#define MOE_TESTS_SUPPORT_USERS_PARTS_HPP

#include <Eigen/Core>

#include <moe/core/concepts.hpp>

/// A router and an expert of a user, as the documentation shows them.
namespace users {

struct RoundRobin {  // a router: token t prefers expert t mod E, whatever it says
    void forward(moe::In<float>, moe::Out<float> logits) const {
        logits.setZero();
        for (Eigen::Index t = 0; t < logits.rows(); ++t) logits(t, t % logits.cols()) = 1;
    }
    void backward(moe::In<float>, moe::In<float>, moe::Out<float> dx, RoundRobin&) const {
        dx.setZero();
    }
};

struct ScaleShift {  // an expert: y = scale * x + shift, feature by feature
    Eigen::RowVectorXf scale, shift;

    void forward(moe::In<float> x, moe::Out<float> y) const {
        y = (x * scale.asDiagonal()).rowwise() + shift;
    }
    void backward(moe::In<float> x, moe::In<float> dy, moe::Out<float> dx, ScaleShift& grad) const {
        dx = dy * scale.asDiagonal();                      // activations: write
        grad.scale += x.cwiseProduct(dy).colwise().sum();  // parameters: add
        grad.shift += dy.colwise().sum();
    }
    void visit_parameters(auto&& visit) { visit("scale", scale), visit("shift", shift); }
};

static_assert(moe::Router<RoundRobin> && moe::Expert<ScaleShift>);

}  // namespace users

#endif  // MOE_TESTS_SUPPORT_USERS_PARTS_HPP
