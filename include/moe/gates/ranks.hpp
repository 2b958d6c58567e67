// SPDX-License-Identifier: MIT
#ifndef MOE_GATES_RANKS_HPP
#define MOE_GATES_RANKS_HPP

#include <vector>

#include <moe/core/concepts.hpp>
#include <moe/gates/score.hpp>
#include <moe/gates/select.hpp>
#include <moe/gates/token_gate.hpp>
#include <moe/gates/weights.hpp>

namespace moe::inline MOE_ABI {

template <class S>
class RanksModule;

/// Recipe for a gate that gives every token its experts of given ranks, 0 being the best: {1} the
/// second best alone, {0, 1} what TopK{.k = 2} gives.
///
/// Source: self-contrast mixture-of-experts (arXiv:2405.14507), which holds what a model says with
/// its usual experts against what it says with the one of rank 1 or 2: a second Head on the same
/// Bank.
struct Ranks {
    std::vector<Index> ranks = {1};  ///< ascending, each in [0, E)

    Score score = Score::softmax;
    Normalize normalize = Normalize::plain;  ///< over the picked: one expert alone weighs 1
    double epsilon = 1e-20;                  ///< for add_epsilon and clamp
    bool normalize_kept_only = false;        ///< as in TopK
    double scale = 1;                        ///< multiplies the weights at last
    Placement placement = Placement::output;

    /// @throws std::invalid_argument if a setting is out of range
    template <class S>
    RanksModule<S> build(const Shape& shape, Random&) const {
        return RanksModule<S>(*this, shape.num_experts);
    }
};

/// The gate that Ranks describes.
///
///     S_t = experts of z_t with these ranks         z [L], the logits
///     w_t = scale * score(z_t)[S_t] / normaliser
///
/// Slots are in falling order of z_t, ties go to the lower index. Experts at -inf have no rank: a
/// row with too few others gets fewer experts, maybe none. A NaN ranks last; its row gets NaN
/// weights. Null experts have a rank like others, are left out of normalisation, and weigh 0.
template <class S>
class RanksModule : public TokenGate<S, RanksModule<S>> {
    using Base = TokenGate<S, RanksModule>;
    friend Base;

public:
    using Base::num_experts;

    RanksModule() = default;
    /// @throws std::invalid_argument if a setting is out of range
    RanksModule(const Ranks& settings, Index experts)
        : Base(experts),
          settings_(settings),
          rule_(detail::combine_rule(settings, settings.score)) {
        rule_.check(name);
        if (settings.ranks.empty())
            detail::fail(name, ": ranks is empty; name at least one: moe::Ranks{.ranks = {1}}");
        Index before = -1;
        for (const Index rank : settings.ranks) {
            if (rank < 0 || rank >= experts)
                detail::fail(name, ": a rank is ", rank, ", it must be in [0, ", experts,
                             "), the experts of the layer");
            if (rank <= before)
                detail::fail(name, ": rank ", rank, " follows rank ", before,
                             ", they must ascend; slots are in falling order of the logits");
            before = rank;
        }
    }

    const Ranks& settings() const { return settings_; }

private:
    static constexpr const char* name = "moe::Ranks";

    Index most_experts() const { return static_cast<Index>(settings_.ranks.size()); }
    const detail::CombineRule& rule() const { return rule_; }

    auto choice(const Call<S>&, Index) const {
        return [this](Index, const S* z, S*, detail::Ranked<S>* ranked) {
            const Index found =
                detail::rank_by_index(num_experts(), z, settings_.ranks.back() + 1, ranked);
            Index count = 0;
            for (const Index rank : settings_.ranks)  // rank >= count, since they ascend
                if (rank < found) ranked[count++] = ranked[rank];
            return count;
        };
    }

    Ranks settings_;
    detail::CombineRule rule_;
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_GATES_RANKS_HPP
