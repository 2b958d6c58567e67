// SPDX-License-Identifier: MIT
#ifndef MOE_CORE_EXECUTOR_HPP
#define MOE_CORE_EXECUTOR_HPP

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include <moe/core/error.hpp>
#include <moe/core/function_ref.hpp>
#include <moe/core/types.hpp>

namespace moe::inline MOE_ABI {

/// A task of an executor: task(i, worker).
using TaskRef = FunctionRef<void(Index task, int worker)>;

/// Who runs the parallel parts of a call. Derive from it to use a thread pool of your own.
///
/// Results do not depend on the executor: tasks write disjoint outputs.
class Executor {
public:
    virtual ~Executor() = default;
    /// Most workers that run() uses at once, at least 1.
    virtual int concurrency() const = 0;
    /// Calls task(i, worker) once for every i in [0, tasks), worker in [0, concurrency()), no two
    /// calls with one worker at the same time, and returns when all are done. Tasks do not throw.
    virtual void run(Index tasks, TaskRef task) = 0;
};

/// One task after the other on the calling thread.
class SerialExecutor final : public Executor {
public:
    int concurrency() const override { return 1; }
    void run(Index tasks, TaskRef task) override {
        for (Index i = 0; i < tasks; ++i) task(i, 0);
    }
};

#if defined(_OPENMP)
namespace detail {
// The two questions we ask of OpenMP, declared under names of our own: <omp.h> stays out of users'
// translation units, and its declarations cannot clash with these.
#define MOE_STRING(x) #x
#define MOE_SYMBOL(prefix, name) MOE_STRING(prefix) name
extern "C" int moe_omp_in_parallel() __asm__(MOE_SYMBOL(__USER_LABEL_PREFIX__, "omp_in_parallel"));
extern "C" int moe_omp_max_threads() __asm__(MOE_SYMBOL(__USER_LABEL_PREFIX__,
                                                        "omp_get_max_threads"));
#undef MOE_SYMBOL
#undef MOE_STRING
}  // namespace detail

/// An OpenMP parallel region per run(). Inside a caller's parallel region it is serial.
class OpenMpExecutor final : public Executor {
public:
    /// @param threads  team size; 0: what OpenMP is set to (OMP_NUM_THREADS)
    explicit OpenMpExecutor(int threads = 0) : threads_(threads) {}

    int concurrency() const override {
        if (detail::moe_omp_in_parallel()) return 1;
        return threads_ > 0 ? threads_ : detail::moe_omp_max_threads();
    }

    void run(Index tasks, TaskRef task) override {
        const int team = concurrency();
        if (team == 1) {
            for (Index i = 0; i < tasks; ++i) task(i, 0);
            return;
        }
        std::atomic<Index> next{0};
        std::atomic<int> workers{0};
#pragma omp parallel num_threads(team)
        {
            const int worker = workers.fetch_add(1, std::memory_order_relaxed);
            for (Index i = next.fetch_add(1, std::memory_order_relaxed); i < tasks;
                 i = next.fetch_add(1, std::memory_order_relaxed))
                task(i, worker);
        }
    }

private:
    int threads_;
};
#endif

/// A pool of std::thread; the calling thread is worker 0. One run() at a time: a second caller
/// waits. A run() from inside one of its own tasks is serial.
class ThreadPool final : public Executor {
public:
    /// @param threads  workers, the caller included; at least 1
    /// @throws std::system_error if the system has no thread left; std::bad_alloc
    explicit ThreadPool(int threads) : ThreadPool() {  // from here on the destructor runs
        if (threads < 1) detail::fail("moe::ThreadPool: threads is ", threads, ", it must be >= 1");
        for (int worker = 1; worker < threads; ++worker)
            threads_.emplace_back([this, worker] { serve(worker); });
    }
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;
    ~ThreadPool() override { stop(); }

    int concurrency() const override {
        return inside() == this ? 1 : static_cast<int>(threads_.size()) + 1;
    }

    void run(Index tasks, TaskRef task) override {
        if (inside() == this || threads_.empty()) {
            for (Index i = 0; i < tasks; ++i) task(i, 0);
            return;
        }
        const std::lock_guard one_caller(callers_);
        {
            const std::lock_guard lock(mutex_);
            task_ = &task;
            tasks_ = tasks;
            next_.store(0, std::memory_order_relaxed);
            busy_ = static_cast<int>(threads_.size());
            ++round_;
        }
        start_.notify_all();
        work(0);
        std::unique_lock lock(mutex_);
        done_.wait(lock, [this] { return busy_ == 0; });
        task_ = nullptr;
    }

private:
    ThreadPool() = default;

    static const ThreadPool*& inside() {
        thread_local const ThreadPool* pool = nullptr;
        return pool;
    }

    void work(int worker) {
        const ThreadPool* outer = std::exchange(inside(), this);
        for (Index i = next_.fetch_add(1); i < tasks_; i = next_.fetch_add(1)) (*task_)(i, worker);
        inside() = outer;
    }

    void serve(int worker) {
        std::unique_lock lock(mutex_);
        for (std::uint64_t seen = 0;;) {
            start_.wait(lock, [&] { return stopping_ || round_ != seen; });
            if (stopping_) return;
            seen = round_;
            lock.unlock();
            work(worker);
            lock.lock();
            if (--busy_ == 0) done_.notify_one();
        }
    }

    void stop() {
        {
            const std::lock_guard lock(mutex_);
            stopping_ = true;
        }
        start_.notify_all();
        for (std::thread& thread : threads_) thread.join();
    }

    std::mutex callers_, mutex_;
    std::condition_variable start_, done_;
    std::vector<std::thread> threads_;
    const TaskRef* task_ = nullptr;
    Index tasks_ = 0;
    std::atomic<Index> next_{0};
    int busy_ = 0;
    std::uint64_t round_ = 0;
    bool stopping_ = false;
};

namespace detail {

/// Work that is not worth waking a second thread for: about 20 microseconds of one core, the price
/// of a few fork-joins.
inline constexpr double serial_flops = 1e6;

/// Runs function(task, worker) for every task, in parallel if `flops` is worth it. The exception
/// of the lowest task that threw arrives at the caller; tasks after a throw may be skipped.
template <class F>
void parallel_for(Executor& executor, Index tasks, double flops, F&& function) {
    if (tasks <= 1 || flops < serial_flops || executor.concurrency() <= 1) {
        for (Index i = 0; i < tasks; ++i) function(i, 0);
        return;
    }
#if defined(__cpp_exceptions)
    std::mutex mutex;
    std::exception_ptr error;
    std::atomic<Index> failed{tasks};
    auto guarded = [&](Index task, int worker) {
        if (task > failed.load(std::memory_order_relaxed)) return;
        try {
            function(task, worker);
        } catch (...) {
            const std::lock_guard lock(mutex);
            if (task < failed.load()) failed.store(task), error = std::current_exception();
        }
    };
    executor.run(tasks, guarded);
    if (error) std::rethrow_exception(error);
#else
    executor.run(tasks, function);
#endif
}

}  // namespace detail
}  // namespace moe::inline MOE_ABI

#endif  // MOE_CORE_EXECUTOR_HPP
