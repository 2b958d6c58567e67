// SPDX-License-Identifier: MIT
#include <moe/bank.hpp>

#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/constant.hpp>
#include <moe/experts/copy.hpp>
#include <moe/experts/null.hpp>
#include <moe/experts/shared.hpp>
#include <moe/experts/swiglu.hpp>
#include <moe/experts/zero.hpp>

#include "seams/check.hpp"
#include "support/dense_layer.hpp"

namespace bank_test {
namespace {

using moe::Dropped;
using moe::Index;
using moe::Matrix;
using moe::Routing;
using moe::Workspace;
using moe::testing::random_matrix;
using moe::testing::same_bits;

constexpr Index tokens = 6, dim = 5, experts = 6;
constexpr moe::Config config{.model_dim = dim, .seed = 3};

auto make() {
    using Bank = moe::Bank<double, moe::Swiglu, moe::Copy, moe::Null, moe::Zero, moe::Constant>;
    return Bank(config, moe::Swiglu{.count = 2, .ffn_dim = 4}, moe::Copy{}, moe::Null{},
                moe::Zero{}, moe::Constant{});
}

/// 0 to 6 experts per token, in no order; token 4 has none, expert 1 none, two are dropped.
Routing plan() {
    Routing routing;
    routing.reset(tokens, experts);
    routing.add(5, 2, -0.5), routing.add(0, 5, 0.25), routing.add(0, 0, 0.5), routing.add(2, 3, 9);
    routing.add(1, 4, 3), routing.add(1, 2, 1.5), routing.add(3, 5, 0.125), routing.add(3, 0, -1);
    routing.add(3, 2, 0.75), routing.add(5, 0, 2), routing.add(2, 0, 0.375, 0.5);
    routing.group();
    for (const Index a : {1, 4}) routing.set_dropped(a, Dropped::capacity);
    routing.group();
    return routing;
}

Matrix<double> dense_output(const decltype(make())& bank, const Matrix<double>& x,
                            const Routing& routing) {
    const auto& constant = bank.group<4>();
    const std::vector<dense::Expert> all{
        dense::feed_forward_of(bank.group<0>(), 0),
        dense::feed_forward_of(bank.group<0>(), 1),
        dense::copy(),
        dense::zero(),
        dense::zero(),
        dense::constant(constant.mix[0].view(), constant.value[0].view())};
    return dense::forward(all, x, dense::weights_of(routing), dim,
                          dense::input_weights_of(routing));
}

TEST(Bank, AppliesAnyPlan) {
    const auto bank = make();
    const auto x = random_matrix<double>(tokens, dim, 1);
    Matrix<double> y = Matrix<double>::Constant(tokens, dim, 7);
    Workspace<double> ws;
    bank.apply(x, plan(), y, ws);
    EXPECT_TRUE(moe::testing::compare(y, dense_output(bank, x, plan()), 1e-14));
    EXPECT_TRUE((y.row(4).array() == 0).all());
}

TEST(Bank, GradientsAtWeightsAndInputWeightsAreExact) {
    auto bank = make();
    auto x = random_matrix<double>(tokens, dim, 1);
    const auto dy = random_matrix<double>(tokens, dim, 2);
    Routing routing = plan();
    Workspace<double> ws;
    Matrix<double> y(tokens, dim), dx(tokens, dim);
    std::vector<double> weights, inputs;
    for (const auto& a : routing.assignments())
        weights.push_back(a.weight), inputs.push_back(a.input_weight);
    const auto loss = [&] {
        for (std::size_t a = 0; a < weights.size(); ++a) {
            routing.set_weight(static_cast<Index>(a), weights[a]);
            routing.set_input_weight(static_cast<Index>(a), inputs[a]);
        }
        bank.apply(x, routing, y, ws);
        return seams::weighted_sum(y, dy);
    };
    loss();
    std::vector<double> dweights(weights.size(), 77), dinput(weights.size(), 77);
    auto grad = moe::zeros_like(bank);
    bank.apply_backward(x, routing, dy, dx, dweights, dinput, grad, ws);
    const auto options = seams::options();
    EXPECT_TRUE(moe::testing::check_gradient(loss, x, dx, options));
    EXPECT_TRUE(moe::testing::check_gradient(loss, weights, dweights, options));
    EXPECT_TRUE(moe::testing::check_gradient(loss, inputs, dinput, options));
    seams::expect_parameter_gradients(loss, bank, grad, options);
    for (const std::size_t a : {1u, 4u}) EXPECT_EQ(dweights[a], 0) << "dropped";
    // Input weights only if asked for; the rest is the same.
    std::vector<double> again(weights.size());
    Matrix<double> dx_again(tokens, dim);
    bank.apply_backward(x, routing, dy, dx_again, again, {}, grad, ws);
    EXPECT_TRUE(same_bits(again, dweights));
    EXPECT_TRUE(same_bits(dx_again, dx));
}

TEST(Bank, NumbersExpertsInArgumentOrder) {
    const auto bank = make();
    EXPECT_EQ(bank.num_experts(), experts);
    const auto facts = bank.facts();
    ASSERT_EQ(facts.size(), 6u);
    EXPECT_EQ(facts[0].flops_per_row, 2 * 3 * dim * 4);
    EXPECT_TRUE(facts[2].is_free && !facts[2].is_null);
    EXPECT_TRUE(facts[3].is_null);
    EXPECT_TRUE(facts[4].is_free && !facts[4].is_null);
    EXPECT_EQ(facts[5].capacity_class, 1);
}

/// Adds 1 to y where its expert is allowed, and to dx.
struct AsksWhoIsAllowed {
    Index num_experts() const { return 2; }
    void forward(moe::In<double>, const moe::Rows<double>& rows, moe::Out<double> y,
                 const moe::Call<double>& call) const {
        add(rows, rows.to, y, call);
    }
    void backward(moe::In<double>, const moe::Rows<double>& rows, moe::In<double>,
                  moe::Out<double> dx, const moe::RowGradients<double>&, AsksWhoIsAllowed&,
                  const moe::Call<double>& call) const {
        add(rows, rows.from, dx, call);
    }

private:
    static void add(const moe::Rows<double>& rows, std::span<const std::int32_t> at,
                    moe::Out<double> to, const moe::Call<double>& call) {
        for (Index e = 0; e < rows.num_experts(); ++e)
            for (Index r = rows.begin(e); r < rows.end(e); ++r) {
                const Index token = at[static_cast<std::size_t>(r)];
                if (call.context.is_allowed(token, rows.first_expert + e)) to(token, 0) += 1;
            }
    }
};

TEST(Bank, GroupsKnowWhichExpertsAreAllowed) {
    const moe::Bank<double, AsksWhoIsAllowed> bank(moe::Config{.model_dim = 1}, AsksWhoIsAllowed{});
    Routing both;
    both.reset(3, 2);
    for (Index t = 0; t < 3; ++t) both.add(t, 0, 1), both.add(t, 1, 1);
    both.group();
    const std::uint8_t allowed[] = {1, 1, 0, 1, 0, 0};
    const moe::Context context{.allowed = allowed};
    const auto x = random_matrix<double>(3, 1, 1);
    Matrix<double> y(3, 1), dx(3, 1), want(3, 1);
    want << 2, 1, 0;
    Workspace<double> ws;
    bank.apply(x, both, y, ws, context);
    EXPECT_EQ(y, want);
    auto grad = bank;
    std::vector<double> dweight(6);
    bank.apply_backward(x, both, y, dx, dweight, {}, grad, ws, context);
    EXPECT_EQ(dx, want);
    const moe::Context too_few{.allowed = std::span(allowed).first(4)};
    EXPECT_THROW(bank.apply(x, both, y, ws, too_few), std::invalid_argument);
}

TEST(Bank, GroupsAreSummedInArgumentOrder) {
    // (a + b) - a is b only if nothing is rounded away between.
    const auto x = Matrix<float>(Matrix<float>::Constant(1, 2, 1));
    const moe::Bank bank(moe::Config{.model_dim = 2}, moe::Copy{.count = 2}, moe::Copy{});
    Routing routing;
    routing.reset(1, 3);
    routing.add(0, 2, -1e8), routing.add(0, 1, 1), routing.add(0, 0, 1e8);
    routing.group();
    Matrix<float> y(1, 2);
    Workspace<float> ws;
    bank.apply(x, routing, y, ws);
    EXPECT_EQ(y(0, 0), 0) << "1e8 + 1 - 1e8 in float, experts ascending";
}

TEST(Bank, GroupsWithoutRoutedExpertsSeeEveryToken) {
    using Group = moe::Bank<double, moe::Shared<moe::Copy>, moe::Zero>;
    const Group bank(config, moe::Shared{moe::Copy{.count = 2}}, moe::Zero{});
    EXPECT_EQ(bank.num_experts(), 1);
    EXPECT_EQ(bank.shared_flops_per_token(), 2 * 2 * dim);
    Routing nothing;
    nothing.reset(tokens, 1);
    nothing.group();
    const auto x = random_matrix<double>(tokens, dim, 1);
    Matrix<double> y(tokens, dim);
    Workspace<double> ws;
    bank.apply(x, nothing, y, ws);
    EXPECT_TRUE(same_bits(y, Matrix<double>(2 * x)));
}

TEST(Bank, RefusesWhatDoesNotFit) {
    const auto bank = make();
    const auto x = random_matrix<double>(tokens, dim, 1),
               dy = random_matrix<double>(tokens, dim, 2);
    const Routing routing = plan();
    Workspace<double> ws;
    Matrix<double> y(tokens, dim), narrow(tokens, dim - 1), dx(tokens, dim);
    EXPECT_THROW(bank.apply(narrow, routing, y, ws), std::invalid_argument);
    EXPECT_THROW(bank.apply(x, routing, narrow, ws), std::invalid_argument);
    Routing ungrouped;
    ungrouped.reset(tokens, experts);
    ungrouped.add(0, 0);
    EXPECT_THROW(bank.apply(x, ungrouped, y, ws), std::logic_error);

    auto grad = moe::zeros_like(bank);
    std::vector<double> dweights(static_cast<std::size_t>(routing.num_assignments()));
    const auto backward = [&](const Routing& of, Matrix<double>& to, std::span<double> dweight) {
        bank.apply_backward(x, of, dy, to, dweight, {}, grad, ws);
    };
    EXPECT_THROW(backward(routing, dx, dweights), std::logic_error) << "before apply";
    bank.apply(x, routing, y, ws);
    EXPECT_THROW(backward(routing, narrow, dweights), std::invalid_argument);
    EXPECT_THROW(backward(routing, dx, std::span(dweights).first(3)), std::invalid_argument);
    Routing other = routing;
    other.set_dropped(0, Dropped::pruned);
    other.group();
    EXPECT_THROW(backward(other, dx, dweights), std::logic_error) << "another plan";
    backward(routing, dx, dweights);
}

}  // namespace
}  // namespace bank_test
