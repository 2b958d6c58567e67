// SPDX-License-Identifier: MIT
#ifndef MOE_GATES_SELECT_HPP
#define MOE_GATES_SELECT_HPP

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include <moe/core/executor.hpp>
#include <moe/core/memory.hpp>
#include <moe/core/routing.hpp>
#include <moe/core/types.hpp>
#include <moe/core/views.hpp>
#include <moe/core/workspace.hpp>
#include <moe/kernels/dispatch.hpp>

namespace moe::inline MOE_ABI {

/// Who wins among equals.
enum class TieBreak {
    lower_index,         ///< the lower expert index, NaN last; as JAX and TensorFlow
    torch_cpu,           ///< whom torch.topk of the scores picks on a CPU, NaN first
    torch_cpu_unsorted,  ///< torch.topk(sorted=False): the same experts in its order of slots
};

/// The value of a group of experts.
enum class GroupScore {
    max,          ///< its best score (DeepSeek-V2, arXiv:2405.04434)
    top_two_sum,  ///< its two best scores added (DeepSeek-V3, arXiv:2412.19437)
    top_sum,      ///< its k / groups_kept best scores added (Megatron-LM)
};

/// What takes the place of scores in groups that are not kept.
enum class GroupMask {
    minus_infinity,  ///< never selected (DeepSeek)
    zero,            ///< selected before a score below 0 (Hugging Face deepseek_v3, glm4_moe)
};

namespace detail {

/// An entry of a row and its place in it.
template <class S>
struct Ranked {
    S key;
    std::int32_t index;
};

/// The `k` best live entries, best first: higher keys first, of equal ones the lower index, NaN
/// last. -inf is not alive. A kernel for few, O(n + k log k) for many.
/// @param ranked  [n] scratch
/// @return        how many were found; they are ranked[0], ranked[1], ...
template <class S>
Index rank_by_index(Index n, const S* keys, Index k, Ranked<S>* ranked) {
    constexpr S dead = -std::numeric_limits<S>::infinity();
    constexpr Index few = 32;
    // NaN becomes -inf: that ranks it last, and keeps comparisons an order.
    const auto comparable = [](S key) { return std::isnan(key) ? dead : key; };
    Index count = 0;
    if (k > few) {
        for (Index e = 0; e < n; ++e)
            if (keys[e] != dead)
                ranked[count++] = {comparable(keys[e]), static_cast<std::int32_t>(e)};
        k = std::min(k, count);
        const auto before = [](const Ranked<S>& a, const Ranked<S>& b) {
            return a.key > b.key || (a.key == b.key && a.index < b.index);
        };
        if (k < count) std::nth_element(ranked, ranked + k, ranked + count, before);
        std::sort(ranked, ranked + k, before);
        return k;
    }
    std::int32_t best[few];
    count = kernels<S>().top_k(n, keys, k, best);
    for (Index i = 0; i < count; ++i) ranked[i] = {comparable(keys[best[i]]), best[i]};
    return count;
}

/// The `most` best of the live entries for which passes(e), ranked as above. A rule written so that
/// comparisons with a NaN pass, !(z <= limit), leaves a NaN among the chosen, where it shows.
/// @param keys    [n] scratch
/// @param ranked  [n] scratch
template <class S, class Passes>
Index rank_where(Index n, const S* z, Index most, Passes&& passes, S* keys, Ranked<S>* ranked) {
    for (Index e = 0; e < n; ++e) keys[e] = passes(e) ? z[e] : -std::numeric_limits<S>::infinity();
    return rank_by_index(n, keys, most, ranked);
}

/// The entries that torch.topk finds in a row on a CPU, without those that are -inf.
///
/// It compares keys only, NaN above all, so that ties fall as the algorithms of the C++ library
/// happen to leave them. With libstdc++ they are those of the published PyTorch builds. Source:
/// pytorch, aten/src/ATen/native/TopKImpl.h.
template <class S>
Index rank_as_torch(Index n, const S* keys, Index k, bool sorted, Ranked<S>* ranked) {
    constexpr S dead = -std::numeric_limits<S>::infinity();
    for (Index e = 0; e < n; ++e) ranked[e] = {keys[e], static_cast<std::int32_t>(e)};
    const auto before = [](const Ranked<S>& a, const Ranked<S>& b) {
        return (std::isnan(a.key) && !std::isnan(b.key)) || a.key > b.key;
    };
    k = std::min(k, n);
    if (k == 0) return 0;
    if (k <= n / 64) {
        std::partial_sort(ranked, ranked + k, ranked + n, before);
    } else {
        std::nth_element(ranked, ranked + k - 1, ranked + n, before);
        if (sorted) std::sort(ranked, ranked + k - 1, before);  // the last one is in place
    }
    const auto end = std::remove_if(ranked, ranked + k,
                                    [](const Ranked<S>& entry) { return entry.key == dead; });
    return static_cast<Index>(end - ranked);
}

template <class S>
Index rank(Index n, const S* keys, Index k, TieBreak tie_break, Ranked<S>* ranked) {
    if (tie_break == TieBreak::lower_index) return rank_by_index(n, keys, k, ranked);
    return rank_as_torch(n, keys, k, tie_break == TieBreak::torch_cpu, ranked);
}

/// Selection from the best groups only. Group g is the g-th run of n / num_groups experts.
struct GroupLimit {
    Index num_groups = 1;
    Index groups_kept = 1;
    GroupScore score = GroupScore::max;
    GroupMask mask = GroupMask::minus_infinity;

