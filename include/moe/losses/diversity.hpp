// SPDX-License-Identifier: MIT
#ifndef MOE_LOSSES_DIVERSITY_HPP
#define MOE_LOSSES_DIVERSITY_HPP

#include <cmath>
#include <cstdint>
#include <span>
#include <utility>

#include <moe/core/memory.hpp>
#include <moe/core/views.hpp>
#include <moe/gates/top_any.hpp>
#include <moe/kernels/dispatch.hpp>
#include <moe/losses/loss.hpp>
#include <moe/routers/cosine.hpp>

namespace moe::inline MOE_ABI {
namespace detail {

template <class S>
struct DiversityScratch {
    Buffer<S> units;    // [E, D]; 0 of experts that do not take part
    Buffer<S> norms;    // [E]; 0 likewise
    Buffer<S> cosines;  // [E, E]
    Buffer<S> slope;    // [D]
};

/// @param is_active  is_active(expert): whether it takes part
template <class S, class F>
Loss diversity_loss(In<S> vectors, F is_active, double weight, Out<S> dvectors,
                    DiversityScratch<S>& scratch) {
    const KernelTable<S>& table = kernels<S>();
    const Index experts = vectors.rows(), dim = vectors.cols();
    auto units = scratch.units.matrix(experts, dim);
    auto cosines = scratch.cosines.matrix(experts, experts);
    S* norms = scratch.norms.resize(experts).data();
    S* slope = scratch.slope.resize(dim).data();
    for (Index e = 0; e < experts; ++e) {
        norms[e] = is_active(e) ? norm(dim, row_data(vectors, e)) : S(0);
        for (Index d = 0; d < dim; ++d)
            units(e, d) = norms[e] == S(0) ? S(0) : vectors(e, d) / norms[e];
    }
    double squares = 0;
    for (Index e = 0; e < experts; ++e) {
        cosines(e, e) = S(0);
        for (Index f = 0; f < e; ++f) {
            const S cosine = table.dot(dim, row_data(units, e), row_data(units, f));
            cosines(e, f) = cosines(f, e) = cosine;
            squares =
                std::fma(2 * static_cast<double>(cosine), static_cast<double>(cosine), squares);
        }
    }
    const double value = std::sqrt(squares);
    if (weight == 0 || value == 0) return {"diversity", value};
    for (Index e = 0; e < experts; ++e) {
        if (norms[e] == S(0)) continue;
        for (Index d = 0; d < dim; ++d) slope[d] = S(0);  // sum over f of C(e, f) u_f
        for (Index f = 0; f < experts; ++f)
            table.axpy(dim, cosines(e, f), row_data(units, f), slope);
        const S* unit = row_data(units, e);
        table.axpy(dim, -table.dot(dim, unit, slope), unit, slope);
        const double factor = 2 * weight / (value * static_cast<double>(norms[e]));
        table.axpy(dim, static_cast<S>(factor), slope, row_data(dvectors, e));
    }
    return {"diversity", value};
}

template <class S>
void check_vectors(const char* who, In<S> vectors, const Out<S>& dvectors) {
    if (dvectors.rows() != vectors.rows() || dvectors.cols() != vectors.cols())
        fail("moe::", who, ": dvectors is [", dvectors.rows(), ", ", dvectors.cols(),
             "], vectors is [", vectors.rows(), ", ", vectors.cols(), "]");
}

}  // namespace detail

/// Turns the vectors of experts away from one another, so that they want different tokens.
///
///     value = |C - I|_F = sqrt(sum over e != f of C(e, f)^2),  C(e, f) = cos(w_e, w_f)
///     dw_e  = 2 weight / (value |w_e|) (I - u_e u_e^T) sum_f C(e, f) u_f,  u = w / |w|
///
/// The value is 0 where all vectors are at right angles, and sqrt(E (E - 1)) where all are
/// parallel. There, and for a value of exactly 0, the gradient is 0; close to 0 it is not small
/// and its direction that of rounding errors, since the norm is not squared. It does not depend on
/// the lengths of vectors. A vector of zeros is at a right angle to all and has no gradient. A NaN
/// makes the value and all gradients NaN.
///
/// DynMoE adds it to simplicity_loss(), both with weight 1, for the embeddings of a CosineRouter.
/// Tokens have no part in it: call it once per step, with the gradient of the router.
///
/// @param vectors   [E, D] one per expert, e.g. CosineRouterModule::embeddings.view()
/// @param active    [E] 0: the expert has no part; empty: all have
/// @param weight    times the value; with 0 dvectors is not touched
/// @param dvectors  [E, D], **added** to
/// @return the value without `weight`
/// @throws std::invalid_argument if extents differ
/// Source: DynMoE (arXiv:2405.14297), the diversity loss, and its released code.
template <class X, class Y>
Loss diversity_loss(const Eigen::DenseBase<X>& vectors, std::span<const std::uint8_t> active,
                    double weight, Y&& dvectors) {
    using S = typename X::Scalar;
    const Eigen::Ref<const Matrix<S>> w = detail::readable<S>(vectors);
    Eigen::Ref<Matrix<S>> dw = detail::writable<S>(std::forward<Y>(dvectors));
    detail::check_vectors<S>("diversity_loss", w, dw);
    if (!active.empty() && static_cast<Index>(active.size()) != w.rows())
        detail::fail("moe::diversity_loss: active has ", active.size(), " entries, vectors has ",
                     w.rows(), " rows; give one per expert, or none");
    detail::DiversityScratch<S> scratch;
    const auto is_active = [active](Index e) { return active.empty() || active[detail::at(e)]; };
    return detail::diversity_loss<S>(w, is_active, weight, dw, scratch);
}

/// diversity_loss of the embeddings of a router, of experts that its gate has not taken out.
///
///     moe::diversity_loss(layer.router(), layer.gate(), ws, 1.0, grad.router());
///
/// @param ws    room for it; its batch is not read
/// @param grad  of the same router, **added** to; only the value, if grad.embeddings is empty
/// @throws std::invalid_argument if they are for different numbers of experts
template <class S>
Loss diversity_loss(const CosineRouterModule<S>& router, const TopAnyModule<S>& gate,
                    Workspace<S>& ws, double weight, CosineRouterModule<S>& grad) {
    const Eigen::Ref<const Matrix<S>> w(router.embeddings.view());
    if (gate.num_experts() != w.rows())
        detail::fail("moe::diversity_loss: the router has ", w.rows(),
                     " embeddings, the gate is for ", gate.num_experts(),
                     " experts; give those of one layer");
    const bool wanted = !grad.embeddings.empty();
    Eigen::Ref<Matrix<S>> dw(grad.embeddings.view());
    if (wanted) detail::check_vectors<S>("diversity_loss", w, dw);
    return detail::diversity_loss<S>(
        w, [&gate](Index e) { return gate.mask(0, e) != S(0); }, wanted ? weight : 0, dw,
        ws.template state<detail::DiversityScratch<S>>());
}

/// Keeps the vectors of experts short.
///
///     value = mean over experts of |w_e|
///     dw_e  = weight / E * w_e / |w_e|
///
/// The value is at least 0; a vector of zeros has no gradient. It is over all experts, in the
/// released code also over those that DynMoE has taken out.
///
/// @param vectors   [E, D] one per expert
/// @param weight    times the value; DynMoE: 1. With 0 dvectors is not touched
/// @param dvectors  [E, D], **added** to
/// @return the value without `weight`; 0 without experts
/// @throws std::invalid_argument if extents differ
/// Source: DynMoE (arXiv:2405.14297), the simplicity loss, and its released code.
template <class X, class Y>
Loss simplicity_loss(const Eigen::DenseBase<X>& vectors, double weight, Y&& dvectors) {
    using S = typename X::Scalar;
    const Eigen::Ref<const Matrix<S>> w = detail::readable<S>(vectors);
    Eigen::Ref<Matrix<S>> dw = detail::writable<S>(std::forward<Y>(dvectors));
    detail::check_vectors<S>("simplicity_loss", w, dw);
    if (w.rows() == 0) return {"simplicity", 0};
    const auto experts = static_cast<double>(w.rows());
    double sum = 0;
    for (Index e = 0; e < w.rows(); ++e) {
        const S norm = detail::norm(w.cols(), row_data(w, e));
        sum += static_cast<double>(norm);
        if (weight == 0 || norm == S(0)) continue;
        const double factor = weight / (experts * static_cast<double>(norm));
        kernels<S>().axpy(w.cols(), static_cast<S>(factor), row_data(w, e), row_data(dw, e));
    }
    return {"simplicity", sum / experts};
}

/// simplicity_loss of the embeddings of a router.
/// @param grad  of the same router, **added** to; only the value, if grad.embeddings is empty
template <class S>
Loss simplicity_loss(const CosineRouterModule<S>& router, double weight,
                     CosineRouterModule<S>& grad) {
    if (!grad.embeddings.empty())
        return simplicity_loss(router.embeddings.view(), weight, grad.embeddings.view());
    Matrix<S> unused(router.embeddings.rows(), router.embeddings.cols());
    return simplicity_loss(router.embeddings.view(), 0.0, unused);
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_LOSSES_DIVERSITY_HPP
