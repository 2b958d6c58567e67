// SPDX-License-Identifier: MIT
#include <moe/routers/wrapper.hpp>

#include <string>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>

#include "routers/wrapped.hpp"

namespace {

using namespace routers_test;

/// The example of the header: a router with a temperature.
template <class S, class Inner>
struct Cooled : moe::RouterWrapper<S, Inner> {
    using Base = moe::RouterWrapper<S, Inner>;
    S factor = 1;

    void forward(In<S> x, Out<S> logits, const Call<S>& call) const {
        Base::forward(x, logits, call);
        logits *= factor;
    }
    void backward(In<S> x, In<S> dlogits, Out<S> dx, Cooled& grad, const Call<S>& call) const {
        Base::backward(x, factor * dlogits, dx, grad, call);
    }
};

template <class Inner>
struct Cool {
    Inner inner;
    double factor = 1;

    template <class S>
    auto build(const moe::Shape& shape, moe::Random& random) const {
        auto router = moe::detail::built_router<Inner, S>(inner, shape, random);
        return Cooled<S, decltype(router)>{{router}, static_cast<S>(factor)};
    }
};
template <class Inner>
Cool(Inner, double) -> Cool<Inner>;

using Plain = moe::RouterWrapper<double, moe::LinearRouterModule<double>>;
static_assert(moe::Router<Plain, double>);
static_assert(moe::Router<Cooled<float, moe::LinearRouterModule<float>>, float>);
static_assert(moe::Router<moe::RouterWrapper<double, Own>, double>);
static_assert(!moe::Router<moe::RouterWrapper<double, OnlyForward>, double>);
static_assert(!moe::detail::HasBackward<moe::RouterWrapper<double, OnlyForward>>);

TEST(ARouterAroundARouter, HasTheBitsOfTheOneInside) {
    const Plain wrapped{build<double>(moe::LinearRouter{.bias = true}, 5, 4)};
    const auto x = random_matrix<double>(7, 5, 1), dlogits = random_matrix<double>(7, 4, 2);
    const Context context;
    Workspace<double> ws, other;
    const auto got = run<double>(wrapped, x, dlogits, context, ws);
    const auto expected = run<double>(wrapped.inner, x, dlogits, context, other);
    EXPECT_TRUE(same_bits(got.logits, expected.logits));
    EXPECT_TRUE(same_bits(got.dx, expected.dx));
    EXPECT_TRUE(same_bits(got.gradient, expected.gradient));
}

TEST(ARouterAroundARouter, AnswersWhatTheOneInsideAnswers) {
    Plain wrapped{build<double>(moe::LinearRouter{.bias = true}, 5, 4)};
    std::vector<std::string> names;
    moe::visit_parameters(
        wrapped, [&](std::string_view name, auto&, moe::Role) { names.emplace_back(name); });
    EXPECT_EQ(names, (std::vector<std::string>{"weight", "bias"}));
    EXPECT_EQ(wrapped.flops_per_token(), 2 * 5 * 4);
    EXPECT_EQ(wrapped.bytes(), 0);
    const Plain packed{wrapped.inner.freeze({})};
    EXPECT_EQ(packed.bytes(), packed.inner.bytes());
    EXPECT_GT(packed.bytes(), 0);
    EXPECT_NO_THROW(wrapped.check({.model_dim = 5, .num_experts = 4, .num_logits = 4}));
    expect_message<std::invalid_argument>(
        [&] { wrapped.check({.model_dim = 6, .num_experts = 4, .num_logits = 4}); },
        {"weight is [4, 5], the layer wants [4, 6]"});
}

TEST(ARouterAroundARouter, MayHoldAUsersRouterThatAnswersNothing) {
    const moe::RouterWrapper<double, Own> wrapped{own(5, 4)};
    EXPECT_EQ(wrapped.flops_per_token(), 0);
    EXPECT_EQ(wrapped.bytes(), 0);
    EXPECT_NO_THROW(wrapped.check({.model_dim = 6}));
    EXPECT_NO_THROW(wrapped.check_freeze({}));
    expect_exact_gradients(wrapped, random_matrix<double>(6, 5, 7), 4, {});
    expect_exact_in_layer(wrapped, {}, 6);
}

TEST(ARouterAroundARouter, ChangesTheHookThatItWritesAndNoOther) {
    const Cool<moe::LinearRouter> recipe{moe::LinearRouter{}, 0.25};
    const auto cooled = build<double>(recipe, 5, 4);
    const auto x = random_matrix<double>(7, 5, 1);
    Workspace<double> ws, other;
    EXPECT_TRUE(moe::testing::compare(
        forward<double>(cooled, x, 4, {}, ws),
        Matrix<double>(0.25 * forward<double>(cooled.inner, x, 4, {}, other)), 1e-15));
    expect_exact_gradients(cooled, x, 4, {});
    expect_exact_in_layer(recipe, {}, 6);
    expect_exact_in_layer(Cool<Own>{own(5, 4), 0.5}, {}, 6);
}

TEST(ARouterAroundARouter, MayBeWrappedInItsOwnKind) {
    const Cool twice{Cool{moe::LinearRouter{}, 0.5}, 0.5};
    expect_exact_in_layer(twice, {}, 6);
}

TEST(ARouterAroundARouter, AllocatesWhatItSaysAndNothingTwice) {
    const moe::RouterWrapper<float, moe::LinearRouterModule<float>> wrapped{
        build<float>(moe::LinearRouter{.bias = true}, 33, 9)};
    expect_no_allocations<float>(wrapped, 300, 33, 9, {});
    expect_same_bits<float>(wrapped, 300, 33, 9, {});
}

TEST(ARouterAroundARouter, ForInferenceNeedsNoBackward) {
    const moe::RouterWrapper<double, OnlyForward> wrapped;
    const auto layer =
        moe::make_layer<double>(moe::Config{.model_dim = 5}, wrapped, moe::TopK{.k = 1},
                                moe::Swiglu{.count = 3, .ffn_dim = 2});
    const Matrix<double> y = layer(random_matrix<double>(4, 5, 1));
    EXPECT_TRUE(y.allFinite());
}

}  // namespace
