// SPDX-License-Identifier: MIT
#ifndef MOE_LOSSES_PRIOR_HPP
#define MOE_LOSSES_PRIOR_HPP

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>
#include <vector>

#include <moe/core/memory.hpp>
#include <moe/core/views.hpp>
#include <moe/kernels/dispatch.hpp>
#include <moe/losses/jensen_shannon.hpp>
#include <moe/losses/loss.hpp>

namespace moe::inline MOE_ABI {

namespace detail {

/// Row-major memory of S that lives on: no expression, of which Eigen would make a matrix for a
/// moment.
template <class X, class S>
concept IsViewable =
    IsMatrix<X> && std::is_same_v<typename std::remove_cvref_t<X>::Scalar, S> &&
    static_cast<bool>(std::remove_cvref_t<X>::IsRowMajor) &&
    std::remove_cvref_t<X>::InnerStrideAtCompileTime == 1 &&
    (std::remove_cvref_t<X>::Flags & Eigen::DirectAccessBit) != 0 &&
    (std::is_lvalue_reference_v<X> ||
     !std::is_base_of_v<Eigen::PlainObjectBase<std::remove_cvref_t<X>>, std::remove_cvref_t<X>>);

}  // namespace detail

/// The logits of one of several layers, and where a loss of all of them adds its gradient. It views
/// both, which must live on and be row-major; an expression does not compile.
template <class S>
struct LayerLogits {
    ConstView<S> logits;  // [T, E]
    View<S> dlogits;      // [T, E]

    template <detail::IsViewable<S> X, detail::IsViewable<S> Y>
    LayerLogits(X&& z, Y&& dz)
        : logits(z.data(), z.rows(), z.cols(), Eigen::OuterStride<>(z.outerStride())),
          dlogits(dz.data(), dz.rows(), dz.cols(), Eigen::OuterStride<>(dz.outerStride())) {}
};

namespace detail {

template <class S>
struct PriorScratch {
    std::vector<LayerLogits<S>> layers;
    Buffer<S> p, gradient;              // [C]
    Buffer<double> mix, target, slope;  // [C]
};

/// Arguments of prior_loss, checked against one another.
template <class S>
struct PriorInput {
    const std::vector<LayerLogits<S>>& layers;
    const Context& context;
    In<double> prior;
    std::span<const Index> match;
    std::span<const std::int32_t> tasks;
    double epsilon;

    bool counts(Index t) const {
        if (tasks[at(t)] < 0) return false;
        for (const LayerLogits<S>& layer : layers)
            if (!counts_in_losses(context, layer.logits, t)) return false;
        return true;
    }

    /// Writes the target of a token.
    void target(Index t, double* shares) const {
        double sum = 0;
        const double* row = row_data(prior, tasks[at(t)]);
        for (const Index column : match) sum += row[column];
        for (std::size_t c = 0; c < match.size(); ++c) shares[c] = row[match[c]] / sum;
    }

