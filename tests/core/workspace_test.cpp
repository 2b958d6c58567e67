// SPDX-License-Identifier: MIT
#include <moe/core/workspace.hpp>

#include <atomic>
#include <stdexcept>
#include <type_traits>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "support/allocations.hpp"
#include "support/message.hpp"

namespace workspace_test {
namespace {

using moe::Index;
using moe::Workspace;
using support::message;

struct Count {
    int value = 3;
};
struct Other {
    int value = 5;
};

TEST(Workspace, HasOneStateOfEachType) {
    Workspace<float> ws;
    EXPECT_EQ(ws.find<Count>(), nullptr);
    Count& count = ws.state<Count>();
    EXPECT_EQ(count.value, 3);  // made by the default constructor
    count.value = 4;
    EXPECT_EQ(&ws.state<Count>(), &count);
    EXPECT_EQ(ws.find<Count>(), &count);
    EXPECT_EQ(ws.state<Count>().value, 4);
    EXPECT_EQ(ws.find<Other>(), nullptr);
    EXPECT_EQ(ws.state<Other>().value, 5);
    EXPECT_EQ(ws.state<int>(), 0);
    EXPECT_EQ(&ws.state<Count>(), &count);  // others did not move it
}

TEST(Workspace, StatesAreDestroyedWithIt) {
    struct Watched {
        int* alive = nullptr;
        ~Watched() {
            if (alive != nullptr) --*alive;
        }
    };
    int alive = 2;
    {
        Workspace<float> ws;
        ws.state<Watched>().alive = &alive;
        ws.child(1).state<Watched>().alive = &alive;
    }
    EXPECT_EQ(alive, 0);
}

TEST(Workspace, AStateThatCannotBeMadeIsNotThere) {
    struct Refuses {
        Refuses() { throw std::runtime_error("no"); }
    };
    Workspace<float> ws;
    EXPECT_THROW(ws.state<Refuses>(), std::runtime_error);
    EXPECT_EQ(ws.find<Refuses>(), nullptr);
    EXPECT_EQ(ws.state<Count>().value, 3);
}

TEST(Workspace, EachChildIsANodeOfItsOwn) {
    Workspace<double> ws;
    Workspace<double>& third = ws.child(2);
    ws.state<Count>().value = 1;
    third.state<Count>().value = 2;
    ws.child(0).state<Count>().value = 10;
    EXPECT_EQ(&ws.child(2), &third);
    EXPECT_EQ(ws.state<Count>().value, 1);
    EXPECT_EQ(third.state<Count>().value, 2);
    EXPECT_EQ(ws.child(1).find<Count>(), nullptr);
    for (std::size_t i = 0; i < 40; ++i) ws.child(i);
    EXPECT_EQ(&ws.child(2), &third);  // more children did not move it
    EXPECT_EQ(third.child(0).find<Count>(), nullptr);
}

TEST(Workspace, SettingsReachEveryNode) {
    Workspace<float> ws;
    Workspace<float>& before = ws.child(0).child(1);
    moe::SerialExecutor serial;
    ws.use(serial).keep(moe::Keep::nothing);
    EXPECT_EQ(&before.executor(), &serial);
    EXPECT_FALSE(before.keeps());
    EXPECT_EQ(ws.child(3).keep(), moe::Keep::nothing);
    ws.keep(moe::Keep::everything);
    EXPECT_TRUE(before.keeps() && ws.keeps() && ws.child(3).keeps());
    ws.keep(moe::Keep::recompute);
    EXPECT_TRUE(before.keeps());
    EXPECT_EQ(before.keep(), moe::Keep::recompute);
}

TEST(Workspace, KeepsEverythingUnlessToldOtherwise) {
    EXPECT_TRUE(Workspace<float>().keeps());
    EXPECT_EQ(Workspace<float>().keep(), moe::Keep::everything);
}

TEST(Workspace, RunsOnTheCallingThreadOrOnOpenMp) {
    Workspace<float> ws;
#if defined(_OPENMP)
    EXPECT_NE(dynamic_cast<moe::OpenMpExecutor*>(&ws.executor()), nullptr);
#else
    EXPECT_NE(dynamic_cast<moe::SerialExecutor*>(&ws.executor()), nullptr);
#endif
    moe::ThreadPool pool(2);
    EXPECT_EQ(&Workspace<float>(pool).executor(), &pool);
}

TEST(Workspace, HasThreadsOfItsOwnIfAsked) {
    Workspace<float> ws;
    ws.child(0);
    for (const int count : {1, 3, 2}) {
        ws.threads(count);
        EXPECT_EQ(ws.executor().concurrency(), count);
        EXPECT_EQ(&ws.child(0).executor(), &ws.executor());
        std::atomic<int> done{0};
        auto task = [&](Index, int) { ++done; };
        ws.executor().run(20, task);
        EXPECT_EQ(done, 20);
    }
    const moe::Executor* const last = &ws.executor();
    EXPECT_EQ(message([&] { ws.threads(0); }), "moe::Workspace: threads is 0, it must be >= 1");
    EXPECT_EQ(message([&] { ws.threads(-2); }), "moe::Workspace: threads is -2, it must be >= 1");
    EXPECT_EQ(&ws.executor(), last);
}

TEST(Workspace, MovingItKeepsEverythingWhereItIs) {
    Workspace<float> ws;
    ws.threads(2);
    Count* const count = &ws.state<Count>();
    Workspace<float>* const child = &ws.child(1);
    Other* const other = &child->state<Other>();
    const moe::Executor* const executor = &ws.executor();

    Workspace<float> moved = std::move(ws);
    EXPECT_EQ(moved.find<Count>(), count);
    EXPECT_EQ(&moved.child(1), child);
    EXPECT_EQ(child->find<Other>(), other);
    EXPECT_EQ(&moved.executor(), executor);
    moved.keep(moe::Keep::nothing);
    EXPECT_FALSE(child->keeps());

    Workspace<float> assigned;
    assigned.state<Count>().value = 99;
    assigned = std::move(moved);
    EXPECT_EQ(assigned.find<Count>(), count);
    EXPECT_EQ(&assigned.child(1).executor(), executor);
    static_assert(std::is_nothrow_move_constructible_v<Workspace<float>>);
    static_assert(!std::is_copy_constructible_v<Workspace<float>>);
}

TEST(Workspace, TheStandardExecutorMovesAlong) {
    std::vector<Workspace<double>> many(1);
    const moe::Executor* const executor = &many[0].executor();
    many.resize(50);
    EXPECT_EQ(&many[0].executor(), executor);
    EXPECT_EQ(&many[0].child(0).executor(), executor);
    EXPECT_NE(&many[1].executor(), executor);
}

TEST(Workspace, SaysThatNothingWasRouted) {
    Workspace<float> ws;
    const auto text =
        "moe::Workspace: no batch has been routed here; call forward() or route() of a layer with "
        "this workspace first";
    EXPECT_EQ(message<std::logic_error>([&] { ws.routing(); }), text);
    EXPECT_EQ(message<std::logic_error>([&] { ws.edit_routing(); }), text);
    EXPECT_EQ(message<std::logic_error>([&] { ws.logits(); }), text);
    EXPECT_EQ(message<std::logic_error>([&] { ws.dlogits(); }), text);
    EXPECT_EQ(message<std::logic_error>([&] { ws.context(); }), text);
    EXPECT_EQ(ws.find<moe::Routed<float>>(), nullptr);
}

TEST(Workspace, ShowsWhatWasRouted) {
    Workspace<float> ws;
    auto& routed = ws.state<moe::Routed<float>>();
    routed.num_logits = 3;
    routed.logits.assign(6, 1.5f);
    routed.dlogits.assign(6, 0);
    routed.context.step = 4;
    routed.routing.reset(2, 3);
    ws.edit_routing().add(1, 2, 0.25);
    ws.edit_routing().group();
    EXPECT_EQ(ws.routing().of(1)[0].expert, 2);
    EXPECT_EQ(ws.logits().rows(), 2);
    EXPECT_EQ(ws.logits().cols(), 3);
    EXPECT_EQ(ws.logits()(1, 2), 1.5f);
    ws.dlogits()(1, 2) += 2;
    EXPECT_EQ(routed.dlogits[5], 2.0f);
    EXPECT_EQ(ws.context().step, 4u);
}

TEST(Workspace, LogitsOfNoTokensOrNoLogitsAreEmpty) {
    Workspace<double> ws;
    auto& routed = ws.state<moe::Routed<double>>();
    EXPECT_EQ(ws.logits().size(), 0);
    routed.num_logits = 4;
    EXPECT_EQ(ws.logits().rows(), 0);
    EXPECT_EQ(ws.logits().cols(), 4);
}

TEST(Workspace, AReservationIsPassedToTheLayer) {
    struct Layer {
        void reserve(Index tokens, Index assignments, Workspace<float>& ws) const {
            ws.state<moe::Buffer<float>>().resize(tokens * assignments);
        }
    };
    Workspace<float> ws;
    ws.reserve(Layer{}, 3, 5);
    EXPECT_EQ(ws.state<moe::Buffer<float>>().size(), 15);
}

TEST(Workspace, ASecondVisitAllocatesNothing) {
    Workspace<float> ws;
    const auto visit = [&] {
        ws.state<Count>(), ws.child(3).state<Other>();
        ws.child(3).child(1).keep(moe::Keep::everything);
    };
    visit();
    EXPECT_EQ(allocations::in(visit), 0);
}

TEST(Workspace, AFailedAllocationLeavesItUsable) {
    if (!allocations::are_counted) GTEST_SKIP() << "no allocation fails under a sanitizer";
    long n = 0;
    for (bool failed = true; failed; ++n) {
        Workspace<float> ws;
        const auto grow = [&] {
            ws.child(2).state<Count>().value = 8;
            ws.child(2).state<Other>();
            ws.child(2).child(0).state<moe::Buffer<float>>().resize(10);
        };
        failed = allocations::fails_at(n, grow);
        grow();
        EXPECT_EQ(ws.child(2).state<Count>().value, 8) << n;
        EXPECT_EQ(ws.child(2).child(0).state<moe::Buffer<float>>().size(), 10) << n;
    }
    EXPECT_GE(n, 9);  // four nodes, three states and what holds them
}

TEST(Call, AChildHasTheContextAndANodeOfItsOwn) {
    Workspace<float> ws;
    const moe::Context context{.step = 7};
    const moe::Call<float> call{context, ws};
    const moe::Call<float> part = call.child(4);
    EXPECT_EQ(&part.context, &context);
    EXPECT_EQ(&part.ws, &ws.child(4));
}

TEST(Call, PreviousIsTheWorkspaceOfAnEarlierLayer) {
    Workspace<float> ws, earlier;
    Workspace<double> other;
    const auto previous = [&ws](moe::WorkspaceBase* workspace) -> Workspace<float>& {
        const moe::Context context{.previous = workspace};
        return moe::Call<float>{context, ws}.previous();
    };
    EXPECT_EQ(&previous(&earlier), &earlier);
    Workspace<float> moved(std::move(earlier));
    EXPECT_EQ(&previous(&moved), &moved);
    EXPECT_EQ(message([&] { previous(nullptr); }),
              "moe::Context: previous is empty, the part that reads it wants the workspace of an "
              "earlier layer of float");
    EXPECT_EQ(message([&] { previous(&other); }),
              "moe::Context: previous is of another scalar, the part that reads it wants the "
              "workspace of an earlier layer of float");
}

}  // namespace
}  // namespace workspace_test
