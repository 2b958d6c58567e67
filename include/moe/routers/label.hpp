// SPDX-License-Identifier: MIT
#ifndef MOE_ROUTERS_LABEL_HPP
#define MOE_ROUTERS_LABEL_HPP

#include <cstddef>
#include <cstdint>
#include <span>

#include <moe/core/concepts.hpp>
#include <moe/routers/decide.hpp>

namespace moe::inline MOE_ABI {

/// The router that LabelRouter describes.
template <class S>
class LabelRouterModule {
public:
    using Scalar = S;
    static constexpr bool skips_empty_gradients = true;

    /// Holds nothing; a gradient like this is not wanted.
    LabelRouterModule() = default;
    explicit LabelRouterModule(Index num_logits) : num_logits_(num_logits) {}

    /// @param x       [T, D], not read
    /// @param logits  [T, L], overwritten
    /// @throws std::invalid_argument unless Context::token_groups has a number in [-1, L) for every
    ///         token
    void forward(In<S> x, Out<S> logits, const Call<S>& call) const {
        detail::check_router_extents<S>(name, x, logits, num_logits_);
        const std::span<const std::int32_t> labels = call.context.token_groups;
        detail::check_per_token(name, "token_groups", labels.size(), x.rows());
        for (Index t = 0; t < x.rows(); ++t) {
            const std::int32_t label = labels[static_cast<std::size_t>(t)];
            if ((label < -1 || label >= num_logits_) && !call.context.is_padding(t))
                detail::fail(name, ": token_groups[", t, "] is ", label,
                             ", it must be an expert in [0, ", num_logits_, "), or -1 for none");
        }
        detail::decide<S>(logits, call, [&](Index t, S* row) {
            const std::int32_t label = labels[static_cast<std::size_t>(t)];
            if (label >= 0) row[label] = S(0);
        });
    }

    /// dx = 0
    void backward(In<S> x, In<S>, Out<S> dx, LabelRouterModule&, const Call<S>&) const {
        detail::write_no_gradient<S>(name, x, dx);
    }

    /// @throws std::invalid_argument if the layer has another number of logits, or they are not
    ///         one per expert
    void check(const Shape& shape) const {
        detail::check_deciding_router(name, num_logits_, shape);
    }

private:
    static constexpr const char* name = "moe::LabelRouter";

    Index num_logits_ = 0;
};

/// Recipe of a router that sends every token to the expert that the caller names: its language,
/// modality, task or cluster. The gate beside it is TopK{.k = 1, .ones = true}.
///
///     logits(t, e) = 0 if e is Context::token_groups[t], else -inf
///
/// Label -1 is no expert: a row of -inf, which gates leave unrouted. Padding gets nothing, whatever
/// its label is. For labels that teach a learned router instead, see label_loss().
struct LabelRouter {
    /// @throws std::invalid_argument if logits are not one per expert
    template <class S>
    LabelRouterModule<S> build(const Shape& shape, Random&) const {
        detail::check_expert_logits("moe::LabelRouter", shape);
        return LabelRouterModule<S>(shape.num_logits);
    }
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_ROUTERS_LABEL_HPP
