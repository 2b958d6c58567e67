// SPDX-License-Identifier: MIT
#ifndef MOE_BENCH_LAYER_ERROR_HPP
#define MOE_BENCH_LAYER_ERROR_HPP

#include <algorithm>
#include <vector>

#include <moe/core/routing.hpp>

#include "subject.hpp"

namespace bench {

/// The largest error of an output, over the largest output: of up to 3 tokens, in double, straight
/// from the formulas. Not finite if an output is not.
/// @param weights  weights(e, i): gate [F, D], up [F, D] and down [D, F] of expert e
template <class Weights>
double max_error(const moe::Routing& routing, const Matrix& x, const Matrix& y,
                 const Weights& weights) {
    const Index step = std::max<Index>(1, x.rows() / 2);
    Eigen::MatrixXd expected = Eigen::MatrixXd::Zero(x.rows(), y.cols());
    for (Index e = 0; e < routing.num_experts(); ++e) {
        std::vector<moe::Assignment> assignments;
        for (Index t = 0; t < x.rows(); t += step)
            for (const moe::Assignment& a : routing.of(t))
                if (a.expert == e) assignments.push_back(a);
        if (assignments.empty()) continue;
        const Eigen::MatrixXd gate = weights(e, 0).template cast<double>(),
                              up = weights(e, 1).template cast<double>(),
                              down = weights(e, 2).template cast<double>();
        for (const moe::Assignment& a : assignments) {
            const Eigen::VectorXd token = x.row(a.token).transpose().cast<double>();
            const Eigen::ArrayXd g = gate * token, u = up * token;
            const Eigen::VectorXd hidden = g / (1 + (-g).exp()) * u;
            expected.row(a.token) += a.weight * (down * hidden).transpose();
        }
    }
    double worst = 0, largest = 0;
    for (Index t = 0; t < x.rows(); t += step) {
        const Eigen::RowVectorXd error = expected.row(t) - y.row(t).cast<double>();
        worst = error.hasNaN() ? error.sum() : std::max(worst, error.cwiseAbs().maxCoeff());
        largest = std::max(largest, expected.row(t).cwiseAbs().maxCoeff());
        if (!(worst >= 0)) break;
    }
    return worst / largest;
}

/// Against the weights as trained.
inline double max_error(const Layer& layer, const moe::Routing& routing, const Matrix& x,
                        const Matrix& y) {
    const auto& group = layer.bank().group<0>();
    return max_error(routing, x, y, [&group](Index e, int i) {
        return (i == 0 ? group.gate : i == 1 ? group.up : group.down).owned(e).view();
    });
}

/// Against the weights as they are stored.
inline double max_error(const Frozen& frozen, const moe::Routing& routing, const Matrix& x,
                        const Matrix& y) {
    const auto& group = frozen.bank().group<0>();
    return max_error(routing, x, y, [&group](Index e, int i) {
        return i == 0 ? group.gate(e) : i == 1 ? group.up(e) : group.down(e);
    });
}

}  // namespace bench

#endif  // MOE_BENCH_LAYER_ERROR_HPP
