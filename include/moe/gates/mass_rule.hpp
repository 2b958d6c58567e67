// SPDX-License-Identifier: MIT
#ifndef MOE_GATES_MASS_RULE_HPP
#define MOE_GATES_MASS_RULE_HPP

#include <algorithm>
#include <cmath>
#include <limits>

#include <moe/core/context.hpp>
#include <moe/core/error.hpp>
#include <moe/core/types.hpp>
#include <moe/gates/select.hpp>
#include <moe/gates/tokens.hpp>
#include <moe/kernels/dispatch.hpp>

namespace moe::inline MOE_ABI {

/// When enough probability is gathered; c_j is the sum of the j largest of softmax(logits).
enum class MassRule {
    exceed,  ///< the fewest experts with c_j > p (Dynamic_MoE, arXiv:2403.07652)
    reach,   ///< the fewest experts with c_j >= p (Uni-MoE 2.0, arXiv:2511.12609)
    below,   ///< all experts with c_j <= p, the one that crosses p excluded (DynMoLE,
             ///< arXiv:2504.00661)
};

namespace detail {

/// @throws std::invalid_argument if a mass is not a number
inline void check_mass(const char* gate, const char* field, double p) {
    if (std::isnan(p)) fail(gate, ": ", field, " is not a number");
}

/// p of each token: the dial's, else the gate's own.
/// @throws std::invalid_argument if one is not a number, or the sequences are not known
inline Dialled<double> dialled_mass(const char* gate, double own, const Context& context,
                                    Index tokens) {
    const auto p = dialled<double>(gate, "dial.p_per_sequence", context.dial.p.value_or(own),
                                   context.dial.p_per_sequence, context, tokens);
    p.for_each("dial.p", "dial.p_per_sequence",
               [gate](const char* field, double value) { check_mass(gate, field, value); });
    return p;
}

/// Whether the rule goes no further than the expert that brings the sum to c.
template <class S>
bool is_enough(MassRule rule, S c, S p) {
    return rule == MassRule::exceed ? c > p : rule == MassRule::reach ? c >= p : !(c <= p);
}

/// Ranks the experts that the rule takes, `least` to `most` of them. p >= 1, rounded to S, takes
/// `most` and p <= 0 `least` without summing. Sums are compared with p as numbers of type S.
///
/// Some at a time, and on from there. To find those above a threshold by bisection first, and sort
/// them, was slower: slots and sums want the order in any case, and the kernel that ranks 16 is
/// quicker than a sort. On Zen 3 with AVX2, in microseconds per token of float:
///
///     n = 128, takes 12 / 50 / 115    ranking 0.6 / 3.5 / 6.0     bisection 0.5 / 6.3 / 13
///     n = 256, takes 30 / 98 / 228    ranking 0.9 / 7.1 / 15      bisection 4.9 / 13 / 29
///
/// With the scalar kernels (MOE_ISA=scalar) alone bisection took half as long where many are taken.
///
/// @param z              [n] logits
/// @param probabilities  [2 n] scratch
/// @param ranked         [n]
template <class S>
Index rank_mass(Index n, const S* z, double p, MassRule rule, Index least, Index most,
                S* probabilities, Ranked<S>* ranked) {
    constexpr Index few = 16;  // ranked at a time: most tokens stop early
    // The first comparison keeps what no float can hold from the conversion.
    if (p >= 1 || static_cast<S>(p) >= 1) return rank_by_index(n, z, most, ranked);
    if (p <= 0) return rank_by_index(n, z, least, ranked);
    kernels<S>().softmax(n, z, probabilities);
    S* left = probabilities + n;  // logits of those that are not ranked yet
    std::copy_n(z, n, left);
    Index found = 0, count = 0;  // how many are ranked, and the rule takes
    double sum = 0;
    for (bool ends = false; !ends && found < most;) {
        const Index wanted = std::min(found == 0 ? std::max(few, least) : few, most - found);
        const Index last = found + rank_by_index(n, left, wanted, ranked + found);
        for (Index j = found; j < last && !ends; ++j) {
            sum += static_cast<double>(probabilities[ranked[j].index]);
            ends = is_enough(rule, static_cast<S>(sum), static_cast<S>(p));
            if (!ends || rule != MassRule::below) ++count;
        }
        ends = ends || last - found < wanted;
        for (; found < last; ++found)
            left[ranked[found].index] = -std::numeric_limits<S>::infinity();
    }
    return std::min(found, std::max(count, least));
}

}  // namespace detail
}  // namespace moe::inline MOE_ABI

#endif  // MOE_GATES_MASS_RULE_HPP
