// SPDX-License-Identifier: MIT
#include <moe/core/executor.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include <gtest/gtest.h>

#include <moe/core/workspace.hpp>

#include "support/allocations.hpp"
#include "support/message.hpp"

namespace executor_test {
namespace {

using moe::Executor;
using moe::Index;
using moe::detail::parallel_for;
using support::message;

constexpr double worth_threads = 1e9;

std::size_t at(Index i) { return static_cast<std::size_t>(i); }

// A user's own: the order of tasks is his.
class Backwards final : public Executor {
public:
    int concurrency() const override { return 2; }
    void run(Index tasks, moe::TaskRef task) override {
        ++runs;
        for (Index i = tasks; i-- > 0;) task(i, static_cast<int>(i % 2));
    }
    int runs = 0;
};

// Another: fresh threads for every run, tasks dealt out in turn.
class FreshThreads final : public Executor {
public:
    int concurrency() const override { return 3; }
    void run(Index tasks, moe::TaskRef task) override {
        std::vector<std::thread> threads;
        for (int worker = 0; worker < 3; ++worker)
            threads.emplace_back([=] {
                for (Index i = worker; i < tasks; i += 3) task(i, worker);
            });
        for (std::thread& thread : threads) thread.join();
    }
};

// As std::thread::hardware_concurrency() may have it.
class Nobody final : public Executor {
public:
    int concurrency() const override { return 0; }
    void run(Index, moe::TaskRef) override {}
};

TEST(Executors, WithoutWorkersAreRefused) {
    Nobody nobody;
    moe::Workspace<float> ws;
    EXPECT_EQ(support::message([&] { ws.use(nobody); }),
              "moe::Workspace: the executor's concurrency() is 0, it must be >= 1 "
              "(std::thread::hardware_concurrency() may be 0)");
    EXPECT_NE(&ws.executor(), &nobody);
}

struct Named {
    std::string name;
    std::unique_ptr<Executor> executor;
};

std::vector<Named> executors() {
    std::vector<Named> all;
    const auto add = [&](const char* name, auto executor) {
        all.push_back({name, std::move(executor)});
    };
    add("serial", std::make_unique<moe::SerialExecutor>());
    add("pool of 1", std::make_unique<moe::ThreadPool>(1));
    add("pool of 2", std::make_unique<moe::ThreadPool>(2));
    add("pool of 5", std::make_unique<moe::ThreadPool>(5));
    add("backwards", std::make_unique<Backwards>());
    add("fresh threads", std::make_unique<FreshThreads>());
#if defined(_OPENMP)
    add("OpenMP", std::make_unique<moe::OpenMpExecutor>());
    add("OpenMP, 1 thread", std::make_unique<moe::OpenMpExecutor>(1));
    add("OpenMP, 3 threads", std::make_unique<moe::OpenMpExecutor>(3));
#endif
    return all;
}

TEST(Executor, RunsEveryTaskOnce) {
    for (const Named& each : executors())
        for (const Index tasks : {0, 1, 2, 7, 100}) {
            SCOPED_TRACE(each.name + ", tasks " + std::to_string(tasks));
            std::vector<std::atomic<int>> times(at(tasks));
            auto task = [&](Index i, int) { ++times[at(i)]; };
            each.executor->run(tasks, task);
            for (const auto& count : times) EXPECT_EQ(count, 1);
        }
}

TEST(Executor, WorkersAreNumberedAndNeverSharedAtOnce) {
    for (const Named& each : executors()) {
        SCOPED_TRACE(each.name);
        const int concurrency = each.executor->concurrency();
        ASSERT_GE(concurrency, 1);
        std::vector<std::atomic<bool>> busy(at(concurrency));
        std::atomic<int> out_of_range{0}, shared{0};
        auto task = [&](Index, int worker) {
            if (worker < 0 || worker >= concurrency) {
                ++out_of_range;
                return;
            }
            if (busy[at(worker)].exchange(true)) ++shared;
            std::this_thread::yield();
            busy[at(worker)] = false;
        };
        for (int round = 0; round < 5; ++round) each.executor->run(40, task);
        EXPECT_EQ(out_of_range, 0);
        EXPECT_EQ(shared, 0);
    }
}

TEST(Executor, WhatTasksWroteIsSeenByTheCaller) {
    for (const Named& each : executors()) {
        SCOPED_TRACE(each.name);
        std::vector<Index> squares(200, -1);
        parallel_for(*each.executor, 200, worth_threads,
                     [&](Index i, int) { squares[at(i)] = i * i; });
        for (Index i = 0; i < 200; ++i) EXPECT_EQ(squares[at(i)], i * i);
    }
}

TEST(Executor, TheExceptionOfTheLowestTaskReachesTheCaller) {
    for (const Named& each : executors())
        for (const Index lowest : {0, 3, 37}) {
            SCOPED_TRACE(each.name + ", task " + std::to_string(lowest));
            std::vector<std::atomic<int>> times(60);
            EXPECT_EQ(message<std::runtime_error>([&] {
                          parallel_for(*each.executor, 60, worth_threads, [&](Index i, int) {
                              ++times[at(i)];
                              if (i == lowest || i == lowest + 1 || i > 50)
                                  throw std::runtime_error("task " + std::to_string(i));
                          });
                      }),
                      "task " + std::to_string(lowest));
            for (Index i = 0; i <= lowest; ++i) EXPECT_EQ(times[at(i)], 1) << i;
            for (Index i = lowest; i < 60; ++i) EXPECT_LE(times[at(i)], 1) << i;
        }
}

TEST(Executor, AnythingMayBeThrownAndTheExecutorWorksOn) {
    for (const Named& each : executors()) {
        SCOPED_TRACE(each.name);
        EXPECT_THROW(parallel_for(*each.executor, 9, worth_threads, [](Index, int) { throw 42; }),
                     int);
        std::atomic<int> count{0};
        parallel_for(*each.executor, 9, worth_threads, [&](Index, int) { ++count; });
        EXPECT_EQ(count, 9);
    }
}

/// Runs as many tasks at once as it is asked for, each on a thread of its own.
class ManyThreads final : public Executor {
public:
    explicit ManyThreads(int concurrency) : concurrency_(concurrency) {}
    int concurrency() const override { return concurrency_; }
    void run(Index tasks, moe::TaskRef task) override {
        std::vector<std::thread> threads;
        for (Index i = 0; i < tasks; ++i)
            threads.emplace_back([=] { task(i, static_cast<int>(i)); });
        for (std::thread& thread : threads) thread.join();
    }

private:
    int concurrency_;
};

TEST(ParallelFor, RunsTasksOfUnequalCostOnce) {
    const auto cost = [](Index i) { return i % 10 == 3 ? 50.0 : i < 20 ? 0.0 : 1.0; };
    for (const int workers : {1, 2, 3, 7, 200})
        for (const Index tasks : {1, 2, 6, 64, 65, 301}) {
            ManyThreads executor(workers);
            std::vector<std::atomic<int>> times(at(tasks));
            std::atomic<int> wrong{0};
            parallel_for(
                executor, tasks, worth_threads,
                [&](Index i, int worker) {
                    ++times[at(i)];
                    wrong += worker < 0 || worker >= workers;
                },
                cost);
            for (const auto& count : times) EXPECT_EQ(count, 1) << workers << ", " << tasks;
            EXPECT_EQ(wrong, 0);
        }
}

TEST(ParallelFor, TheExceptionOfTheLowestTaskReachesTheCallerWhateverTasksCost) {
    for (const int workers : {2, 3, 7})
        for (const Index lowest : {0, 3, 37}) {
            ManyThreads executor(workers);
            std::vector<std::atomic<int>> times(60);
            EXPECT_EQ(message<std::runtime_error>([&] {
                          parallel_for(
                              executor, 60, worth_threads,
                              [&](Index i, int) {
                                  ++times[at(i)];
                                  if (i == lowest || i == lowest + 1 || i > 50)
                                      throw std::runtime_error("task " + std::to_string(i));
                              },
                              [](Index i) { return i < 5 ? 100.0 : 1.0; });
                      }),
                      "task " + std::to_string(lowest));
            for (Index i = 0; i <= lowest; ++i) EXPECT_EQ(times[at(i)], 1) << i;
        }
}

TEST(ParallelFor, CutsTasksIntoRunsOfEqualCost) {
    using moe::detail::TaskRange;
    const std::vector<double> costs{8, 1, 1, 1, 1, 1, 1, 1, 1, 4, 4};  // 24
    const auto cut = [&](int count, bool equal) {
        const auto cost = [&](Index i) { return costs[at(i)]; };
        const moe::FunctionRef<double(Index)> of(cost);
        std::vector<TaskRange> ranges(at(count));
        moe::detail::cut_tasks(11, equal ? nullptr : &of, ranges.data(), count);
        std::vector<Index> ends;
        for (const TaskRange& range : ranges) {
            EXPECT_EQ(range.next, ends.empty() ? 0 : ends.back());
            ends.push_back(range.end);
        }
        return ends;
    };
    EXPECT_EQ(cut(1, false), (std::vector<Index>{11}));
    EXPECT_EQ(cut(2, false), (std::vector<Index>{5, 11}));
    EXPECT_EQ(cut(3, false), (std::vector<Index>{1, 9, 11}));
    EXPECT_EQ(cut(3, true), (std::vector<Index>{4, 7, 11}));
    EXPECT_EQ(cut(11, true), (std::vector<Index>{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}));
    EXPECT_EQ(cut(7, false).back(), 11);
    static_assert(alignof(TaskRange) >= 128 && sizeof(TaskRange) % 128 == 0);
}

TEST(ParallelFor, AWorkerDoesItsOwnRangeFirstAndInOrder) {
    for (const Named& each : executors()) {
        const int workers = each.executor->concurrency();
        if (workers == 1) continue;
        SCOPED_TRACE(each.name);
        std::vector<moe::detail::TaskRange> ranges(at(workers));
        moe::detail::cut_tasks(100, nullptr, ranges.data(), workers);
        std::vector<std::vector<Index>> of(at(workers));
        parallel_for(*each.executor, 100, worth_threads, [&](Index i, int worker) {
            of[at(worker)].push_back(i);
            std::this_thread::yield();
        });
        std::size_t count = 0;
        for (int worker = 0; worker < workers; ++worker) {
            const std::vector<Index>& done = of[at(worker)];
            const Index begin = ranges[at(worker)].next, end = ranges[at(worker)].end;
            count += done.size();
            bool others = false;  // it has begun to take those of others
            Index last = -1;
            for (const Index i : done) {
                const bool own = begin <= i && i < end;
                EXPECT_FALSE(own && others) << i;
                EXPECT_FALSE(own && i < last) << i;
                others |= !own;
                last = i;
            }
        }
        EXPECT_EQ(count, 100u);
    }
}

TEST(ParallelFor, WhoIsDoneTakesFromTheRangeThatHasMostLeft) {
    moe::ThreadPool pool(2);
    std::atomic<Index> done{0};
    std::vector<int> worker_of(20, -1);
    parallel_for(
        pool, 20, worth_threads,
        [&](Index i, int worker) {
            worker_of[at(i)] = worker;
            // The first waits for all others: the other worker must take the rest of its range.
            while (i == 0 && done < 19) std::this_thread::yield();
            ++done;
        },
        [](Index) { return 1.0; });
    EXPECT_EQ(done, 20);
    for (std::size_t i = 1; i < 20; ++i) EXPECT_NE(worker_of[i], worker_of[0]) << i;
}

/// More than there are ranges: each task waits for all others.
TEST(ParallelFor, EveryWorkerOfManyWorks) {
    constexpr Index workers = moe::detail::most_ranges + 36;
    ManyThreads executor(static_cast<int>(workers));
    std::atomic<Index> begun{0};
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    parallel_for(executor, workers, worth_threads, [&](Index, int) {
        ++begun;
        while (begun < workers && std::chrono::steady_clock::now() < deadline)
            std::this_thread::yield();
    });
    EXPECT_EQ(begun, workers);
    EXPECT_LT(std::chrono::steady_clock::now(), deadline) << "some had to wait for their turn";
}

TEST(ParallelFor, AllocatesNothing) {
    moe::ThreadPool pool(2);
    std::atomic<int> count{0};
    const auto run = [&] {
        parallel_for(
            pool, 20, worth_threads, [&](Index, int) { ++count; }, [](Index) { return 2.0; });
        parallel_for(pool, 20, worth_threads, [&](Index, int) { ++count; });
    };
    run();
    EXPECT_EQ(allocations::in(run), 0);
    EXPECT_EQ(count, 80);
}

TEST(Executor, LittleWorkStaysOnTheCallingThreadInOrder) {
    Backwards executor;
    std::vector<Index> order;
    const auto task = [&](Index i, int worker) {
        EXPECT_EQ(worker, 0);
        order.push_back(i);
    };
    parallel_for(executor, 4, moe::Plan{}.serial_flops - 1, task);
    EXPECT_EQ(order, (std::vector<Index>{0, 1, 2, 3}));
    parallel_for(executor, 1, worth_threads, task);  // one task cannot be shared
    parallel_for(executor, 0, worth_threads, task);
    EXPECT_EQ(order.size(), 5u);
    EXPECT_EQ(executor.runs, 0);
    parallel_for(executor, 4, moe::Plan{}.serial_flops, [](Index, int) {});
    EXPECT_EQ(executor.runs, 1);
}

TEST(ThreadPool, HasTheThreadsItWasAskedFor) {
    EXPECT_EQ(moe::ThreadPool(1).concurrency(), 1);
    EXPECT_EQ(moe::ThreadPool(4).concurrency(), 4);
}

TEST(ThreadPool, RefusesToBeOfNoThreads) {
    EXPECT_EQ(message([] { moe::ThreadPool pool(0); }),
              "moe::ThreadPool: threads is 0, it must be >= 1");
    EXPECT_EQ(message([] { moe::ThreadPool pool(-3); }),
              "moe::ThreadPool: threads is -3, it must be >= 1");
}

TEST(ThreadPool, SpreadsTasksOverThreads) {
    moe::ThreadPool pool(2);
    std::atomic<int> waiting{0};
    auto meet = [&](Index, int) {  // each task waits for the other
        ++waiting;
        while (waiting < 2) std::this_thread::yield();
    };
    pool.run(2, meet);
    EXPECT_EQ(waiting, 2);
}

TEST(ThreadPool, ARunInsideATaskIsSerial) {
    moe::ThreadPool pool(3);
    std::atomic<int> inner{0}, wrong{0};
    auto outer_task = [&](Index, int) {
        if (pool.concurrency() != 1) ++wrong;
        const std::thread::id here = std::this_thread::get_id();
        Index expected = 0;
        auto inner_task = [&](Index i, int worker) {
            if (std::this_thread::get_id() != here || worker != 0 || i != expected++) ++wrong;
            ++inner;
        };
        pool.run(5, inner_task);
        parallel_for(pool, 5, worth_threads, [&](Index, int) { ++inner; });
    };
    pool.run(8, outer_task);
    EXPECT_EQ(inner, 80);
    EXPECT_EQ(wrong, 0);
    EXPECT_EQ(pool.concurrency(), 3);
}

TEST(ThreadPool, ARunInsideATaskOfAnotherPoolIsParallel) {
    moe::ThreadPool outer(2), inner(2);
    std::atomic<int> count{0};
    auto task = [&](Index, int) {
        EXPECT_EQ(inner.concurrency(), 2);
        auto count_it = [&](Index, int) { ++count; };
        inner.run(10, count_it);
        EXPECT_EQ(outer.concurrency(), 1);  // still inside
    };
    outer.run(6, task);
    EXPECT_EQ(count, 60);
}

/// Each pool's tasks run the other pool: none may wait for a pool that waits for it.
TEST(ThreadPool, PoolsThatRunEachOtherDoNotWaitForEachOther) {
    moe::ThreadPool first(2), second(2);
    std::atomic<int> count{0}, wrong{0};
    const auto nest = [&](moe::ThreadPool& outer, moe::ThreadPool& inner) {
        auto innermost = [&](Index, int worker) { ++count, wrong += worker != 0 && worker != 1; };
        auto middle = [&](Index, int) { outer.run(3, innermost); };
        auto outermost = [&](Index, int) { inner.run(3, middle); };
        for (int round = 0; round < 20; ++round) outer.run(3, outermost);
    };
    std::thread other([&] { nest(second, first); });
    nest(first, second);
    other.join();
    EXPECT_EQ(count, 2 * 20 * 27);
    EXPECT_EQ(wrong, 0);
}

TEST(ThreadPool, WorksOnAfterItsThreadsHaveSlept) {
    moe::ThreadPool pool(4);
    std::atomic<int> count{0};
    auto task = [&](Index, int) { ++count; };
    for (int round = 0; round < 5; ++round) {
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
        pool.run(20, task);
        EXPECT_EQ(count, 20 * (round + 1));
    }
}

TEST(ThreadPool, ManyShortRunsLoseNoTask) {
    moe::ThreadPool pool(5);
    for (Index round = 0; round < 3000; ++round) {
        std::atomic<Index> sum{0};
        auto add = [&](Index i, int) { sum += i + round; };
        pool.run(4, add);
        ASSERT_EQ(sum, 6 + 4 * round);
    }
}

TEST(ThreadPool, MayBeDestroyedWhateverItsThreadsDo) {
    std::atomic<int> count{0};
    auto task = [&](Index, int) { ++count; };
    for (int round = 0; round < 100; ++round) {
        moe::ThreadPool pool(3);
        if (round % 3 != 0) pool.run(round % 3, task);
    }
    EXPECT_EQ(count, 33 + 2 * 33);
}

TEST(ThreadPool, TwoCallersTakeTurns) {
    moe::ThreadPool pool(3);
    std::atomic<int> inside{0}, at_once{0};
    const auto call = [&](std::vector<Index>& sums) {
        for (Index round = 0; round < 50; ++round) {
            std::atomic<Index> sum{0};
            auto add = [&](Index i, int worker) {
                if (worker == 0) {  // the caller itself
                    if (++inside > 1) ++at_once;
                    --inside;
                }
                sum += i * round;
            };
            pool.run(20, add);
            sums.push_back(sum);
        }
    };
    std::vector<Index> mine, theirs;
    std::thread other([&] { call(theirs); });
    call(mine);
    other.join();
    ASSERT_EQ(mine.size(), 50u);
    for (Index round = 0; round < 50; ++round) EXPECT_EQ(mine[at(round)], 190 * round);
    EXPECT_EQ(mine, theirs);
    EXPECT_EQ(at_once, 0);
}

TEST(ThreadPool, AnEmptyRunReturns) {
    moe::ThreadPool pool(3);
    auto never = [](Index, int) { FAIL(); };
    for (int i = 0; i < 50; ++i) pool.run(0, never);
}

TEST(ThreadPool, RunsWithoutAllocating) {
    moe::ThreadPool pool(2);
    std::atomic<int> count{0};
    auto task = [&](Index, int) { ++count; };
    pool.run(4, task);
    EXPECT_EQ(allocations::in([&] { pool.run(4, task); }), 0);
    EXPECT_EQ(count, 8);
}

TEST(ThreadPool, AFailureWhileItStartsStopsTheThreadsThatRun) {
    if (!allocations::are_counted) GTEST_SKIP() << "no allocation fails under a sanitizer";
    long n = 0;
    while (allocations::fails_at(n, [] {
        moe::ThreadPool pool(4);
        std::atomic<int> count{0};
        auto task = [&](Index, int) { ++count; };
        pool.run(9, task);
        if (count != 9) throw std::logic_error("the pool does not work");
    }))
        ++n;
    EXPECT_GE(n, 3);  // each of three threads allocates
}

TEST(ForTokens, EveryTokenIsVisitedOnceByAnyNumberOfThreads) {
    for (const int threads : {1, 2, 3, 7})
        for (const Index tokens : {0, 1, 63, 64, 65, 1000}) {
            moe::ThreadPool pool(threads);
            std::vector<int> visits(static_cast<std::size_t>(tokens), 0);
            std::vector<int> workers(static_cast<std::size_t>(tokens), -1);
            moe::detail::for_tokens(pool, tokens, 1e9, [&](Index t, int worker) {
                ++visits[static_cast<std::size_t>(t)];
                workers[static_cast<std::size_t>(t)] = worker;
            });
            for (const int count : visits) EXPECT_EQ(count, 1) << tokens << " tokens";
            for (const int worker : workers) {
                EXPECT_GE(worker, 0);
                EXPECT_LT(worker, threads);
            }
        }
}

#if defined(_OPENMP)

TEST(OpenMp, TheTeamIsWhatWasAskedFor) {
    EXPECT_EQ(moe::OpenMpExecutor().concurrency(), omp_get_max_threads());
    EXPECT_EQ(moe::OpenMpExecutor(3).concurrency(), 3);
    moe::OpenMpExecutor two(2);
    std::atomic<int> waiting{0};
    auto meet = [&](Index, int) {
        ++waiting;
        while (waiting < 2) std::this_thread::yield();
    };
    two.run(2, meet);
    EXPECT_EQ(waiting, 2);
}

TEST(OpenMp, IsSerialInsideACallersParallelRegion) {
    moe::OpenMpExecutor executor(4);
    std::atomic<int> wrong{0}, count{0};
#pragma omp parallel num_threads(2)
    {
        if (executor.concurrency() != 1) ++wrong;
        const std::thread::id here = std::this_thread::get_id();
        Index expected = 0;
        auto task = [&](Index i, int worker) {
            if (std::this_thread::get_id() != here || worker != 0 || i != expected++) ++wrong;
            ++count;
        };
        executor.run(7, task);
        parallel_for(executor, 7, worth_threads, [&](Index, int) { ++count; });
    }
    EXPECT_EQ(wrong, 0);
    EXPECT_EQ(count, 28);
    EXPECT_EQ(executor.concurrency(), 4);
}

TEST(OpenMp, ARunInsideATaskIsSerial) {
    moe::OpenMpExecutor executor(2);
    std::atomic<int> wrong{0}, count{0};
    auto outer = [&](Index, int) {
        if (executor.concurrency() != 1) ++wrong;
        auto inner = [&](Index, int worker) { wrong += worker != 0, ++count; };
        executor.run(5, inner);
    };
    executor.run(6, outer);
    EXPECT_EQ(wrong, 0);
    EXPECT_EQ(count, 30);
}

TEST(OpenMp, SettingsOfTheProgramStayAsTheyWere) {
    const int threads = omp_get_max_threads(), dynamic = omp_get_dynamic(),
              levels = omp_get_max_active_levels(), eigen = Eigen::nbThreads();
    for (const Named& each : executors())
        parallel_for(*each.executor, 10, worth_threads, [](Index, int) {});
    EXPECT_EQ(omp_get_max_threads(), threads);
    EXPECT_EQ(omp_get_dynamic(), dynamic);
    EXPECT_EQ(omp_get_max_active_levels(), levels);
    EXPECT_EQ(Eigen::nbThreads(), eigen);
}

#endif

}  // namespace
}  // namespace executor_test
