// SPDX-License-Identifier: MIT
#ifndef MOE_CORE_ROUTING_HPP
#define MOE_CORE_ROUTING_HPP

#include <algorithm>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include <moe/core/error.hpp>
#include <moe/core/memory.hpp>
#include <moe/core/types.hpp>

namespace moe::inline MOE_ABI {

/// Why an assignment does not reach its expert.
enum class Dropped : std::uint8_t {
    no,            ///< it does
    capacity,      ///< the expert was full
    pruned,        ///< removed after selection, e.g. by an edit or a run-time rule
    pass_through,  ///< the expert was full; the token itself stands for what it would return
};

/// One (token, expert) pair and the factors it is computed with:
///
///     y[token] += weight * expert(input_weight * x[token])
///     y[token] += weight * input_weight * x[token]           with Dropped::pass_through
///
/// Weights are stored as double, which holds a float exactly.
struct Assignment {
    std::int32_t token = 0;
    std::int32_t expert = 0;
    std::int32_t slot = 0;  ///< place in the token's own order of selection, from 0
    Dropped dropped = Dropped::no;
    double weight = 1;
    double input_weight = 1;

    bool operator==(const Assignment&) const = default;
};

/// The plan of one batch: which token goes to which expert with which weight.
///
/// A token has 0 to E assignments, in the order in which they were chosen. A routing is a plain
/// value and does not know who made it: build it by hand, copy, compare, edit, save, replay it.
///
///     routing.reset(T, E);  routing.add(token, expert, weight) ...;  routing.group();
///
/// group() sorts what was added: assignments by token (slots keep the order in which they were
/// added) and, for those that are not dropped, by expert with tokens ascending. Reading needs it.
///
/// Not-a-number: gates rank NaN last; a row with a NaN routes with NaN weights, so that the fault
/// shows in the output. A row in which every logit is -inf has no assignments.
class Routing {
public:
    /// Forgets everything; the plan is for `num_tokens` tokens and `num_experts` experts.
    /// @throws std::invalid_argument if one is negative or does not fit 31 bits
    void reset(Index num_tokens, Index num_experts) {
        constexpr Index most = std::numeric_limits<std::int32_t>::max();
        if (num_tokens < 0 || num_tokens > most || num_experts < 0 || num_experts > most)
            detail::fail("moe::Routing: ", num_tokens, " tokens and ", num_experts,
                         " experts, both must lie in [0, 2147483647]");
        num_tokens_ = num_tokens;
        num_experts_ = num_experts;
        assignments_.clear();
        by_token_ = true;
        grouped_ = false;
    }

    /// Adds an assignment in the next free slot of its token. Tokens may come in any order.
    /// @throws std::invalid_argument if token or expert is out of range
    void add(Index token, Index expert, double weight = 1, double input_weight = 1) {
        if (token < 0 || token >= num_tokens_) fail_token("add", token);
        if (expert < 0 || expert >= num_experts_) fail_expert("add", expert);
        const std::int32_t slot = next_slot(token);
        assignments_.push_back({.token = static_cast<std::int32_t>(token),
                                .expert = static_cast<std::int32_t>(expert),
                                .slot = slot,
                                .dropped = Dropped::no,
                                .weight = weight,
                                .input_weight = input_weight});
        grouped_ = false;
    }

    /// Adds assignments of consecutive tokens, with weights of 1: counts[i] of token `first` + i,
    /// to experts[i * stride], experts[i * stride + 1], ... The same as an add() for each, and
    /// quicker.
    /// @throws std::invalid_argument if a token or expert is out of range
    void add_lists(Index first, std::span<const std::int32_t> counts, const std::int32_t* experts,
                   Index stride) {
        const auto tokens = static_cast<Index>(counts.size());
        if (first < 0 || first > num_tokens_) fail_token("add_lists", first);
        if (tokens > num_tokens_ - first) fail_token("add_lists", first + tokens - 1);
        grouped_ = false;
        for (Index i = 0; i < tokens; ++i) {
            const std::int32_t* list = experts + i * stride;
            std::int32_t slot = next_slot(first + i);
            for (Index s = 0; s < counts[at(i)]; ++s, ++slot) {
                if (list[s] < 0 || list[s] >= num_experts_) fail_expert("add_lists", list[s]);
                assignments_.push_back({.token = static_cast<std::int32_t>(first + i),
                                        .expert = list[s],
                                        .slot = slot});
            }
        }
    }

    /// Removes every assignment for which f(assignment) is true; call group() afterwards.
    template <class F>
    void erase_if(F&& f) {
        if (std::erase_if(assignments_, f) != 0) by_token_ = grouped_ = false;
    }

