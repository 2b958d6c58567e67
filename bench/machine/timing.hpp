// SPDX-License-Identifier: MIT
#ifndef MOE_BENCH_MACHINE_TIMING_HPP
#define MOE_BENCH_MACHINE_TIMING_HPP

#include <algorithm>
#include <barrier>
#include <chrono>
#include <cstddef>
#include <thread>
#include <vector>

namespace machine {

/// Seconds since some moment.
inline double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
}

/// Seconds that f() takes.
template <class F>
double timed(F&& f) {
    const double start = now();
    f();
    return now() - start;
}

/// The middle one; the larger of two.
inline double median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
}

/// Seconds of f(thread, run) on `threads` threads at once, from the first one's start to the last
/// one's end, the shortest of `runs` runs after a first one. The threads are there before that.
template <class F>
double together(int threads, int runs, F&& f) {
    const auto count = static_cast<std::size_t>(threads);
    std::vector<double> starts(count), ends(count);
    std::barrier line(threads);
    double best = 1e30;
    const auto work = [&](int thread) {
        for (int run = 0; run <= runs; ++run) {
            line.arrive_and_wait();
            starts[static_cast<std::size_t>(thread)] = now();
            f(thread, run);
            ends[static_cast<std::size_t>(thread)] = now();
            line.arrive_and_wait();
            if (thread == 0 && run > 0)
                best = std::min(best, *std::max_element(ends.begin(), ends.end()) -
                                          *std::min_element(starts.begin(), starts.end()));
        }
    };
    std::vector<std::thread> others;
    for (int thread = 1; thread < threads; ++thread) others.emplace_back(work, thread);
    work(0);
    for (std::thread& other : others) other.join();
    return best;
}

}  // namespace machine

#endif  // MOE_BENCH_MACHINE_TIMING_HPP
