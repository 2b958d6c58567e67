// SPDX-License-Identifier: MIT
#ifndef FASHION_MNIST_NETWORK_HPP
#define FASHION_MNIST_NETWORK_HPP

#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

#include <moe/moe.hpp>

#include "images.hpp"

using moe::Index;
using moe::Matrix;

/// Adam (arXiv:1412.6980) over spans of parameters.
class Adam {
public:
    void begin_step(float rate) {
        rate_ = rate;
        ++step_;
        next_ = 0;
    }
    /// Call once per parameter, in the same order in every step; clears the gradient.
    void update(std::span<float> w, std::span<float> g) {
        if (next_ == moments_.size()) moments_.emplace_back(2 * w.size(), 0.f);
        float* const m = moments_[next_++].data();
        float* const v = m + w.size();
        const auto t = static_cast<float>(step_);
        const float scale = rate_ * std::sqrt(1 - std::pow(0.999f, t)) / (1 - std::pow(0.9f, t));
        for (std::size_t i = 0; i < w.size(); ++i) {
            m[i] += 0.1f * (g[i] - m[i]);
            v[i] += 0.001f * (g[i] * g[i] - v[i]);
            w[i] -= scale * m[i] / (std::sqrt(v[i]) + 1e-8f);
            g[i] = 0;
        }
    }

private:
    std::vector<std::vector<float>> moments_;
    std::size_t next_ = 0;
    int step_ = 0;
    float rate_ = 0;
};

/// One weight matrix of the hand-written part, with its gradient.
struct Weight {
    Matrix<float> value, gradient;
    Weight(Index rows, Index cols, double stddev, moe::Random random)
        : value(random.normal<float>(rows, cols, stddev)),
          gradient(Matrix<float>::Zero(rows, cols)) {}
};

/// A small image classifier around one Mixture-of-Experts layer:
///
///     e = patches W_embed + position        one token per patch
///     h = e + moe(rms_norm(e))              residual block
///     logits = (mean over patches of h) W_head + b_head
template <class Layer>
class Network {
public:
    static constexpr Index patch = 8, stride = 5, grid = (Images::side - patch) / stride + 1;
    static constexpr Index tokens = grid * grid, dim = 64;  // P, D

    explicit Network(Layer layer, std::uint64_t seed)
        : moe(std::move(layer)), moe_gradient(moe::zeros_like(moe)), random_(seed, 99) {}

    Layer moe, moe_gradient;
    moe::Workspace<float> ws;

    /// [B, 10] logits for images [first, first + count) of `order`.
    const Matrix<float>& forward(const Images& images, std::span<const Index> order) {
        const auto batch = static_cast<Index>(order.size());
        cut(images, order);
        embedded_.noalias() = patches_ * embed_.value;  // [B P, D]
        for (Index t = 0; t < embedded_.rows(); ++t)
            embedded_.row(t) += position_.value.row(t % tokens);
        inverse_rms_ = (embedded_.array().square().rowwise().mean() + 1e-5f).rsqrt();  // [B P]
        normed_ = embedded_.array().colwise() * inverse_rms_;
        mixed_.resize(embedded_.rows(), dim);
        moe.forward(normed_, mixed_, ws, context);
        pooled_.resize(batch, dim);
        for (Index b = 0; b < batch; ++b)
            pooled_.row(b) = (embedded_ + mixed_).middleRows(b * tokens, tokens).colwise().mean();
        logits_.noalias() = pooled_ * head_.value;
        logits_.rowwise() += bias_.value.row(0);
        return logits_;
    }

    /// Mean cross-entropy of the last forward(); gradients are added to the weights'.
    double backward(const Images& images, std::span<const Index> order) {
        const Index batch = logits_.rows();
        double loss = 0;
        Matrix<float> d = logits_;  // [B, 10]
        for (Index b = 0; b < batch; ++b) {
            const auto label = static_cast<Index>(
                images.labels[static_cast<std::size_t>(order[static_cast<std::size_t>(b)])]);
            d.row(b) = (d.row(b).array() - d.row(b).maxCoeff()).exp();
            d.row(b) /= d.row(b).sum();
            loss -= std::log(static_cast<double>(d(b, label)));
            d(b, label) -= 1;
        }
        d /= static_cast<float>(batch);
        head_.gradient.noalias() += pooled_.transpose() * d;
        bias_.gradient += d.colwise().sum();
        const Matrix<float> dpooled = d * head_.value.transpose() / static_cast<float>(tokens);
        dmixed_.resize(batch * tokens, dim);
        for (Index t = 0; t < dmixed_.rows(); ++t) dmixed_.row(t) = dpooled.row(t / tokens);

        dnormed_.resize(batch * tokens, dim);
        moe.backward(normed_, dmixed_, dnormed_, moe_gradient, ws, context);
        // Through n = e / rms(e): de = (dn - n mean(n dn)) / rms, plus the residual path.
        const Eigen::ArrayXf mean = (normed_.array() * dnormed_.array()).rowwise().mean();
        dmixed_.array() +=
            (dnormed_.array() - normed_.array().colwise() * mean).colwise() * inverse_rms_;
        embed_.gradient.noalias() += patches_.transpose() * dmixed_;
        for (Index t = 0; t < dmixed_.rows(); ++t)
            position_.gradient.row(t % tokens) += dmixed_.row(t);
        return loss / static_cast<double>(batch);
    }

    void step(float rate) {
        adam_.begin_step(rate);
        for (Weight* w : {&embed_, &position_, &head_, &bias_})
            adam_.update({w->value.data(), static_cast<std::size_t>(w->value.size())},
                         {w->gradient.data(), static_cast<std::size_t>(w->gradient.size())});
        moe::for_each_parameter(
            moe, moe_gradient,
            [this](auto, std::span<float> w, std::span<float> g) { adam_.update(w, g); });
    }

    moe::Context context;

private:
    /// Overlapping windows of every image, one per row.
    void cut(const Images& images, std::span<const Index> order) {
        patches_.resize(static_cast<Index>(order.size()) * tokens, patch * patch);
        Index row = 0;
        for (const Index image : order)
            for (Index p = 0; p < tokens; ++p, ++row)
                for (Index i = 0; i < patch; ++i)
                    patches_.row(row).segment(i * patch, patch) = images.pixels.row(image).segment(
                        (p / grid * stride + i) * Images::side + p % grid * stride, patch);
    }

    moe::Random random_;
    Weight embed_{patch * patch, dim, 1.0 / patch, random_.child(0)};
    Weight position_{tokens, dim, 0.5, random_.child(1)};
    Weight head_{dim, Images::classes, 0.1, random_.child(2)};
    Weight bias_{1, Images::classes, 0, random_.child(3)};
    Adam adam_;
    Matrix<float> patches_, embedded_, normed_, mixed_, pooled_, logits_, dmixed_, dnormed_;
    Eigen::ArrayXf inverse_rms_;
};

#endif
