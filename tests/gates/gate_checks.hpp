// SPDX-License-Identifier: MIT
#ifndef TESTS_GATES_GATE_CHECKS_HPP
#define TESTS_GATES_GATE_CHECKS_HPP

#include <algorithm>
#include <cstdlib>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <moe/testing/compare.hpp>
#include <moe/testing/finite_difference.hpp>
#include <moe/testing/random.hpp>

#include "gates/batch.hpp"
#include "support/allocations.hpp"

/// What every gate has to pass.
namespace gates_test {

/// What a recipe says when it is built for so many experts; "" if nothing.
template <class Recipe>
std::string message(const Recipe& recipe, Index experts) {
    try {
        build<double>(recipe, experts);
    } catch (const std::invalid_argument& error) {
        return error.what();
    }
    return {};
}

/// What a call throws; "" if nothing.
template <class F>
std::string thrown(F&& f) {
    try {
        f();
    } catch (const std::invalid_argument& error) {
        return error.what();
    }
    return {};
}

/// The context of a batch: prepare(context) before it is routed.
struct AsItIs {
    void operator()(moe::Context&) const {}
};

/// Gradients at the logits are those of central differences.
template <class Recipe, class Prepare = AsItIs>
void expect_gradient(const Recipe& recipe, moe::Matrix<double> z, Prepare&& prepare = {}) {
    auto drive = batch<double>(recipe, z.cols());
    prepare(drive.context);
    drive.route(z);
    const moe::Routing plan = drive.routing;
    ASSERT_GT(plan.num_assignments(), 0);
    const auto c = derivatives<double>(plan.num_assignments());
    const moe::Matrix<double> dz = drive.backward(z, c);
    const moe::Matrix<double> before = moe::testing::random_matrix<double>(z.rows(), z.cols(), 77);
    moe::Matrix<double> added = before;
    auto grad = drive.gate;
    drive.gate.backward(z, drive.routing, {std::span<const double>(c), {}}, added, grad,
                        drive.call());
    EXPECT_TRUE(moe::testing::compare(added, before + dz, 1e-14)) << "backward adds";
    const auto loss = [&] {
        drive.route(z);
        double sum = 0;
        const auto now = drive.routing.assignments();
        for (std::size_t a = 0; a < std::min(c.size(), now.size()); ++a)
            sum += c[a] * now[a].weight;
        return sum;
    };
    const auto same_branch = [&] {
        const auto was = plan.assignments(), is = drive.routing.assignments();
        return std::equal(was.begin(), was.end(), is.begin(), is.end(),
                          [](const moe::Assignment& a, const moe::Assignment& b) {
                              return a.token == b.token && a.expert == b.expert;
                          });
    };
    EXPECT_TRUE(moe::testing::check_gradient(loss, z, dz, {.same_branch = same_branch}));
}

/// Routing and gradients do not depend on who computes them.
template <class S, class Recipe, class Prepare = AsItIs>
void expect_same_bits_for_any_threads(const Recipe& recipe, const moe::Matrix<S>& z,
                                      Prepare&& prepare = {}) {
    auto serial = batch<S>(recipe, z.cols());
    moe::SerialExecutor one;
    serial.ws.use(one);
    prepare(serial.context);
    serial.route(z);
    const auto c = derivatives<S>(serial.routing.num_assignments());
    const moe::Matrix<S> dz = serial.backward(z, c);
    for (const int threads : {1, 2, 3, 7}) {
        moe::ThreadPool pool(threads);
        auto other = batch<S>(recipe, z.cols());
        other.ws.use(pool);
        prepare(other.context);
        other.route(z);
        EXPECT_EQ(other.routing, serial.routing) << threads << " threads";
        EXPECT_TRUE(moe::testing::same_bits(other.backward(z, c), dz, {.allow_zeros = true}));
    }
}

/// The second call allocates nothing, nor does the first after reserve(), which takes as many bytes
/// as the gate says.
template <class S, class Recipe, class Prepare = AsItIs>
void expect_no_allocation(const Recipe& recipe, const moe::Matrix<S>& z, Prepare&& prepare = {}) {
    const std::vector<S> c(static_cast<std::size_t>(z.size()), S(1));
    moe::Matrix<S> dz = moe::Matrix<S>::Zero(z.rows(), z.cols());
    moe::SerialExecutor serial;
    const auto once = [&](auto& drive) {
        drive.route(z);
        auto& grad = drive.gate;  // holds no gradients
        const auto count = static_cast<std::size_t>(drive.routing.num_assignments());
        drive.gate.backward(z, drive.routing, {std::span(c).first(count), {}}, dz, grad,
                            drive.call());
    };
    auto drive = batch<S>(recipe, z.cols());
    drive.ws.use(serial);
    prepare(drive.context);
    once(drive);
    EXPECT_EQ(allocations::in([&] { once(drive); }), 0) << "a second call";

    auto reserved = batch<S>(recipe, z.cols());
    reserved.ws.use(serial);
    prepare(reserved.context);
    reserved.routing.reserve(z.rows(), z.cols(), z.size());
    const long before = allocations::bytes_asked_for.load();
    reserved.gate.reserve(z.rows(), z.size(), reserved.ws);
    const long spent = allocations::bytes_asked_for.load() - before;
    const Index said = reserved.gate.workspace_bytes(z.rows(), z.size(), moe::Keep::everything, 1);
    if (allocations::are_counted) {
        EXPECT_GE(spent, said);
        EXPECT_LE(spent, said + 1024);  // the nodes of the workspace
    }
    EXPECT_EQ(allocations::in([&] { once(reserved); }), 0) << "a first call after reserve()";
}

/// No tokens, no assignments.
template <class Recipe>
void expect_nothing_of_no_tokens(const Recipe& recipe, Index experts) {
    for (const bool training : {false, true}) {
        auto drive = batch<double>(recipe, experts);
        drive.context.training = training;
        const moe::Matrix<double> z(0, experts);
        drive.route(z);
        EXPECT_EQ(drive.routing.num_assignments(), 0);
        EXPECT_EQ(drive.backward(z, {}).rows(), 0);
    }
}

}  // namespace gates_test

#endif  // TESTS_GATES_GATE_CHECKS_HPP
