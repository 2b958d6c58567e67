// SPDX-License-Identifier: MIT
#include <moe/core/plan.hpp>

#include <limits>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <moe/moe.hpp>

#include "support/message.hpp"

namespace plan_test {
namespace {

using moe::Compute;
using moe::Index;
using moe::Matrix;
using moe::Plan;
using moe::Storage;
using support::message;

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr Index never = std::numeric_limits<Index>::max();

/// Either way at every place, whatever the machine likes.
const std::vector<Plan> extremes{
    {.column_rows = 0, .serial_flops = 0},
    {.column_rows = never, .serial_flops = 1e18},
    {0, 1, 1, 1, 1, 0},
    {never, never, never, never, never, infinity},
    {1, 3, 3, 3, 3, 1e4},
};

/// Counts its runs; serial.
struct Counting final : moe::Executor {
    int runs = 0;
    int concurrency() const override { return 3; }
    void run(Index tasks, moe::TaskRef task) override {
        ++runs;
        for (Index i = 0; i < tasks; ++i) task(i, static_cast<int>(i % 3));
    }
};

auto layer_of(Index model_dim, Index ffn_dim, Compute compute = Compute::exact) {
    moe::Layer layer{moe::Config{.model_dim = model_dim, .seed = 3},
                     moe::LinearRouter{},
                     moe::TopK{.k = 2},
                     moe::Swiglu{.count = 4, .ffn_dim = ffn_dim},
                     moe::Constant{},
                     moe::Shared{moe::Mlp{.count = 1, .ffn_dim = ffn_dim}}};
    if (compute == Compute::bf16) {
        layer.bank().group<0>().use(moe::detail::bf16_passes<float>);
        layer.bank().group<2>().experts().use(moe::detail::bf16_passes<float>);
    }
    return layer;
}

Matrix<float> tokens(Index count, Index model_dim) {
    return Matrix<float>::NullaryExpr(count, model_dim, [](Index i, Index j) {
        return static_cast<float>((i * 31 + j * 17) % 101 - 50) / 64;
    });
}

std::vector<float> parameters_of(auto& layer) {
    std::vector<float> all;
    moe::for_each_parameter(
        layer, [&](auto, const auto& w) { all.insert(all.end(), w.begin(), w.end()); });
    return all;
}

TEST(Plan, ItsDefaultsCoverWhatKernelsTake) {
    for (const moe::Isa isa : moe::supported_isas()) {
        EXPECT_LE(moe::kernels<float>(isa).column_rows, Plan{}.column_rows);
        EXPECT_LE(moe::kernels<double>(isa).column_rows, Plan{}.column_rows);
    }
}

TEST(Plan, TileRowsAreThoseOfTheStorage) {
    const Plan plan{
        .bf16_tile_rows = 1, .int8_tile_rows = 2, .block_tile_rows = 3, .ternary_tile_rows = 4};
    EXPECT_EQ(plan.tile_rows(Storage::bf16), 1);
    EXPECT_EQ(plan.tile_rows(Storage::int8), 2);
    EXPECT_EQ(plan.tile_rows(Storage::int8_block), 3);
    EXPECT_EQ(plan.tile_rows(Storage::int4), 3);
    EXPECT_EQ(plan.tile_rows(Storage::int4_zero), 3);
    EXPECT_EQ(plan.tile_rows(Storage::ternary), 4);
}

TEST(Plan, ChangesNoBitOfTraining) {
    for (const Compute compute : {Compute::exact, Compute::bf16}) {
        const auto layer = layer_of(48, 80, compute);
        for (const Index count : {1, 3, 20, 90}) {
            const Matrix<float> x = tokens(count, 48), dy = tokens(count, 48) * 0.5f;
            Matrix<float> y(count, 48), dx(count, 48), other_y(count, 48), other_dx(count, 48);
            auto grad = moe::zeros_like(layer);
            moe::Workspace<float> plain;
            layer.forward(x, y, plain);
            layer.backward(x, dy, dx, grad, plain);
            const std::vector<float> wanted = parameters_of(grad);
            for (const Plan& plan : extremes) {
                SCOPED_TRACE(std::string(moe::name(compute)) + " " + std::to_string(count) + " " +
                             std::to_string(plan.column_rows));
                Counting executor;
                auto other_grad = moe::zeros_like(layer);
                moe::Workspace<float> ws(executor);
                ws.plan(plan);
                layer.forward(x, other_y, ws);
                layer.backward(x, dy, other_dx, other_grad, ws);
                EXPECT_EQ(other_y, y);
                EXPECT_EQ(other_dx, dx);
                EXPECT_EQ(parameters_of(other_grad), wanted);
            }
        }
    }
}

TEST(Plan, ChangesNoBitOfFrozenLayers) {
    const auto layer = layer_of(72, 100);
    struct Form {
        Storage storage;
        Compute compute;
    };
    for (const Form form :
         {Form{Storage::fp32, Compute::exact}, Form{Storage::int4, Compute::exact},
          Form{Storage::bf16, Compute::bf16}, Form{Storage::int8, Compute::int8},
          Form{Storage::int8_block, Compute::int8}, Form{Storage::int4, Compute::int8},
          Form{Storage::int4_zero, Compute::int8}, Form{Storage::ternary, Compute::int8}}) {
        const auto frozen = moe::freeze(layer, {.storage = form.storage, .compute = form.compute});
        for (const Index count : {1, 4, 40, 90}) {
            const Matrix<float> x = tokens(count, 72);
            Matrix<float> y(count, 72), other(count, 72);
            moe::Workspace<float> plain;
            frozen.forward(x, y, plain);
            for (const Plan& plan : extremes) {
                moe::Workspace<float> ws;
                ws.plan(plan);
                frozen.forward(x, other, ws);
                EXPECT_EQ(other, y)
                    << moe::name(form.storage) << " " << moe::name(form.compute) << " " << count;
            }
        }
    }
}

TEST(Plan, SaysFromHowMuchWorkOnThereAreThreads) {
    const auto layer = layer_of(48, 80);
    const auto frozen = moe::freeze(layer, {.storage = Storage::int8, .compute = Compute::int8});
    const auto runs = [](const auto& of, Index count, const Plan* plan) {
        Counting executor;
        moe::Workspace<float> ws(executor);
        if (plan != nullptr) ws.plan(*plan);
        Matrix<float> y(count, 48);
        of.forward(tokens(count, 48), y, ws);
        return executor.runs;
    };
    const Plan always{.serial_flops = 0}, one{.serial_flops = 1e18}, same{};
    for (const Index count : {4, 200}) {
        EXPECT_GT(runs(layer, count, &always), runs(layer, count, nullptr)) << count;
        EXPECT_GT(runs(frozen, count, &always), runs(frozen, count, nullptr)) << count;
        EXPECT_EQ(runs(layer, count, &one), 0) << count;
        EXPECT_EQ(runs(frozen, count, &one), 0) << count;
        EXPECT_EQ(runs(layer, count, &same), runs(layer, count, nullptr)) << count;
        EXPECT_EQ(runs(frozen, count, &same), runs(frozen, count, nullptr)) << count;
    }
    EXPECT_GT(runs(layer, 200, nullptr), 0);
    EXPECT_EQ(runs(layer, 4, nullptr), 0);
}

Index columns_calls = 0;

TEST(Plan, SaysUpToHowManyRowsWeightsAreReadWhereTheyLie) {
    moe::KernelTable<float> table = moe::kernels<float>();
    table.columns = [](Index, Index, Index, const float*, Index, const float*, Index, float*, Index,
                       bool) { ++columns_calls; };
    const Matrix<float> w = tokens(40, 70);
    for (Index most = 0; most <= table.column_rows + 1; ++most)
        for (Index rows = 1; rows <= table.column_rows + 1; ++rows) {
            const Matrix<float> a = tokens(rows, 70);
            Matrix<float> c(rows, 40);
            std::vector<float> scratch(
                static_cast<std::size_t>(moe::product_scratch(table, Index{40})));
            moe::Operand<float> b(moe::Strided<float>{w.data(), 1, 70});
            b.column_rows = most;
            columns_calls = 0;
            moe::product(table, rows, 40, 70, moe::Strided<float>{a.data(), 70, 1},
                         moe::WeightOperand<float>(b), c.data(), 40, false, scratch.data());
            EXPECT_EQ(columns_calls, rows <= most && rows <= table.column_rows ? 1 : 0)
                << rows << " " << most;
        }
}

TEST(Plan, GoesBeforeWhatTheExecutorSaysAndLeavesItAsItIs) {
    struct Eager final : moe::Executor {
        int runs = 0;
        int concurrency() const override { return 2; }
        void run(Index tasks, moe::TaskRef task) override {
            ++runs;
            for (Index i = 0; i < tasks; ++i) task(i, 0);
        }
        double serial_flops() const override { return 7; }
    } eager;
    moe::Workspace<float> ws(eager);
    EXPECT_EQ(&ws.executor(), &eager);
    EXPECT_EQ(ws.executor().serial_flops(), 7);
    moe::detail::parallel_for(ws.executor(), 2, 7, [](Index, int) {});
    EXPECT_EQ(eager.runs, 1);

    ws.plan({.serial_flops = 8});
    EXPECT_EQ(ws.executor().serial_flops(), 8);
    EXPECT_EQ(ws.executor().concurrency(), 2);
    EXPECT_EQ(eager.serial_flops(), 7);
    moe::detail::parallel_for(ws.executor(), 2, 7, [](Index, int) {});
    EXPECT_EQ(eager.runs, 1);
    moe::detail::parallel_for(ws.executor(), 2, 8, [](Index, int) {});
    EXPECT_EQ(eager.runs, 2);
}

TEST(Plan, OfAWorkspaceIsThatOfItsPartsAndOutlivesItsExecutor) {
    moe::Workspace<float> ws;
    EXPECT_EQ(ws.plan(), Plan{});
    moe::Workspace<float>& child = ws.child(2);
    const Plan plan{.column_rows = 2, .serial_flops = 5};
    EXPECT_EQ(&ws.plan(plan), &ws);
    EXPECT_EQ(child.plan(), plan);
    EXPECT_EQ(child.executor().serial_flops(), 5);
    Counting executor;
    ws.use(executor);
    EXPECT_EQ(ws.plan(), plan);
    EXPECT_EQ(child.executor().serial_flops(), 5);
    const auto nothing = [](Index, int) {};
    child.executor().run(1, nothing);
    EXPECT_EQ(executor.runs, 1);
    ws.threads(2);
    EXPECT_EQ(ws.executor().concurrency(), 2);
    EXPECT_EQ(ws.executor().serial_flops(), 5);
    const moe::Workspace<float> moved = std::move(ws);
    EXPECT_EQ(moved.plan(), plan);
}

TEST(Plan, IsRefusedOutsideItsRange) {
    moe::Workspace<float> ws;
    const auto refusal = [&](const Plan& plan) { return message([&] { ws.plan(plan); }); };
    EXPECT_EQ(refusal({.column_rows = -1}),
              "moe::Workspace: plan.column_rows is -1, it must be >= 0; moe::Plan{}.column_rows is "
              "a good one");
    EXPECT_EQ(refusal({.bf16_tile_rows = 0}),
              "moe::Workspace: plan.bf16_tile_rows is 0, it must be >= 1; "
              "moe::Plan{}.bf16_tile_rows is a good one");
    EXPECT_EQ(refusal({.int8_tile_rows = -3}),
              "moe::Workspace: plan.int8_tile_rows is -3, it must be >= 1; "
              "moe::Plan{}.int8_tile_rows is a good one");
    EXPECT_EQ(refusal({.block_tile_rows = 0}),
              "moe::Workspace: plan.block_tile_rows is 0, it must be >= 1; "
              "moe::Plan{}.block_tile_rows is a good one");
    EXPECT_EQ(refusal({.ternary_tile_rows = 0}),
              "moe::Workspace: plan.ternary_tile_rows is 0, it must be >= 1; "
              "moe::Plan{}.ternary_tile_rows is a good one");
    EXPECT_EQ(refusal({.serial_flops = -0.5}),
              "moe::Workspace: plan.serial_flops is -0.5, it must be >= 0; "
              "moe::Plan{}.serial_flops is a good one");
    EXPECT_EQ(refusal({.serial_flops = std::numeric_limits<double>::quiet_NaN()}),
              "moe::Workspace: plan.serial_flops is nan, it must be >= 0; "
              "moe::Plan{}.serial_flops is a good one");
    EXPECT_EQ(ws.plan(), Plan{});  // nothing has changed
    EXPECT_EQ(refusal({0, 1, 1, 1, 1, infinity}), "");
}

}  // namespace
}  // namespace plan_test
