// SPDX-License-Identifier: MIT
#ifndef MOE_BENCH_LAYER_RACE_HPP
#define MOE_BENCH_LAYER_RACE_HPP

#include <chrono>
#include <cstddef>
#include <functional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <benchmark/benchmark.h>

#include "machine.hpp"

namespace bench {

/// Several ways to do the same, timed in turn, so that whatever else the machine does meets all of
/// them. The first one is the row's.
class Race {
public:
    /// @param counter  of the row: this one's time over the first one's; empty for none
    /// @param settle   seconds to wait after it, while threads of its own still spin
    void add(std::string counter, std::function<void()> run, double settle = 0) {
        entries_.push_back({std::move(counter), std::move(run), settle, {}});
    }

    /// @param hot    each is run once more just before it is timed; otherwise the caches of those
    ///               who work for `executor` are emptied
    /// @param limit  measures how long the first one has to take at least
    void run(benchmark::State& state, bool hot, moe::Executor& executor,
             const std::function<double()>& limit) {
        for (auto _ : state) {
            sleep(0.02);  // threads that wait for work spin for a while
            const double least = limit();
            for (Entry& entry : entries_) {
                hot ? entry.run() : machine::evict_caches(executor);
                entry.times.push_back(machine::timed(entry.run));
                sleep(entry.settle);
            }
            state.SetIterationTime(entries_.front().times.back());
            of_limit_.push_back(entries_.front().times.back() / least);
        }
        for (const Entry& entry : entries_)
            if (!entry.counter.empty())
                state.counters[entry.counter] = machine::median(entry.times) / seconds();
    }

    /// Median of entry `i`, in the order they were added.
    double seconds(std::size_t i = 0) const { return machine::median(entries_[i].times); }
    /// Median of the first one's time over its limit just before.
    double of_limit() const { return machine::median(of_limit_); }

private:
    static void sleep(double seconds) {
        if (seconds > 0) std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
    }

    struct Entry {
        std::string counter;
        std::function<void()> run;
        double settle;
        std::vector<double> times;
    };
    std::vector<Entry> entries_;
    std::vector<double> of_limit_;
};

/// A row of the table, so many runs of it.
template <class F>
void add_row(const std::string& name, int runs, F run) {
    benchmark::RegisterBenchmark(name.c_str(), run)
        ->UseManualTime()
        ->Unit(benchmark::kMillisecond)
        ->Iterations(runs);
}

/// Runs of a row: figures are medians of these.
inline int runs_of(std::ptrdiff_t tokens) { return tokens > 1000 ? 3 : 7; }

/// "T:32/threads:2"
inline std::string size_of(std::ptrdiff_t tokens, int threads) {
    return "T:" + std::to_string(tokens) + "/threads:" + std::to_string(threads);
}

}  // namespace bench

#endif  // MOE_BENCH_LAYER_RACE_HPP
