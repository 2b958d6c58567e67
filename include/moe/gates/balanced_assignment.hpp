// SPDX-License-Identifier: MIT
#ifndef MOE_GATES_BALANCED_ASSIGNMENT_HPP
#define MOE_GATES_BALANCED_ASSIGNMENT_HPP

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include <moe/core/memory.hpp>
#include <moe/core/sequences.hpp>
#include <moe/core/types.hpp>
#include <moe/core/views.hpp>

namespace moe::inline MOE_ABI::detail {

/// Assigns tokens to experts so that the sum of the logits is nearly the largest and the load is
/// even: of n tokens each expert gets floor(n / E) or ceil(n / E).
///
/// Tokens bid for places. A token that has none looks for the expert where its score less the price
/// is the largest, v, takes the cheapest place there, and raises its price by v - w + eps, w being
/// the second largest; whoever had the place looks again. The price of an expert is that of its
/// cheapest place, 0 while one is free. When all have a place, nobody could gain more than eps by
/// moving, so that the sum is within E ceil(n / E) eps of the largest there is.
///
/// If E does not divide n, each expert has floor(n / E) places and one more for which also E - n
/// mod E bidders compete that stand for nobody and do not care which they get: who gets one more
/// token is part of the optimum. A price rises by at least eps, and not far above the range of the
/// scores while a place is free, so there are at most about range / eps bids per place.
///
/// NaN and +inf count as the smallest finite score, as in BASE; -inf is no place for that token.
/// Where that leaves some without one, as many as can be have one, and the load may be less even.
///
/// One thread does all of it: bids depend on those before.
///
/// Source: Bertsekas, Castanon, "The auction algorithm for the transportation problem" (1989).
class BalancedAssignment {
public:
    /// @param resolution  eps = max((largest - smallest score) / resolution, 1e-4)
    /// @param expert      [T] the expert of each token; -1 for a row of -inf, and where logits of
    ///                    -inf leave no place
    template <class S>
    void run(In<S> logits, double resolution, std::int32_t* expert) {
        reset(logits.rows(), logits.cols());
        double low = std::numeric_limits<double>::infinity(), high = -low;
        Index waiting = 0;
        for (Index t = 0; t < tokens_; ++t) {
            expert[t] = -1;
            const S* z = row_data(logits, t);
            if (is_live(experts_, z)) queue_[waiting++] = static_cast<std::int32_t>(t);
            for (Index e = 0; e < experts_; ++e)
                if (const auto wide = static_cast<double>(z[e]); std::isfinite(wide)) {
                    low = std::min(low, wide);
                    high = std::max(high, wide);
                }
        }
        if (!(low <= high)) low = high = 0;  // none is finite
        const double eps = std::max((high - low) / resolution, 1e-4);
        // Scores count from the smallest. This is less than making room costs any chain of tokens.
        // An fma with 0, because a bare product could be fused into a price.
        const double nowhere =
            std::fma(-2.0 * static_cast<double>(experts_), high - low + eps, 0.0);
        places_ = waiting / experts_;
        const Index rest = waiting % experts_;
        extra_ = rest == 0 ? 0 : 1;
        for (Index i = 0; rest != 0 && i < experts_ - rest; ++i)
            queue_[waiting++] = static_cast<std::int32_t>(tokens_ + i);

        const Index ring = tokens_ + experts_;
        for (Index next = 0; waiting > 0; --waiting, next = (next + 1) % ring) {
            const std::int32_t bidder = queue_[next];
            const bool is_token = bidder < tokens_;
            const S* z = is_token ? row_data(logits, bidder) : nullptr;
            const Wish wish = best(z, low, is_token ? nowhere : -highest_price);
            if (wish.market < 0) continue;
            const double price = price_of(wish.market) + (wish.value - wish.next) + eps;
            const std::int32_t loser = take(wish.market, {price, bidder});
            if (is_token) expert[bidder] = static_cast<std::int32_t>(wish.market % experts_);
            if (loser < 0) continue;
            if (loser < tokens_) expert[loser] = -1;
            queue_[(next + waiting) % ring] = loser;
            ++waiting;
        }
    }

    void reserve(Index tokens, Index experts) { reset(tokens, experts); }
    static Index bytes(Index tokens, Index experts) {
        return (tokens + experts) * static_cast<Index>(sizeof(Bid) + sizeof(std::int32_t)) +
               2 * experts * static_cast<Index>(sizeof(Index));
    }

private:
    static constexpr double highest_price = std::numeric_limits<double>::max();

    struct Bid {
        double price;
        std::int32_t bidder;
    };
    struct Wish {
        Index market;  // -1: nowhere
        double value, next;
    };

    void reset(Index tokens, Index experts) {
        tokens_ = tokens;
        experts_ = experts;
        bids_.resize(tokens + experts);
        queue_.resize(tokens + experts);
        taken_.assign(2 * experts, 0);
    }

    /// Market m < E holds the places that an expert has in any case, market E + e the one that it
    /// may have more.
    Index size_of(Index market) const { return market < experts_ ? places_ : extra_; }
    Bid* bids_of(Index market) {
        return bids_.data() +
               (market < experts_ ? market * places_ : experts_ * places_ + market - experts_);
    }
    double price_of(Index market) {
        return taken_[market] < size_of(market) ? 0 : bids_of(market)->price;
    }

    /// The market that is worth most to a bidder, the lower of equals; and what the next is worth.
    /// @param z  its logits; null for a bidder that stands for nobody
    template <class S>
    Wish best(const S* z, double smallest, double nowhere) {
        Wish wish{-1, nowhere, nowhere};
        for (Index market = z == nullptr ? experts_ : 0; market < 2 * experts_; ++market) {
            if (size_of(market) == 0) continue;
            double score = 0;
            if (z != nullptr) {
                const S logit = z[market % experts_];
                if (logit == -std::numeric_limits<S>::infinity()) continue;
                const auto wide = static_cast<double>(logit);
                if (std::isfinite(wide)) score = wide - smallest;
            }
            const double value = score - price_of(market);
            if (value > wish.value) {
                wish = {market, value, wish.value};
            } else if (value > wish.next) {
                wish.next = value;
            }
        }
        return wish;
    }

    /// @return  who had the place, -1 if nobody
    std::int32_t take(Index market, Bid bid) {
        const auto dearer = [](const Bid& a, const Bid& b) {  // the cheapest comes on top
            return a.price > b.price || (a.price == b.price && a.bidder > b.bidder);
        };
        Bid* const bids = bids_of(market);
        std::int32_t loser = -1;
        if (taken_[market] == size_of(market)) {
            std::pop_heap(bids, bids + taken_[market], dearer);
            loser = bids[--taken_[market]].bidder;
        }
        bids[taken_[market]++] = bid;
        std::push_heap(bids, bids + taken_[market], dearer);
        return loser;
    }

    Index tokens_ = 0, experts_ = 0, places_ = 0, extra_ = 0;
    Buffer<Bid> bids_;            // heaps, one per market
    Buffer<std::int32_t> queue_;  // ring of [T + E]
    Buffer<Index> taken_;         // [2 E] places of each market
};

}  // namespace moe::inline MOE_ABI::detail

#endif  // MOE_GATES_BALANCED_ASSIGNMENT_HPP
