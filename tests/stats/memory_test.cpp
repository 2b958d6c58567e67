// SPDX-License-Identifier: MIT
#include <moe/stats/memory.hpp>

#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>

#include <gtest/gtest.h>

#include <moe/moe.hpp>

#include "support/allocations.hpp"

namespace memory_test {
namespace {

using moe::Index;
using moe::Keep;
using moe::Matrix;

/// Bytes that f asks for.
template <class F>
long bytes_in(F&& f) {
    const long before = allocations::bytes_asked_for.load();
    f();
    return allocations::bytes_asked_for.load() - before;
}

auto layer() {
    return moe::Layer{moe::Config{.model_dim = 96},
                      moe::LinearRouter{},
                      moe::TopK{.k = 2},
                      moe::Swiglu{.count = 8, .ffn_dim = 160},
                      moe::Copy{},
                      moe::Shared{moe::Swiglu{.count = 1, .ffn_dim = 64}}};
}

TEST(MemoryBudget, CountsParametersAndPackedWeights) {
    const auto l = layer();
    const moe::MemoryBudget trained = moe::memory_budget(l, 10, 20);
    EXPECT_EQ(trained.parameters, 4 * moe::num_parameters(l));
    EXPECT_EQ(trained.packed, 0);
    const moe::MemoryBudget frozen = moe::memory_budget(moe::freeze(l), 10, 20, Keep::nothing);
    EXPECT_EQ(frozen.parameters, 4 * 9 * 96);  // the router stays as it is
    EXPECT_GE(frozen.packed, 4 * (8 * 3 * 96 * 160 + 3 * 96 * 64));
    EXPECT_LT(frozen.packed, 4 * (8 * 3 * 96 * 160 + 3 * 96 * 64) * 3 / 2);  // padding of panels
}

/// A router that says what it has packed.
struct Packed {
    void forward(moe::In<float>, moe::Out<float> logits) const { logits.setZero(); }
    Index bytes() const { return 1000; }
};

TEST(MemoryBudget, CountsWhatARouterHasPacked) {
    const moe::Layer l{moe::Config{.model_dim = 4}, Packed{}, moe::TopK{.k = 1}, moe::Copy{}};
    EXPECT_EQ(moe::memory_budget(l, 1, 1, Keep::nothing).packed, 1000);
}

TEST(MemoryBudget, CountsWhatAFrozenLinearRouterHasPacked) {
    const moe::Layer l{moe::Config{.model_dim = 64}, moe::LinearRouter{}, moe::TopK{.k = 1},
                       moe::Zero{.count = 32}};
    const moe::MemoryBudget frozen = moe::memory_budget(moe::freeze(l), 1, 1, Keep::nothing);
    EXPECT_EQ(frozen.packed, 4 * 64 * 32);
    EXPECT_EQ(moe::memory_budget(l, 1, 1, Keep::nothing).packed, 0);
}

/// Gradients at input weights need room of their own.
TEST(MemoryBudget, IsAllThatTheFirstStepTakesForEitherPlacement) {
    if (!allocations::are_counted) GTEST_SKIP() << "a sanitizer brings its own operator new";
    for (const auto& [placement, compute] :
         {std::pair{moe::Placement::output, moe::Compute::exact},
          std::pair{moe::Placement::input, moe::Compute::exact},
          std::pair{moe::Placement::output, moe::Compute::bf16},
          std::pair{moe::Placement::input, moe::Compute::bf16}}) {
        moe::Layer l{moe::Config{.model_dim = 512}, moe::LinearRouter{},
                     moe::TopK{.k = 2, .placement = placement},
                     moe::Swiglu{.count = 4, .ffn_dim = 32}};
        if (compute == moe::Compute::bf16) l.bank().group<0>().use(moe::detail::bf16_passes<float>);
        const Matrix<float> x = moe::Random(1).normal<float>(600, 512, 1);
        Matrix<float> y(600, 512), dx(600, 512);
        auto grad = moe::zeros_like(l);
        moe::Workspace<float> ws;
        ws.reserve(l, 600, 1200);
        const long spent = bytes_in([&] {
            l.forward(x, y, ws);
            l.backward(x, y, dx, grad, ws);
        });
        EXPECT_LE(spent, 4096) << "placement " << static_cast<int>(placement) << ", "
                               << moe::name(compute);
    }
}

TEST(MemoryBudget, OfAHeadAndABankIsWhatTheyReserve) {
    if (!allocations::are_counted) GTEST_SKIP() << "a sanitizer brings its own operator new";
    const auto on_input = [](moe::Placement placement) {
        return moe::Layer{moe::Config{.model_dim = 48},
                          moe::LinearRouter{},
                          moe::TopK{.k = 2, .placement = placement},
                          moe::Swiglu{.count = 8, .ffn_dim = 32},
                          moe::Copy{},
                          moe::Constant{},
                          moe::Zero{}};
    };
    for (const moe::Placement placement : {moe::Placement::output, moe::Placement::input}) {
        const auto l = on_input(placement);
        for (const Keep keep : {Keep::nothing, Keep::recompute, Keep::everything})
            for (const int workers : {1, 3}) {
                moe::Workspace<float> head, bank, all;
                for (auto* ws : {&head, &bank, &all}) ws->threads(workers).keep(keep);
                const auto near = [&](long spent, Index said, const char* what) {
                    EXPECT_GE(spent, said) << what;
                    EXPECT_LE(spent, said + 8192) << what;  // nodes, and vectors of the parts
                };
                near(bytes_in([&] { l.head().reserve(900, 1800, head); }),
                     l.head().workspace_bytes(900, 1800, keep, workers), "head");
                near(bytes_in([&] { l.bank().reserve(900, 1800, bank); }),
                     l.bank().workspace_bytes(900, 1800, keep, workers), "bank");
                near(bytes_in([&] { all.reserve(l, 900, 1800); }),
                     moe::memory_budget(l, 900, 1800, keep, workers).workspace(), "layer");
            }
    }
}

TEST(MemoryBudget, HoldsForTheFirstCall) {
    if (!allocations::are_counted) GTEST_SKIP() << "a sanitizer brings its own operator new";
    const auto l = layer();
    for (const Index tokens : {1, 40, 700}) {
        const Matrix<float> x = moe::Random(1).normal<float>(tokens, 96, 1);
        Matrix<float> y(tokens, 96), dx(tokens, 96);
        auto grad = moe::zeros_like(l);
        for (const Keep keep : {Keep::nothing, Keep::recompute, Keep::everything}) {
            moe::Workspace<float> ws;
            ws.threads(1).keep(keep);
            const long spent = bytes_in([&] {
                ws.reserve(l, tokens, 2 * tokens);  // else buffers grow in steps, and all count
                l.forward(x, y, ws);
                if (keep != Keep::nothing) l.backward(x, y, dx, grad, ws);
            });
            const Index budget = moe::memory_budget(l, tokens, 2 * tokens, keep).workspace();
            // Nodes of the workspace and vectors that grow by doubling are a few kB beside it.
            EXPECT_LE(spent, budget + 16384 + budget / 4) << tokens << " tokens";
            EXPECT_GE(spent, budget / 4) << tokens << " tokens";
        }
    }
}

/// The less is kept, the less it takes, and a step takes no more than was said.
TEST(MemoryBudget, OfEachModeIsHonouredByAWholeStep) {
    if (moe::isa() == moe::Isa::scalar)
        GTEST_SKIP() << "no other memory with scalar kernels, which take ten times as long";
    if (!allocations::are_counted) GTEST_SKIP() << "a sanitizer brings its own operator new";
    const moe::Layer l{moe::Config{.model_dim = 32}, moe::LinearRouter{}, moe::TopK{.k = 2},
                       moe::Swiglu{.count = 4, .ffn_dim = 1200}};
    const Index tokens = 4000;
    const Matrix<float> x = moe::Random(1).normal<float>(tokens, 32, 1);
    Matrix<float> y(tokens, 32), dx(tokens, 32);
    auto grad = moe::zeros_like(l);
    const auto budget = [&](Keep keep) {
        return moe::memory_budget(l, tokens, 2 * tokens, keep).workspace();
    };
    EXPECT_GE(budget(Keep::everything), 2 * 2 * tokens * 1200 * 4);
    EXPECT_LE(budget(Keep::recompute), budget(Keep::everything) / 2);
    EXPECT_LE(budget(Keep::nothing), budget(Keep::recompute) / 2);
    for (const Keep keep : {Keep::nothing, Keep::recompute, Keep::everything}) {
        moe::Workspace<float> ws;
        ws.threads(1).keep(keep);
        const long spent = bytes_in([&] {
            ws.reserve(l, tokens, 2 * tokens);
            l.forward(x, y, ws);
            if (keep != Keep::nothing) l.backward(x, y, dx, grad, ws);
        });
        EXPECT_LE(spent, budget(keep) + 32768) << moe::report(moe::memory_budget(l, 1, 2, keep));
        EXPECT_GE(spent, budget(keep) * 9 / 10);
    }
}

TEST(MemoryBudget, GrowsLikeRowsTimesFfnDim) {
    const auto l = layer();
    const auto at = [&](Index tokens) { return moe::memory_budget(l, tokens, 2 * tokens).experts; };
    // The part of the rows that is worked on, and scratch, are there for any number of tokens.
    EXPECT_NEAR(static_cast<double>(at(50000) - at(30000)),
                static_cast<double>(2 * (at(30000) - at(20000))), 1000);
    EXPECT_GE(at(30000) - at(20000), 10000 * (2 * 2 * 160 + 2 * 64) * 4);
    const moe::MemoryBudget none = moe::memory_budget(l, 0, 0);
    EXPECT_LT(none.workspace(), at(100));  // scratch of the workers
}

/// How many experts there are to share the rows, 8 for each of 4096 tokens, makes no difference.
TEST(MemoryBudget, OfEachModeInOneLine) {
    const moe::Layer l{moe::Config{.model_dim = 2048}, moe::LinearRouter{}, moe::TopK{.k = 1},
                       moe::Swiglu{.count = 1, .ffn_dim = 768}};
    const std::string line = moe::report_keeps(l, 4096, 8 * 4096);
    const auto megabytes = [&](const char* name) {
        const std::size_t at = line.find(name);
        EXPECT_NE(at, std::string::npos) << line;
        return at == std::string::npos ? 0 : std::atof(line.c_str() + at + std::strlen(name));
    };
    // The router's share of dx and a copy of x, should there be padding; gate and up.
    const double head = 2.0 * 4096 * 2048 * 4 / 1e6, kept = 2.0 * 8 * 4096 * 768 * 4 / 1e6;
    EXPECT_NEAR(megabytes("everything "), head + kept, 35) << line;
    EXPECT_NEAR(megabytes("recompute "), head, 35) << line;
    EXPECT_NEAR(megabytes("nothing "), 0, 15) << line;
}

TEST(MemoryBudget, PrintsOneLine) {
    const moe::MemoryBudget budget{
        .parameters = 12582912, .packed = 0, .routing = 999, .experts = 1};
    EXPECT_EQ(moe::report(budget), "parameters 12.6 MB + packed 0 B + workspace 1.0 kB = 12.6 MB");
}

}  // namespace
}  // namespace memory_test