    /// Sorts what was added (two stable counting sorts, O(N + T + E)). Idempotent.
    /// @throws std::invalid_argument if a token goes to one expert twice, not counting dropped
    ///         assignments
    void group() {
        if (grouped_) return;
        if (!by_token_) sort_by_token();
        const auto tokens = at(num_tokens_), experts = at(num_experts_);
        token_offsets_.assign(tokens + 1, 0);
        expert_offsets_.assign(experts + 1, 0);
        for (std::size_t i = 0; i < assignments_.size(); ++i) {
            const Assignment& a = assignments_[i];
            token_offsets_[at(a.token) + 1] = static_cast<Index>(i) + 1;  // the last one stays
            expert_offsets_[at(a.expert) + 1] += a.dropped == Dropped::no;
        }
        for (std::size_t t = 0; t < tokens; ++t)
            token_offsets_[t + 1] = std::max(token_offsets_[t + 1], token_offsets_[t]);
        for (std::size_t e = 0; e < experts; ++e) expert_offsets_[e + 1] += expert_offsets_[e];
        cursor_.assign(expert_offsets_.begin(), expert_offsets_.end());
        expert_tokens_.resize(at(expert_offsets_[experts]));
        expert_assignments_.resize(at(expert_offsets_[experts]));
        for (std::size_t i = 0; i < assignments_.size(); ++i) {
            if (assignments_[i].dropped != Dropped::no) continue;
            const Index place = cursor_[at(assignments_[i].expert)]++;
            if (place > expert_offsets_[at(assignments_[i].expert)] &&
                expert_tokens_[at(place) - 1] == assignments_[i].token)
                detail::fail("moe::Routing::group: token ", assignments_[i].token,
                             " goes to expert ", assignments_[i].expert,
                             " twice; add it once, with the sum of the weights");
            expert_tokens_[at(place)] = assignments_[i].token;
            expert_assignments_[at(place)] = static_cast<Index>(i);
        }
        grouped_ = true;
    }

    Index num_tokens() const { return num_tokens_; }
    Index num_experts() const { return num_experts_; }
    /// All assignments, dropped ones included.
    Index num_assignments() const { return static_cast<Index>(assignments_.size()); }
    /// Assignments that reach an expert.
    Index num_kept() const { return check_grouped(), expert_offsets_.back(); }

    /// Every assignment, tokens ascending, slots ascending within a token. An assignment's number
    /// is its place here.
    std::span<const Assignment> assignments() const {
        return check_grouped(), detail::elements(assignments_);
    }
    /// Number of the first assignment of `token`; first(t) to first(t + 1) are its own.
    Index first(Index token) const {
        check_grouped();
        if (token < 0 || token > num_tokens_) fail_token("first", token);
        return token_offsets_[at(token)];
    }
    /// The assignments of one token in slot order, dropped ones included.
    std::span<const Assignment> of(Index token) const {
        check_grouped();
        if (token < 0 || token >= num_tokens_) fail_token("of", token);
        const Index begin = token_offsets_[at(token)], end = token_offsets_[at(token) + 1];
        return detail::elements(assignments_).subspan(at(begin), at(end - begin));
    }

    /// The tokens an expert works on, ascending.
    std::span<const std::int32_t> tokens_of(Index expert) const {
        check_expert(expert);
        return detail::elements(expert_tokens_).subspan(begin(expert), size(expert));
    }
    /// The numbers of those assignments, in the same order.
    std::span<const Index> assignments_of(Index expert) const {
        check_expert(expert);
        return detail::elements(expert_assignments_).subspan(begin(expert), size(expert));
    }
    /// [E + 1] where each expert's rows begin in the expert-major order.
    std::span<const Index> expert_offsets() const {
        return check_grouped(), detail::elements(expert_offsets_);
    }
    /// [num_kept] token of each row in the expert-major order.
    std::span<const std::int32_t> expert_tokens() const {
        return check_grouped(), detail::elements(expert_tokens_);
    }
    /// [num_kept] assignment number of each row in the expert-major order.
    std::span<const Index> expert_assignments() const {
        return check_grouped(), detail::elements(expert_assignments_);
    }

    template <class S>
    S weight(Index assignment) const {
        return static_cast<S>(assignments_[checked(assignment)].weight);
    }
    template <class S>
    S input_weight(Index assignment) const {
        return static_cast<S>(assignments_[checked(assignment)].input_weight);
    }
    void set_weight(Index assignment, double weight) {
        assignments_[checked(assignment)].weight = weight;
    }
    void set_input_weight(Index assignment, double weight) {
        assignments_[checked(assignment)].input_weight = weight;
    }
    void set_weights(Index assignment, double weight, double input_weight) {
        Assignment& a = assignments_[checked(assignment)];
        a.weight = weight;
        a.input_weight = input_weight;
    }
    /// Takes an assignment out of (or back into) the expert-major order; call group() afterwards.
    void set_dropped(Index assignment, Dropped reason) {
        assignments_[checked(assignment)].dropped = reason;
        grouped_ = false;
    }