    /// @return tokens that count
    Index count() const {
        constexpr const char* name = "moe::prior_loss";
        check_epsilon(name, epsilon);
        if (layers.empty())
            fail(name, ": there are no layers; give those whose gates share the prior");
        const Index tokens = layers.front().logits.rows();
        Index columns = 0;
        for (const LayerLogits<S>& layer : layers) {
            const auto& z = layer.logits;
            const auto& dz = layer.dlogits;
            if (z.cols() == 0)
                fail(name,
                     ": the gate of a layer has no logits of experts, which the loss is about "
                     "(ProductKeyTopK has those of half keys); take another gate");
            if (dz.rows() != z.rows() || dz.cols() != z.cols())
                fail(name, ": dlogits is [", dz.rows(), ", ", dz.cols(), "], logits is [", z.rows(),
                     ", ", z.cols(), "]");
            if (z.rows() != tokens)
                fail(name, ": layers have ", tokens, " and ", z.rows(),
                     " tokens; give layers of the same batch");
            columns += z.cols();
        }
        if (prior.cols() != columns || static_cast<Index>(match.size()) != columns)
            fail(name, ": prior has ", prior.cols(), " columns and match ", match.size(),
                 " entries, the layers have ", columns, " experts; there must be one for each");
        if (static_cast<Index>(tasks.size()) != tokens)
            fail(name, ": tasks has ", tasks.size(), " entries, logits has ", tokens,
                 " rows; give -1 to a token without a task");
        check_extent("padding", context.padding.size(), tokens, "one per token");
        for (const Index column : match)
            if (column < 0 || column >= columns)
                fail(name, ": an entry of match is ", column, ", it must be in [0, ", columns,
                     "), the columns of prior");
        Index count = 0;
        for (Index t = 0; t < tokens; ++t) {
            if (!counts(t)) continue;
            ++count;
            if (tasks[at(t)] >= prior.rows())
                fail(name, ": tasks[", t, "] is ", tasks[at(t)], ", it must be below the ",
                     prior.rows(), " rows of prior, or negative for none");
            double sum = 0;
            for (const Index column : match) {
                const double entry = prior(tasks[at(t)], column);
                if (!(entry >= 0 && std::isfinite(entry)))
                    fail(name, ": prior has an entry ", entry, ", it must be finite and >= 0");
                sum += entry;
            }
            if (!(sum > 0 && std::isfinite(sum)))
                fail(name, ": row ", tasks[at(t)], " of prior sums to ", sum,
                     ", it must be > 0 and finite: a task wants some expert");
        }
        return count;
    }
};

template <class S>
Loss prior_loss(const PriorInput<S>& in, double weight, PriorScratch<S>& scratch) {
    const Index tokens = in.count(), columns = static_cast<Index>(in.match.size());
    if (tokens == 0) return {"prior", 0};
    const KernelTable<S>& table = kernels<S>();
    S* p = scratch.p.resize(columns).data();
    S* gradient = scratch.gradient.resize(columns).data();
    double* mix = scratch.mix.resize(columns).data();
    double* target = scratch.target.resize(columns).data();
    double* slope = scratch.slope.resize(columns).data();
    const auto layers = static_cast<double>(in.layers.size());
    const S factor = static_cast<S>(weight / (layers * static_cast<double>(tokens)));
    double sum = 0;
    for (Index t = 0; t < in.layers.front().logits.rows(); ++t) {
        if (!in.counts(t)) continue;
        Index first = 0;
        for (const LayerLogits<S>& layer : in.layers) {
            table.softmax(layer.logits.cols(), row_data(layer.logits, t), p + first);
            first += layer.logits.cols();
        }
        for (Index c = 0; c < columns; ++c) mix[c] = static_cast<double>(p[c]) / layers;
        in.target(t, target);
        sum += jensen_shannon(columns, mix, target, in.epsilon, slope);
        if (weight == 0) continue;
        for (Index c = 0; c < columns; ++c) gradient[c] = static_cast<S>(slope[c]);
        first = 0;
        for (const LayerLogits<S>& layer : in.layers) {
            const Index experts = layer.logits.cols();
            S* g = gradient + first;
            const S mean = table.dot(experts, p + first, g);
            for (Index e = 0; e < experts; ++e) g[e] = p[first + e] * (g[e] - mean);
            View<S> dz = layer.dlogits;
            table.axpy(experts, factor, g, row_data(dz, t));
            first += experts;
        }
    }
    return {"prior", sum / static_cast<double>(tokens)};
}

}  // namespace detail

/// Teaches the gates of several layers together which experts belong to which task: what
/// switch_dit_prior() says, at the place where match_columns() found it nearest.
///
///     m     = (softmax(z_1), ..., softmax(z_n)) / n      of n layers, [C] for C experts in all
///     r     = prior(task, match) over its sum
///     value = mean over tokens of jensen_shannon(m, r, epsilon)
///     dz_l  = weight / (n T) p_l (a - sum p_l a),  a = d(jensen_shannon)/dm,  p_l = softmax(z_l)
///
/// The value lies in [0, log 2] for epsilon 0, and is 0 where every token has the shares of its
/// task. The prior and the match are constants. Tokens without a task do not count, nor do those
/// that are padding or a row of -inf in one of the layers.
///
/// @param layers   in the order of the prior's columns; dlogits is **added** to
/// @param context  padding
/// @param prior    [tasks, C] finite, >= 0, no row of zeros
/// @param match    [C] column of prior for each expert
/// @param tasks    [T] row of prior of each token; negative: it has none
/// @param weight   times the value
/// @param epsilon  finite and >= 0
/// @return the value without `weight`; see Loss
/// @throws std::invalid_argument if an extent, a task or an entry is out of range. Nothing is
///         added then
/// Source: Switch-DiT (arXiv:2403.09176), the diffusion prior loss.
template <class S>
Loss prior_loss(const std::vector<LayerLogits<S>>& layers, const Context& context, In<double> prior,
                std::span<const Index> match, std::span<const std::int32_t> tasks, double weight,
                double epsilon = 1e-6) {
    detail::PriorScratch<S> scratch;
    return detail::prior_loss<S>({layers, context, prior, match, tasks, epsilon}, weight, scratch);
}

/// prior_loss of the batches that workspaces hold, one of each layer.
///
///     const auto prior = moe::switch_dit_prior(1000, 2, 3, 2);    // once: 2 layers of 3 experts
///     const auto match = moe::match_columns(masks, prior);        // each step
///     moe::prior_loss(std::vector{&ws1, &ws2}, prior, match, tasks, 1.0);
///
/// @param layers  not null; the context is that of the first
template <class S>
Loss prior_loss(const std::vector<Workspace<S>*>& layers, In<double> prior,
                std::span<const Index> match, std::span<const std::int32_t> tasks, double weight,
                double epsilon = 1e-6) {
    const Context none;
    detail::PriorScratch<S> unused;
    auto& scratch =
        layers.empty() ? unused : layers.front()->template state<detail::PriorScratch<S>>();
    scratch.layers.clear();
    for (const Workspace<S>* ws : layers)
        scratch.layers.push_back({ws->expert_logits(), ws->expert_dlogits()});
    const Context& context = layers.empty() ? none : layers.front()->context();
    return detail::prior_loss<S>({scratch.layers, context, prior, match, tasks, epsilon}, weight,
                                 scratch);
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_LOSSES_PRIOR_HPP
