// SPDX-License-Identifier: MIT
#ifndef MOE_TESTS_ROUTERS_WRAPPED_HPP
#define MOE_TESTS_ROUTERS_WRAPPED_HPP

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/swiglu.hpp>
#include <moe/frozen.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/layer.hpp>
#include <moe/routers/linear.hpp>

#include "seams/check.hpp"
#include "support/allocations.hpp"

/// What tests of routers around routers share: calls as a head makes them, and the laws that hold
/// for all of them.
namespace routers_test {

using moe::Call;
using moe::Context;
using moe::In;
using moe::Index;
using moe::Matrix;
using moe::Out;
using moe::Workspace;
using moe::testing::random_matrix;
using moe::testing::same_bits;

inline constexpr double infinity = std::numeric_limits<double>::infinity();
inline constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN();

/// A user's router: no call, no recipe, not linear in x. logits = (x * x) W^T
struct Own {
    Matrix<double> weight;  // [L, D]

    void forward(In<double> x, Out<double> logits) const {
        logits = x.cwiseProduct(x) * weight.transpose();
    }
    void backward(In<double> x, In<double> dlogits, Out<double> dx, Own& grad) const {
        dx = (dlogits * weight).cwiseProduct(2 * x);
        grad.weight += dlogits.transpose() * x.cwiseProduct(x);
    }
    void visit_parameters(auto&& visit) { visit("weight", weight); }
};
static_assert(moe::Router<Own, double>);

inline Own own(Index dim, Index logits) { return {random_matrix<double>(logits, dim, 41)}; }

/// A user's router for inference only.
struct OnlyForward {
    void forward(In<double> x, Out<double> logits) const {
        logits.colwise() = x.rowwise().sum().eval();
    }
};

template <class S, class Recipe>
auto build(const Recipe& recipe, Index dim, Index logits, std::uint64_t seed = 1) {
    moe::Random random(seed);
    const moe::Shape shape{
        .model_dim = dim, .num_experts = logits, .output_dim = dim, .num_logits = logits};
    return recipe.template build<S>(shape, random);
}

/// What one call leaves.
template <class S>
struct Result {
    Matrix<S> logits, dx;
    std::vector<S> gradient;
};

template <class S, class R>
Matrix<S> forward(const R& router, In<S> x, Index logits, const Context& context,
                  Workspace<S>& ws) {
    Matrix<S> result = Matrix<S>::Constant(x.rows(), logits, static_cast<S>(not_a_number));
    router.forward(x, result, Call<S>{context, ws});
    return result;
}
template <class S, class R>
Result<S> run(const R& router, In<S> x, In<S> dlogits, const Context& context, Workspace<S>& ws) {
    Result<S> result{forward<S>(router, x, dlogits.cols(), context, ws),
                     Matrix<S>::Constant(x.rows(), x.cols(), static_cast<S>(not_a_number)),
                     {}};
    auto grad = moe::zeros_like(router);
    router.backward(x, dlogits, result.dx, grad, Call<S>{context, ws});
    result.gradient = seams::values_of<S>(grad);
    return result;
}

/// sum of dlogits * logits, without those that are masked.
inline double loss_of(const Matrix<double>& logits, const Matrix<double>& dlogits) {
    double sum = 0;
    for (Index i = 0; i < logits.size(); ++i)
        if (logits.data()[i] != -infinity) sum += dlogits.data()[i] * logits.data()[i];
    return sum;
}

/// Central differences at x and at every parameter of a router called on its own.
template <class R>
void expect_exact_gradients(R router, Matrix<double> x, Index logits, const Context& context) {
    const auto dlogits = random_matrix<double>(x.rows(), logits, 52);
    Workspace<double> ws;
    const auto loss = [&] {
        return loss_of(forward<double>(router, x, logits, context, ws), dlogits);
    };
    Matrix<double> dx = Matrix<double>::Constant(x.rows(), x.cols(), not_a_number);
    loss();
    auto grad = moe::zeros_like(router);
    router.backward(x, dlogits, dx, grad, Call<double>{context, ws});
    EXPECT_TRUE(moe::testing::check_gradient(loss, x, dx, seams::options()));
    seams::expect_parameter_gradients(loss, router, grad, seams::options());
}

/// The same inside a layer, where the choices do not change.
template <class Recipe>
void expect_exact_in_layer(const Recipe& recipe, const Context& context, Index tokens,
                           Index experts = 4) {
    constexpr Index dim = 5;
    auto layer =
        moe::make_layer<double>(moe::Config{.model_dim = dim, .seed = 3}, recipe, moe::TopK{.k = 2},
                                moe::Swiglu{.count = experts, .ffn_dim = 3});
    Matrix<double> x = random_matrix<double>(tokens, dim, 61);
    const auto dy = random_matrix<double>(tokens, dim, 62);
    Matrix<double> y(tokens, dim), dx(tokens, dim);
    Workspace<double> ws;
    const auto loss = [&] {
        layer.forward(x, y, ws, context);
        return seams::weighted_sum(y, dy);
    };
    loss();
    auto grad = moe::zeros_like(layer);
    layer.backward(x, dy, dx, grad, ws, context);
    const auto options = seams::options(seams::SameChoices(ws));
    EXPECT_TRUE(moe::testing::check_gradient(loss, x, dx, options));
    seams::expect_parameter_gradients(loss, layer, grad, options);
    // Nothing at all is wanted.
    Matrix<double> alone(tokens, dim);
    loss();
    layer.backward(x, dy, alone, moe::no_gradient, ws, context);
    EXPECT_TRUE(same_bits(alone, dx));
    // Frozen, it does the same.
    Matrix<double> frozen(tokens, dim);
    loss();
    moe::freeze(layer).forward(x, frozen, ws, context);
    EXPECT_TRUE(same_bits(frozen, y));
}

/// The bits of a call do not depend on the number of threads, and not on what the workspace held.
template <class S, class R>
void expect_same_bits(const R& router, Index tokens, Index dim, Index logits,
                      const Context& context) {
    const auto x = random_matrix<S>(tokens, dim, 1), dlogits = random_matrix<S>(tokens, logits, 2);
    Workspace<S> alone;
    alone.threads(1);
    const Result<S> expected = run<S>(router, x, dlogits, context, alone);
    const moe::testing::CompareOptions zeros{.allow_zeros = true};
    for (const int threads : {1, 2, 3})
        for (const bool second : {false, true}) {
            SCOPED_TRACE(threads);
            Workspace<S> ws;
            ws.threads(threads);
            if (second) run<S>(router, random_matrix<S>(tokens, dim, 9), dlogits, context, ws);
            const Result<S> got = run<S>(router, x, dlogits, context, ws);
            EXPECT_TRUE(same_bits(got.logits, expected.logits, zeros));
            EXPECT_TRUE(same_bits(got.dx, expected.dx, zeros));
            EXPECT_TRUE(same_bits(got.gradient, expected.gradient, zeros));
        }
}

/// The second call allocates nothing, the first one neither after reserve(), and that takes as much
/// as was said.
template <class S, class R>
void expect_no_allocations(const R& router, Index tokens, Index dim, Index logits,
                           const Context& context) {
    const auto x = random_matrix<S>(tokens, dim, 1), dlogits = random_matrix<S>(tokens, logits, 2);
    Matrix<S> z(tokens, logits), dx(tokens, dim);
    auto grad = moe::zeros_like(router);
    const auto both = [&](Workspace<S>& ws) {
        router.forward(x, z, Call<S>{context, ws});
        router.backward(x, dlogits, dx, grad, Call<S>{context, ws});
    };
    moe::ThreadPool pool(2);
    Workspace<S> ws(pool);
    both(ws);
    EXPECT_EQ(allocations::in([&] { both(ws); }), 0);

    Workspace<S> roomy(pool);
    const long before = allocations::bytes_asked_for.load();
    router.reserve(tokens, 2 * tokens, roomy);
    const long spent = allocations::bytes_asked_for.load() - before;
    EXPECT_EQ(allocations::in([&] { both(roomy); }), 0);
    if (!allocations::are_counted) return;
    const Index said = router.workspace_bytes(tokens, 2 * tokens, moe::Keep::everything, 2);
    EXPECT_GE(spent, said);
    EXPECT_LE(spent, said + 4096);  // the nodes of the workspace
}

/// f() throws an Error whose message holds every part.
template <class Error, class F>
void expect_message(F&& f, std::initializer_list<const char*> parts) {
    try {
        f();
        ADD_FAILURE() << "nothing was thrown";
    } catch (const Error& error) {
        for (const char* const part : parts)
            EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    }
}

}  // namespace routers_test

#endif  // MOE_TESTS_ROUTERS_WRAPPED_HPP