    bool is_active() const { return groups_kept < num_groups; }

    /// The k best experts of the groups that are kept, as detail::rank() finds them. A group counts
    /// its live experts only; one that has none is not kept.
    /// @param scores  [n] what groups are compared by
    /// @param keys    [n] what experts are compared by; may be scores
    /// @param values  [2 n] scratch
    /// @param ranked  [n]
    template <class S>
    Index rank(Index n, Index k, const S* scores, const S* keys, TieBreak tie_break, S* values,
               Ranked<S>* ranked) const {
        constexpr Index few = 64;
        S* left = values + n;
        const Index size = n / num_groups;
        if (mask == GroupMask::minus_infinity && tie_break == TieBreak::lower_index &&
            num_groups <= few) {
            // Only what is kept is looked at, half of it in DeepSeek-V3. A list of the kept groups
            // first, without a branch, which would be taken at random.
            std::int32_t kept[few];
            mark_kept(n, k, scores, tie_break, values, ranked);
            Index count = 0;
            for (Index g = 0; g < num_groups; ++g) {
                kept[count] = static_cast<std::int32_t>(g);
                count += values[g] != 0;
            }
            for (Index i = 0; i < count; ++i)
                std::copy_n(keys + kept[i] * size, size, left + i * size);
            const Index found = rank_by_index(count * size, left, k, ranked);
            const auto run = static_cast<std::uint32_t>(size);
            for (Index i = 0; i < found; ++i) {
                const auto place = static_cast<std::uint32_t>(ranked[i].index);
                ranked[i].index = kept[place / run] * static_cast<std::int32_t>(run) +
                                  static_cast<std::int32_t>(place % run);
            }
            return found;
        }
        std::copy_n(keys, n, left);
        apply(n, k, scores, left, tie_break, values, ranked);
        return detail::rank(n, left, k, tie_break, ranked);
    }

