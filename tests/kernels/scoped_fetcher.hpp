// SPDX-License-Identifier: MIT
#ifndef MOE_TESTS_KERNELS_SCOPED_FETCHER_HPP
#define MOE_TESTS_KERNELS_SCOPED_FETCHER_HPP

#include <moe/kernels/panel_turns.hpp>

namespace kernel_test {

using moe::detail::Fetcher;

/// Products of few rows let this one fetch while it lives, then the previous one again.
class ScopedFetcher {
public:
    explicit ScopedFetcher(Fetcher wanted)
        : previous_(moe::detail::fetcher_in_use.exchange(wanted)) {}
    ~ScopedFetcher() { moe::detail::fetcher_in_use = previous_; }
    ScopedFetcher(const ScopedFetcher&) = delete;
    ScopedFetcher& operator=(const ScopedFetcher&) = delete;

private:
    Fetcher previous_;
};

inline constexpr Fetcher fetchers[] = {Fetcher::kernels, Fetcher::processor};

}  // namespace kernel_test

#endif  // MOE_TESTS_KERNELS_SCOPED_FETCHER_HPP
