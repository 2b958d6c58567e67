// SPDX-License-Identifier: MIT
#ifndef MOE_GATES_CAPACITY_ORDER_HPP
#define MOE_GATES_CAPACITY_ORDER_HPP

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include <moe/core/context.hpp>
#include <moe/core/random.hpp>
#include <moe/core/routing.hpp>
#include <moe/core/types.hpp>
#include <moe/core/views.hpp>
#include <moe/core/workspace.hpp>

namespace moe::inline MOE_ABI {

/// Who gets a place at an expert; among equals the lower token.
///
/// A new one also touches: here counts_slots() and, of Keys, the constructor and the switch; in
/// capacity.hpp check_choice(), compares_logits() and is_causal(); README.md.
enum class CapacityPriority {
    k_major,      ///< all first choices in token order, then all second ones (GShard, NLLB, ...)
    token_major,  ///< all choices of a token, then those of the next (DeepSpeed top-k)
    probability,  ///< the largest weights, as they are before anyone is dropped (Megatron)
    logit,        ///< the largest logits (Uni-MoE)
    /// The largest softmax(z)_e over the experts' logits z of the token, whatever the gate makes of
    /// them (DeepSpeed top-k)
    score,
    /// Tokens in falling order of their largest softmax probability, or of
    /// Context::token_importance if it is given, k-major (V-MoE, arXiv:2106.05974)
    batch_prioritized,
    /// By draws keyed by token and expert, in training and out of it (DeepSpeed's random token
    /// selection)
    random,
};

namespace detail {

/// The assignments that ask for a place, first who goes first.
struct CapacityOrder {
    static constexpr std::int32_t exempt = -1;  ///< the slot of what is served before all others

    struct Request {
        std::int32_t slot;  // lower first; 0 where slots do not matter
        double key;         // higher first
        Index assignment;   // lower first
    };
    std::vector<Request> requests;

    /// Those of tokens [first, last), without what is dropped already and what crosses a mask,
    /// which the layer takes out.
    /// @param is_exempt  is_exempt(token)
    template <class S, class IsExempt>
    void fill(CapacityPriority priority, Index first, Index last, In<S> logits,
              const Routing& routing, const Call<S>& call, IsExempt&& is_exempt) {
        bool any_exempt = false;
        requests.clear();
        for (Index t = first; t < last; ++t) {
            if (call.context.is_padding(t)) continue;
            const bool goes_first = is_exempt(t);
            any_exempt |= goes_first;
            const Keys<S> keys(priority, t, logits, call);
            for (Index a = routing.first(t); a < routing.first(t + 1); ++a) {
                const Assignment& own = routing.assignments()[at(a)];
                if (own.dropped != Dropped::no || !call.context.is_allowed(t, own.expert)) continue;
                const double key = keys(own);
                requests.push_back({goes_first               ? exempt
                                    : counts_slots(priority) ? own.slot
                                                             : 0,
                                    std::isnan(key) ? -infinity : key, a});
            }
        }
        if (priority == CapacityPriority::token_major && !any_exempt) return;  // as they are
        std::sort(requests.begin(), requests.end(), [](const Request& a, const Request& b) {
            if (a.slot != b.slot) return a.slot < b.slot;
            return a.key > b.key || (a.key == b.key && a.assignment < b.assignment);
        });
    }

private:
    static constexpr double infinity = std::numeric_limits<double>::infinity();

    static bool counts_slots(CapacityPriority priority) {
        return priority == CapacityPriority::k_major ||
               priority == CapacityPriority::batch_prioritized;
    }

    /// What the assignments of a token are compared by.
    template <class S>
    struct Keys {
        CapacityPriority priority;
        Index token;
        const S* z;  // [L]
        const Call<S>& call;
        double most = 0, sum = 1;  // softmax(z)_e = exp(z_e - most) / sum

        Keys(CapacityPriority by, Index t, In<S> logits, const Call<S>& of)
            : priority(by), token(t), z(row_data(logits, t)), call(of) {
            const bool is_told = !call.context.token_importance.empty();
            if (priority != CapacityPriority::score &&
                (priority != CapacityPriority::batch_prioritized || is_told))
                return;
            most = static_cast<double>(*std::max_element(z, z + logits.cols()));
            sum = 0;
            for (Index l = 0; l < logits.cols(); ++l)
                sum += std::exp(static_cast<double>(z[l]) - most);
        }

        double operator()(const Assignment& own) const {
            const auto importance = call.context.token_importance;
            switch (priority) {
                case CapacityPriority::probability:
                    return own.weight * own.input_weight;
                case CapacityPriority::logit:
                    return static_cast<double>(z[own.expert]);
                case CapacityPriority::score:
                    return std::exp(static_cast<double>(z[own.expert]) - most) / sum;
                case CapacityPriority::batch_prioritized:
                    return importance.empty() ? 1 / sum : importance[at(token)];
                case CapacityPriority::random:
                    return call.random().uniform(call.token(token), own.expert);
                case CapacityPriority::k_major:
                case CapacityPriority::token_major:
                    break;
            }
            return 0;
        }
    };
};

}  // namespace detail
}  // namespace moe::inline MOE_ABI

#endif  // MOE_GATES_CAPACITY_ORDER_HPP
