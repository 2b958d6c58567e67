// SPDX-License-Identifier: MIT
#ifndef MOE_GATES_AUCTION_HPP
#define MOE_GATES_AUCTION_HPP

#include <cstdint>

#include <moe/core/concepts.hpp>
#include <moe/gates/balanced_assignment.hpp>
#include <moe/gates/score.hpp>
#include <moe/gates/select.hpp>
#include <moe/gates/token_gate.hpp>
#include <moe/gates/weights.hpp>

namespace moe::inline MOE_ABI {

template <class S>
class AuctionModule;

/// Recipe for the gate of BASE layers: in training every expert gets equally many tokens, so that
/// the sum of the logits of all assignments is the largest there is, nearly; at inference each
/// token takes its best expert. No balancing loss, no capacity, nothing dropped.
///
/// BASE computes y = a f(x) + (1 - a) x with the weight a and experts f(x) = x + g(norm(x)). That
/// is y = x + a g(norm(x)): experts that are the g, and x added to what the layer returns, as
/// residual connections do anyway. For any other f, add (1 - a) x with the weights of ws.routing().
///
/// Source: Lewis et al., "BASE layers" (arXiv:2103.16716) section 3.
struct Auction {
    /// Tokens bid in steps of the range of all logits over this, but 1e-4 at least: more is nearer
    /// to the largest sum, and takes longer in proportion. In [1, 1e6]; fairseq: 50.
    double resolution = 50;
    bool ones = false;  ///< every weight is 1, and the router learns nothing

    /// @throws std::invalid_argument if a setting is out of range
    template <class S>
    AuctionModule<S> build(const Shape& shape, Random&) const {
        return AuctionModule<S>(*this, shape.num_experts);
    }
};

/// The gate that Auction describes.
///
///     e_t = the expert of the balanced assignment    training; see detail::BalancedAssignment
///     e_t = argmax z_t                               inference, ties to the lower index
///     w_t = sigmoid(z_t)[e_t]
///
/// Of n tokens each expert gets n / E; if E does not divide n, some get floor(n / E) and some
/// ceil(n / E), whatever makes the sum largest. Rows of -inf are padding, and do not count. A pair
/// at -inf is never chosen: where masks leave no even assignment, tokens without a place go
/// nowhere. NaN and +inf count as the smallest finite logit; the weight of a row that holds a NaN
/// is NaN.
///
/// fairseq's auction bids for all tokens of an expert at a time and gives up optimality after 100
/// turns; here tokens bid, and the sum is always within E ceil(n / E) steps of the largest.
template <class S>
class AuctionModule : public TokenGate<S, AuctionModule<S>> {
    using Base = TokenGate<S, AuctionModule>;
    friend Base;

public:
    using Base::num_experts;
    static constexpr bool per_token = false;

    AuctionModule() = default;
    /// @throws std::invalid_argument if a setting is out of range
    AuctionModule(const Auction& settings, Index experts)
        : Base(experts),
          settings_(settings),
          rule_{.score = Score::sigmoid, .normalize = Normalize::none, .ones = settings.ones} {
        if (!(settings.resolution >= 1 && settings.resolution <= 1e6))
            detail::fail(name, ": resolution is ", settings.resolution,
                         ", it must be in [1, 1e6]; 50 is usual");
    }

    const Auction& settings() const { return settings_; }

    void reserve(Index tokens, Index assignments, Workspace<S>& ws) const {
        Base::reserve(tokens, assignments, ws);
        auto& scratch = ws.template state<Scratch>();
        scratch.assignment.reserve(tokens, num_experts());
        scratch.expert.resize(tokens);
    }
    Index workspace_bytes(Index tokens, Index assignments, Keep keep, int workers) const {
        return Base::workspace_bytes(tokens, assignments, keep, workers) +
               detail::BalancedAssignment::bytes(tokens, num_experts()) +
               tokens * static_cast<Index>(sizeof(std::int32_t));
    }

private:
    static constexpr const char* name = "moe::Auction";

    struct Scratch {
        detail::BalancedAssignment assignment;
        Buffer<std::int32_t> expert;  // [T]
    };

    Index most_experts() const { return 1; }
    const detail::CombineRule& rule() const { return rule_; }

    auto choice(const Call<S>& call, In<S> logits) const {
        std::int32_t* expert = nullptr;  // the best
        if (call.context.training) {
            auto& scratch = call.ws.template state<Scratch>();
            expert = scratch.expert.resize(logits.rows()).data();
            scratch.assignment.template run<S>(logits, settings_.resolution, expert);
        }
        const bool is_assigned = call.context.training;
        return [n = num_experts(), expert, is_assigned](Index t, const S* z, S*,
                                                        detail::Ranked<S>* ranked) {
            if (!is_assigned) return detail::rank_by_index(n, z, 1, ranked);
            ranked[0].index = expert[t];
            return Index(expert[t] < 0 ? 0 : 1);
        };
    }

    Auction settings_;
    detail::CombineRule rule_;
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_GATES_AUCTION_HPP
