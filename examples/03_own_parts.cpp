// SPDX-License-Identifier: MIT
// Your own router and your own expert, next to ours in one layer, checked with our gradient tool.
//     g++ -std=c++20 -O2 -I include -I /usr/include/eigen3 examples/03_own_parts.cpp -o own && ./own
// prints: gradients of the expert: right
// prints: token 5 goes to expert 1
#include <cstdio>

#include <moe/moe.hpp>
#include <moe/testing/gradient_check.hpp>

struct RoundRobin {  // a router: token t prefers expert t mod E, whatever it says
    void forward(moe::In<float>, moe::Out<float> logits) const {
        logits.setZero();
        for (Eigen::Index t = 0; t < logits.rows(); ++t) logits(t, t % logits.cols()) = 1;
    }
    void backward(moe::In<float>, moe::In<float>, moe::Out<float> dx, RoundRobin&) const { dx.setZero(); }
};

struct ScaleShift {  // an expert: y = scale * x + shift, feature by feature
    Eigen::RowVectorXf scale, shift;

    void forward(moe::In<float> x, moe::Out<float> y) const {
        y = (x * scale.asDiagonal()).rowwise() + shift;
    }
    void backward(moe::In<float> x, moe::In<float> dy, moe::Out<float> dx, ScaleShift& grad) const {
        dx = dy * scale.asDiagonal();                       // activations: write
        grad.scale += x.cwiseProduct(dy).colwise().sum();   // parameters: add
        grad.shift += dy.colwise().sum();
    }
    void visit_parameters(auto&& visit) { visit("scale", scale), visit("shift", shift); }
};

static_assert(moe::Router<RoundRobin> && moe::Expert<ScaleShift>);

int main() {
    const ScaleShift identity{Eigen::RowVectorXf::Ones(64), Eigen::RowVectorXf::Zero(64)};
    moe::Layer layer{moe::Config{.model_dim = 64}, RoundRobin{}, moe::TopK{.k = 1}, moe::experts(4, identity)};

    const auto check = moe::testing::check_gradients(identity, {.rows = 5, .columns = 64});
    std::printf("gradients of the expert: %s\n", check ? "right" : check.message.c_str());

    const moe::Matrix<float> x = moe::Matrix<float>::Random(6, 64);
    moe::Matrix<float> y(6, 64);
    moe::Workspace<float> ws;
    layer.forward(x, y, ws);
    std::printf("token 5 goes to expert %d\n", ws.routing().of(5)[0].expert);
}
