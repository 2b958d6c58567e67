// SPDX-License-Identifier: MIT
#ifndef MOE_CORE_BATCH_ROWS_HPP
#define MOE_CORE_BATCH_ROWS_HPP

#include <cstddef>
#include <cstdint>
#include <span>

#include <moe/core/context.hpp>
#include <moe/core/memory.hpp>
#include <moe/core/routing.hpp>
#include <moe/core/rows.hpp>
#include <moe/core/types.hpp>

namespace moe::inline MOE_ABI::detail {

/// The rows of one batch as expert groups take them, from a routing and a context: those of the
/// routed experts, and all tokens but padding for groups that every token goes to.
///
///     weights[r] = the assignment's weight * the context's multiplier
///     input_weights[r] = input_scale * the assignment's input weight; none if all are 1
template <class S>
class BatchRows {
public:
    /// Arrays for a batch; the rows are views of them and of `routing`.
    void fill(const Routing& routing, const Context& context, S input_scale) {
        routing_ = &routing;
        const auto numbers = routing.expert_assignments();
        const Index rows = routing.num_kept();
        bool scaled = input_scale != 1;
        const auto weights = weights_.resize(rows);
        const auto ids = ids_.resize(rows);
        for (std::size_t r = 0; r < numbers.size(); ++r) {
            const Assignment& a = assignment(numbers[r]);
            weights[r] = static_cast<S>(a.weight * multiplier(context, a.token, a.expert));
            ids[r] = context.first_token + a.token;
            scaled |= a.input_weight != 1;
        }
        const auto input_weights = input_weights_.resize(scaled ? rows : 0);
        for (std::size_t r = 0; r < input_weights.size(); ++r)
            input_weights[r] = input_scale * static_cast<S>(assignment(numbers[r]).input_weight);

        const Index tokens = routing.num_tokens();
        tokens_.resize(tokens);
        token_ids_.resize(tokens);
        Index live = 0;
        for (Index t = 0; t < tokens; ++t) {
            if (context.is_padding(t)) continue;
            tokens_[live] = static_cast<std::int32_t>(t);
            token_ids_[live++] = context.first_token + t;
        }
        token_offsets_[1] = live;
        ones_.assign(live, S(1));
        scales_.assign(input_scale != 1 ? live : 0, input_scale);
    }

    /// Rows of the experts [first, last), numbered from 0.
    Rows<S> of_experts(Index first, Index last) const {
        Rows<S> rows{.offsets = routing_->expert_offsets(),
                     .from = routing_->expert_tokens(),
                     .to = routing_->expert_tokens(),
                     .weights = weights_.span(),
                     .input_weights = input_weights_.span(),
                     .ids = ids_.span()};
        rows = rows.experts(first, last);
        rows.first_expert = 0;
        return rows;
    }
    /// One run of all tokens that are not padding, with weight 1.
    Rows<S> of_tokens() const {
        const auto live = static_cast<std::size_t>(token_offsets_[1]);
        return {.offsets = token_offsets_,
                .from = tokens_.span().first(live),
                .to = tokens_.span().first(live),
                .weights = ones_.span(),
                .input_weights = scales_.span(),
                .ids = token_ids_.span().first(live)};
    }

    void reserve(Index tokens, Index assignments) {
        weights_.resize(assignments);
        input_weights_.resize(assignments);
        ids_.resize(assignments);
        tokens_.resize(tokens);
        token_ids_.resize(tokens);
        ones_.resize(tokens);
        scales_.resize(tokens);
    }
    /// Bytes of that room.
    static Index bytes(Index tokens, Index assignments) {
        return checked_product(assignments,
                               static_cast<Index>(2 * sizeof(S) + sizeof(std::int64_t))) +
               checked_product(tokens, static_cast<Index>(2 * sizeof(S) + sizeof(std::int64_t) +
                                                          sizeof(std::int32_t)));
    }

    /// The context's factor of what an expert returns; 1 if it is in the weights already.
    static double multiplier(const Context& context, Index token, Index expert) {
        return multiplies_outputs(context) ? context.multiplier(token, expert) : 1;
    }
    static bool multiplies_outputs(const Context& context) {
        return context.multiplies() &&
               context.dial.multiplier_order == MultiplierOrder::after_normalization;
    }

private:
    const Assignment& assignment(Index number) const {
        return routing_->assignments()[static_cast<std::size_t>(number)];
    }

    const Routing* routing_ = nullptr;
    Buffer<S> weights_, input_weights_;  // [num_kept]
    Buffer<std::int64_t> ids_;           // [num_kept]
    Buffer<std::int32_t> tokens_;        // [live tokens]
    Buffer<std::int64_t> token_ids_;     // [live tokens]
    Buffer<S> ones_, scales_;            // [live tokens]
    Index token_offsets_[2] = {0, 0};
};

}  // namespace moe::inline MOE_ABI::detail

#endif  // MOE_CORE_BATCH_ROWS_HPP
