// SPDX-License-Identifier: MIT
#ifndef MOE_CORE_STEERING_HPP
#define MOE_CORE_STEERING_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <span>

#include <moe/core/context.hpp>
#include <moe/core/memory.hpp>
#include <moe/core/types.hpp>
#include <moe/core/views.hpp>

/// What a context does to logits before a gate sees them, and the way back.
///
///     z' = z + u o,           o = logit_offset + logit_offset_per_sequence of its sequence,
///                             u = 1, or the standard deviation of z with OffsetUnit::row_std
///     z'_e = -inf             where a token is padding or e is not allowed
///     z'_e = max(z'_e, m+)    where e is forced: m+ is the number next above m, the largest z' of
///                             those that are not
///
/// A forced logit is m, as far as gradients go. e is one of the experts' own logits, the first of
/// a token; offsets are of all L. Where experts have none, masks are left to the gate and forces
/// are refused.

namespace moe::inline MOE_ABI::detail {

/// The offset of logit l of a token.
inline double offset_of(const Context& context, Index token, Index l, Index num_logits) {
    double offset = 0;
    if (!context.logit_offset.empty()) offset = context.logit_offset[static_cast<std::size_t>(l)];
    if (!context.dial.logit_offset_per_sequence.empty())
        offset += context.dial.logit_offset_per_sequence[static_cast<std::size_t>(
            context.sequence_of(token) * num_logits + l)];
    return offset;
}

inline bool has_offset(const Context& context) {
    return !context.logit_offset.empty() || !context.dial.logit_offset_per_sequence.empty();
}

/// Mean and population standard deviation of those of n logits that are not -inf.
struct RowSpread {
    double mean = 0, deviation = 0;
    Index count = 0;

    template <class S>
    RowSpread(const S* z, Index n) {
        constexpr S dead = -std::numeric_limits<S>::infinity();
        for (Index l = 0; l < n; ++l)
            if (z[l] != dead) mean += static_cast<double>(z[l]), ++count;
        if (count == 0) return;
        mean /= static_cast<double>(count);
        double sum = 0;
        for (Index l = 0; l < n; ++l) {
            if (z[l] == dead) continue;
            const double from_mean = static_cast<double>(z[l]) - mean;
            sum = std::fma(from_mean, from_mean, sum);
        }
        deviation = std::sqrt(sum / static_cast<double>(count));
    }
};

/// Writes `value` where a token is padding, and where an expert is not allowed.
/// @param own  logits that are the experts' own: E, or 0
template <class S>
void mask_logits(View<S> matrix, const Context& context, Index own, S value) {
    if (!context.restricts()) own = 0;
    if (context.padding.empty() && own == 0) return;
    for (Index t = 0; t < matrix.rows(); ++t) {
        if (context.is_padding(t)) std::fill_n(row_data(matrix, t), matrix.cols(), value);
        for (Index e = 0; e < own; ++e)
            if (!context.is_allowed(t, e)) matrix(t, e) = value;
    }
}

/// Where the largest of the experts' logits of a row is that are not forced; -1: there is none.
template <class S>
Index largest_unforced(const S* z, Index token, Index own, const Context& context) {
    Index best = -1;
    for (Index e = 0; e < own; ++e)
        if (!context.is_forced(token, e) && z[e] != -std::numeric_limits<S>::infinity() &&
            (best < 0 || z[e] > z[best]))
            best = e;
    return best;
}

template <class S>
S next_above(S z) {
    return std::nextafter(z, std::numeric_limits<S>::infinity());
}

/// The way there.
/// @param logits  [T, L], of which the first `own` are the experts'
/// @param raw     gets what they were, if the way back needs it; null: there is no way back
template <class S>
void steer(View<S> logits, const Context& context, Index own, Buffer<S>* raw) {
    const Index n = logits.cols();
    if (raw != nullptr) raw->resize(0);
    if (has_offset(context)) {
        const bool in_std = context.dial.offset_unit == OffsetUnit::row_std;
        if (in_std && raw != nullptr) raw->matrix(logits.rows(), n) = logits;
        for (Index t = 0; t < logits.rows(); ++t) {
            const double unit = in_std ? RowSpread(row_data(logits, t), n).deviation : 1;
            for (Index l = 0; l < n; ++l) {
                const double offset = offset_of(context, t, l, n);
                logits(t, l) +=
                    static_cast<S>(in_std && offset != 0 ? std::fma(unit, offset, 0.0) : offset);
            }
        }
    }
    mask_logits(logits, context, own, -std::numeric_limits<S>::infinity());
    for (Index t = 0; t < logits.rows() && context.forces(); ++t) {
        S* z = row_data(logits, t);
        const Index best = largest_unforced(z, t, own, context);
        if (best < 0) continue;
        const S above = next_above(z[best]);
        for (Index e = 0; e < own; ++e)
            if (context.is_forced(t, e) && z[e] != -std::numeric_limits<S>::infinity() &&
                z[e] < above)
                z[e] = above;
    }
}

/// The way back: dlogits becomes the gradient at the logits of the router; gradients at offsets are
/// added to context.gradients.
/// @param logits  [T, L] as steer() left them   @param raw  as steer() left it
template <class S>
void steer_backward(View<S> dlogits, View<S> logits, const Context& context, Index own,
                    Buffer<S>& raw) {
    const Index n = dlogits.cols();
    for (Index t = 0; t < dlogits.rows() && context.forces(); ++t) {
        const S* z = row_data(logits, t);
        const Index best = largest_unforced(z, t, own, context);
        if (best < 0) continue;
        for (Index e = 0; e < own; ++e)
            if (context.is_forced(t, e) && z[e] == next_above(z[best])) {
                dlogits(t, best) += dlogits(t, e);
                dlogits(t, e) = 0;
            }
    }
    mask_logits(dlogits, context, own, S(0));
    const ContextGradients none, &wanted = context.gradients ? *context.gradients : none;
    if (!has_offset(context) && wanted.logit_offset.empty() &&
        wanted.logit_offset_per_sequence.empty())
        return;
    const bool in_std = raw.size() != 0;
    for (Index t = 0; t < dlogits.rows(); ++t) {
        if (context.is_padding(t)) continue;  // its logits may be no numbers
        S* dz = row_data(dlogits, t);
        const S* z = in_std ? raw.data() + t * n : nullptr;
        const RowSpread spread(z, in_std ? n : 0);
        const double unit = in_std ? spread.deviation : 1;
        const auto sequence = wanted.logit_offset_per_sequence.empty() ? 0 : context.sequence_of(t);
        double along = 0;  // d(loss)/d(unit)
        for (Index l = 0; l < n; ++l) {
            const auto g = static_cast<double>(dz[l]);
            if (in_std && g != 0) along = std::fma(g, offset_of(context, t, l, n), along);
            const auto add = [&](std::span<double> sum, Index i) {
                if (!sum.empty())
                    sum[static_cast<std::size_t>(i)] =
                        std::fma(g, unit, sum[static_cast<std::size_t>(i)]);
            };
            add(wanted.logit_offset, l);
            add(wanted.logit_offset_per_sequence, sequence * n + l);
        }
        if (along == 0 || spread.deviation == 0) continue;
        const double slope = along / (static_cast<double>(spread.count) * spread.deviation);
        for (Index l = 0; l < n; ++l)
            if (z[l] != -std::numeric_limits<S>::infinity())
                dz[l] = static_cast<S>(std::fma(slope, static_cast<double>(z[l]) - spread.mean,
                                                static_cast<double>(dz[l])));
    }
}

}  // namespace moe::inline MOE_ABI::detail

#endif  // MOE_CORE_STEERING_HPP
