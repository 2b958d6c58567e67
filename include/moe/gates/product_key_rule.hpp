// SPDX-License-Identifier: MIT
#ifndef MOE_GATES_PRODUCT_KEY_RULE_HPP
#define MOE_GATES_PRODUCT_KEY_RULE_HPP

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include <moe/core/memory.hpp>
#include <moe/core/types.hpp>
#include <moe/core/workspace.hpp>
#include <moe/gates/select.hpp>
#include <moe/kernels/dispatch.hpp>

namespace moe::inline MOE_ABI::detail {

/// A weight, or the gradient at one, of an expert.
template <class S>
struct ExpertValue {
    std::int32_t expert, order;  // order: head
    S value;

    bool operator<(const ExpertValue& other) const {
        return expert < other.expert || (expert == other.expert && order < other.order);
    }
};

/// What one worker works in while heads choose.
template <class S>
struct ProductKeyRoom {
    ExpertValue<S>* entries;  // [experts of all heads, or of a list]
    Ranked<S>* ranked;        // [max(n, pairs)]
    S *axis[2], *daxis[2];    // [kept]
    std::int32_t* index[2];   // [kept]
    S *sums, *weights;        // [pairs]
    std::int32_t* expert;     // [pairs]
};

/// That room for every worker.
template <class S>
struct ProductKeyScratch {
    Buffer<ExpertValue<S>> all_entries;
    Buffer<Ranked<S>> all_ranked;
    Buffer<S> values;
    Buffer<std::int32_t> indices;
    Index entries = 0, ranked = 0, kept = 0, pairs = 0;  // per worker

    /// @param masks   whether pairs may be forbidden: then all are looked at
    /// @param wanted  entries
    template <class Rule>
    void resize(const Rule& rule, Index workers, bool masks, Index wanted) {
        const auto round = round_up_16;
        entries = round(wanted);
        kept = round(rule.most_kept());
        pairs =
            rule.is_sum ? round(masks ? rule.n * rule.n : rule.most_kept() * rule.most_kept()) : 0;
        ranked = std::max(round(rule.n), pairs);
        all_entries.resize(checked_product(workers, entries));
        all_ranked.resize(checked_product(workers, ranked));
        values.resize(checked_product(workers, 4 * kept + 2 * pairs));
        indices.resize(checked_product(workers, 2 * kept + pairs));
    }
    /// Bytes of that, without masks.
    template <class Rule>
    static Index bytes(const Rule& rule, Index workers, Index wanted) {
        const auto round = round_up_16;
        const Index kept = round(rule.most_kept());
        const Index pairs = rule.is_sum ? round(rule.most_kept() * rule.most_kept()) : 0;
        const auto size = [](std::size_t each) { return static_cast<Index>(each); };
        return workers * (round(wanted) * size(sizeof(ExpertValue<S>)) +
                          std::max(round(rule.n), pairs) * size(sizeof(Ranked<S>)) +
                          (4 * kept + 2 * pairs) * size(sizeof(S)) +
                          (2 * kept + pairs) * size(sizeof(std::int32_t)));
    }
    ProductKeyRoom<S> room(int worker) {
        S* v = values.data() + worker * (4 * kept + 2 * pairs);
        std::int32_t* i = indices.data() + worker * (2 * kept + pairs);
        return {.entries = all_entries.data() + worker * entries,
                .ranked = all_ranked.data() + worker * ranked,
                .axis = {v, v + kept},
                .daxis = {v + 2 * kept, v + 3 * kept},
                .index = {i, i + kept},
                .sums = v + 4 * kept,
                .weights = v + 4 * kept + pairs,
                .expert = i + 2 * kept};
    }
};

/// What the heads of a token choose among n^2 pairs of half-keys, and the way back. The formulas
/// are at ProductKeyTopKModule.
template <class S>
struct ProductKeyRule {
    Index n = 0, heads = 1, k = 1;
    bool is_sum = true;  ///< else axis_softmax
    bool is_sigmoid = false;
    const S* mean = nullptr;  ///< [H, 2] with variance, if axes keep what is above the quantile
    const S* variance = nullptr;
    double quantile = 0;

    Index most_kept() const { return mean != nullptr ? n : k; }
    /// What all heads choose at most, counted once per head.
    Index most_entries() const { return heads * (is_sum ? k : most_kept() * most_kept()); }
    Index most_experts() const { return std::min(n * n, most_entries()); }
    double flops() const {
        return static_cast<double>(heads) *
               (40.0 * static_cast<double>(n) + 20.0 * static_cast<double>(k * k));
    }

    static bool is_null(Index expert, const Call<S>& call) {
        const auto e = at(expert);
        return e < call.context.experts.size() && call.context.experts[e].is_null;
    }
    /// The value of an expert among [count] ascending entries, 0 if it is not there.
    static S find(const ExpertValue<S>* entries, Index count, Index expert) {
        const auto at = std::lower_bound(
            entries, entries + count, expert,
            [](const ExpertValue<S>& entry, Index wanted) { return entry.expert < wanted; });
        return at != entries + count && at->expert == expert ? at->value : S(0);
    }

