// SPDX-License-Identifier: MIT
// A workspace grows to the largest batch it has seen; then nothing is allocated any more.

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/constant.hpp>
#include <moe/experts/copy.hpp>
#include <moe/experts/mlp.hpp>
#include <moe/experts/shared.hpp>
#include <moe/experts/swiglu.hpp>
#include <moe/experts/zero.hpp>
#include <moe/frozen.hpp>
#include <moe/gates/capacity.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/gates/top_p.hpp>
#include <moe/losses/load_balance.hpp>
#include <moe/losses/z_loss.hpp>
#include <moe/routers/cosine.hpp>
#include <moe/routers/linear.hpp>

#include "seams/check.hpp"
#include "support/allocations.hpp"

namespace allocation_test {
namespace {

using moe::Index;
using moe::Matrix;
using moe::Workspace;
using moe::testing::random_matrix;

constexpr Index tokens = 120, dim = 40;

template <class Gate>
auto make(const Gate& gate) {
    return moe::Layer{
        moe::Config{.model_dim = dim, .input_scale = 2},
        moe::LinearRouter{.bias = true},
        gate,
        moe::Swiglu{.count = 4, .ffn_dim = 48},
        moe::Mlp{.count = 2, .ffn_dim = 24, .bias = true},
        moe::Zero{},
        moe::Copy{},
        moe::Constant{},
        moe::Shared{moe::Swiglu{.count = 2, .ffn_dim = 16}, moe::SharedGate::sigmoid}};
}
const moe::TopK top2{.k = 2};
const moe::TopP most{.p = 0.7};

/// Two workers, of which one does everything: which one alternates from call to call, as it may
/// happen with threads.
class Alternating final : public moe::Executor {
public:
    int concurrency() const override { return 2; }
    void run(Index tasks, moe::TaskRef task) override {
        for (Index i = 0; i < tasks; ++i) task(i, worker);
        ++runs;
    }
    int worker = 0, runs = 0;
};

/// Everything that one training step does.
template <class Layer>
struct Step {
    const Layer& layer;
    Matrix<float> x, dy, y, dx;
    Layer grad;

