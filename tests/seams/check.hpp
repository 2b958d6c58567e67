// SPDX-License-Identifier: MIT
#ifndef MOE_TESTS_SEAMS_CHECK_HPP
#define MOE_TESTS_SEAMS_CHECK_HPP

#include <algorithm>
#include <cstddef>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <moe/core/parameters.hpp>
#include <moe/core/workspace.hpp>
#include <moe/testing/compare.hpp>
#include <moe/testing/finite_difference.hpp>
#include <moe/testing/random.hpp>

/// What tests of whole layers, and of what users build from their halves, share.
namespace seams {

using moe::Index;

/// sum of dy * y: the loss whose gradient at y is dy.
template <class S>
double weighted_sum(const moe::Matrix<S>& y, const moe::Matrix<S>& dy) {
    double sum = 0;
    for (Index i = 0; i < y.size(); ++i)
        sum += static_cast<double>(y.data()[i]) * static_cast<double>(dy.data()[i]);
    return sum;
}

/// Whether a workspace holds the choices that it held when this was made.
class SameChoices {
public:
    explicit SameChoices(const moe::Workspace<double>& ws) : ws_(&ws), before_(ws.routing()) {}
    bool operator()() const {
        const auto now = ws_->routing().assignments(), then = before_.assignments();
        return std::equal(now.begin(), now.end(), then.begin(), then.end(),
                          [](const moe::Assignment& a, const moe::Assignment& b) {
                              return a.token == b.token && a.expert == b.expert &&
                                     a.dropped == b.dropped;
                          });
    }

private:
    const moe::Workspace<double>* ws_;
    moe::Routing before_;
};

/// A parameter that takes no part has a gradient of zeros: errors count from a hundredth on.
inline moe::testing::GradientOptions options(std::function<bool()> same_branch = {}) {
    return {.scale = 0.01, .same_branch = std::move(same_branch)};
}

/// Central differences of loss() at every trainable parameter of `part`.
/// @param grad  what is claimed; gradients of other parameters must be empty
template <class Part, class Loss>
void expect_parameter_gradients(Loss&& loss, Part& part, const Part& grad,
                                const moe::testing::GradientOptions& gradient_options) {
    std::vector<std::vector<double>> claims;
    moe::visit_parameters(grad, [&](std::string_view, const auto& matrix, moe::Role) {
        claims.emplace_back(matrix.data(), matrix.data() + matrix.size());
    });
    std::size_t next = 0, checked = 0;
    moe::visit_parameters(part, [&](std::string_view name, auto& matrix, moe::Role role) {
        ASSERT_LT(next, claims.size());
        const std::vector<double>& claim = claims[next++];
        if (role != moe::Role::trainable) {
            EXPECT_TRUE(claim.empty()) << std::string(name);
            return;
        }
        const std::span<double> values(matrix.data(), static_cast<std::size_t>(matrix.size()));
        EXPECT_TRUE(moe::testing::check_gradient(loss, values, claim, gradient_options))
            << std::string(name);
        ++checked;
    });
    EXPECT_GT(checked, 0u);
}

/// Central differences of sum dy y at the tokens and at every trainable parameter of a layer, its
/// choices held. Returns the gradient.
template <class L>
L expect_exact_layer(L layer, moe::Matrix<double> x, const moe::Context& context = {}) {
    const auto dy = moe::testing::random_matrix<double>(x.rows(), x.cols(), 2);
    moe::Matrix<double> y(x.rows(), x.cols()), dx(x.rows(), x.cols());
    moe::Workspace<double> ws;
    const auto loss = [&] {
        layer.forward(x, y, ws, context);
        return weighted_sum(y, dy);
    };
    loss();
    L grad = moe::zeros_like(layer);
    layer.backward(x, dy, dx, grad, ws, context);
    const auto same_choices = options(SameChoices(ws));
    EXPECT_TRUE(moe::testing::check_gradient(loss, x, dx, same_choices));
    expect_parameter_gradients(loss, layer, grad, same_choices);
    return grad;
}

/// All values of a layer, a gradient or a part of one, in visiting order.
template <class S, class Part>
std::vector<S> values_of(const Part& part) {
    std::vector<S> values;
    moe::visit_parameters(part, [&](std::string_view, const auto& matrix, moe::Role) {
        values.insert(values.end(), matrix.data(), matrix.data() + matrix.size());
    });
    return values;
}

}  // namespace seams

#endif  // MOE_TESTS_SEAMS_CHECK_HPP