    /// The experts of a token and their weights, ascending, in room.entries.
    Index merge(const S* z, Index t, const Call<S>& call, const ProductKeyRoom<S>& room) const {
        const bool broken = is_broken(z);
        Index count = 0;
        const auto add = [&](Index expert, Index h, S weight) {
            room.entries[count++] = {static_cast<std::int32_t>(expert),
                                     static_cast<std::int32_t>(h),
                                     broken ? std::numeric_limits<S>::quiet_NaN() : weight};
        };
        for (Index h = 0; h < heads; ++h) {
            const Head head = choose(z, h, t, call, room, broken);
            for (Index p = 0; p < head.pairs; ++p) add(room.expert[p], h, room.weights[p]);
            if (is_sum) continue;
            for (Index a = 0; a < head.kept[0]; ++a)
                for (Index b = 0; b < head.kept[1]; ++b) {
                    const Index expert = room.index[0][a] * n + room.index[1][b];
                    // An fma with 0, because a bare product could be fused into the sum of heads.
                    if (is_allowed(t, expert, call))
                        add(expert, h, std::fma(room.axis[0][a], room.axis[1][b], S(0)));
                }
        }
        if (heads == 1) return count;
        std::sort(room.entries, room.entries + count);
        Index merged = 0;
        for (Index i = 0; i < count; ++i) {
            if (merged > 0 && room.entries[merged - 1].expert == room.entries[i].expert)
                room.entries[merged - 1].value += room.entries[i].value;
            else
                room.entries[merged++] = room.entries[i];
        }
        return merged;
    }

    /// Adds the gradient of one token to dz [H 2 n].
    /// @param count  gradients at the weights of experts that are not null, in room.entries
    void add_gradient(const S* z, Index t, Index count, const Call<S>& call,
                      const ProductKeyRoom<S>& room, S* dz) const {
        if (is_broken(z)) {
            for (Index l = 0; l < heads * 2 * n; ++l)
                if (z[l] != dead) dz[l] = std::numeric_limits<S>::quiet_NaN();
            return;
        }
        std::sort(room.entries, room.entries + count);
        for (Index h = 0; h < heads; ++h) {
            const Head head = choose(z, h, t, call, room, false);
            if (is_sum)
                add_sum_gradient(head, room, count, dz + h * 2 * n);
            else
                add_axis_gradient(head, room, count, t, call, dz + h * 2 * n);
        }
    }

private:
    static constexpr S dead = -std::numeric_limits<S>::infinity();

    /// What a head chose; the rest is in the room.
    struct Head {
        Index kept[2];  // axis_softmax: axis, index
        Index pairs;    // sum_top_k: sums, weights, expert, experts ascending
    };

    bool is_allowed(Index t, Index expert, const Call<S>& call) const {
        return call.context.is_allowed(t, expert, n * n);
    }
    bool is_broken(const S* z) const {
        bool broken = false;
        for (Index l = 0; l < heads * 2 * n; ++l) broken |= std::isnan(z[l]);
        return broken;
    }

    /// What head h of token t chooses, with weights.
    Head choose(const S* z, Index h, Index t, const Call<S>& call, const ProductKeyRoom<S>& room,
                bool broken) const {
        Head head{{0, 0}, 0};
        if (is_sum && call.context.restricts()) {
            head.pairs = rank_pairs(offer_allowed(z + h * 2 * n, t, call, room), call, room);
            return head;
        }
        for (Index a = 0; a < 2; ++a) {
            head.kept[a] = keep(z, 2 * h + a, broken, room, room.index[a]);
            for (Index i = 0; i < head.kept[a]; ++i)
                room.axis[a][i] = z[(2 * h + a) * n + room.index[a][i]];
        }
        if (is_sum) {
            Index count = 0;
            for (Index a = 0; a < head.kept[0]; ++a)
                for (Index b = 0; b < head.kept[1]; ++b) {
                    room.sums[count] = room.axis[0][a] + room.axis[1][b];
                    room.expert[count++] =
                        static_cast<std::int32_t>(room.index[0][a] * n) + room.index[1][b];
                }
            head.pairs = rank_pairs(count, call, room);
        } else {
            for (Index a = 0; a < 2; ++a)
                kernels<S>().softmax(head.kept[a], room.axis[a], room.axis[a]);
        }
        return head;
    }

