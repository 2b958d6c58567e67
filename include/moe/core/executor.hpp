// SPDX-License-Identifier: MIT
#ifndef MOE_CORE_EXECUTOR_HPP
#define MOE_CORE_EXECUTOR_HPP

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <exception>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include <moe/core/error.hpp>
#include <moe/core/function_ref.hpp>
#include <moe/core/plan.hpp>
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
    /// Fewer operations are not worth a run(), >= 0; see Plan.
    virtual double serial_flops() const { return Plan{}.serial_flops; }
};

namespace detail {

/// @throws std::invalid_argument if the executor says that it has no worker
inline void check_executor(const char* who, const Executor& executor) {
    if (const int count = executor.concurrency(); count < 1)
        fail(who, ": the executor's concurrency() is ", count,
             ", it must be >= 1 (std::thread::hardware_concurrency() may be 0)");
}

}  // namespace detail

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
// The questions we ask of OpenMP, declared under names of our own: <omp.h> stays out of users'
// translation units, and its declarations cannot clash with these.
#define MOE_STRING(x) #x
#define MOE_SYMBOL(prefix, name) MOE_STRING(prefix) name
extern "C" int moe_omp_in_parallel() __asm__(MOE_SYMBOL(__USER_LABEL_PREFIX__, "omp_in_parallel"));
extern "C" int moe_omp_max_threads() __asm__(MOE_SYMBOL(__USER_LABEL_PREFIX__,
                                                        "omp_get_max_threads"));
extern "C" int moe_omp_thread_number() __asm__(MOE_SYMBOL(__USER_LABEL_PREFIX__,
                                                          "omp_get_thread_num"));
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
#pragma omp parallel num_threads(team)
        {
            const int worker = detail::moe_omp_thread_number();
            for (Index i = next.fetch_add(1, std::memory_order_relaxed); i < tasks;
                 i = next.fetch_add(1, std::memory_order_relaxed))
                task(i, worker);
        }
    }

private:
    int threads_;
};
#endif

namespace detail {

/// Bytes between what different threads write: processors fetch cache lines of 64 in pairs.
inline constexpr std::size_t apart = 128;

/// Says to the processor that this thread is waiting for another one.
inline void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("isb");
#endif
}

/// Returns as soon as done(word) is true, and what word was then. It looks for some 20 microseconds
/// before it lets the system put the thread to sleep; whoever changes the word calls notify.
template <class Done>
int wait_until(const std::atomic<int>& word, int looks, Done&& done) {
    for (int value = word.load();; value = word.load()) {
        if (done(value)) return value;
        if (looks-- > 0)
            pause();
        else
            word.wait(value);
    }
}

}  // namespace detail

/// A pool of std::thread; the calling thread is worker 0. A run() from inside one of its own tasks
/// is serial. Of other runs there is one at a time: a second caller waits, unless it is inside a
/// task of another pool, which this pool may be waiting for; then its run is serial.
class ThreadPool final : public Executor {
public:
    /// @param threads  workers, the caller included; at least 1
    /// @throws std::system_error if the system has no thread left; std::bad_alloc
    explicit ThreadPool(int threads) : ThreadPool() {  // from here on the destructor runs
        if (threads < 1) detail::fail("moe::ThreadPool: threads is ", threads, ", it must be >= 1");
        // A thread that looks around takes the core of one that works where there are too few.
        looks_ = threads <= static_cast<int>(std::thread::hardware_concurrency()) ? 1000 : 0;
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
        if (inside() == this || threads_.empty() || !enter()) {
            for (Index i = 0; i < tasks; ++i) task(i, 0);
            return;
        }
        task_ = &task;
        tasks_ = tasks;
        next_.store(0, std::memory_order_relaxed);
        announce();  // open
        work(0);
        round_.fetch_add(1);  // closed: who comes now finds nothing to do
        detail::wait_until(active_, looks_, [](int active) { return active == 0; });
        callers_.store(0);
        callers_.notify_one();
    }

private:
    ThreadPool() = default;

    static const ThreadPool*& inside() {
        thread_local const ThreadPool* pool = nullptr;
        return pool;
    }

    /// The turn of the calling thread, or false if it must not wait for one.
    bool enter() {
        while (callers_.exchange(1) != 0) {
            if (inside() != nullptr) return false;
            detail::wait_until(callers_, looks_, [](int callers) { return callers == 0; });
        }
        return true;
    }

    void announce() {
        round_.fetch_add(1);
        round_.notify_all();
    }

    void work(int worker) {
        const ThreadPool* outer = std::exchange(inside(), this);
        for (Index i = next_.fetch_add(1); i < tasks_; i = next_.fetch_add(1)) (*task_)(i, worker);
        inside() = outer;
    }

    /// Rounds that are open have odd numbers. A thread says that it is active before it looks
    /// whether one is, and the caller closes the round before it looks whether a thread is active:
    /// one of them sees the other, and what a run has set is not touched after its end.
    void serve(int worker) {
        for (int seen = 0;;) {
            detail::wait_until(round_, looks_, [&](int round) {
                return (round != seen && round % 2 != 0) || stopping_.load();
            });
            if (stopping_.load()) return;
            active_.fetch_add(1);
            const int round = round_.load();
            if (round % 2 != 0 && round != seen) work(worker);
            seen = round;
            if (active_.fetch_sub(1) == 1) active_.notify_all();
        }
    }

    void stop() {
        stopping_.store(true);
        announce();
        for (std::thread& thread : threads_) thread.join();
    }

