// SPDX-License-Identifier: MIT
// What a layer did with a batch is recorded, saved, loaded and done again: the same bits.

#include <gtest/gtest.h>

#include <moe/experts/constant.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/io/trace.hpp>
#include <moe/kernels/dispatch.hpp>
#include <moe/layer.hpp>
#include <moe/routers/linear.hpp>
#include <moe/stats/trace.hpp>
#include <moe/testing/compare.hpp>
#include <moe/testing/random.hpp>

namespace trace_replay_test {
namespace {

TEST(TraceReplay, GivesTheSameBitsOnEveryInstructionSet) {
    const moe::Layer layer{moe::Config{.model_dim = 19, .seed = 3}, moe::LinearRouter{},
                           moe::TopK{.k = 3}, moe::Constant{.count = 5}};
    const auto x = moe::testing::random_matrix<float>(23, 19, 1);
    moe::Matrix<float> y(23, 19), again(23, 19);
    for (const moe::Isa recorded : {moe::Isa::scalar, moe::best_isa()})
        for (const moe::Isa replayed : {moe::Isa::scalar, moe::best_isa()}) {
            moe::Trace trace;
            {
                const moe::ScopedIsa isa(recorded);
                moe::Workspace<float> ws;
                layer.forward(x, y, ws);
                trace.record(0, ws);
            }
            trace = moe::load_trace(moe::save_trace(trace));
            const moe::Routing plan = trace.records()[0].routing();
            const moe::ScopedIsa isa(replayed);
            moe::Workspace<float> ws;
            again.setZero();
            layer.bank().apply(x, plan, again, ws);
            EXPECT_TRUE(moe::testing::same_bits(again, y));
            again.setZero();
            layer.reweigh(x, plan, ws);
            layer.apply(x, again, ws);
            EXPECT_TRUE(moe::testing::same_bits(again, y));
            EXPECT_EQ(ws.routing(), plan);
        }
}

}  // namespace
}  // namespace trace_replay_test