    /// The half-keys that an axis keeps, ascending.
    Index keep(const S* z, Index axis, bool broken, const ProductKeyRoom<S>& room,
               std::int32_t* index) const {
        const S* own = z + axis * n;
        if (mean != nullptr && !broken) {
            const auto centre = static_cast<double>(mean[axis]);
            const double spread = std::sqrt(static_cast<double>(variance[axis]) + 1e-5);
            const auto normal = [&](Index i) {
                return (static_cast<double>(own[i]) - centre) / spread;
            };
            double best = -std::numeric_limits<double>::infinity();
            for (Index i = 0; i < n; ++i) best = std::max(best, normal(i));
            Index count = 0;
            for (Index i = 0; i < n; ++i)
                if (own[i] != dead && normal(i) >= std::min(quantile, best))
                    index[count++] = static_cast<std::int32_t>(i);
            return count;
        }
        const Index count = rank_by_index(n, own, k, room.ranked);
        for (Index i = 0; i < count; ++i) index[i] = room.ranked[i].index;
        std::sort(index, index + count);
        return count;
    }

    /// All pairs that a token may have, as candidates.
    Index offer_allowed(const S* z, Index t, const Call<S>& call,
                        const ProductKeyRoom<S>& room) const {
        Index count = 0;
        for (Index i = 0; i < n; ++i)
            for (Index j = 0; j < n; ++j) {
                if (z[i] == dead || z[n + j] == dead || !is_allowed(t, i * n + j, call)) continue;
                room.sums[count] = z[i] + z[n + j];
                room.expert[count++] = static_cast<std::int32_t>(i * n + j);
            }
        return count;
    }

    /// Leaves the k best of [count] candidates, whose experts ascend; fills their weights.
    Index rank_pairs(Index count, const Call<S>& call, const ProductKeyRoom<S>& room) const {
        const Index found = rank_by_index(count, room.sums, k, room.ranked);
        std::sort(room.ranked, room.ranked + found,
                  [](const auto& a, const auto& b) { return a.index < b.index; });
        for (Index p = 0; p < found; ++p) {
            room.sums[p] = room.sums[room.ranked[p].index];
            room.expert[p] = room.expert[room.ranked[p].index];
            room.weights[p] = is_null(room.expert[p], call) ? dead : room.sums[p];
        }
        if (is_sigmoid)
            kernels<S>().sigmoid(found, room.weights, room.weights);
        else
            kernels<S>().softmax(found, room.weights, room.weights);
        return found;
    }

    /// softmax: dz = w (g - sum of w g); sigmoid: dz = w (1 - w) g; at both half-keys of a pair.
    void add_sum_gradient(const Head& head, const ProductKeyRoom<S>& room, Index count,
                          S* dz) const {
        S average = 0;
        for (Index p = 0; p < head.pairs && !is_sigmoid; ++p)
            average = std::fma(room.weights[p], find(room.entries, count, room.expert[p]), average);
        if (is_sigmoid) {
            for (Index p = 0; p < head.pairs; ++p) room.sums[p] = -room.sums[p];
            kernels<S>().sigmoid(head.pairs, room.sums, room.sums);  // 1 - w, without cancelling
        }
        for (Index p = 0; p < head.pairs; ++p) {
            const S g = find(room.entries, count, room.expert[p]);
            const S slope = is_sigmoid ? room.sums[p] * g : g - average;
            S &first = dz[room.expert[p] / n], &second = dz[n + room.expert[p] % n];
            first = std::fma(room.weights[p], slope, first);
            second = std::fma(room.weights[p], slope, second);
        }
    }

    /// With w = p q: dp_i = sum of q_j g_ij over j, dz1_i = p_i (dp_i - sum of p dp); the same for
    /// q.
    void add_axis_gradient(const Head& head, const ProductKeyRoom<S>& room, Index count, Index t,
                           const Call<S>& call, S* dz) const {
        for (Index a = 0; a < 2; ++a) std::fill_n(room.daxis[a], head.kept[a], S(0));
        for (Index i = 0; i < head.kept[0]; ++i)
            for (Index j = 0; j < head.kept[1]; ++j) {
                const Index expert = room.index[0][i] * n + room.index[1][j];
                if (!is_allowed(t, expert, call)) continue;
                const S g = find(room.entries, count, expert);
                room.daxis[0][i] = std::fma(room.axis[1][j], g, room.daxis[0][i]);
                room.daxis[1][j] = std::fma(room.axis[0][i], g, room.daxis[1][j]);
            }
        for (Index a = 0; a < 2; ++a) {
            S average = 0;
            for (Index i = 0; i < head.kept[a]; ++i)
                average = std::fma(room.axis[a][i], room.daxis[a][i], average);
            for (Index i = 0; i < head.kept[a]; ++i) {
                S& slot = dz[a * n + room.index[a][i]];
                slot = std::fma(room.axis[a][i], room.daxis[a][i] - average, slot);
            }
        }
    }
};

}  // namespace moe::inline MOE_ABI::detail

#endif  // MOE_GATES_PRODUCT_KEY_RULE_HPP
