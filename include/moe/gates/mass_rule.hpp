// SPDX-License-Identifier: MIT
#ifndef MOE_GATES_MASS_RULE_HPP
#define MOE_GATES_MASS_RULE_HPP

#include <algorithm>
#include <cmath>

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

/// How many of the ranked experts the rule takes. Sums are compared with p as numbers of type S.
template <class S>
Index mass_prefix(Index found, S p, MassRule rule, const S* probabilities,
                  const Ranked<S>* ranked) {
    double sum = 0;
    for (Index j = 0; j < found; ++j) {
        sum += static_cast<double>(probabilities[ranked[j].index]);
        const auto c = static_cast<S>(sum);
        if (rule == MassRule::exceed && c > p) return j + 1;
        if (rule == MassRule::reach && c >= p) return j + 1;
        if (rule == MassRule::below && !(c <= p)) return j;
    }
    return found;
}

/// Ranks the experts that the rule takes, `least` to `most` of them. p >= 1, rounded to S, takes
/// `most` and p <= 0 `least` without summing.
/// @param z              [n] logits
/// @param probabilities  [n] scratch
/// @param ranked         [n]
template <class S>
Index rank_mass(Index n, const S* z, double p, MassRule rule, Index least, Index most,
                S* probabilities, Ranked<S>* ranked) {
    constexpr Index few = 16;  // most tokens stop early; ranking few is cheap
    // The first comparison keeps what no float can hold from the conversion.
    if (p >= 1 || static_cast<S>(p) >= 1) return rank_by_index(n, z, most, ranked);
    if (p <= 0) return rank_by_index(n, z, least, ranked);
    kernels<S>().softmax(n, z, probabilities);
    for (Index tried = std::min(std::max(few, least), most);; tried = std::min(4 * tried, most)) {
        const Index found = rank_by_index(n, z, tried, ranked);
        const Index count = mass_prefix(found, static_cast<S>(p), rule, probabilities, ranked);
        if (count < found || found < tried || tried == most)
            return std::min(found, std::max(count, least));
    }
}

}  // namespace detail
}  // namespace moe::inline MOE_ABI

#endif  // MOE_GATES_MASS_RULE_HPP
