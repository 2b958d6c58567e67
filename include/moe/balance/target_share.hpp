// SPDX-License-Identifier: MIT
#ifndef MOE_BALANCE_TARGET_SHARE_HPP
#define MOE_BALANCE_TARGET_SHARE_HPP

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <moe/balance/selection_bias.hpp>
#include <moe/core/context.hpp>
#include <moe/core/error.hpp>
#include <moe/core/types.hpp>

namespace moe::inline MOE_ABI {

/// Moves some experts to given shares of the load and leaves the others to the router.
///
///     b(e) += rate * (target(e) - load(e) / total load)    where e is steered
///
/// The bias sums up the deviations: it is the integral part of a PID controller. Nothing moves
/// while there is no load. Experts that are not steered share what is left as their scores say, so
/// that with free experts among them each token still chooses how much work it needs, and the mean
/// is what the targets say. With all experts steered and targets of 1 / E it is ProportionalUpdate
/// of rate / E.
///
///     auto controller = TargetShareUpdate::of_costly(layer.head().facts(), 8.0 / 12);
///     update_bias(layer, load, controller);
///
/// Source: LongCat-Flash (arXiv:2509.01322) section 2.1: FFN experts are steered to K_e of K slots,
/// zero-computation experts are not.
struct TargetShareUpdate {
    double rate = 1e-3;
    std::vector<double> target;           ///< [E] of all assignments, in [0, 1]; sum at most 1
    std::vector<std::uint8_t> steered{};  ///< [E] 0: the bias stays, the target does not count;
                                          ///< empty: all are

    /// Experts that cost something get equal parts of `share`, which counts all assignments; free
    /// ones (zero, copy, null) are not steered.
    /// @param facts  [E] Head::facts()
    /// @param share  in [0, 1]: of K slots per token, the K_e to be spent on these experts make
    ///               K_e / K
    /// @throws std::invalid_argument if share is out of range, or all experts are free
    static TargetShareUpdate of_costly(std::span<const ExpertFacts> facts, double share,
                                       double rate = 1e-3) {
        if (!(share >= 0 && share <= 1))
            detail::fail("moe::TargetShareUpdate: share is ", share, ", it must be in [0, 1]");
        TargetShareUpdate update{.rate = rate, .target = {}};
        double costly = 0;
        for (const ExpertFacts& expert : facts) {
            update.steered.push_back(expert.is_free ? 0 : 1);
            costly += expert.is_free ? 0 : 1;
        }
        if (costly == 0)
            detail::fail("moe::TargetShareUpdate: none of the ", facts.size(),
                         " experts costs anything, so there is nothing to steer");
        for (const ExpertFacts& expert : facts)
            update.target.push_back(expert.is_free ? 0 : share / costly);
        return update;
    }

    /// As SignUpdate::update.
    /// @throws std::invalid_argument also if a target is out of range
    template <class S>
    void update(std::span<S> bias, std::span<const double> load) const {
        detail::check_rate(name, rate);
        detail::mean_load(name, bias.size(), load);
        check_targets(bias.size());
        double total = 0;
        for (const double count : load) total += count;
        if (total == 0) return;
        for (std::size_t e = 0; e < bias.size(); ++e)
            if (is_steered(e))
                bias[e] = static_cast<S>(
                    std::fma(rate, target[e] - load[e] / total, static_cast<double>(bias[e])));
    }

private:
    static constexpr const char* name = "TargetShareUpdate";

    bool is_steered(std::size_t e) const { return steered.empty() || steered[e] != 0; }

    void check_targets(std::size_t experts) const {
        if (target.size() != experts || (!steered.empty() && steered.size() != experts))
            detail::fail("moe::", name, ": target has ", target.size(), " entries and steered ",
                         steered.size(), ", the bias has ", experts);
        double sum = 0;
        for (std::size_t e = 0; e < experts; ++e) {
            if (!is_steered(e)) continue;
            if (!(target[e] >= 0 && target[e] <= 1))
                detail::fail("moe::", name, ": the target of expert ", e, " is ", target[e],
                             ", it must be in [0, 1], a share of all assignments");
            sum += target[e];
        }
        if (sum > 1 + 1e-6)
            detail::fail("moe::", name, ": the targets sum to ", sum,
                         ", they are shares of all assignments and sum to 1 at most");
    }
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_BALANCE_TARGET_SHARE_HPP
