// SPDX-License-Identifier: MIT
#ifndef MOE_BALANCE_ADAPTIVE_EXPERTS_HPP
#define MOE_BALANCE_ADAPTIVE_EXPERTS_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <optional>
#include <span>
#include <vector>

#include <Eigen/Core>

#include <moe/core/context.hpp>
#include <moe/core/error.hpp>
#include <moe/core/routing.hpp>
#include <moe/core/types.hpp>
#include <moe/gates/top_any.hpp>

namespace moe::inline MOE_ABI {

/// What a TopAny gate has done since its experts were last updated: how often each was chosen, and
/// the sum of the tokens that nobody was chosen for. Record in training, where there are such.
class ActivationRecord {
public:
    /// @throws std::invalid_argument if an extent is negative
    ActivationRecord(Index num_experts, Index model_dim) {
        if (num_experts < 0 || model_dim < 0)
            detail::fail("moe::ActivationRecord: num_experts is ", num_experts, " and model_dim ",
                         model_dim, ", both must be >= 0");
        counts_.assign(static_cast<std::size_t>(num_experts), 0);
        unserved_.assign(static_cast<std::size_t>(model_dim), 0.0);
    }

    /// Adds a batch. Dropped assignments count as chosen, padding does not count.
    /// @param x  [T, D] what the layer read
    /// @throws std::invalid_argument if an extent differs
    template <class X>
    void add(const Eigen::MatrixBase<X>& x, const Routing& routing, const Context& context = {}) {
        if (routing.num_experts() != static_cast<Index>(counts_.size()) ||
            x.cols() != static_cast<Index>(unserved_.size()) || x.rows() != routing.num_tokens())
            detail::fail("moe::ActivationRecord: x is [", x.rows(), ", ", x.cols(),
                         "] and the routing for ", routing.num_tokens(), " tokens and ",
                         routing.num_experts(), " experts, the record is for ", counts_.size(),
                         " experts and ", unserved_.size(), " columns");
        for (Index t = 0; t < x.rows(); ++t) {
            if (context.is_padding(t)) continue;
            ++num_tokens_;
            for (const Assignment& a : routing.of(t)) ++counts_[static_cast<std::size_t>(a.expert)];
            if (!routing.of(t).empty()) continue;
            ++num_unserved_;
            for (std::size_t d = 0; d < unserved_.size(); ++d)
                unserved_[d] += static_cast<double>(x.derived().coeff(t, static_cast<Index>(d)));
        }
    }

    /// As new, for the next period.
    void clear() {
        std::fill(counts_.begin(), counts_.end(), 0);
        std::fill(unserved_.begin(), unserved_.end(), 0.0);
        num_tokens_ = num_unserved_ = 0;
    }

    std::span<const Index> counts() const { return counts_; }           ///< [E]
    std::span<const double> unserved_sum() const { return unserved_; }  ///< [D]
    Index num_tokens() const { return num_tokens_; }
    Index num_unserved() const { return num_unserved_; }

private:
    std::vector<Index> counts_;
    std::vector<double> unserved_;
    Index num_tokens_ = 0, num_unserved_ = 0;
};

/// What update_experts() changed, and what it leaves to the caller.
struct ExpertChanges {
    std::vector<Index> removed;     ///< masked, since nobody chose them
    std::optional<Index> added;     ///< unmasked; may be one of those removed, to start anew
    std::vector<double> direction;  ///< [D] of length 1: give it to the router as `added`'s row
};

/// Fits the number of experts to what was recorded, explicitly, between steps.
///
///     an expert with no activation              is masked
///     if a token had no expert, the first masked expert
///                                               is unmasked, with threshold 0, facing the mean of
///                                               those tokens
///
/// The gate does not know its router: set the row of the new expert to `direction`, and its
/// weights, if it is not to take up those it has. Nothing changes if nothing was recorded, and no
/// expert is added where none is masked. direction is 0 if the tokens sum to 0.
///
/// Source: DynMoE (arXiv:2405.14297), whose code records 300 calls of every 900.
/// @throws std::invalid_argument if the record is of another number of experts
template <class S>
ExpertChanges update_experts(TopAnyModule<S>& gate, const ActivationRecord& record) {
    const auto counts = record.counts();
    if (static_cast<Index>(counts.size()) != gate.num_experts())
        detail::fail("moe::update_experts: the record is of ", counts.size(),
                     " experts, the gate has ", gate.num_experts());
    ExpertChanges changes;
    if (record.num_tokens() == 0) return changes;
    for (Index e = 0; e < gate.num_experts(); ++e) {
        if (counts[static_cast<std::size_t>(e)] != 0 || gate.mask(0, e) == 0) continue;
        gate.mask(0, e) = 0;
        changes.removed.push_back(e);
    }
    if (record.num_unserved() == 0) return changes;
    for (Index e = 0; e < gate.num_experts() && !changes.added; ++e)
        if (gate.mask(0, e) == 0) changes.added = e;
    if (!changes.added) return changes;
    gate.mask(0, *changes.added) = 1;
    gate.threshold(0, *changes.added) = 0;
    const auto sum = record.unserved_sum();
    double squares = 0;
    for (const double value : sum) squares = std::fma(value, value, squares);
    for (const double value : sum)
        changes.direction.push_back(squares == 0 ? 0 : value / std::sqrt(squares));
    return changes;
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_BALANCE_ADAPTIVE_EXPERTS_HPP
