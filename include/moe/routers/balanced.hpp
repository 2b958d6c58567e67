// SPDX-License-Identifier: MIT
#ifndef MOE_ROUTERS_BALANCED_HPP
#define MOE_ROUTERS_BALANCED_HPP

#include <cstdint>

#include <moe/core/concepts.hpp>
#include <moe/routers/decide.hpp>

namespace moe::inline MOE_ABI {

/// The router that BalancedRouter describes.
template <class S>
class BalancedRouterModule {
public:
    using Scalar = S;
    static constexpr bool skips_empty_gradients = true;

    /// Holds nothing; a gradient like this is not wanted.
    BalancedRouterModule() = default;
    /// @throws std::invalid_argument unless k is in [1, num_logits]
    BalancedRouterModule(Index k, Index num_logits) : k_(k), num_logits_(num_logits) {
        detail::check_k(name, k, num_logits);
    }

    /// @param x       [T, D], not read
    /// @param logits  [T, L], overwritten
    void forward(In<S> x, Out<S> logits, const Call<S>& call) const {
        detail::check_router_extents<S>(name, x, logits, num_logits_);
        detail::for_tokens(call.ws.executor(), x.rows(), static_cast<double>(num_logits_),
                           [&](Index t, int) {
                               S* row = row_data(logits, t);
                               Index e = first(call.token(t));
                               for (Index place = 0; place < num_logits_; ++place) {
                                   row[e] = static_cast<S>(-place);
                                   e = e + 1 == num_logits_ ? 0 : e + 1;
                               }
                           });
    }

    /// dx = 0
    void backward(In<S> x, In<S>, Out<S> dx, BalancedRouterModule&, const Call<S>&) const {
        detail::write_no_gradient<S>(name, x, dx);
    }

    /// @throws std::invalid_argument if the layer has another number of logits, or they are not
    ///         one per expert
    void check(const Shape& shape) const {
        detail::check_deciding_router(name, num_logits_, shape);
    }

private:
    static constexpr const char* name = "moe::BalancedRouter";

    /// token * k mod L, without overflow and for negative numbers too
    Index first(std::int64_t token) const {
        const Index turn =
            static_cast<Index>(token % num_logits_) * (k_ % num_logits_) % num_logits_;
        return turn < 0 ? turn + num_logits_ : turn;
    }

    Index k_ = 1, num_logits_ = 0;
};

/// Recipe of a router for measurements: what a layer costs when every expert has the same to do.
/// Experts take turns.
///
///     logits(t, (n_t k + j) mod L) = -j      j = 0 .. L - 1,  n_t the number of token t
///
/// n_t counts from Context::first_token, so that parts of a batch take the turns of the whole.
/// Beside TopK{.k = k} every expert gets T k / L tokens if that is a whole number, else one more or
/// less than others; padding takes its turn like all tokens, and then gets no expert. All logits
/// are finite and fall by 1, so that any gate with one logit per expert works and does the same for
/// every token: the softmax weights of k = 2 are 0.731 and 0.269.
struct BalancedRouter {
    Index k = 0;  ///< experts per token of the gate beside it, 1 to L; required

    /// @throws std::invalid_argument if k is out of range or logits are not one per expert
    template <class S>
    BalancedRouterModule<S> build(const Shape& shape, Random&) const {
        detail::check_expert_logits("moe::BalancedRouter", shape);
        return BalancedRouterModule<S>(k, shape.num_logits);
    }
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_ROUTERS_BALANCED_HPP