    std::vector<std::thread> threads_;
    int looks_ = 0;
    const TaskRef* task_ = nullptr;
    Index tasks_ = 0;
    std::atomic<bool> stopping_{false};
    std::atomic<int> callers_{0};  // 1: somebody runs tasks
    alignas(detail::apart) std::atomic<int> round_{0};
    alignas(detail::apart) std::atomic<int> active_{0};
    alignas(detail::apart) std::atomic<Index> next_{0};
};

namespace detail {

/// Another executor, with a serial_flops() of its own.
class PlannedExecutor final : public Executor {
public:
    PlannedExecutor(Executor& executor, double serial_flops)
        : executor_(&executor), serial_flops_(serial_flops) {}

    int concurrency() const override { return executor_->concurrency(); }
    void run(Index tasks, TaskRef task) override { executor_->run(tasks, task); }
    double serial_flops() const override { return serial_flops_; }

private:
    Executor* executor_;
    double serial_flops_;
};

/// Tasks that one worker does, one after the other, until others take some of them.
struct alignas(apart) TaskRange {
    std::atomic<Index> next{0};
    Index end = 0;

    Index left() const { return end - next.load(std::memory_order_relaxed); }
};

/// More workers than this share ranges of tasks.
inline constexpr int most_ranges = 64;

/// Cuts the tasks into ranges of about equal cost.
/// @param cost  of a task; null: all are equal
inline void cut_tasks(Index tasks, const FunctionRef<double(Index)>* cost, TaskRange* ranges,
                      int count) {
    const auto of = [&](Index i) { return cost == nullptr ? 1.0 : (*cost)(i); };
    double total = 0, sum = 0;
    for (Index i = 0; i < tasks; ++i) total += of(i);
    Index i = 0;
    for (int r = 0; r < count; ++r) {
        const double share = total * (r + 1) / count;
        ranges[r].next.store(i, std::memory_order_relaxed);
        for (; i < tasks && (r + 1 == count || sum + of(i) / 2 < share); ++i) sum += of(i);
        ranges[r].end = i;
    }
}

/// Runs every task. A worker does those of its own range, which lie next to each other, and then
/// takes some of the range that has most left.
inline void run_ranges(Executor& executor, Index tasks, const FunctionRef<double(Index)>* cost,
                       TaskRef task) {
    const int count =
        static_cast<int>(std::min<Index>({tasks, executor.concurrency(), Index{most_ranges}}));
    TaskRange ranges[most_ranges];
    cut_tasks(tasks, cost, ranges, count);
    auto work = [&](Index, int worker) {
        TaskRange* const own = ranges + worker % count;
        for (;;) {
            TaskRange* from = own;
            Index most = own->left();
            const int others = most > 0 ? 0 : count;  // only a worker without tasks looks for more
            for (int r = 0; r < others; ++r)
                if (const Index left = ranges[r].left(); left > most)
                    from = ranges + r, most = left;
            if (most <= 0) return;
            const Index i = from->next.fetch_add(1, std::memory_order_relaxed);
            if (i < from->end) task(i, worker);
        }
    };
    executor.run(std::min<Index>(tasks, executor.concurrency()), work);
}

/// run_ranges() with the exception of the lowest task that threw; later ones may be skipped.
inline void run_guarded(Executor& executor, Index tasks, const FunctionRef<double(Index)>* cost,
                        TaskRef task) {
#if defined(__cpp_exceptions)
    std::exception_ptr error;
    std::atomic<Index> failed{tasks};
    std::atomic<bool> locked{false};
    auto guarded = [&](Index i, int worker) {
        if (i > failed.load(std::memory_order_relaxed)) return;
        try {
            task(i, worker);
        } catch (...) {
            while (locked.exchange(true)) pause();
            if (i < failed.load()) failed.store(i), error = std::current_exception();
            locked.store(false);
        }
    };
    run_ranges(executor, tasks, cost, guarded);
    if (error) std::rethrow_exception(error);
#else
    run_ranges(executor, tasks, cost, task);
#endif
}

/// Runs function(task, worker) for every task, in parallel if `flops` is worth it. The exception
/// of the lowest task that threw arrives at the caller; tasks after a throw may be skipped.
/// @param cost  cost(task), in any unit, where tasks are not about equal
template <class F, class Cost = std::nullptr_t>
void parallel_for(Executor& executor, Index tasks, double flops, F&& function,
                  const Cost& cost = nullptr) {
    if (tasks <= 1 || flops < executor.serial_flops() || executor.concurrency() <= 1) {
        for (Index i = 0; i < tasks; ++i) function(i, 0);
    } else if constexpr (std::is_same_v<Cost, std::nullptr_t>) {
        run_guarded(executor, tasks, nullptr, function);
    } else {
        const FunctionRef<double(Index)> of(cost);
        run_guarded(executor, tasks, &of, function);
    }
}

/// f(token, worker) for every token, in blocks over the executor's workers. f must not throw and
/// writes what belongs to its token, or scratch of its worker.
/// @param flops  of one token
template <class F>
void for_tokens(Executor& executor, Index tokens, double flops, F&& f) {
    constexpr Index block = 64;
    const Index blocks = tokens / block + (tokens % block != 0);
    parallel_for(executor, blocks, flops * static_cast<double>(tokens),
                 [&](Index number, int worker) {
                     const Index last = std::min(tokens, (number + 1) * block);
                     for (Index t = number * block; t < last; ++t) f(t, worker);
                 });
}

}  // namespace detail
}  // namespace moe::inline MOE_ABI

#endif  // MOE_CORE_EXECUTOR_HPP
