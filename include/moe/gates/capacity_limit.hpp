// SPDX-License-Identifier: MIT
#ifndef MOE_GATES_CAPACITY_LIMIT_HPP
#define MOE_GATES_CAPACITY_LIMIT_HPP

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include <moe/core/error.hpp>
#include <moe/core/types.hpp>

namespace moe::inline MOE_ABI {

/// How many assignments an expert takes, by the published formulas:
///
///     share = T k / E                T tokens without padding, E experts; T k without per_expert
///     C     = round(factor share),   at least `minimum`, then up to a multiple of `multiple_of`
///
/// With two classes of experts (MoE++, arXiv:2410.07348), of which N0 compute and N1 replace
/// computation, share = T k u / (tau N0 + N1), u = tau for the former and 1 for the latter.
///
/// A rule that is no case of this is a gate around a gate of your own: see GateWrapper.
///
/// Each name below is a formula as its code has it; change a member of what it returns if yours
/// differs. All numbers are double. Where a paper cuts C at T nothing is cut here: an expert cannot
/// get more than T. Nor is C ever more than 2147483647.
struct CapacityLimit {
    enum class Rounding { floor, ceil, nearest_even };

    double factor = 1.25;    ///< >= 0; infinity: no limit
    double k = 0;            ///< assignments per token in the formula; 0: those that were made
    bool per_expert = true;  ///< whether the share is divided by the number of experts
    /// Whether the division comes last: (factor T k) / E. 1.2 * 35 / 3 is 14, and 1.2 * (35 / 3) a
    /// little less, of which floor makes 13.
    bool divides_last = false;
    Rounding rounding = Rounding::ceil;
    /// Whether T / E is rounded up before the factor comes in, and k multiplies what is rounded
    /// afterwards: C = k round(factor ceil(T / E)) (Tutel, EvoMoE). Without divides_last.
    bool whole_share = false;
    Index minimum = 0;
    Index multiple_of = 1;
    double computing_share = 1;  ///< tau above; 1: one class (MoE++: 0.1 to 1)

    /// No expert is ever full.
    static CapacityLimit none() { return {.factor = std::numeric_limits<double>::infinity()}; }
    /// The same number whatever the batch: 64 per sequence in Hugging Face's Switch.
    static CapacityLimit constant(Index capacity) {
        return {.factor = 0, .rounding = Rounding::floor, .minimum = capacity};
    }
    /// max(floor(T f / E), min): GShard (arXiv:2006.16668) and mesh-TF, 1.25 in training and 2.0 in
    /// evaluation; lucidrains with min 4, per sequence. No factor k.
    static CapacityLimit gshard(double factor = 1.25, Index minimum = 4) {
        return {.factor = factor,
                .k = 1,
                .divides_last = true,
                .rounding = Rounding::floor,
                .minimum = minimum};
    }
    /// max(ceil(T k / E f), min): DeepSpeed, min 4 in its layer and 8 in its gate. Its product is
    /// in float, so that it may be 1 more or less where T k / E f is nearly whole.
    static CapacityLimit deepspeed(double factor = 1, Index minimum = 4) {
        return {.factor = factor, .minimum = minimum};
    }
    /// ceil(T k / E f): Megatron-LM.
    static CapacityLimit megatron(double factor = 1) { return {.factor = factor}; }
    /// max(round(f T / E), min), half to even, no factor k: flaxformer.
    static CapacityLimit flaxformer(double factor = 1.25, Index minimum = 4) {
        return {.factor = factor,
                .k = 1,
                .divides_last = true,
                .rounding = Rounding::nearest_even,
                .minimum = minimum};
    }
    /// ceil(T k f / E), up to a multiple of 4: V-MoE (arXiv:2106.05974).
    static CapacityLimit vmoe(double factor = 1.05) {
        return {.factor = factor, .divides_last = true, .multiple_of = 4};
    }
    /// k floor(f ceil(T / E)), up to the alignment: Tutel (arXiv:2206.03382). Its f = 0 is none().
    static CapacityLimit tutel(double k, double factor = 1, Index alignment = 1) {
        return {.factor = factor,
                .k = k,
                .rounding = Rounding::floor,
                .whole_share = true,
                .multiple_of = alignment};
    }
    /// floor(f ceil(T / E)): EvoMoE's top-1 in training (arXiv:2112.14397).
    static CapacityLimit evo_moe(double factor = 1) { return tutel(1, factor); }
    /// 2 ceil(T / E): NLLB in training; none() in evaluation.
    static CapacityLimit nllb() { return tutel(1, 2); }
    /// max(k, floor(k T / E)): Hunyuan, in training and inference.
    static CapacityLimit hunyuan(Index k) {
        return {.factor = 1, .rounding = Rounding::floor, .minimum = k};
    }
    /// floor(2 f T / E), at least 4, then even: OpenMoE (arXiv:2402.01739).
    static CapacityLimit openmoe(double factor = 1.25) {
        return {.factor = factor,
                .k = 2,
                .divides_last = true,
                .rounding = Rounding::floor,
                .minimum = 4,
                .multiple_of = 2};
    }
    /// ceil(rate T), not divided by E: fastmoe, 1.2 in training and 2.4 in evaluation; EvoMoE in
    /// evaluation, 0.25.
    static CapacityLimit of_tokens(double rate) {
        return {.factor = rate, .k = 1, .per_expert = false};
    }
    /// max(ceil(T / E f), 8), E without the fixed experts: Uni-MoE (arXiv:2511.12609). Give
    /// Capacity::unlimited_last their number.
    static CapacityLimit uni_moe(double factor = 3) {
        return {.factor = factor, .k = 1, .minimum = 8};
    }
    /// gamma T k u / (tau N0 + N1), rounded up: MoE++ (arXiv:2410.07348).
    static CapacityLimit moe_plus_plus(double gamma = 1.1, double tau = 0.75) {
        return {.factor = gamma, .divides_last = true, .computing_share = tau};
    }

