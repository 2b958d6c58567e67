// SPDX-License-Identifier: MIT
#include <moe/losses/device_balance.hpp>

#include <cmath>
#include <cstdint>
#include <set>
#include <vector>

#include <gtest/gtest.h>

#include <moe/testing/compare.hpp>

#include "losses/example.hpp"
#include "support/message.hpp"

namespace device_balance_test {
namespace {

using moe::Context;
using moe::DeviceBalance;
using moe::Index;
using moe::Matrix;
using moe::Routing;

const auto work = [](auto&&... arguments) { return moe::device_balance_loss(arguments...); };
const auto traffic = [](auto&&... arguments) {
    return moe::communication_balance_loss(arguments...);
};

double value_of(auto loss, const Matrix<double>& logits, const Routing& plan,
                const DeviceBalance& options, const Context& context = {}) {
    Matrix<double> unused(logits.rows(), logits.cols());
    return loss(logits, plan, context, 0.0, unused, options);
}

TEST(DeviceBalanceLoss, IsWorkedOutByHand) {
    // Equal scores 1/4, so P' = 1/2 each. Two devices {0, 1} and {2, 3}; n = 2 1 1 0, N = 4:
    // f = E n / N = 2 1 1 0, f' = 3/2, 1/2: value (3/2 + 1/2) / 2 = 1 as for any load.
    const Matrix<double> equal = Matrix<double>::Zero(2, 4);
    const Routing plan = example::routing(4, {{0, 1}, {0, 2}});
    EXPECT_NEAR(value_of(work, equal, plan, {.num_devices = 2}), 1, 1e-15);
    // Scores 5/8, 1/8, 1/8, 1/8 of both tokens: P' = 6/8, 2/8: 3/2 * 3/4 + 1/2 * 1/4 = 5/4.
    Matrix<double> logits = equal;
    logits.col(0).setConstant(std::log(5.0));
    EXPECT_NEAR(value_of(work, logits, plan, {.num_devices = 2}), 1.25, 1e-15);
    // dz0 = 1/2 * 5/8 (3/2 - 5/4), dz1 = 1/2 * 1/8 (3/2 - 5/4), dz2 = 1/2 * 1/8 (1/2 - 5/4)
    Matrix<double> dlogits = Matrix<double>::Zero(2, 4), expected(1, 4);
    const moe::Loss loss =
        moe::device_balance_loss(logits, plan, {}, 1.0, dlogits, {.num_devices = 2});
    EXPECT_STREQ(loss.name, "device_balance");
    expected << 5.0 / 64, 1.0 / 64, -3.0 / 64, -3.0 / 64;
    EXPECT_TRUE(moe::testing::compare(dlogits.row(0), expected, 1e-14));
    // Tokens sent: both to device 0, once each, the second to device 1: with M = 2 and T = 2
    // f'' = 2 / 4 * (2, 1): 1 * 3/4 + 1/2 * 1/4 = 7/8; with M as it is, 3/2, 4/3 of it.
    EXPECT_NEAR(value_of(traffic, logits, plan, {.num_devices = 2, .devices_per_token = 2}), 0.875,
                1e-15);
    EXPECT_NEAR(value_of(traffic, logits, plan, {.num_devices = 2}), 0.875 * 4 / 3, 1e-15);
    EXPECT_STREQ(
        moe::communication_balance_loss(logits, plan, {}, 0.0, dlogits, {.num_devices = 2}).name,
        "communication_balance");
}

TEST(DeviceBalanceLoss, IsOneAtBalanceAndTheNumberOfDevicesAtWorst) {
    const Matrix<double> equal = Matrix<double>::Constant(4, 8, 2.5);
    const Routing even = example::routing(8, {{0, 4}, {2, 6}, {1, 5}, {3, 7}});
    for (const Index devices : {1, 2, 4, 8}) {
        EXPECT_NEAR(value_of(work, equal, even, {.num_devices = devices}), 1, 1e-14);
        EXPECT_NEAR(value_of(traffic, equal, even, {.num_devices = devices}), 1, 1e-14);
    }
    EXPECT_NEAR(value_of(traffic, equal, even, {.num_devices = 4, .devices_per_token = 2}), 1,
                1e-14);
    Matrix<double> sure = Matrix<double>::Constant(4, 8, -80);
    sure.leftCols(2).setZero();
    const Routing one = example::routing(8, {{0, 1}, {0, 1}, {1, 0}, {1}});
    EXPECT_NEAR(value_of(work, sure, one, {.num_devices = 4}), 4, 1e-14);
    EXPECT_NEAR(value_of(traffic, sure, one, {.num_devices = 4}), 4, 1e-14);
    const Matrix<double> single = Matrix<double>::Zero(3, 1);
    const Routing all = example::routing(1, {{0}, {0}, {0}});
    EXPECT_EQ(value_of(work, single, all, {.num_devices = 1}), 1);
    EXPECT_EQ(value_of(traffic, single, all, {.num_devices = 1}), 1);
}

/// The papers' formulas, term by term.
TEST(DeviceBalanceLoss, AgreesWithThePapersFormulasForAnyPlacement) {
    const auto logits = moe::testing::random_matrix<double>(6, 7, 4, 1.5);
    const Routing plan =
        example::routing(7, {{0, 3, 6}, {1, 2, 3}, {4, 5, 6}, {0, 1, 6}, {2, 3, 0}, {6, 5, 0}});
    const std::vector<std::int32_t> device{2, 0, 0, 1, 2, 1, 2};  // and none on device 3
    const std::vector<std::uint8_t> padding{0, 0, 0, 1, 0, 0};
    Context context;
    context.padding = padding;
    double f[7] = {}, p[7] = {}, sent[4] = {}, tokens = 0;
    for (Index t = 0; t < 6; ++t) {
        if (padding[static_cast<std::size_t>(t)]) continue;
        tokens += 1;
        std::set<std::int32_t> devices;
        for (const moe::Assignment& a : plan.of(t)) {
            f[a.expert] += 1;
            devices.insert(device[static_cast<std::size_t>(a.expert)]);
        }
        for (const auto d : devices) sent[d] += 1;
        const double sum = logits.row(t).array().exp().sum();
        for (Index e = 0; e < 7; ++e) p[e] += std::exp(logits(t, e)) / sum;
    }
    double of_work = 0, of_traffic = 0;
    for (std::int32_t d = 0; d < 4; ++d) {
        double mean_f = 0, sum_p = 0, size = 0;
        for (std::size_t e = 0; e < 7; ++e) {
            if (device[e] != d) continue;
            mean_f += 7 / (3 * tokens) * f[e], sum_p += p[e] / tokens, size += 1;
        }
        if (size != 0) of_work += mean_f / size * sum_p;
        of_traffic += 4 / (3 * tokens) * sent[d] * sum_p;
    }
    const DeviceBalance options{
        .num_devices = 4, .device_of_expert = device, .devices_per_token = 3};
    EXPECT_NEAR(value_of(work, logits, plan, options, context), of_work, 1e-14);
    EXPECT_NEAR(value_of(traffic, logits, plan, options, context), of_traffic, 1e-14);
    for (const moe::Score score : {moe::Score::softmax, moe::Score::sigmoid}) {
        const DeviceBalance scored{
            .num_devices = 4, .device_of_expert = device, .devices_per_token = 3, .score = score};
        const auto with = [&](auto loss) {
            return [&scored, loss](auto&&... a) { return loss(a..., scored); };
        };
        EXPECT_TRUE(example::check(with(work), logits, plan, context));
        EXPECT_TRUE(example::check(with(traffic), logits, plan, context));
    }
}

TEST(DeviceBalanceLoss, CountsDroppedAssignmentsUnlessToldNotTo) {
    const Matrix<double> logits = example::logits<double>();
    Routing dropped = example::two_best();
    dropped.set_dropped(0, moe::Dropped::capacity);
    dropped.group();
    const Routing kept = example::routing(8, {{0}, {3, 7}, {0, 6}, {7, 6}});
    const DeviceBalance all{.num_devices = 4}, no{.num_devices = 4, .count_dropped = false};
    EXPECT_EQ(value_of(work, logits, dropped, all),
              value_of(work, logits, example::two_best(), all));
    EXPECT_EQ(value_of(work, logits, dropped, no), value_of(work, logits, kept, all));
    EXPECT_NE(value_of(work, logits, kept, all), value_of(work, logits, dropped, all));
    EXPECT_EQ(value_of(traffic, logits, dropped, all),
              value_of(traffic, logits, example::two_best(), all));
    EXPECT_EQ(value_of(traffic, logits, dropped, no), value_of(traffic, logits, kept, all));
    EXPECT_NE(value_of(traffic, logits, kept, all), value_of(traffic, logits, dropped, all));
}

TEST(DeviceBalanceLoss, OfOneExpertPerDeviceIsTheLossOfExperts) {
    const Matrix<float> logits = example::logits<float>();
    Matrix<float> d = Matrix<float>::Zero(4, 8), expected = d;
    const double value = moe::load_balance_loss(logits, example::two_best(), {}, 1.0, expected,
                                                {.norm = moe::LoadBalance::Norm::per_assignment});
    EXPECT_NEAR(
        moe::device_balance_loss(logits, example::two_best(), {}, 1.0, d, {.num_devices = 8}),
        value, 1e-6);
    EXPECT_TRUE(moe::testing::compare(d, expected, 1e-6));
    d.setZero();
    EXPECT_NEAR(moe::communication_balance_loss(logits, example::two_best(), {}, 1.0, d,
                                                {.num_devices = 8, .devices_per_token = 2}),
                value, 1e-6);
    EXPECT_TRUE(moe::testing::compare(d, expected, 1e-6));
}

TEST(DeviceBalanceLoss, WithoutAssignmentsIsZero) {
    const Matrix<double> logits = example::logits<double>();
    const Routing nowhere = example::routing(8, {{}, {}, {}, {}});
    EXPECT_EQ(value_of(work, logits, nowhere, {.num_devices = 2}), 0);
    EXPECT_EQ(value_of(traffic, logits, nowhere, {.num_devices = 2}), 0);
    EXPECT_EQ(value_of(traffic, logits, nowhere, {.num_devices = 2, .devices_per_token = 1}), 0);
}

TEST(DeviceBalanceLoss, RefusesWhatDoesNotFit) {
    const auto refusal = [](const DeviceBalance& options) {
        return support::message(
            [&] { value_of(work, example::logits<double>(), example::two_best(), options); });
    };
    EXPECT_EQ(refusal({}),
              "moe::DeviceBalance: num_devices is 0, it must be >= 1; set it: {.num_devices = 8}");
    EXPECT_EQ(refusal({.num_devices = 3}),
              "moe::DeviceBalance: num_devices is 3, it must divide the 8 experts; or say where "
              "each is with device_of_expert");
    const std::vector<std::int32_t> few(7, 0), high{0, 1, 2, 3, 4, 5, 6, 7}, low(8, -1);
    EXPECT_EQ(refusal({.num_devices = 2, .device_of_expert = few}),
              "moe::DeviceBalance: device_of_expert has 7 entries, there are 8 experts");
    EXPECT_EQ(refusal({.num_devices = 7, .device_of_expert = high}),
              "moe::DeviceBalance: an entry of device_of_expert is 7, it must be in [0, 7), the "
              "devices there are");
    EXPECT_NE(refusal({.num_devices = 7, .device_of_expert = low}), "");
    EXPECT_EQ(refusal({.num_devices = 4, .devices_per_token = 5}),
              "moe::DeviceBalance: devices_per_token is 5, it must be in [0, 4]; 0: as many as "
              "tokens are sent to on average");
    EXPECT_NE(refusal({.num_devices = 4, .devices_per_token = -1}), "");
    EXPECT_EQ(refusal({.num_devices = 4, .score = moe::Score::raw}),
              "moe::DeviceBalance: score is raw, it must be softmax, sigmoid or sqrt_softplus");
    EXPECT_NE(refusal({.num_devices = 4, .score = moe::Score::relu}), "");
    Matrix<double> d(4, 8);
    EXPECT_EQ(support::message([&] {
                  moe::communication_balance_loss(example::logits<double>(),
                                                  example::routing(9, {{}, {}, {}, {}}), {}, 1.0, d,
                                                  {.num_devices = 3});
              }),
              "moe::communication_balance_loss: there are 8 logits per token and 9 experts; it "
              "needs one logit per expert");
}

}  // namespace
}  // namespace device_balance_test
