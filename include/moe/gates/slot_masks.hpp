// SPDX-License-Identifier: MIT
#ifndef MOE_GATES_SLOT_MASKS_HPP
#define MOE_GATES_SLOT_MASKS_HPP

#include <algorithm>
#include <cmath>

#include <moe/core/parameters.hpp>
#include <moe/core/types.hpp>
#include <moe/kernels/dispatch.hpp>

/// The arithmetic of KeepAny on one token with n experts. Its letters are those of KeepAnyModule.

namespace moe::inline MOE_ABI::detail {

/// k masks, of which mask j keeps the first j slots, and the choice among the first n of them.
template <class S>
struct SlotMasks {
    const Parameter<S>& weight;  // [k, k] V

    /// a = m + V g
    void score(Index n, const S* m, const S* g, S* a) const {
        for (Index j = 0; j < n; ++j) {
            a[j] = m[j];
            for (Index i = 0; i < n; ++i) a[j] = std::fma(weight(j, i), g[i], a[j]);
        }
    }

    /// Slots that are kept at inference.
    static Index best(Index n, const S* a) {
        Index best = 0;
        for (Index j = 1; j < n; ++j)
            if (a[j] > a[best] || (std::isnan(a[best]) && !std::isnan(a[j]))) best = j;
        return n == 0 ? 0 : best + 1;
    }
    /// c of them: 1, or NaN if a mask is.
    static void keep_hard(Index n, const S* m, S* c) {
        S kept = 1;
        for (Index j = 0; j < n; ++j)
            if (std::isnan(m[j])) kept = m[j];
        std::fill_n(c, n, kept);
    }

    /// pi and c in training.
    /// @param gumbel  gumbel(j), the samples
    /// @param pi      a comes in
    template <class Sample>
    static void keep_soft(Index n, double tau, Sample&& gumbel, S* pi, S* c) {
        if (n == 0) return;
        for (Index j = 0; j < n; ++j)
            pi[j] = static_cast<S>((static_cast<double>(pi[j]) + gumbel(j)) / tau);
        kernels<S>().softmax(n, pi, pi);
        S sum = 0;
        for (Index i = n; i-- > 0;) c[i] = sum += pi[i];
        if (!std::isnan(sum)) c[0] = 1;
    }
    /// d(loss)/da; also adds what reaches g on this way.
    /// @param dc  of slots that were pruned by others: 0
    void backward(Index n, S tau, const S* pi, const S* dc, S* da, S* dg) const {
        S sum = 0, mean = 0;  // of dc over i <= j: d(loss)/dpi_j; c_1 does not move
        for (Index j = 0; j < n; ++j) {
            if (j > 0) sum += dc[j];
            da[j] = sum;
            mean = std::fma(pi[j], sum, mean);
        }
        for (Index j = 0; j < n; ++j) {
            da[j] = pi[j] * (da[j] - mean) / tau;
            for (Index i = 0; i < n; ++i) dg[i] = std::fma(weight(j, i), da[j], dg[i]);
        }
    }
};

/// w_i = g_i c_i (sum of g) / (sum of g c), or 0 where that is a quotient by 0.
template <class S>
class KeptShares {
public:
    KeptShares(Index n, const S* g, const S* c) : n_(n), g_(g), c_(c) {
        for (Index i = 0; i < n; ++i) {
            all_ += g[i];
            kept_ = std::fma(g[i], c[i], kept_);
        }
    }
    S weight(Index i) const { return g_[i] * c_[i] * ratio(); }

    /// With A = (sum of h g c) / (sum of g c), h = d(loss)/dw and u_i = ratio (h_i - A):
    ///
    ///     dg_i = c_i u_i + A,  dc_i = g_i u_i
    void backward(const S* h, S* dg, S* dc) const {
        S mean = 0;
        for (Index i = 0; i < n_; ++i) mean = std::fma(h[i], g_[i] * c_[i], mean);
        mean = kept_ == 0 ? S(0) : mean / kept_;
        for (Index i = 0; i < n_; ++i) {
            const S u = ratio() * (h[i] - mean);
            dg[i] = std::fma(c_[i], u, mean);
            dc[i] = g_[i] * u;
        }
    }

private:
    S ratio() const { return kept_ == 0 ? S(0) : all_ / kept_; }

    Index n_;
    const S *g_, *c_;
    S all_ = 0, kept_ = 0;  // the sums
};

}  // namespace moe::inline MOE_ABI::detail

#endif  // MOE_GATES_SLOT_MASKS_HPP