    /// Room for a batch of this size without further allocation.
    void reserve(Index num_tokens, Index num_experts, Index num_assignments) {
        assignments_.reserve(at(num_assignments));
        sorted_.reserve(at(num_assignments));
        expert_tokens_.reserve(at(num_assignments));
        expert_assignments_.reserve(at(num_assignments));
        token_offsets_.reserve(at(num_tokens) + 1);
        expert_offsets_.reserve(at(num_experts) + 1);
        cursor_.reserve(at(std::max(num_tokens, num_experts)) + 1);
    }

    /// Bytes of that.
    static Index bytes(Index num_tokens, Index num_experts, Index num_assignments) {
        constexpr auto number = static_cast<Index>(sizeof(Index));
        constexpr Index each = 2 * sizeof(Assignment) + sizeof(std::int32_t) + number;
        const Index offsets = num_tokens + num_experts + std::max(num_tokens, num_experts) + 3;
        return detail::checked_product(num_assignments, each) +
               detail::checked_product(offsets, number);
    }

    /// The same plan: extents, experts, slots, weights and drops.
    friend bool operator==(const Routing& a, const Routing& b) {
        return a.num_tokens_ == b.num_tokens_ && a.num_experts_ == b.num_experts_ &&
               a.assignments_ == b.assignments_;
    }

private:
    static std::size_t at(Index i) { return static_cast<std::size_t>(i); }
    std::size_t begin(Index expert) const { return at(expert_offsets_[at(expert)]); }
    std::size_t size(Index expert) const {
        return at(expert_offsets_[at(expert) + 1]) - begin(expert);
    }
    std::size_t checked(Index assignment) const {
        if (assignment < 0 || assignment >= num_assignments())
            detail::fail("moe::Routing: assignment is ", assignment, ", there are ",
                         num_assignments());
        return at(assignment);
    }
    /// The slot of an assignment that is added now, as far as the last token tells: gates add
    /// tokens in order, and group() need not sort them.
    std::int32_t next_slot(Index token) {
        if (assignments_.empty() || assignments_.back().token < token) return 0;
        by_token_ &= assignments_.back().token == token;
        return assignments_.back().slot + 1;
    }
    /// Sorts assignments by token and numbers their slots.
    void sort_by_token() {
        token_offsets_.assign(at(num_tokens_) + 1, 0);
        for (const Assignment& a : assignments_) ++token_offsets_[at(a.token) + 1];
        for (std::size_t t = 0; t < at(num_tokens_); ++t)
            token_offsets_[t + 1] += token_offsets_[t];
        cursor_.assign(token_offsets_.begin(), token_offsets_.end());
        sorted_.resize(assignments_.size());
        for (const Assignment& a : assignments_) {
            const Index place = cursor_[at(a.token)]++;
            sorted_[at(place)] = a;
            sorted_[at(place)].slot =
                static_cast<std::int32_t>(place - token_offsets_[at(a.token)]);
        }
        assignments_.swap(sorted_);
        by_token_ = true;
    }
    [[noreturn]] void fail_token(const char* function, Index token) const {
        detail::fail("moe::Routing::", function, ": token is ", token, ", there are ", num_tokens_);
    }
    [[noreturn]] void fail_expert(const char* function, Index expert) const {
        detail::fail("moe::Routing::", function, ": expert is ", expert, ", there are ",
                     num_experts_);
    }
    void check_grouped() const {
        if (!grouped_)
            detail::fail<std::logic_error>(
                "moe::Routing: read before group(); call group() after the last add()");
    }
    void check_expert(Index expert) const {
        check_grouped();
        if (expert < 0 || expert >= num_experts_)
            detail::fail("moe::Routing: expert is ", expert, ", there are ", num_experts_);
    }

    Index num_tokens_ = 0, num_experts_ = 0;
    std::vector<Assignment> assignments_, sorted_;
    std::vector<Index> token_offsets_, expert_offsets_, cursor_, expert_assignments_;
    std::vector<std::int32_t> expert_tokens_;
    bool by_token_ = true;  // assignments_ are sorted by token and have their slots
    bool grouped_ = false;
};

/// d(loss)/d(weight) of every assignment, by assignment number.
template <class S>
struct WeightGradients {
    std::span<const S> output;   ///< [N] for Assignment::weight
    std::span<const S> input{};  ///< [N] for Assignment::input_weight; empty: all 0

    /// For a gate that weighs outputs, which is nearly every gate.
    S operator[](Index assignment) const { return output[static_cast<std::size_t>(assignment)]; }
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_CORE_ROUTING_HPP
