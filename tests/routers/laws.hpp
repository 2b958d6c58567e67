// SPDX-License-Identifier: MIT
#ifndef MOE_TESTS_ROUTERS_LAWS_HPP
#define MOE_TESTS_ROUTERS_LAWS_HPP

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/swiglu.hpp>
#include <moe/frozen.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/layer.hpp>

#include "seams/check.hpp"
#include "support/allocations.hpp"

/// Calls of a router as a head makes them, and what holds for every router with parameters.
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
    const auto layer =
        moe::make_layer<double>(moe::Config{.model_dim = dim, .seed = 3}, recipe, moe::TopK{.k = 2},
                                moe::Swiglu{.count = experts, .ffn_dim = 3});
    const auto x = random_matrix<double>(tokens, dim, 61),
               dy = random_matrix<double>(tokens, dim, 62);
    seams::expect_exact_layer(layer, x, context);
    Matrix<double> y(tokens, dim), dx(tokens, dim), alone(tokens, dim), frozen(tokens, dim);
    Workspace<double> ws;
    auto grad = moe::zeros_like(layer);
    layer.forward(x, y, ws, context);
    layer.backward(x, dy, dx, grad, ws, context);
    layer.forward(x, y, ws, context);
    layer.backward(x, dy, alone, moe::no_gradient, ws, context);
    EXPECT_TRUE(same_bits(alone, dx)) << "nothing else is wanted";
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

/// Every instruction set gives the bits of the scalar one, with any number of threads, and so do
/// frozen weights.
template <class S, class R>
void expect_same_bits_on_every_isa(const R& router, Index tokens, Index dim, Index logits) {
    const auto x = random_matrix<S>(tokens, dim, 1), dlogits = random_matrix<S>(tokens, logits, 2);
    const Context context;
    Result<S> expected;
    {
        moe::ScopedIsa scalar(moe::Isa::scalar);
        moe::SerialExecutor serial;
        Workspace<S> ws(serial);
        expected = run<S>(router, x, dlogits, context, ws);
    }
    for (const moe::Isa isa : moe::supported_isas())
        for (const int threads : {1, 2, 3, 7}) {
            SCOPED_TRACE(std::string(moe::name(isa)) + " " + std::to_string(threads));
            moe::ScopedIsa forced(isa);
            moe::ThreadPool pool(threads);
            Workspace<S> ws(pool);
            const Result<S> got = run<S>(router, x, dlogits, context, ws);
            EXPECT_TRUE(same_bits(got.logits, expected.logits));
            EXPECT_TRUE(same_bits(got.dx, expected.dx));
            EXPECT_TRUE(same_bits(got.gradient, expected.gradient));
            const auto frozen = router.freeze({});
            EXPECT_TRUE(same_bits(forward<S>(frozen, x, logits, context, ws), expected.logits));
            moe::ScopedIsa other(moe::Isa::scalar);  // not the one that they were packed for
            EXPECT_TRUE(same_bits(forward<S>(frozen, x, logits, context, ws), expected.logits));
        }
}

/// A gradient that wants one parameter only gets that one, and the same dx.
template <class R>
void expect_only_wanted_gradients(const R& router, Index dim, Index logits,
                                  const std::vector<std::string>& names) {
    const auto x = random_matrix<double>(6, dim, 1), dlogits = random_matrix<double>(6, logits, 2);
    const Context context;
    Workspace<double> ws;
    const auto expected = run<double>(router, x, dlogits, context, ws);
    std::size_t first = 0;
    for (const std::string& wanted : names) {
        auto grad = moe::zeros_like(router, [&](std::string_view name) { return name == wanted; });
        Matrix<double> dx(6, dim);
        router.backward(x, dlogits, dx, grad, Call<double>{context, ws});
        EXPECT_TRUE(same_bits(dx, expected.dx));
        const auto values = seams::values_of<double>(grad);
        ASSERT_FALSE(values.empty()) << wanted;
        EXPECT_TRUE(same_bits(values, std::span(expected.gradient).subspan(first, values.size())))
            << wanted;
        first += values.size();
    }
    EXPECT_EQ(first, expected.gradient.size());
}

/// A layer of four experts with this router.
template <class S, class Recipe>
auto layer_with(const Recipe& recipe, Index dim) {
    return moe::make_layer<S>(moe::Config{.model_dim = dim}, recipe, moe::TopK{.k = 2},
                              moe::Swiglu{.count = 4, .ffn_dim = 3});
}

/// What padding holds reaches no gradient.
template <class Recipe>
void expect_padding_does_not_reach_the_gradient(const Recipe& recipe) {
    const auto layer = layer_with<double>(recipe, 5);
    const std::vector<std::uint8_t> padding{0, 0, 1, 0};
    const Context context{.padding = padding};
    const auto gradient = [&](double held) {
        auto x = random_matrix<double>(4, 5, 1);
        x.row(2).setConstant(held);
        const auto dy = random_matrix<double>(4, 5, 2);
        Matrix<double> y(4, 5), dx(4, 5);
        auto grad = moe::zeros_like(layer);
        Workspace<double> ws;
        layer.forward(x, y, ws, context);
        layer.backward(x, dy, dx, grad, ws, context);
        EXPECT_TRUE(dx.row(2).isZero(0));
        return seams::values_of<double>(grad);
    };
    EXPECT_TRUE(same_bits(gradient(not_a_number), gradient(0)));
}

/// Frozen within a layer, it gives the same bits.
template <class Recipe>
void expect_same_bits_frozen(const Recipe& recipe) {
    const auto layer = layer_with<float>(recipe, 32);
    const auto x = random_matrix<float>(40, 32, 1);
    EXPECT_TRUE(same_bits(moe::freeze(layer)(x), layer(x)));
}

}  // namespace routers_test

#endif  // MOE_TESTS_ROUTERS_LAWS_HPP
