// SPDX-License-Identifier: MIT
#ifndef MOE_COMPOSE_SLOT_SHARES_HPP
#define MOE_COMPOSE_SLOT_SHARES_HPP

#include <cmath>
#include <cstddef>
#include <limits>
#include <span>

#include <moe/core/executor.hpp>
#include <moe/core/group.hpp>
#include <moe/core/memory.hpp>
#include <moe/core/sequences.hpp>
#include <moe/core/types.hpp>
#include <moe/core/workspace.hpp>
#include <moe/kernels/dispatch.hpp>

namespace moe::inline MOE_ABI::detail {

/// f(row) for all rows, in parallel.
/// @param flops  about, per row
template <class F>
void for_rows(Executor& executor, Index count, Index flops, F&& f) {
    const double all = static_cast<double>(count) * static_cast<double>(flops);
    for_row_runs(executor, count, all, [&f](Index first, Index last, int) {
        for (Index row = first; row < last; ++row) f(row);
    });
}

/// The two softmaxes of one matrix of logits L [T, P]:
///
///     D(t, p) = softmax of L over the tokens t of a sequence
///     C(t, p) = softmax of L over the slots p
///
/// and d(loss)/dL = D (dD - <D, dD>) + C (dC - <C, dC>), each with the sum it was divided by.
template <class S>
struct SlotShares {
    Index tokens = 0, slots = 0;
    Buffer<S> dispatch;             // [P, T] D, slots in rows
    Buffer<S> combine;              // [T, P] L, then C
    Buffer<S> ddispatch, dcombine;  // [P, T], [T, P] at those; dcombine at L after backward()

    void resize(Index num_tokens, Index num_slots) {
        tokens = num_tokens, slots = num_slots;
        dispatch.matrix(slots, tokens), combine.matrix(tokens, slots);
    }
    void resize_gradients() { ddispatch.matrix(slots, tokens), dcombine.matrix(tokens, slots); }

    /// @param logit  logit(t, p, l): what becomes of the logit l
    template <class F>
    void forward(const Sequences& sequences, Executor& executor, F&& logit) {
        const KernelTable<S>& kernel = kernels<S>();
        for_rows(executor, tokens, slots * 16, [&](Index t) {
            S* const row = combine.data() + t * slots;
            for (Index p = 0; p < slots; ++p)
                dispatch.data()[p * tokens + t] = row[p] = logit(t, p, row[p]);
            kernel.softmax(slots, row, row);
        });
        for_rows(executor, slots, tokens * 16, [&](Index p) {
            for (Index b = 0; b < sequences.count(); ++b) {
                S* const run = dispatch.data() + p * tokens + sequences.first(b);
                kernel.softmax(sequences.size(b), run, run);
            }
        });
    }

    void backward(const Sequences& sequences, Executor& executor) {
        const KernelTable<S>& kernel = kernels<S>();
        for_rows(executor, slots, tokens * 4, [&](Index p) {
            for (Index b = 0; b < sequences.count(); ++b) {
                const Index at = p * tokens + sequences.first(b), n = sequences.size(b);
                const S* const share = dispatch.data() + at;
                S* const slope = ddispatch.data() + at;
                const S mean = kernel.dot(n, share, slope);
                for (Index i = 0; i < n; ++i) slope[i] = share[i] * (slope[i] - mean);
            }
        });
        for_rows(executor, tokens, slots * 8, [&](Index t) {
            const S* const share = combine.data() + t * slots;
            S* const slope = dcombine.data() + t * slots;
            const S mean = kernel.dot(slots, share, slope);
            for (Index p = 0; p < slots; ++p)
                slope[p] = std::fma(share[p], slope[p] - mean, ddispatch.data()[p * tokens + t]);
        });
    }
};

}  // namespace moe::inline MOE_ABI::detail

#endif  // MOE_COMPOSE_SLOT_SHARES_HPP
