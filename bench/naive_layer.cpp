// SPDX-License-Identifier: MIT
#include "naive_layer.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include <Eigen/Core>

namespace {
using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using View = Eigen::Map<const Matrix>;
using Index = Eigen::Index;
}  // namespace

struct NaiveLayer::Impl {
    Index dim, ffn, experts, k;
    Weights weights;
    Matrix scores, drouter;                     // [T, E], [E, D]
    std::vector<std::vector<Index>> tokens;     // per expert
    std::vector<std::vector<float>> factors;    // per expert
    std::vector<Matrix> gate, up, hidden, out;  // per expert, kept for backward
    std::vector<Matrix> dgate, dup, ddown;      // gradients
};

NaiveLayer::NaiveLayer(const Shape& shape, Weights weights)
    : impl_(new Impl{shape.dim,
                     shape.ffn,
                     shape.experts,
                     shape.k,
                     std::move(weights),
                     {},
                     {},
                     {},
                     {},
                     {},
                     {},
                     {},
                     {},
                     {},
                     {},
                     {}}) {
    const auto count = static_cast<std::size_t>(shape.experts);
    impl_->drouter = Matrix::Zero(shape.experts, shape.dim);
    impl_->tokens.resize(count), impl_->factors.resize(count);
    impl_->gate.resize(count), impl_->up.resize(count), impl_->hidden.resize(count),
        impl_->out.resize(count);
}
NaiveLayer::~NaiveLayer() { delete impl_; }

void NaiveLayer::set_threads(int threads) { Eigen::setNbThreads(threads); }

void NaiveLayer::forward(const float* x_data, float* y_data, std::ptrdiff_t count) {
    Impl& m = *impl_;
    const View x(x_data, count, m.dim), router(m.weights.router, m.experts, m.dim);
    Eigen::Map<Matrix> y(y_data, count, m.dim);
    m.scores.noalias() = x * router.transpose();
    for (auto& list : m.tokens) list.clear();
    for (auto& list : m.factors) list.clear();
    std::vector<Index> order(static_cast<std::size_t>(m.experts));
    for (Index t = 0; t < count; ++t) {
        m.scores.row(t) = (m.scores.row(t).array() - m.scores.row(t).maxCoeff()).exp();
        m.scores.row(t) /= m.scores.row(t).sum();
        std::iota(order.begin(), order.end(), Index{0});
        std::partial_sort(order.begin(), order.begin() + m.k, order.end(),
                          [&](Index a, Index b) { return m.scores(t, a) > m.scores(t, b); });
        float sum = 0;
        for (Index s = 0; s < m.k; ++s) sum += m.scores(t, order[static_cast<std::size_t>(s)]);
        for (Index s = 0; s < m.k; ++s) {
            const auto e = static_cast<std::size_t>(order[static_cast<std::size_t>(s)]);
            m.tokens[e].push_back(t);
            m.factors[e].push_back(m.scores(t, static_cast<Index>(e)) / sum);
        }
    }
    y.setZero();
    for (std::size_t e = 0; e < m.tokens.size(); ++e) {
        const auto rows = static_cast<Index>(m.tokens[e].size());
        if (rows == 0) continue;
        Matrix gathered(rows, m.dim);
        for (Index i = 0; i < rows; ++i)
            gathered.row(i) = x.row(m.tokens[e][static_cast<std::size_t>(i)]);
        const View gate(m.weights.gate[e], m.ffn, m.dim), up(m.weights.up[e], m.ffn, m.dim),
            down(m.weights.down[e], m.dim, m.ffn);
        m.gate[e].noalias() = gathered * gate.transpose();
        m.up[e].noalias() = gathered * up.transpose();
        m.hidden[e] = m.gate[e].array() / (1 + (-m.gate[e].array()).exp()) * m.up[e].array();
        m.out[e].noalias() = m.hidden[e] * down.transpose();
        for (Index i = 0; i < rows; ++i)
            y.row(m.tokens[e][static_cast<std::size_t>(i)]) +=
                m.factors[e][static_cast<std::size_t>(i)] * m.out[e].row(i);
    }
}

void NaiveLayer::backward(const float* x_data, const float* dy_data, float* dx_data,
                          std::ptrdiff_t count) {
    Impl& m = *impl_;
    const View x(x_data, count, m.dim), dy(dy_data, count, m.dim),
        router(m.weights.router, m.experts, m.dim);
    Eigen::Map<Matrix> dx(dx_data, count, m.dim);
    if (m.dgate.empty()) {
        m.dgate.assign(m.tokens.size(), Matrix::Zero(m.ffn, m.dim));
        m.dup = m.dgate;
        m.ddown.assign(m.tokens.size(), Matrix::Zero(m.dim, m.ffn));
    }
    Matrix dfactor = Matrix::Zero(count, m.experts);  // d(loss)/d(weight), 0 where not selected
    Matrix factor = Matrix::Zero(count, m.experts);
    dx.setZero();
    for (std::size_t e = 0; e < m.tokens.size(); ++e) {
        const auto rows = static_cast<Index>(m.tokens[e].size());
        if (rows == 0) continue;
        Matrix gathered(rows, m.dim), dout(rows, m.dim);
        for (Index i = 0; i < rows; ++i) {
            const Index t = m.tokens[e][static_cast<std::size_t>(i)];
            const float w = m.factors[e][static_cast<std::size_t>(i)];
            gathered.row(i) = x.row(t);
            dout.row(i) = w * dy.row(t);
            dfactor(t, static_cast<Index>(e)) = dy.row(t).dot(m.out[e].row(i));
            factor(t, static_cast<Index>(e)) = w;
        }
        const View gate(m.weights.gate[e], m.ffn, m.dim), up(m.weights.up[e], m.ffn, m.dim),
            down(m.weights.down[e], m.dim, m.ffn);
        const Matrix dhidden = dout * down;
        m.ddown[e].noalias() += dout.transpose() * m.hidden[e];
        const Eigen::ArrayXXf sigmoid = 1 / (1 + (-m.gate[e].array()).exp());
        const Matrix du = dhidden.array() * m.gate[e].array() * sigmoid;
        const Matrix dg =
            dhidden.array() * m.up[e].array() * sigmoid * (1 + m.gate[e].array() * (1 - sigmoid));
        m.dgate[e].noalias() += dg.transpose() * gathered;
        m.dup[e].noalias() += du.transpose() * gathered;
        Matrix dgathered = dg * gate;
        dgathered.noalias() += du * up;
        for (Index i = 0; i < rows; ++i)
            dx.row(m.tokens[e][static_cast<std::size_t>(i)]) += dgathered.row(i);
    }
    const Eigen::VectorXf mean = (dfactor.array() * factor.array()).rowwise().sum();
    const Matrix dlogits = factor.array() * (dfactor.array().colwise() - mean.array());
    m.drouter.noalias() += dlogits.transpose() * x;
    dx.noalias() += dlogits * router;
}