    /// C of one expert.
    /// @param tokens       T
    /// @param assignments  that they made; stands for T k if k is 0
    /// @param computing    N0, experts that compute   @param replacing  N1, those that do not
    /// @param computes     of which kind the expert is
    Index operator()(Index tokens, Index assignments, Index computing, Index replacing,
                     bool computes = true) const {
        constexpr Index most = std::numeric_limits<std::int32_t>::max();
        const auto given = static_cast<double>(assignments);
        const double all = whole_share ? static_cast<double>(tokens)
                           : k == 0    ? given
                                       : static_cast<double>(tokens) * k;
        const double experts = std::fma(computing_share, static_cast<double>(computing),
                                        static_cast<double>(replacing));
        const double of_kind = all * (computes ? computing_share : 1);
        double capacity = 0;
        if (divides_last && !whole_share) {
            capacity = round(per_expert ? factor * of_kind / experts : times_factor(of_kind));
        } else {
            const double share = per_expert ? of_kind / experts : of_kind;
            capacity = round(times_factor(whole_share ? std::ceil(share) : share));
        }
        if (whole_share)
            capacity *= k != 0 ? k : given / std::max(static_cast<double>(tokens), 1.0);
        if (!(capacity < static_cast<double>(most))) return most;
        const Index whole = std::max(static_cast<Index>(capacity), std::min(minimum, most));
        return std::min(round_up(whole), most);
    }

    /// @throws std::invalid_argument if a setting is out of range
    void check(const char* who) const {
        if (!(factor >= 0))
            detail::fail(who, ": factor is ", factor, ", it must be >= 0; for no limit take ",
                         "moe::CapacityLimit::none()");
        if (!(k >= 0 && std::isfinite(k)))
            detail::fail(who, ": k is ", k, ", it must be finite and >= 0");
        if (!(computing_share > 0 && std::isfinite(computing_share)))
            detail::fail(who, ": computing_share is ", computing_share,
                         ", it must be finite and > 0");
        if (minimum < 0 || multiple_of < 1)
            detail::fail(who, ": minimum is ", minimum, " and multiple_of ", multiple_of,
                         ", they must be >= 0 and >= 1");
        if (rounding < Rounding::floor || rounding > Rounding::nearest_even)
            detail::fail(who, ": rounding is number ", static_cast<int>(rounding),
                         " of its choices, they are 0 to 2");
    }

private:
    /// An fma with 0, because a bare product could be fused into what follows.
    double times_factor(double x) const { return std::fma(factor, x, 0.0); }
    double round(double x) const {
        if (rounding == Rounding::floor) return std::floor(x);
        if (rounding == Rounding::ceil) return std::ceil(x);
        const double below = std::floor(x), over = x - below;
        const bool up = over > 0.5 || (over == 0.5 && std::fmod(below, 2) != 0);
        return up ? below + 1 : below;
    }
    Index round_up(Index count) const {
        const Index rest = count % multiple_of;
        return rest == 0 ? count : count + (multiple_of - rest);
    }
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_GATES_CAPACITY_LIMIT_HPP