    explicit Step(const Layer& of, Index rows = tokens)
        : layer(of),
          x(random_matrix<float>(rows, dim, 1)),
          dy(random_matrix<float>(rows, dim, 2)),
          y(rows, dim),
          dx(rows, dim),
          grad(moe::zeros_like(of)) {}
    void forward(Workspace<float>& ws) { layer.forward(x, y, ws); }
    void both(Workspace<float>& ws) {
        layer.forward(x, y, ws);
        moe::load_balance_loss(ws, 0.01);
        moe::z_loss(ws, 0.01);
        layer.backward(x, dy, dx, grad, ws);
    }
};

template <class Layer>
void expect_none_in_the_second_call(const Layer& layer, moe::Executor& executor) {
    Step step(layer), smaller(layer, tokens / 2);
    {
        Workspace<float> ws(executor);
        ws.keep(moe::Keep::nothing);
        step.forward(ws);
        EXPECT_EQ(allocations::in([&] { step.forward(ws); }), 0) << "forward, nothing kept";
    }
    Workspace<float> ws(executor);
    step.forward(ws);
    EXPECT_EQ(allocations::in([&] { step.forward(ws); }), 0) << "forward";
    step.both(ws);
    EXPECT_EQ(allocations::in([&] { step.both(ws); }), 0) << "forward and backward";
    EXPECT_EQ(allocations::in([&] { smaller.both(ws); }), 0) << "a smaller batch";
    EXPECT_EQ(allocations::in([&] { step.both(ws); }), 0) << "the first batch again";
}

TEST(Allocation, NoneInTheSecondCall) {
    moe::SerialExecutor serial;
    expect_none_in_the_second_call(make(top2), serial);
    expect_none_in_the_second_call(make(most), serial);
}

TEST(Allocation, NoneInTheSecondCallWithTwoThreads) {
    moe::ThreadPool pool(2);
    expect_none_in_the_second_call(make(top2), pool);
    expect_none_in_the_second_call(make(most), pool);
}

TEST(Allocation, NoneInTheSecondCallWhicheverThreadDoesWhat) {
    const auto layer = make(top2);
    Step step(layer);
    Alternating executor;
    Workspace<float> ws(executor);
    step.both(ws);
    ASSERT_GE(executor.runs, 4) << "the example should be worth threads";
    executor.worker = 1;
    EXPECT_EQ(allocations::in([&] { step.both(ws); }), 0);
}

TEST(Allocation, NoneInTheSecondCallOfAFrozenLayer) {
    const auto frozen = moe::freeze(make(top2));
    const auto x = random_matrix<float>(tokens, dim, 1);
    Matrix<float> y(tokens, dim);
    moe::SerialExecutor serial;
    Workspace<float> ws(serial);
    frozen.forward(x, y, ws);
    EXPECT_EQ(allocations::in([&] { frozen.forward(x, y, ws); }), 0);
}

TEST(Allocation, NoneEvenInTheFirstCallAfterReserve) {
    const auto layer = make(top2);
    const auto frozen = moe::freeze(layer);
    Step step(layer);
    moe::SerialExecutor serial;
    Workspace<float> ws(serial), other(serial);
    ws.reserve(layer, tokens, 2 * tokens);
    EXPECT_EQ(allocations::in([&] { step.forward(ws); }), 0) << "forward";
    EXPECT_EQ(allocations::in([&] { layer.backward(step.x, step.dy, step.dx, step.grad, ws); }), 0)
        << "backward";
    other.keep(moe::Keep::nothing);
    other.reserve(frozen, tokens, 2 * tokens);
    EXPECT_EQ(allocations::in([&] { frozen.forward(step.x, step.y, other); }), 0) << "frozen";
}

/// A call that uses all that a context has to steer a layer with, and wants its gradients.
struct Steering {
    static constexpr std::size_t experts = 9;
    std::vector<Index> offsets{0, 50, 50, tokens}, k{1, 2, 2};
    std::vector<double> p{0.5, 0.6, 0.7};
    std::vector<std::uint8_t> padding = std::vector<std::uint8_t>(tokens, 0);
    std::vector<std::uint8_t> allowed = std::vector<std::uint8_t>(tokens * experts, 1);
    std::vector<std::uint8_t> each_allowed = std::vector<std::uint8_t>(3 * experts, 1);
    std::vector<std::uint8_t> forced = std::vector<std::uint8_t>(experts, 0);
    std::vector<std::uint8_t> each_forced = std::vector<std::uint8_t>(3 * experts, 0);
    std::vector<double> offset = std::vector<double>(experts, 0.5);
    std::vector<double> each_offset = std::vector<double>(3 * experts, -0.25);
    std::vector<double> multiplier = std::vector<double>(experts, 2);
    std::vector<double> each_multiplier = std::vector<double>(3 * experts, 0.75);
    std::vector<double> d_offset = offset, d_each_offset = each_offset;
    std::vector<double> d_multiplier = multiplier, d_each_multiplier = each_multiplier;
    moe::ContextGradients gradients{.logit_offset = d_offset,
                                    .gate_multiplier = d_multiplier,
                                    .logit_offset_per_sequence = d_each_offset,
                                    .gate_multiplier_per_sequence = d_each_multiplier};

