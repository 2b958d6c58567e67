// SPDX-License-Identifier: MIT
#ifndef MOE_ROUTERS_MODALITY_HPP
#define MOE_ROUTERS_MODALITY_HPP

#include <utility>
#include <vector>

#include <moe/routers/linear.hpp>
#include <moe/routers/router_set.hpp>

namespace moe::inline MOE_ABI {

/// Tokens of a modality choose among the experts of that modality only.
///
///     m         = Context::token_groups[t]
///     logits[t] = inner(x[t])    or inner_m(x[t]);    -inf outside ranges[m]
///
/// Ranges may overlap: what two modalities share are their common experts. No gradient passes where
/// a logit is -inf. With a router per modality each sees the tokens of its own as a batch of their
/// own: what a context says of tokens, of sequences or of the layer before does not reach it, and a
/// router inside that needs such a field throws.
///
/// Source: MoIIE (arXiv:2508.09779) section 3; groups without common experts: MoMa
/// (arXiv:2407.21770) section 2.2.
template <class S, class Inner>
class PerModalityModule : public detail::RouterSet<S, Inner> {
    using Base = detail::RouterSet<S, Inner>;

public:
    using Base::Base;

    Index num_modalities() const { return this->num_groups(); }

    void forward(In<S> x, Out<S> logits, const Call<S>& call) const {
        Base::forward(x, logits, modalities(x.rows(), call.context), call);
    }
    void backward(In<S> x, In<S> dlogits, Out<S> dx, PerModalityModule& grad,
                  const Call<S>& call) const requires Router<Inner, S> {
        Base::backward(x, dlogits, dx, grad, modalities(x.rows(), call.context), call);
    }

    auto freeze(const FreezeOptions& options) const {
        using Frozen = detail::frozen_t<Inner>;
        return PerModalityModule<S, Frozen>(this->frozen_routers(options), this->is_shared(),
                                            this->ranges(), this->shape());
    }

private:
    detail::TokenGroups modalities(Index tokens, const Context& context) const {
        return this->groups_of_tokens(tokens, context, "moe::PerModality", "modality");
    }
};

/// Recipe: each modality has a range of the experts, with one router for all or one for each.
///
///     moe::PerModality{moe::LinearRouter{}, {{0, 3}, {1, 4}}}        vision, text; common: 1, 2
///     moe::PerModality{moe::LinearRouter{}, {{0, 4}, {4, 8}}, true}  a router for each
///
/// Routers for each are named "0.weight", "1.weight" and so on; one for all keeps its names.
template <class Inner = LinearRouter>
struct PerModality {
    Inner inner{};
    std::vector<ExpertRange> ranges{};  ///< one per modality; required
    bool separate = false;              ///< a router for each modality

    template <class S>
    auto build(const Shape& shape, Random& random) const {
        if (ranges.empty())
            detail::fail(
                "moe::PerModality: ranges is empty, it must have one range of experts per "
                "modality: moe::PerModality{moe::LinearRouter{}, {{0, 3}, {1, 4}}}");
        detail::check_expert_logits("moe::PerModality", shape);
        for (std::size_t m = 0; m < ranges.size(); ++m)
            if (ranges[m].first < 0 || ranges[m].first >= ranges[m].last ||
                ranges[m].last > shape.num_experts)
                detail::fail("moe::PerModality: ranges[", m, "] is [", ranges[m].first, ", ",
                             ranges[m].last, "), it must hold at least one of the ",
                             shape.num_experts, " experts and none besides");
        using Router = detail::built_t<Inner, S>;
        std::vector<Router> routers;
        for (std::size_t m = 0; m < (separate ? ranges.size() : 1); ++m) {
            Random of_modality = random.child(m);
            routers.push_back(
                detail::built_router<Inner, S>(inner, shape, separate ? of_modality : random));
        }
        return PerModalityModule<S, Router>(std::move(routers), !separate, ranges, shape);
    }
};

template <class Inner>
PerModality(Inner, std::vector<ExpertRange>) -> PerModality<Inner>;
template <class Inner>
PerModality(Inner, std::vector<ExpertRange>, bool) -> PerModality<Inner>;

}  // namespace moe::inline MOE_ABI

#endif  // MOE_ROUTERS_MODALITY_HPP
