// SPDX-License-Identifier: MIT
#ifndef MOE_ROUTERS_TOKEN_TABLE_HPP
#define MOE_ROUTERS_TOKEN_TABLE_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <numeric>
#include <queue>
#include <span>
#include <utility>
#include <vector>

#include <moe/core/concepts.hpp>
#include <moe/core/random.hpp>
#include <moe/routers/decide.hpp>

namespace moe::inline MOE_ABI {

template <class S>
class TokenTableModule;

/// Recipe of a router that sends every token where a table says for its vocabulary id. The gate
/// beside it takes the same k, without weights: TopK{.k = k, .ones = true}.
///
///     logits(t, e) = 0 if e is in table[id_t], else -inf      table: [V, k]
///
/// Needs Context::token_ids. random_table() and balanced_table() make tables. A table that follows
/// from the whole text, of bigrams say, gets its row numbers as token ids.
///
/// MultiHash, where N tables choose N segments of the hidden units of an expert independently, is a
/// layer of N * E experts of one segment each and a table of k = N columns, the entries of column n
/// in [n * E, (n + 1) * E).
///
/// DeepSeek-V4's first layers choose by a table (`tid2eid`) too, but weigh with the scores of a
/// learned router. There the table is a mask for that router: see allow().
///
/// Source: Hash layers (arXiv:2106.04426) section 3.
struct TokenTable {
    std::vector<std::int32_t> table{};  ///< [V, k] row-major, experts by id; required
    Index k = 1;                        ///< different experts per token, 1 to L

    /// @throws std::invalid_argument as check() does, or if logits are not one per expert
    template <class S>
    TokenTableModule<S> build(const Shape& shape, Random&) const {
        detail::check_expert_logits(name, shape);
        return TokenTableModule<S>(*this, shape.num_logits);
    }

    /// V, rows of the table.
    Index vocabulary() const { return static_cast<Index>(table.size()) / k; }
    /// [k] the experts of a vocabulary id in [0, V).
    std::span<const std::int32_t> experts_of(std::int64_t id) const {
        return {table.data() + id * k, static_cast<std::size_t>(k)};
    }

    /// Writes Context::allowed: every token may go to the experts of its row, padding to none. With
    /// LinearRouter and TopK{.k = k, .score = Score::sqrt_softplus} that is a hash layer of
    /// DeepSeek-V4.
    /// @param context  its token_ids, one per token, and its padding
    /// @param allowed  [T * experts], overwritten
    /// @throws std::invalid_argument if an extent is wrong, an id is not in the table, or its row
    ///         does not fit
    void allow(const Context& context, Index experts, std::span<std::uint8_t> allowed) const {
        detail::check_k(name, k, experts);
        const auto tokens = static_cast<Index>(context.token_ids.size());
        const Index wanted = detail::checked_product(tokens, experts);
        if (static_cast<Index>(allowed.size()) != wanted)
            detail::fail("moe::TokenTable::allow: allowed has ", allowed.size(),
                         " entries, it must have ", wanted, ": ", tokens, " token ids times ",
                         experts, " experts");
        check_ids(context, tokens);
        std::fill(allowed.begin(), allowed.end(), std::uint8_t{0});
        for (Index t = 0; t < tokens; ++t) {
            if (context.is_padding(t)) continue;
            const std::int64_t id = context.token_ids[static_cast<std::size_t>(t)];
            check_row(id, experts);
            for (const std::int32_t e : experts_of(id))
                allowed[static_cast<std::size_t>(t * experts + e)] = 1;
        }
    }

    /// @throws std::invalid_argument if k is out of range, or the table is empty, ends within a
    ///         row, names an expert that the layer does not have, or one twice for an id
    void check(Index experts) const {
        detail::check_k(name, k, experts);
        if (table.empty())
            detail::fail(name,
                         ": table is empty; give it k experts for each vocabulary id, "
                         "e.g. moe::random_table(vocabulary, experts)");
        if (static_cast<Index>(table.size()) % k != 0)
            detail::fail(name, ": table has ", table.size(),
                         " entries, it must be a multiple of k = ", k,
                         ": row-major [vocabulary, k]");
        for (Index id = 0; id < vocabulary(); ++id) check_row(id, experts);
    }
    /// @throws std::invalid_argument unless there is an id in [0, V) for each of `tokens` tokens
    ///         that is not padding
    void check_ids(const Context& context, Index tokens) const {
        const std::span<const std::int64_t> ids = context.token_ids;
        detail::check_per_token(name, "token_ids", ids.size(), tokens);
        detail::check_extent("padding", context.padding.size(), tokens, "one per token");
        for (Index t = 0; t < tokens; ++t) {
            const std::int64_t id = ids[static_cast<std::size_t>(t)];
            if ((id < 0 || id >= vocabulary()) && !context.is_padding(t))
                detail::fail(name, ": token_ids[", t, "] is ", id, ", it must be in [0, ",
                             vocabulary(), "), the rows of the table");
        }
    }

private:
    static constexpr const char* name = "moe::TokenTable";

