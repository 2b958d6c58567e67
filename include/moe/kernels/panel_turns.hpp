// SPDX-License-Identifier: MIT
#ifndef MOE_KERNELS_PANEL_TURNS_HPP
#define MOE_KERNELS_PANEL_TURNS_HPP

#include <atomic>
#include <cstddef>

#include <moe/core/types.hpp>

#if defined(__x86_64__)
#include <moe/kernels/x86/cpuid.hpp>
#endif

namespace moe::inline MOE_ABI::detail {

/// Who brings packed weights from memory for products of few rows, which are as fast as that is.
/// The result is the same. A core that read eight plain streams at 32 GB/s took GB/s of weights
/// (AVX-512, Zen 4; Zen 3 and 5 by inference):
///
///                                  kernels, 1, 2, 4, 8 rows     processor
///     float, 768 by 2048           22  21  18  16               33  32  31  24
///     bf16, 2048 by 1024           20  18  17                   31  30  21
///     int8                         15  15  16                   22  20  20
///
/// and in a layer 14336 inputs of 8 rows 1.4 times as fast. On Intel's cores it is the other way
/// round: product_of_panels and storage_body.inl have the figures.
enum class Fetcher : int {
    unknown,
    kernels,    ///< panels take turns, and tiles prefetch the next records of all of them
    processor,  ///< panel after panel, as they lie in memory, so that it sees what comes next; many
                ///< prefetches would only take the few misses that its first cache may have
};

/// Asked at the first question; tests set another.
inline constinit std::atomic<Fetcher> fetcher_in_use{Fetcher::unknown};

inline bool processor_fetches() {
    Fetcher known = fetcher_in_use.load(std::memory_order_relaxed);
    if (known == Fetcher::unknown) [[unlikely]] {
        Fetcher answer = Fetcher::kernels;
#if defined(__x86_64__)
        if (machine().zen3) answer = Fetcher::processor;
#endif
        // As in isa(): what a test set meanwhile stays.
        if (fetcher_in_use.compare_exchange_strong(known, answer, std::memory_order_relaxed))
            known = answer;
    }
    return known == Fetcher::processor;
}

/// The panels of a product in runs that take turns, and what is read after each run:
///
///     for (PanelTurns turn(panel, bytes, width, cols, 8, ahead); turn.panels > 0; turn.next())
struct PanelTurns {
    const std::byte* at;    ///< the first panel of this run
    const std::byte* then;  ///< the first of the next one, or `ahead`
    Index panels;           ///< of this run; 0 behind the last
    Index column;           ///< the first of this run

    /// @param panel         the first, of `panel_bytes` bytes
    /// @param panel_width   columns of each
    /// @param cols          of all
    /// @param together      most panels of a run
    /// @param ahead_of_all  what is read behind the last run; may be null
    PanelTurns(const std::byte* panel, Index panel_bytes, Index panel_width, Index cols,
               Index together, const std::byte* ahead_of_all)
        : at(panel),
          column(0),
          bytes_(together * panel_bytes),
          width_(panel_width),
          cols_(cols),
          together_(together),
          ahead_(ahead_of_all) {
        look();
    }

    void next() {
        at += bytes_;
        column += together_ * width_;
        look();
    }

private:
    void look() {
        const Index left = column < cols_ ? (cols_ - column + width_ - 1) / width_ : 0;
        panels = left < together_ ? left : together_;
        then = left > together_ ? at + bytes_ : ahead_;
    }

    Index bytes_, width_, cols_, together_;
    const std::byte* ahead_;
};

}  // namespace moe::inline MOE_ABI::detail

#endif  // MOE_KERNELS_PANEL_TURNS_HPP
