// SPDX-License-Identifier: MIT
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <moe/compose/soft_moe.hpp>
#include <moe/experts/constant.hpp>
#include <moe/experts/copy.hpp>
#include <moe/experts/each.hpp>
#include <moe/experts/mlp.hpp>
#include <moe/experts/shared.hpp>
#include <moe/experts/swiglu.hpp>
#include <moe/testing/gradient_check.hpp>

#include "seams/check.hpp"
#include "support/allocations.hpp"
#include "support/dense_layer.hpp"
#include "support/message.hpp"

namespace {

using moe::Context;
using moe::Index;
using moe::Keep;
using moe::Matrix;
using moe::SlotNorm;
using moe::SoftSlots;
using moe::Workspace;
using moe::testing::compare;
using moe::testing::random_matrix;
using moe::testing::same_bits;

constexpr Index dim = 6, out = 5;
constexpr moe::Config config{.model_dim = dim, .output_dim = out, .seed = 3};
const moe::Swiglu swiglu{.count = 3, .ffn_dim = 4};
const moe::Mlp mlp{
    .count = 2, .ffn_dim = 4, .activation = moe::Activation::gelu_tanh, .bias = true};
const SoftSlots published{.slots_per_expert = 2, .scale = 1.5};
const SoftSlots gained{
    .slots_per_expert = 2, .norm = SlotNorm::rms, .mix_normalized = true, .epsilon = 1e-24};

/// Parameters that are all different from what they start as.
template <class Layer>
void shake(Layer& layer) {
    using S = typename Layer::Scalar;
    std::uint64_t draw = 0;
    moe::for_each_parameter(layer, [&](std::string_view, std::span<S> values) {
        for (S& value : values)
            value += static_cast<S>(0.3 * moe::testing::random_value(99, draw++));
    });
}

/// The formula in double, one loop after the other.
struct Reference {
    Matrix<double> dispatch, combine, y;  // [T, P], [T, P], [T, O]

    template <class Layer>
    Reference(const Layer& layer, const Matrix<double>& x, std::vector<Index> offsets = {},
              std::vector<std::uint8_t> padding = {}) {
        const auto& slots = layer.slots();
        const Index tokens = x.rows(), count = slots.num_slots();
        const bool has_gains = slots.settings().norm == SlotNorm::rms;
        const auto unit = [&](auto&& value, const auto* gain) {
            double square = slots.settings().epsilon;
            for (Index d = 0; d < dim; ++d) square += value(d) * value(d);
            std::vector<double> result;
            for (Index d = 0; d < dim; ++d)
                result.push_back(value(d) / std::sqrt(square) *
                                 (has_gains ? std::sqrt(double{dim}) * gain[d] : 1.0));
            return result;
        };
        if (offsets.empty()) offsets = {0, tokens};
        if (padding.empty()) padding.assign(static_cast<std::size_t>(tokens), 0);
        Matrix<double> units(tokens, dim), logits(tokens, count);
        for (Index t = 0; t < tokens; ++t) {
            const auto u = unit([&](Index d) { return x(t, d); }, slots.token_gain.data());
            for (Index d = 0; d < dim; ++d) units(t, d) = u[static_cast<std::size_t>(d)];
            for (Index p = 0; p < count; ++p) {
                const auto v =
                    unit([&](Index d) { return double{slots.phi(p, d)}; }, slots.slot_gain.data());
                logits(t, p) = 0;
                for (Index d = 0; d < dim; ++d)
                    logits(t, p) += units(t, d) * v[static_cast<std::size_t>(d)];
                if (!has_gains) logits(t, p) *= double{slots.scale(0, 0)};
            }
        }
        dispatch = combine = Matrix<double>::Zero(tokens, count);
        y = Matrix<double>::Zero(tokens, layer.output_dim());
        const auto is_padding = [&](Index t) { return padding[static_cast<std::size_t>(t)] != 0; };
        for (std::size_t b = 0; b + 1 < offsets.size(); ++b)
            for (Index p = 0; p < count; ++p) {
                double sum = 0;
                for (Index t = offsets[b]; t < offsets[b + 1]; ++t)
                    if (!is_padding(t)) sum += std::exp(logits(t, p));
                std::vector<double> slot(dim, 0.0);
                for (Index t = offsets[b]; t < offsets[b + 1]; ++t) {
                    if (is_padding(t)) continue;
                    dispatch(t, p) = std::exp(logits(t, p)) / sum;
                    for (std::size_t d = 0; d < dim; ++d)
                        slot[d] += dispatch(t, p) * (slots.settings().mix_normalized
                                                         ? units(t, static_cast<Index>(d))
                                                         : x(t, static_cast<Index>(d)));
                }
                for (double& value : slot) value *= layer.config().input_scale;
                const auto result = expert(layer, p / slots.settings().slots_per_expert, slot);
                for (Index t = offsets[b]; t < offsets[b + 1]; ++t) {
                    if (is_padding(t)) continue;
                    double row = 0;
                    for (Index q = 0; q < count; ++q) row += std::exp(logits(t, q));
                    combine(t, p) = std::exp(logits(t, p)) / row;
                    for (Index o = 0; o < layer.output_dim(); ++o)
                        y(t, o) += combine(t, p) * result[static_cast<std::size_t>(o)];
                }
            }
    }