    void check_row(std::int64_t id, Index experts) const {
        const std::span<const std::int32_t> row = experts_of(id);
        for (auto entry = row.begin(); entry != row.end(); ++entry) {
            if (*entry < 0 || *entry >= experts)
                detail::fail(name, ": row ", id, " of table names expert ", *entry,
                             ", it must be in [0, ", experts, ")");
            if (std::find(row.begin(), entry, *entry) != entry)
                detail::fail(name, ": row ", id, " of table names expert ", *entry,
                             " twice, a token goes to an expert once; use another one, or a "
                             "smaller k");
        }
    }
};

/// The router that TokenTable describes. Copies share the table. Padding gets nothing, whatever its
/// id is.
template <class S>
class TokenTableModule {
public:
    using Scalar = S;
    static constexpr bool skips_empty_gradients = true;

    /// Holds nothing; a gradient like this is not wanted.
    TokenTableModule() = default;
    /// @throws std::invalid_argument if the table does not fit; see TokenTable::check()
    TokenTableModule(TokenTable table, Index num_logits) : num_logits_(num_logits) {
        table.check(num_logits);
        table_ = std::make_shared<const TokenTable>(std::move(table));
    }

    const TokenTable& table() const { return *table_; }

    /// @param x       [T, D], not read
    /// @param logits  [T, L], overwritten
    /// @throws std::invalid_argument unless Context::token_ids has a row of the table for every
    ///         token
    void forward(In<S> x, Out<S> logits, const Call<S>& call) const {
        detail::check_router_extents<S>(name, x, logits, num_logits_);
        table_->check_ids(call.context, x.rows());
        detail::decide<S>(logits, call, [&](Index t, S* row) {
            const std::int64_t id = call.context.token_ids[static_cast<std::size_t>(t)];
            for (const std::int32_t e : table_->experts_of(id)) row[e] = S(0);
        });
    }

    /// dx = 0
    void backward(In<S> x, In<S>, Out<S> dx, TokenTableModule&, const Call<S>&) const {
        detail::write_no_gradient<S>(name, x, dx);
    }

    /// @throws std::invalid_argument if the layer has another number of logits, or they are not
    ///         one per expert
    void check(const Shape& shape) const {
        detail::check_deciding_router(name, num_logits_, shape);
    }

private:
    static constexpr const char* name = "moe::TokenTable";

    std::shared_ptr<const TokenTable> table_;
    Index num_logits_ = 0;
};

/// A table with k = 1 for TokenTable under which experts get about the same number of tokens: in
/// falling order of frequency (ties: the lower id first) every id goes to the expert that has the
/// least so far (ties: the lower expert).
///
/// Ids of frequency 0 change no sum and so all go to one expert: count unseen ones as a little more
/// than nothing.
///
/// @param frequencies  [V] how often each vocabulary id occurs, in any unit; finite and >= 0
/// @throws std::invalid_argument if a frequency is out of range or experts < 1
/// Source: Hash layers (arXiv:2106.04426) section 3.1, balanced assignment.
inline std::vector<std::int32_t> balanced_table(std::span<const double> frequencies,
                                                Index experts) {
    if (experts < 1 || experts > std::numeric_limits<std::int32_t>::max())
        detail::fail("moe::balanced_table: experts is ", experts,
                     ", it must be in [1, 2147483647]");
    for (std::size_t id = 0; id < frequencies.size(); ++id)
        if (!(frequencies[id] >= 0 && std::isfinite(frequencies[id])))
            detail::fail("moe::balanced_table: frequencies[", id, "] is ", frequencies[id],
                         ", it must be finite and >= 0");
    std::vector<std::size_t> order(frequencies.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(), [frequencies](std::size_t a, std::size_t b) {
        return frequencies[a] > frequencies[b];
    });
    using Sum = std::pair<double, std::int32_t>;  // of an expert; the lightest is on top
    std::priority_queue<Sum, std::vector<Sum>, std::greater<Sum>> sums;
    for (Index e = 0; e < experts; ++e) sums.emplace(0.0, static_cast<std::int32_t>(e));
    std::vector<std::int32_t> table(frequencies.size());
    for (const std::size_t id : order) {
        const auto [sum, expert] = sums.top();
        sums.pop();
        table[id] = expert;
        sums.emplace(sum + frequencies[id], expert);
    }
    return table;
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_ROUTERS_TOKEN_TABLE_HPP
