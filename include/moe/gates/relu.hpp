// SPDX-License-Identifier: MIT
#ifndef MOE_GATES_RELU_HPP
#define MOE_GATES_RELU_HPP

#include <moe/core/concepts.hpp>
#include <moe/gates/score.hpp>
#include <moe/gates/select.hpp>
#include <moe/gates/token_gate.hpp>
#include <moe/gates/weights.hpp>

namespace moe::inline MOE_ABI {

template <class S>
class ReluModule;

/// Recipe for a gate that gives every token the experts whose logits are above 0, and weighs them
/// with those logits. Weights fade to 0 before an expert leaves, so the layer's output and its
/// gradient have no jump there, as they have with a fixed number of experts. How many experts a
/// token gets is up to the router and to a loss on the sum of the weights.
///
/// Source: ReMoE (arXiv:2412.14711).
struct Relu {
    Index max_experts = 0;  ///< most experts per token, 1 to E; 0: E, which keeps the output smooth

    Normalize normalize = Normalize::none;
    double epsilon = 1e-20;            ///< for add_epsilon and clamp
    bool normalize_kept_only = false;  ///< as in TopK
    double scale = 1;                  ///< multiplies the weights at last
    Placement placement = Placement::output;

    /// @throws std::invalid_argument if a setting is out of range
    template <class S>
    ReluModule<S> build(const Shape& shape, Random&) const {
        return ReluModule<S>(*this, shape.num_experts);
    }
};

/// The gate that Relu describes.
///
///     S_t = experts with z > 0, in falling order, max_experts at most    z [L], the logits
///     w_t = scale * relu(z_t)[S_t] / normaliser
///
/// Ties go to the lower index. A token without a logit above 0 goes to no expert: its
/// output is 0 and it sends no gradient. Experts at -inf are never selected. A logit that is NaN
/// counts as chosen, so that its weights, all NaN, show in the output. Null experts may be chosen,
/// are left out of normalisation, and weigh 0. A routing that is replayed weighs 0 where the logit
/// is no longer above 0.
template <class S>
class ReluModule : public TokenGate<S, ReluModule<S>> {
    using Base = TokenGate<S, ReluModule>;
    friend Base;

public:
    using Base::num_experts;

    ReluModule() = default;
    /// @throws std::invalid_argument if a setting is out of range
    ReluModule(const Relu& settings, Index experts)
        : Base(experts),
          settings_(settings),
          most_(detail::checked_most(name, settings.max_experts, 1, experts)),
          rule_(detail::combine_rule(settings, Score::relu)) {
        rule_.check(name);
    }

    const Relu& settings() const { return settings_; }

private:
    static constexpr const char* name = "moe::Relu";

    Index most_experts() const { return most_; }
    const detail::CombineRule& rule() const { return rule_; }

    auto choice(const Call<S>&, Index) const {
        return [this](Index, const S* z, S* values, detail::Ranked<S>* ranked) {
            return detail::rank_where(
                num_experts(), z, most_, [z](Index e) { return !(z[e] <= 0); }, values, ranked);
        };
    }

    Relu settings_;
    Index most_ = 0;
    detail::CombineRule rule_;
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_GATES_RELU_HPP
