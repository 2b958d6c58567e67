// SPDX-License-Identifier: MIT
// Your own router, gate and expert, next to ours in one layer, checked with our gradient tool.
//     g++ -std=c++20 -O2 -I include -I /usr/include/eigen3 examples/03_own_parts.cpp -o own && ./own
// prints: gradients of the expert: right
// prints: gradients through the gate: right
// prints: token 5 goes to expert 1
#include <cmath>
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
template <class S>
struct Positive {  // a gate: every expert whose logit is positive, with tanh of it as the weight
    void select(moe::In<S> z, moe::Routing& routing) const {
        for (Eigen::Index t = 0; t < z.rows(); ++t)
            for (Eigen::Index e = 0; e < z.cols(); ++e)
                if (z(t, e) > 0) routing.add(t, e, std::tanh(z(t, e)));
    }
    void backward(moe::In<S>, const moe::Routing& routing, const moe::WeightGradients<S>& dw, moe::Out<S> dz) const {
        Eigen::Index number = 0;  // dw has one entry per assignment; dz is added to
        for (const moe::Assignment& a : routing.assignments())
            dz(a.token, a.expert) += dw[number++] * static_cast<S>(1 - a.weight * a.weight);
    }
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
static_assert(moe::Router<RoundRobin> && moe::TrainableGate<Positive<float>> && moe::Expert<ScaleShift>);

int main() {
    const ScaleShift identity{Eigen::RowVectorXf::Ones(64), Eigen::RowVectorXf::Zero(64)};
    moe::Layer layer{moe::Config{.model_dim = 64}, RoundRobin{}, Positive<float>{}, moe::experts(4, identity)};
    const auto check = moe::testing::check_gradients(identity, {.rows = 5, .columns = 64});
    std::printf("gradients of the expert: %s\n", check ? "right" : check.message.c_str());

    const auto learned = moe::make_layer<double>(moe::Config{.model_dim = 8}, moe::LinearRouter{},
                                                 Positive<double>{}, moe::Swiglu{.count = 4, .ffn_dim = 8});
    const auto whole = moe::testing::check_gradients(learned, {.rows = 5, .columns = 8});
    std::printf("gradients through the gate: %s\n", whole ? "right" : whole.message.c_str());
    moe::Workspace<float> ws;
    layer.route(moe::Matrix<float>::Random(6, 64), ws);
    std::printf("token 5 goes to expert %d\n", ws.routing().of(5)[0].expert);
}