    /// Masks the keys of groups that are not kept.
    /// @param keys    [n]
    /// @param values  [n] scratch
    template <class S>
    void apply(Index n, Index k, const S* scores, S* keys, TieBreak tie_break, S* values,
               Ranked<S>* ranked) const {
        constexpr S dead = -std::numeric_limits<S>::infinity();
        mark_kept(n, k, scores, tie_break, values, ranked);
        const Index size = n / num_groups;
        for (Index g = 0; g < num_groups; ++g) {
            if (values[g] != 0) continue;
            S* group = keys + g * size;
            if (mask == GroupMask::minus_infinity)
                std::fill_n(group, size, dead);
            else
                std::replace_if(
                    group, group + size, [](S key) { return key != dead; }, S(0));
        }
    }

private:
    /// values[g] = 1 for groups that are kept, 0 for others.
    template <class S>
    void mark_kept(Index n, Index k, const S* scores, TieBreak tie_break, S* values,
                   Ranked<S>* ranked) const {
        constexpr S dead = -std::numeric_limits<S>::infinity();
        const Index size = n / num_groups;
        const Index terms = score == GroupScore::max ? 1
                            : score == GroupScore::top_two_sum
                                ? 2
                                : std::max(k / groups_kept, Index(1));
        // One or two best of each group at once. Where there are none, they may be NaN.
        const bool quick = tie_break == TieBreak::lower_index && terms <= 2 && size >= 2;
        S* seconds = values + num_groups;
        if (quick) kernels<S>().top_two(num_groups, size, scores, values, seconds);
        for (Index g = 0; g < num_groups; ++g) {
            if (quick && (terms == 1 ? values[g] : seconds[g]) != dead) {
                if (terms == 2) values[g] += seconds[g];
                continue;
            }
            const S* group = scores + g * size;
            const Index found = detail::rank(size, group, std::min(terms, size), tie_break, ranked);
            values[g] = found == 0 ? dead : group[ranked[0].index];
            for (Index i = 1; i < found; ++i) values[g] += group[ranked[i].index];
        }
        const Index found = detail::rank(num_groups, values, groups_kept, tie_break, ranked);
        std::fill_n(values, num_groups, S(0));
        for (Index i = 0; i < found; ++i) values[ranked[i].index] = 1;
    }
};

/// What a gate needs per worker while it selects.
template <class S>
struct SelectScratch {
    Buffer<S> values;             // [workers, 3 L]
    Buffer<Ranked<S>> ranked;     // [workers, L]
    Buffer<std::int32_t> chosen;  // [wave, most]
    Buffer<std::int32_t> counts;  // [wave]
};

/// Tokens that are chosen for in parallel before their assignments are added in order.
inline constexpr Index selection_wave = 2048;

/// Room for select_each().
/// @param n     logits per token
/// @param most  experts that a token can get
template <class S>
SelectScratch<S>& reserve_selection(Workspace<S>& ws, Index tokens, Index n, Index most) {
    auto& scratch = ws.template state<SelectScratch<S>>();
    const Index workers = ws.executor().concurrency(), wave = std::min(selection_wave, tokens);
    scratch.values.resize(checked_product(workers, round_up_16(3 * n)));
    scratch.ranked.resize(checked_product(workers, round_up_16(n)));
    scratch.chosen.resize(checked_product(wave, most));
    scratch.counts.resize(wave);
    return scratch;
}

/// Bytes of that room.
template <class S>
Index selection_bytes(Index tokens, Index n, Index most, Index workers) {
    const auto scalar = static_cast<Index>(sizeof(S));
    const auto entry = static_cast<Index>(sizeof(Ranked<S>));
    const Index chosen = std::min(selection_wave, tokens) * (most + 1);
    return workers * (round_up_16(3 * n) * scalar + round_up_16(n) * entry) +
           chosen * static_cast<Index>(sizeof(std::int32_t));
}

/// Adds to `routing` what `choose` picks for each token, in its order.
/// @param most    experts that a token can get
/// @param choose  choose(token, z, values, ranked) -> count, with z [L] the token's logits,
///                values [3 L] and ranked [L] scratch; leaves its choice in ranked[0 .. count)
template <class S, class Choose>
void select_each(In<S> logits, Routing& routing, const Call<S>& call, Index most, Choose&& choose) {
    Executor& executor = call.ws.executor();
    const Index tokens = logits.rows(), n = logits.cols();
    const Index values_stride = round_up_16(3 * n), ranked_stride = round_up_16(n);
    auto& scratch = reserve_selection<S>(call.ws, tokens, n, most);
    for (Index first = 0; first < tokens; first += selection_wave) {
        const Index here = std::min(selection_wave, tokens - first);
        for_tokens(executor, here, 20.0 * static_cast<double>(n), [&](Index i, int worker) {
            Ranked<S>* ranked = scratch.ranked.data() + worker * ranked_stride;
            const Index count = choose(first + i, row_data(logits, first + i),
                                       scratch.values.data() + worker * values_stride, ranked);
            scratch.counts[i] = static_cast<std::int32_t>(count);
            for (Index s = 0; s < count; ++s) scratch.chosen[i * most + s] = ranked[s].index;
        });
        routing.add_lists(first, {scratch.counts.data(), at(here)}, scratch.chosen.data(), most);
    }
}

}  // namespace detail
}  // namespace moe::inline MOE_ABI

#endif  // MOE_GATES_SELECT_HPP
