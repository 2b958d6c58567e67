// SPDX-License-Identifier: MIT
#ifndef MOE_LOSSES_PREDICTION_CONSISTENCY_HPP
#define MOE_LOSSES_PREDICTION_CONSISTENCY_HPP

#include <cmath>
#include <limits>
#include <utility>

#include <moe/kernels/dispatch.hpp>
#include <moe/losses/log_softmax.hpp>
#include <moe/losses/loss.hpp>

namespace moe::inline MOE_ABI {
namespace detail {

/// Logits of the same classes from two passes, checked against one another.
template <class S>
struct TwoPredictions {
    In<S> first, second;  // [T, C]
    const Context& context;

    bool counts(Index token) const {
        return counts_in_losses(context, first, token) || counts_in_losses(context, second, token);
    }

    void check(Index drows, Index dcols, const char* field) const {
        if (drows != first.rows() || dcols != first.cols())
            fail("moe::prediction_consistency_loss: ", field, " is [", drows, ", ", dcols,
                 "], first is [", first.rows(), ", ", first.cols(), "]");
    }

    /// @return tokens that count
    Index count() const {
        constexpr S masked = -std::numeric_limits<S>::infinity();
        check(second.rows(), second.cols(), "second");
        check_extent("padding", context.padding.size(), first.rows(), "one per token");
        Index count = 0;
        for (Index t = 0; t < first.rows(); ++t) {
            if (!counts(t)) continue;
            ++count;
            for (Index c = 0; c < first.cols(); ++c)
                if ((first(t, c) == masked) != (second(t, c) == masked))
                    fail("moe::prediction_consistency_loss: class ", c, " of token ", t,
                         " is masked (-inf) in one pass only, so the loss is infinite; mask it in "
                         "both or in neither");
        }
        return count;
    }
};

}  // namespace detail

/// Makes two passes through random experts predict the same: the loss of stochastic experts, where
/// nothing is learned by the router and experts are to be interchangeable.
///
///     value      = mean over tokens of 1/2 sum_c (p(c) - q(c)) (log p(c) - log q(c))
///     dfirst(c)  = weight / 2T * (p(c) (log(p(c) / q(c)) - KL(p || q)) + p(c) - q(c))
///     dsecond(c) = the same with p and q exchanged
///
/// p = softmax(first), q = softmax(second): the mean of KL(p || q) and KL(q || p). The value is 0
/// for equal predictions and has no upper limit. THOR's code sums over tokens instead:
/// weight = alpha T.
///
/// This loss is about what the whole model predicts, not about logits of a router: so it takes the
/// outputs of two forward passes, each with a workspace and a Context::stream of its own, and their
/// gradients go into the backward passes. Nothing of a routing is read.
///
///     first: forward with {.stream = 0}      second: forward with {.stream = 1}
///     loss = cross-entropy of both + alpha * prediction_consistency_loss(first, second, ...)
///
/// @param first, second    [T, C] logits of classes
/// @param context          padding, which does not count; nor does a row of -inf in both
/// @param weight           alpha; published: 1, tuned up to 5
/// @param dfirst, dsecond  [T, C], **added** to
/// @return the value without `weight`; see Loss
/// @throws std::invalid_argument if extents differ or a class is masked (-inf) in one pass only.
///         Nothing is added then
/// Source: THOR (arXiv:2110.04260), section 3.
template <class X, class Z, class DX, class DZ>
Loss prediction_consistency_loss(const Eigen::DenseBase<X>& first,
                                 const Eigen::DenseBase<Z>& second, const Context& context,
                                 double weight, DX&& dfirst, DZ&& dsecond) {
    using S = typename X::Scalar;
    const Eigen::Ref<const Matrix<S>> x = detail::readable<S>(first);
    const Eigen::Ref<const Matrix<S>> z = detail::readable<S>(second);
    Eigen::Ref<Matrix<S>> dx = detail::writable<S>(std::forward<DX>(dfirst));
    Eigen::Ref<Matrix<S>> dz = detail::writable<S>(std::forward<DZ>(dsecond));
    const detail::TwoPredictions<S> in{x, z, context};
    in.check(dx.rows(), dx.cols(), "dfirst");
    in.check(dz.rows(), dz.cols(), "dsecond");
    const Index tokens = in.count(), classes = x.cols();
    if (tokens == 0) return {"prediction_consistency", 0};
    const KernelTable<S>& table = kernels<S>();
    Buffer<S> room;  // [4, C]
    S* p = room.resize(detail::checked_product(4, classes)).data();
    S *q = p + classes, *log_p = q + classes, *log_q = log_p + classes, *log_ratio = log_p;
    const S factor = static_cast<S>(weight / (2 * static_cast<double>(tokens)));
    double sum = 0;
    for (Index t = 0; t < x.rows(); ++t) {
        if (!in.counts(t)) continue;
        detail::log_softmax(table, classes, row_data(x, t), p, log_p);
        detail::log_softmax(table, classes, row_data(z, t), q, log_q);
        for (Index c = 0; c < classes; ++c)
            log_ratio[c] =
                x(t, c) == -std::numeric_limits<S>::infinity() ? S(0) : log_p[c] - log_q[c];
        const S of_first = table.dot(classes, p, log_ratio);    // KL(p || q)
        const S of_second = -table.dot(classes, q, log_ratio);  // KL(q || p)
        sum += (static_cast<double>(of_first) + static_cast<double>(of_second)) / 2;
        if (weight == 0) continue;
        for (Index c = 0; c < classes; ++c) {
            const S apart = p[c] - q[c];
            p[c] = std::fma(p[c], log_ratio[c] - of_first, apart);
            q[c] = std::fma(q[c], -log_ratio[c] - of_second, -apart);
        }
        table.axpy(classes, factor, p, row_data(dx, t));
        table.axpy(classes, factor, q, row_data(dz, t));
    }
    return {"prediction_consistency", sum / static_cast<double>(tokens)};
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_LOSSES_PREDICTION_CONSISTENCY_HPP