    moe::Context context(moe::OffsetUnit unit, moe::MultiplierOrder order) {
        padding[3] = padding[tokens - 1] = 1;
        allowed[4] = each_allowed[2] = 0;
        forced[1] = each_forced[experts + 3] = 1;
        moe::Context context{.padding = padding,
                             .sequence_offsets = offsets,
                             .allowed = allowed,
                             .forced = forced,
                             .logit_offset = offset,
                             .gate_multiplier = multiplier,
                             .gradients = &gradients};
        context.dial.offset_unit = unit;
        context.dial.multiplier_order = order;
        context.dial.allowed_per_sequence = each_allowed;
        context.dial.forced_per_sequence = each_forced;
        context.dial.logit_offset_per_sequence = each_offset;
        context.dial.gate_multiplier_per_sequence = each_multiplier;
        return context;
    }
};

template <class Gate, class Turn>
void expect_none_in_a_steered_first_call(const Gate& gate, Index per_token, Turn&& turn) {
    const auto layer = make(gate);
    const auto frozen = moe::freeze(layer);
    Step step(layer);
    moe::SerialExecutor serial;
    moe::ThreadPool pool(2);
    for (const auto unit : {moe::OffsetUnit::logits, moe::OffsetUnit::row_std})
        for (const auto order : {moe::MultiplierOrder::after_normalization,
                                 moe::MultiplierOrder::before_normalization})
            for (moe::Executor* executor :
                 {static_cast<moe::Executor*>(&serial), static_cast<moe::Executor*>(&pool)}) {
                SCOPED_TRACE(static_cast<int>(unit));
                SCOPED_TRACE(static_cast<int>(order));
                Steering steering;
                moe::Context context = steering.context(unit, order);
                turn(context.dial, steering);
                Workspace<float> ws(*executor), inference(*executor);
                ws.reserve(layer, tokens, per_token * tokens);
                inference.keep(moe::Keep::nothing);
                inference.reserve(frozen, tokens, per_token * tokens);
                EXPECT_EQ(allocations::in([&] { layer.forward(step.x, step.y, ws, context); }), 0);
                EXPECT_EQ(allocations::in([&] {
                              layer.backward(step.x, step.dy, step.dx, step.grad, ws, context);
                          }),
                          0);
                EXPECT_EQ(
                    allocations::in([&] { frozen.forward(step.x, step.y, inference, context); }),
                    0);
            }
}

TEST(Allocation, NoneEvenInASteeredFirstCallAfterReserve) {
    expect_none_in_a_steered_first_call(top2, 2, [](moe::Dial& dial, const Steering& steering) {
        dial.k_per_sequence = steering.k;
    });
    expect_none_in_a_steered_first_call(most, 9, [](moe::Dial& dial, const Steering& steering) {
        dial.p_per_sequence = steering.p;
    });
}

/// Allocations of the first forward after reserve().
template <class Layer>
long first_call(const Layer& layer, moe::Keep keep, Index assignments) {
    const auto x = random_matrix<float>(tokens, dim, 1);
    Matrix<float> y(tokens, dim);
    moe::SerialExecutor serial;
    Workspace<float> ws(serial);
    ws.keep(keep);
    ws.reserve(layer, tokens, assignments);
    return allocations::in([&] { layer.forward(x, y, ws); });
}

TEST(Allocation, NoneInAFirstCallOfGroupsThatReserveNothing) {
    const moe::Layer layer{
        moe::Config{.model_dim = dim},          moe::LinearRouter{}, top2,
        moe::Swiglu{.count = 2, .ffn_dim = 16}, moe::Constant{},     moe::Copy{}};
    for (const moe::Keep keep : {moe::Keep::nothing, moe::Keep::everything})
        EXPECT_EQ(first_call(layer, keep, 2 * tokens), 0);
    EXPECT_EQ(first_call(moe::freeze(layer), moe::Keep::nothing, 2 * tokens), 0);
}

TEST(Allocation, NoneInAFirstCallWhereTokensGetMoreExpertsThanTheGateChose) {
    const moe::WithCapacity gate{moe::TopK{.k = 12, .num_groups = 10, .groups_kept = 3},
                                 {.limit = moe::CapacityLimit::constant(36),
                                  .priority = moe::Capacity::Priority::token_major,
                                  .overflow = moe::Capacity::Overflow::next_choice}};
    const moe::Layer layer{moe::Config{.model_dim = dim}, moe::LinearRouter{}, gate,
                           moe::Copy{.count = 40}};
    EXPECT_EQ(first_call(layer, moe::Keep::everything, 40 * tokens), 0);
}

TEST(Allocation, NoneForNamesOfParametersInABackward) {
    const moe::Layer layer{moe::Config{.model_dim = dim}, moe::CosineRouter{.projection_dim = 4},
                           top2, moe::Copy{.count = 3}};
    moe::SerialExecutor serial;
    Workspace<float> ws(serial);
    Step step(layer);
    const auto run = [&] {
        layer.forward(step.x, step.y, ws);
        layer.backward(step.x, step.dy, step.dx, step.grad, ws);
    };
    run();
    EXPECT_EQ(allocations::in(run), 0);
}

}  // namespace
}  // namespace allocation_test
