// SPDX-License-Identifier: MIT
#ifndef MOE_LOSSES_TSALLIS_ENTROPY_HPP
#define MOE_LOSSES_TSALLIS_ENTROPY_HPP

#include <cmath>
#include <limits>
#include <utility>

#include <moe/core/random.hpp>
#include <moe/gates/tsallis_entropy.hpp>
#include <moe/kernels/dispatch.hpp>
#include <moe/losses/loss.hpp>

namespace moe::inline MOE_ABI {

/// Which entropy tsallis_entropy_loss() is about. The defaults are DynMoLE's, and those that
/// HybridEntropy decides by.
struct TsallisEntropy {
    double index = 1.1;     ///< q, finite and > 0; 1: Shannon's
    double epsilon = 1e-5;  ///< added to each probability, finite and >= 0
};

namespace detail {

/// p(l) (a(l) - sum_i p(i) a(i)), which is dH/dz of tsallis_entropy(): a = dH/dp, up to a constant.
/// @param z      [n] logits
/// @param p      [n] their softmax
/// @param slope  [n] written; 0 where p is 0
template <class S>
void tsallis_entropy_slopes(Index n, const S* z, const S* p, double index, double epsilon,
                            S* slope) {
    Index live = 0;
    for (Index l = 0; l < n; ++l) live += z[l] == -std::numeric_limits<S>::infinity() ? 0 : 1;
    const auto count = static_cast<double>(live);
    const double most = index == 1 ? portable_log(count) : 1 - std::pow(count, 1 - index);
    double mean = 0;
    for (Index l = 0; l < n; ++l) {
        const auto share = static_cast<double>(p[l]);
        double product = 0;  // p a
        if (live < 2)
            product = share - share;  // one certain expert, or NaN
        else if (share != 0 && index == 1)
            product = -share * portable_log(share + epsilon) / most;
        else if (share != 0)
            product = -share * index * (std::pow(share + epsilon, index - 1) - 1) / most;
        mean += product;
        slope[l] = static_cast<S>(product);
    }
    for (Index l = 0; l < n; ++l) slope[l] = std::fma(-p[l], static_cast<S>(mean), slope[l]);
}

template <class S>
Loss tsallis_entropy_loss(const LossInput<S>& in, LossScratch<S>& scratch,
                          const TsallisEntropy& options) {
    in.check("tsallis_entropy_loss");
    if (!(options.index > 0 && std::isfinite(options.index)))
        fail("moe::TsallisEntropy: index is ", options.index,
             ", it must be finite and > 0; 1 is Shannon's entropy");
    if (!(options.epsilon >= 0 && std::isfinite(options.epsilon)))
        fail("moe::TsallisEntropy: epsilon is ", options.epsilon,
             ", it must be finite and >= 0; 0 adds nothing");
    const Index logits = in.logits.cols(), tokens = in.count(0, in.logits.rows());
    if (tokens == 0) return {"tsallis_entropy", 0};
    const KernelTable<S>& table = kernels<S>();
    S* p = scratch.scores.resize(logits).data();
    S* slope = scratch.gradient.resize(logits).data();
    const S factor = static_cast<S>(in.weight / static_cast<double>(tokens));
    double sum = 0;
    for (Index t = 0; t < in.logits.rows(); ++t) {
        if (!in.counts(t)) continue;
        table.softmax(logits, in.row(t), p);
        sum += tsallis_entropy(logits, in.row(t), p, options.index, options.epsilon);
        if (in.weight == 0) continue;
        tsallis_entropy_slopes(logits, in.row(t), p, options.index, options.epsilon, slope);
        table.axpy(logits, factor, slope, in.drow(t));
    }
    return {"tsallis_entropy", sum / static_cast<double>(tokens)};
}

}  // namespace detail

/// Makes the router decide, as entropy_loss() does, by the Tsallis entropy over the largest that
/// there is: what HybridEntropy compares with its threshold.
///
///     value = mean over tokens of H,  H = (1 - sum_l p(l)^q) / (1 - N^(1 - q))
///     dz(l) = weight / T * s(l) (a(l) - sum_i s(i) a(i)),  a = -q p^(q - 1) / (1 - N^(1 - q))
///
/// s = softmax(z), p = s + epsilon, N the experts that are not masked (-inf). q = 1 is its limit,
/// H = -sum p log p / log N. For epsilon 0, H is 1 for equal logits and 0 for one certain expert;
/// otherwise p sums to 1 + N epsilon, as published, which moves H by about N epsilon / |q - 1|. A
/// token with one expert has H = 0 and no gradient.
///
/// A large q looks at the best experts only, a small one at the many unlikely ones.
///
/// @param logits   [T, L]
/// @param routing  of the same tokens; its assignments are not read
/// @param weight   published: 1e-2
/// @param dlogits  [T, L], **added** to
/// @return the value without `weight`; see Loss
/// @throws std::invalid_argument if an option is out of range; dlogits is as it was then
/// Source: DynMoLE (arXiv:2504.00661) and its released code.
template <class X, class Y>
Loss tsallis_entropy_loss(const Eigen::DenseBase<X>& logits, const Routing& routing,
                          const Context& context, double weight, Y&& dlogits,
                          const TsallisEntropy& options = {}) {
    using S = typename X::Scalar;
    const auto loss = [&](const detail::LossInput<S>& in, detail::LossScratch<S>& scratch) {
        return detail::tsallis_entropy_loss(in, scratch, options);
    };
    return detail::call_loss(loss, logits, routing, context, weight, std::forward<Y>(dlogits));
}

/// tsallis_entropy_loss of the batch that `ws` holds.
template <class S>
Loss tsallis_entropy_loss(Workspace<S>& ws, double weight, const TsallisEntropy& options = {}) {
    const auto loss = [&](const detail::LossInput<S>& in, detail::LossScratch<S>& scratch) {
        return detail::tsallis_entropy_loss(in, scratch, options);
    };
    return detail::call_loss(loss, ws, weight);
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_LOSSES_TSALLIS_ENTROPY_HPP