    /// Of a layer of three Swiglu and two Mlp.
    template <class Layer>
    static std::vector<double> expert(const Layer& layer, Index e,
                                      const std::vector<double>& slot) {
        const auto& group =
            e < 3 ? layer.bank().template group<0>() : layer.bank().template group<1>();
        return dense::detail::expert_forward(dense::feed_forward_of(group, e < 3 ? e : e - 3), slot,
                                             layer.output_dim());
    }
};

template <class S>
auto make(const SoftSlots& slots, moe::Config with = config) {
    auto layer = moe::make_soft_moe<S>(with, slots, swiglu, mlp);
    shake(layer);
    return layer;
}

template <class S>
class SoftMoe : public testing::Test {
protected:
    static constexpr double tolerance = std::is_same_v<S, double> ? 1e-13 : 2e-6;
};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(SoftMoe, Scalars);

TYPED_TEST(SoftMoe, IsTheFormulaOfThePaper) {
    using S = TypeParam;
    moe::Config scaled = config;
    scaled.input_scale = 0.5;
    for (const SoftSlots& slots : {published, gained, SoftSlots{.mix_normalized = true}})
        for (const moe::Config& with : {config, scaled}) {
            const auto layer = make<S>(slots, with);
            const Matrix<S> x = random_matrix<S>(9, dim, 1);
            const Reference wanted(layer, x.template cast<double>());
            Matrix<S> y(9, out);
            Workspace<S> ws;
            layer.forward(x, y, ws);
            EXPECT_TRUE(compare(y, wanted.y, this->tolerance));
            EXPECT_TRUE(compare(layer.combine(ws), wanted.combine, this->tolerance));
            const Matrix<S> dispatch = layer.dispatch(ws).transpose();
            EXPECT_TRUE(compare(dispatch, wanted.dispatch, this->tolerance));
            EXPECT_TRUE(same_bits(layer(x), y));
        }
}

TYPED_TEST(SoftMoe, SharesOfATokenAndOfASlotSumToOne) {
    using S = TypeParam;
    const auto layer = make<S>({.slots_per_expert = 2, .scale = 20});
    const Matrix<S> x = random_matrix<S>(300, dim, 1);
    Matrix<S> y(300, out);
    Workspace<S> ws;
    layer.forward(x, y, ws);
    for (Index t = 0; t < 300; ++t)
        EXPECT_NEAR(static_cast<double>(layer.combine(ws).row(t).sum()), 1, 1e-5);
    for (Index p = 0; p < layer.num_slots(); ++p)
        EXPECT_NEAR(static_cast<double>(layer.dispatch(ws).row(p).sum()), 1, 1e-5);
}

TYPED_TEST(SoftMoe, OneExpertWithOneSlotWorksOnTheSoftmaxMean) {
    using S = TypeParam;
    auto layer = moe::make_soft_moe<S>({.model_dim = dim}, SoftSlots{}, moe::Copy{});
    const Matrix<S> x = random_matrix<S>(4, dim, 1);
    Workspace<S> ws;
    Matrix<S> y(4, dim);
    layer.forward(x, y, ws);
    Matrix<double> mean = Matrix<double>::Zero(4, dim);
    for (Index t = 0; t < 4; ++t)
        for (Index i = 0; i < 4; ++i)
            mean.row(t) +=
                static_cast<double>(layer.dispatch(ws)(0, i)) * x.row(i).template cast<double>();
    EXPECT_TRUE(compare(y, mean, this->tolerance));
    layer.slots().scale(0, 0) = 0;  // all tokens alike: the plain mean
    layer.forward(x, y, ws);
    for (Index t = 0; t < 4; ++t) mean.row(t) = x.template cast<double>().colwise().mean();
    EXPECT_TRUE(compare(y, mean, this->tolerance));
}

TYPED_TEST(SoftMoe, GivesPermutedTokensPermutedOutputs) {
    using S = TypeParam;
    const auto layer = make<S>(published);
    const Matrix<S> x = random_matrix<S>(7, dim, 1);
    const Matrix<S> y = layer(x), reversed = layer(x.colwise().reverse().eval());
    EXPECT_TRUE(compare(reversed.colwise().reverse().eval(), y, this->tolerance));
}

TYPED_TEST(SoftMoe, LogitsDoNotSeeHowLongATokenIs) {
    using S = TypeParam;
    const auto layer = make<S>({.slots_per_expert = 2, .scale = 3, .epsilon = 1e-30});
    Matrix<S> x = random_matrix<S>(7, dim, 1), y(7, out);
    Workspace<S> ws;
    layer.forward(x, y, ws);
    const Matrix<S> before = layer.combine(ws);
    x.row(2) *= S(8);
    layer.forward(x, y, ws);
    EXPECT_TRUE(same_bits(Matrix<S>(layer.combine(ws)), before));
}

TYPED_TEST(SoftMoe, ASequenceDoesNotDependOnTheOthers) {
    using S = TypeParam;
    const auto layer = make<S>(published);
    const std::vector<Index> offsets{0, 4, 4, 9, 10};
    const Matrix<S> x = random_matrix<S>(10, dim, 1);
    const Matrix<S> y = layer(x, {.sequence_offsets = offsets});
    EXPECT_TRUE(
        compare(y, Reference(layer, x.template cast<double>(), offsets).y, this->tolerance));
    for (std::size_t b = 0; b + 1 < offsets.size(); ++b) {
        const Index first = offsets[b], n = offsets[b + 1] - first;
        EXPECT_TRUE(same_bits(Matrix<S>(y.middleRows(first, n)), layer(x.middleRows(first, n))));
    }
}

TYPED_TEST(SoftMoe, PaddingTakesNoPart) {
    using S = TypeParam;
    const auto layer = make<S>(published);
    Matrix<S> x = random_matrix<S>(9, dim, 1), dy = random_matrix<S>(9, out, 2);
    const std::vector<std::uint8_t> padding{0, 1, 0, 0, 1, 1, 1, 0, 0};
    const std::vector<Index> offsets{0, 4, 7, 9};  // the second sequence is padding only
    const Reference wanted(layer, x.template cast<double>(), offsets, padding);
    for (const Index t : {1, 4, 5, 6}) {
        x.row(t).setConstant(std::numeric_limits<S>::quiet_NaN());
        dy.row(t).setConstant(std::numeric_limits<S>::quiet_NaN());
    }
    const Context context{.padding = padding, .sequence_offsets = offsets};
    Matrix<S> y(9, out), dx(9, dim);
    Workspace<S> ws;
    layer.forward(x, y, ws, context);
    EXPECT_TRUE(compare(y, wanted.y, this->tolerance));
    EXPECT_TRUE((y.row(1).array() == S(0)).all());
    auto grad = moe::zeros_like(layer);
    layer.backward(x, dy, dx, grad, ws, context);
    EXPECT_TRUE(dx.allFinite());
    EXPECT_TRUE((dx.row(5).array() == S(0)).all());
    for (const S value : seams::values_of<S>(grad)) EXPECT_TRUE(std::isfinite(value));
}

TYPED_TEST(SoftMoe, AnExpertThatIsNotAllowedHasNoPart) {
    using S = TypeParam;
    const auto layer = make<S>(published);
    const Matrix<S> x = random_matrix<S>(4, dim, 1);
    std::vector<std::uint8_t> allowed(20, 1);
    allowed[5 + 2] = 0;                                       // token 1, expert 2
    for (std::size_t e = 0; e < 5; ++e) allowed[15 + e] = 0;  // token 3: none
    Workspace<S> ws;
    Matrix<S> y(4, out);
    layer.forward(x, y, ws, {.allowed = allowed});
    for (Index p = 0; p < layer.num_slots(); ++p) {
        EXPECT_EQ(layer.combine(ws)(1, p) == S(0), p == 4 || p == 5) << p;
        EXPECT_EQ(layer.dispatch(ws)(p, 1) == S(0), p == 4 || p == 5) << p;
        EXPECT_EQ(layer.dispatch(ws)(p, 3), S(0));
    }
    EXPECT_TRUE((y.row(3).array() == S(0)).all());
}

TYPED_TEST(SoftMoe, NoTokensGiveNoOutputs) {
    using S = TypeParam;
    const auto layer = make<S>(published);
    EXPECT_EQ(layer(Matrix<S>(0, dim)).rows(), 0);
    const std::vector<Index> offsets{0};
    EXPECT_EQ(layer(Matrix<S>(0, dim), {.sequence_offsets = offsets}).rows(), 0);
}

/// y = x, counting the rows.
struct Counting {
    static inline Index rows = 0;
    void forward(moe::In<float> x, moe::Out<float> y) const { y = x, rows += x.rows(); }
};

TEST(SoftMoe, ASequenceWithoutTokensIsNoWork) {
    const moe::SoftMoe layer{moe::Config{.model_dim = dim}, SoftSlots{.slots_per_expert = 3},
                             moe::experts(1, Counting{})};
    const std::vector<std::uint8_t> padding{0, 0, 1, 1};
    const std::vector<Index> offsets{0, 2, 2, 4};
    layer(random_matrix<float>(4, dim, 1), {.padding = padding, .sequence_offsets = offsets});
    EXPECT_EQ(Counting::rows, 3);
    layer(Matrix<float>(0, dim));
    EXPECT_EQ(Counting::rows, 3);
}

TYPED_TEST(SoftMoe, OfOneExpertAndOfEqualTokensIsAFeedForwardNetwork) {
    using S = TypeParam;
    const auto layer = moe::make_soft_moe<S>({.model_dim = dim}, SoftSlots{.slots_per_expert = 3},
                                             moe::Swiglu{.count = 1, .ffn_dim = 4});
    const Matrix<S> one = random_matrix<S>(1, dim, 1), same = one.replicate(5, 1);
    EXPECT_TRUE(compare(layer(same), layer(one).replicate(5, 1).eval(), this->tolerance));
    EXPECT_TRUE(compare(layer(Matrix<S>(Matrix<S>::Zero(2, dim))),
                        Matrix<S>(Matrix<S>::Zero(2, dim)), this->tolerance,
                        {.allow_zeros = true}));
}

TYPED_TEST(SoftMoe, ANaNReachesItsOwnSequenceOnly) {
    using S = TypeParam;
    const auto layer = make<S>(published);
    Matrix<S> x = random_matrix<S>(6, dim, 1);
    x(1, 2) = std::numeric_limits<S>::quiet_NaN();
    const std::vector<Index> offsets{0, 3, 6};
    const Matrix<S> y = layer(x, {.sequence_offsets = offsets});
    EXPECT_TRUE(y.topRows(3).array().isNaN().all());
    EXPECT_TRUE(y.bottomRows(3).allFinite());
}

TYPED_TEST(SoftMoe, NoiseIsForTrainingAndKeyedByTokenAndStep) {
    using S = TypeParam;
    const auto plain = make<S>({.slots_per_expert = 2});
    const auto noisy = make<S>({.slots_per_expert = 2, .noise = 0.5});
    const Matrix<S> x = random_matrix<S>(6, dim, 1);
    const Matrix<S> quiet = plain(x);
    EXPECT_TRUE(same_bits(noisy(x), quiet));
    EXPECT_TRUE(same_bits(plain(x, {.training = true}), quiet));
    const Matrix<S> first = noisy(x, {.training = true, .step = 1});
    EXPECT_FALSE(same_bits(first, quiet));
    EXPECT_TRUE(same_bits(noisy(x, {.training = true, .step = 1}), first));
    EXPECT_FALSE(same_bits(noisy(x, {.training = true, .step = 2}), first));
    const std::vector<Index> offsets{0, 3, 6};
    const Matrix<S> both = noisy(x, {.training = true, .sequence_offsets = offsets});
    const Matrix<S> last = noisy(x.bottomRows(3), {.training = true, .first_token = 3});
    EXPECT_TRUE(same_bits(Matrix<S>(both.bottomRows(3)), last));
}

TYPED_TEST(SoftMoe, HasTheSameBitsForAnyNumberOfThreads) {
    using S = TypeParam;
    const moe::Config wide{.model_dim = 150};
    for (const SoftSlots& slots : {SoftSlots{.slots_per_expert = 30}, gained}) {
        auto layer = moe::make_soft_moe<S>(wide, slots, moe::Swiglu{.count = 5, .ffn_dim = 24});
        const Matrix<S> x = random_matrix<S>(190, 150, 1), dy = random_matrix<S>(190, 150, 2);
        const std::vector<Index> offsets{0, 20, 190};
        const Context context{.sequence_offsets = offsets};
        Matrix<S> first_y, first_dx;
        std::vector<S> first_gradient;
        for (const int threads : {1, 2, 3}) {
            Workspace<S> ws;
            ws.threads(threads);
            Matrix<S> y(190, 150), dx(190, 150);
            auto grad = moe::zeros_like(layer);
            layer.forward(x, y, ws, context);
            layer.backward(x, dy, dx, grad, ws, context);
            const std::vector<S> gradient = seams::values_of<S>(grad);
            if (threads == 1) first_y = y, first_dx = dx, first_gradient = gradient;
            EXPECT_TRUE(same_bits(y, first_y));
            EXPECT_TRUE(same_bits(dx, first_dx));
            EXPECT_TRUE(same_bits(gradient, first_gradient));
        }
    }
}

TYPED_TEST(SoftMoe, AllocatesNothingTheSecondTime) {
    using S = TypeParam;
    const auto layer = make<S>(gained);
    const Matrix<S> x = random_matrix<S>(40, dim, 1), dy = random_matrix<S>(40, out, 2);
    const std::vector<Index> offsets{0, 25, 40};
    const std::vector<std::uint8_t> padding(40, 0);
    const Context context{.padding = padding, .sequence_offsets = offsets};
    Matrix<S> y(40, out), dx(40, dim);
    auto grad = moe::zeros_like(layer);
    moe::SerialExecutor serial;
    const auto once = [&](Workspace<S>& ws) {
        layer.forward(x, y, ws, context);
        layer.backward(x, dy, dx, grad, ws, context);
        layer.backward(x, dy, dx, moe::no_gradient, ws, context);
    };
    Workspace<S> ws(serial);
    EXPECT_EQ(allocations::in([&] { once(ws); }) > 0, allocations::are_counted);
    EXPECT_EQ(allocations::in([&] { once(ws); }), 0);
    Workspace<S> reserved(serial);
    reserved.reserve(layer, 40, 2 * layer.num_slots());
    EXPECT_EQ(allocations::in([&] { once(reserved); }), 0);
}

TEST(SoftMoeGradients, AreExact) {
    for (const SoftSlots& slots : {published, gained, SoftSlots{.mix_normalized = true}})
        EXPECT_TRUE(moe::testing::check_gradients(make<double>(slots),
                                                  {.columns = dim, .output_columns = out}));
    EXPECT_TRUE(moe::testing::check_gradients(make<float>(published),
                                              {.columns = dim, .output_columns = out}));
    EXPECT_TRUE(moe::testing::check_gradients(
        moe::make_soft_moe<double>({.model_dim = dim, .input_scale = 2}, published, swiglu,
                                   moe::Constant{.count = 2}, moe::Copy{}),
        {.columns = dim}));
    EXPECT_TRUE(moe::testing::check_gradients(make<double>(published),
                                              {.rows = 1, .columns = dim, .output_columns = out}));
}

TEST(SoftMoeGradients, AreExactWithNoisePaddingMasksAndMultipliers) {
    auto layer = make<double>({.slots_per_expert = 2, .mix_normalized = true, .noise = 0.7});
    auto x = random_matrix<double>(7, dim, 1);
    const auto dy = random_matrix<double>(7, out, 2);
    const std::vector<std::uint8_t> padding{0, 0, 1, 0, 0, 0, 0};
    const std::vector<Index> offsets{0, 4, 7};
    std::vector<std::uint8_t> allowed(35, 1);
    allowed[3] = allowed[8] = allowed[30] = 0;
    std::vector<double> multiplier{1, 0.5, -2, 1, 3}, dmultiplier(5, 0.0);
    moe::ContextGradients gradients{.gate_multiplier = dmultiplier};
    Context context{.training = true,
                    .step = 3,
                    .padding = padding,
                    .sequence_offsets = offsets,
                    .allowed = allowed,
                    .gate_multiplier = multiplier};
    Matrix<double> y(7, out), dx(7, dim);
    Workspace<double> ws;
    const auto loss = [&] {
        layer.forward(x, y, ws, context);
        return seams::weighted_sum(y, dy);
    };
    loss();
    auto grad = moe::zeros_like(layer);
    context.gradients = &gradients;
    layer.backward(x, dy, dx, grad, ws, context);
    context.gradients = nullptr;
    EXPECT_TRUE(moe::testing::check_gradient(loss, x, dx));
    EXPECT_TRUE(moe::testing::check_gradient(loss, multiplier, dmultiplier));
    seams::expect_parameter_gradients(loss, layer, grad, seams::options());
}

TEST(SoftMoeGradients, ThatAreNotWantedStayEmptyAndChangeNoOther) {
    const auto layer = make<double>(published);
    const auto x = random_matrix<double>(7, dim, 1), dy = random_matrix<double>(7, out, 2);
    Matrix<double> y(7, out), dx(7, dim), dx_alone(7, dim);
    Workspace<double> ws;
    layer.forward(x, y, ws);
    auto all = moe::zeros_like(layer);
    layer.backward(x, dy, dx, all, ws);
    for (const std::string wanted : {"slots.phi", "slots.scale", "experts.4.up"}) {
        auto some = moe::zeros_like(layer, [&](std::string_view name) { return name == wanted; });
        layer.backward(x, dy, dx_alone, some, ws);
        EXPECT_TRUE(same_bits(dx_alone, dx));
        moe::for_each_parameter(all, some, [&](std::string_view name, auto expected, auto found) {
            EXPECT_EQ(name, wanted);
            EXPECT_TRUE(same_bits(found, expected));
        });
    }
    layer.backward(x, dy, dx_alone, moe::no_gradient, ws);
    EXPECT_TRUE(same_bits(dx_alone, dx));
}

TEST(SoftMoeMisuse, IsASentence) {
    using support::message;
    const auto build = [](const SoftSlots& slots) {
        return message<std::invalid_argument>(
            [&] { moe::SoftMoe(moe::Config{.model_dim = dim}, slots, swiglu); });
    };
    const auto expect = [](const std::string& found, const std::string& wanted) {
        EXPECT_NE(found.find(wanted), std::string::npos) << found;
    };
    const double nan = std::numeric_limits<double>::quiet_NaN();
    expect(build({.slots_per_expert = 0}), "slots_per_expert is 0, it must be >= 1");
    expect(build({.norm = static_cast<SlotNorm>(7)}), "norm is number 7");
    expect(build({.scale = nan}), "scale is nan, it must be finite");
    expect(build({.norm = SlotNorm::rms, .scale = 2}), "scale is 2, it must be 1 with");
    expect(build({.noise = -1}), "noise is -1, it must be finite and >= 0");
    expect(build({.epsilon = 0}), "epsilon is 0, it must be > 0");
    expect(message<std::invalid_argument>([] {
               moe::SoftMoe(moe::Config{.model_dim = dim}, SoftSlots{}, swiglu,
                            moe::Shared{moe::Swiglu{.count = 1, .ffn_dim = 4}});
           }),
           "group 1 has no routed experts (Shared), it must have some");
}

TEST(SoftMoeMisuse, OfACallIsASentence) {
    using support::message;
    const auto layer = make<double>(published);
    auto grad = moe::zeros_like(layer);
    const auto x = random_matrix<double>(4, dim, 1), dy = random_matrix<double>(4, out, 2);
    Matrix<double> y(4, out), dx(4, dim), wide(4, dim + 1);
    Workspace<double> ws;
    const std::vector<double> offset(10, 1.0);
    const std::vector<Index> offsets{0, 3};
    const auto expect = [](const std::string& found, const std::string& wanted) {
        EXPECT_NE(found.find(wanted), std::string::npos) << found;
    };
    const auto bad = [](auto&& f) { return message<std::invalid_argument>(f); };
    expect(bad([&] { layer.forward(wide, y, ws); }), "x has 7 columns, model_dim is 6");
    expect(bad([&] { layer.forward(x, wide, ws); }), "y is [4, 7], it must be [4, 5]");
    const std::string steered = "moe::Context: moe::SoftMoe chooses no experts";
    const auto steer = [&](const moe::Context& context) {
        expect(bad([&] { layer.forward(x, y, ws, context); }), steered);
    };
    const std::vector<moe::Index> one_sequence{0, x.rows()}, k{1};
    const std::vector<double> p{0.5}, factors(static_cast<std::size_t>(layer.num_experts()), 1);
    steer({.logit_offset = offset});
    steer({.dial = {.k = 1}});
    steer({.dial = {.p = 0.5}});
    steer({.sequence_offsets = one_sequence, .dial = {.k_per_sequence = k}});
    steer({.sequence_offsets = one_sequence, .dial = {.p_per_sequence = p}});
    steer({.sequence_offsets = one_sequence, .dial = {.logit_offset_per_sequence = offset}});
    steer({.sequence_offsets = one_sequence, .dial = {.gate_multiplier_per_sequence = factors}});
    steer({.gate_multiplier = factors,
           .dial = {.multiplier_order = moe::MultiplierOrder::before_normalization}});
    const std::vector<std::uint8_t> forced(static_cast<std::size_t>(layer.num_experts()), 1);
    steer({.forced = forced});
    steer({.sequence_offsets = one_sequence, .dial = {.forced_per_sequence = forced}});
    std::vector<double> gradient(factors.size()), of_slots(offset.size());
    for (moe::ContextGradients wanted :
         {moe::ContextGradients{.logit_offset = of_slots},
          moe::ContextGradients{.logit_offset_per_sequence = of_slots},
          moe::ContextGradients{.gate_multiplier_per_sequence = gradient}}) {
        const moe::Context context{.sequence_offsets = one_sequence, .gradients = &wanted};
        const std::string none = "moe::Context: moe::SoftMoe has no gradients->logit_offset and";
        expect(bad([&] { layer.forward(x, y, ws, context); }), none);
        expect(bad([&] { layer.backward(x, dy, dx, grad, ws, context); }), none);
    }
    expect(bad([&] { layer.forward(x, y, ws, {.sequence_offsets = offsets}); }),
           "sequence_offsets must ascend from 0 to the 4 tokens");
    EXPECT_THROW(layer.combine(ws), std::logic_error);
    EXPECT_THROW(layer.backward(x, dy, dx, grad, ws), std::logic_error);
    layer.forward(x, y, ws);
    expect(bad([&] { layer.backward(x, wide, dx, grad, ws); }), "dy is [4, 7], it must be [4, 5]");
    expect(bad([&] { layer.backward(x, dy, wide, grad, ws); }), "dx is [4, 7], it must be [4, 6]");
    expect(bad([&] {
               auto same = x;
               layer.backward(same, dy, same, grad, ws);
           }),
           "dx shares memory with x");
    auto other = moe::zeros_like(make<double>({.slots_per_expert = 1}));
    expect(bad([&] { layer.backward(x, dy, dx, other, ws); }), "its phi is [5, 6]");
    EXPECT_THROW(layer.backward(x, dy, dx, grad, ws, {.step = 1}), std::logic_error);
    EXPECT_THROW(make<double>(published).backward(x, dy, dx, grad, ws), std::logic_error);
    ws.keep(Keep::nothing);
    layer.forward(x, y, ws);
    EXPECT_THROW(layer.backward(x, dy, dx, grad, ws), std::logic_error);
}

TYPED_TEST(SoftMoe, SaysHowManyBytesItReserves) {
    using S = TypeParam;
    if (!allocations::are_counted) GTEST_SKIP() << "a sanitizer brings its own operator new";
    for (const SoftSlots& slots : {published, gained}) {
        const auto layer = make<S>(slots);
        for (const Keep keep : {Keep::nothing, Keep::everything})
            for (const int workers : {1, 3}) {
                Workspace<S> ws;
                ws.threads(workers).keep(keep);
                const long before = allocations::bytes_asked_for.load();
                ws.reserve(layer, 900, 4 * layer.num_slots());
                const long spent = allocations::bytes_asked_for.load() - before;
                const Index said = layer.workspace_bytes(900, 4 * layer.num_slots(), keep, workers);
                EXPECT_GE(spent, said) << workers;
                EXPECT_LE(spent, said + 16384) << workers;  // nodes, and lists of the parts
            }
    }
}

TYPED_TEST(SoftMoe, IsMadeOfModulesToo) {
    using S = TypeParam;
    const auto layer = make<S>(published);
    const auto again = layer.of_modules(layer.config(), layer.slots(), layer.bank().groups());
    const Matrix<S> x = random_matrix<S>(9, dim, 1);
    EXPECT_TRUE(same_bits(again(x), layer(x)));
    const auto refusal = [&](const moe::Config& with, const auto& slots) {
        return support::message<std::invalid_argument>(
            [&] { layer.of_modules(with, slots, layer.bank().groups()); });
    };
    const auto other = moe::make_soft_moe<S>(config, published, swiglu);
    EXPECT_NE(refusal(config, other.slots()).find("the slots are 6 of 6 columns"),
              std::string::npos);
    const auto wide = moe::make_soft_moe<S>({.model_dim = 7}, published, moe::Copy{.count = 5});
    EXPECT_NE(refusal(config, wide.slots()).find("the slots are 10 of 7 columns"),
              std::string::npos);
}

TEST(SoftMoe, HasNamesForItsParameters) {
    std::vector<std::string> names;
    const auto with_gains = make<float>(gained);
    moe::visit_parameters(with_gains, [&](std::string_view name, const auto&, moe::Role) {
        names.emplace_back(name);
    });
    EXPECT_EQ(names[0], "slots.phi");
    EXPECT_EQ(names[1], "slots.token_gain");
    EXPECT_EQ(names[2], "slots.slot_gain");
    EXPECT_EQ(names[3], "experts.0.gate");
    EXPECT_EQ(names.back(), "experts.4.down_bias");
    const moe::SoftMoe layer{moe::Config{.model_dim = 8}, SoftSlots{}, swiglu};
    static_assert(
        std::is_same_v<std::remove_const_t<decltype(layer)>, moe::SoftMoe<float, moe::Swiglu>>);
    EXPECT_EQ(moe::num_parameters(layer), 3 * 8 + 1 + 3 * 3 * 4 * 8);
}

}  // namespace
