// SPDX-License-Identifier: MIT
#ifndef MOE_ROUTERS_HASH_HPP
#define MOE_ROUTERS_HASH_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <moe/core/concepts.hpp>
#include <moe/core/random.hpp>
#include <moe/routers/decide.hpp>

namespace moe::inline MOE_ABI {
namespace detail {

/// Draw j of a token in [0, bound): mix(mix(mix(seed) ^ id) ^ j) mod bound.
inline Index hashed(std::uint64_t seed, std::int64_t id, Index j, Index bound) {
    const std::uint64_t token = mix(mix(seed) ^ static_cast<std::uint64_t>(id));
    return static_cast<Index>(mix(token ^ static_cast<std::uint64_t>(j)) %
                              static_cast<std::uint64_t>(bound));
}

}  // namespace detail

/// The router that HashRouter describes.
///
/// Experts of a token with vocabulary id v, in 64-bit arithmetic modulo 2^64:
///
///     h(v, j) = mix(mix(mix(seed) ^ v) ^ j)                    j = 0 .. k - 1
///     r_j     = h(v, j) mod (L - k + 1 + j)
///     e_j     = r_j, or L - k + j if r_j is among e_0 .. e_(j-1)
///
///     mix(b):  b += 0x9E3779B97F4A7C15,  b = (b ^ b >> 30) * 0xBF58476D1CE4E5B9,
///              b = (b ^ b >> 27) * 0x94D049BB133111EB,  b ^ b >> 31
///
/// so e_0 = h(v, 0) mod L for k = 1. Every set of k different experts is as likely as any
/// other (to 2^-32 or better). Logits are 0 for the e_j and -inf for the others; padding gets
/// nothing. Any id has a hash: there is no vocabulary to stay within.
template <class S>
class HashRouterModule {
public:
    using Scalar = S;
    static constexpr bool skips_empty_gradients = true;

    /// Holds nothing; a gradient like this is not wanted.
    HashRouterModule() = default;
    /// @throws std::invalid_argument unless k is in [1, num_logits]
    HashRouterModule(Index k, std::uint64_t seed, Index num_logits)
        : k_(k), num_logits_(num_logits), seed_(seed) {
        detail::check_k(name, k, num_logits);
    }

    /// @param x       [T, D], not read
    /// @param logits  [T, L], overwritten
    /// @throws std::invalid_argument unless Context::token_ids has an id for every token
    void forward(In<S> x, Out<S> logits, const Call<S>& call) const {
        detail::check_router_extents<S>(name, x, logits, num_logits_);
        const std::span<const std::int64_t> ids = call.context.token_ids;
        detail::check_per_token(name, "token_ids", ids.size(), x.rows());
        detail::decide<S>(logits, call, [&](Index t, S* row) {
            const std::int64_t id = ids[static_cast<std::size_t>(t)];
            detail::choose_different(k_, num_logits_, row, [&](Index j, Index bound) {
                return detail::hashed(seed_, id, j, bound);
            });
        });
    }

    /// dx = 0
    void backward(In<S> x, In<S>, Out<S> dx, HashRouterModule&, const Call<S>&) const {
        detail::write_no_gradient<S>(name, x, dx);
    }

    /// @throws std::invalid_argument if the layer has another number of logits, or they are not
    ///         one per expert
    void check(const Shape& shape) const {
        detail::check_deciding_router(name, num_logits_, shape);
    }

private:
    static constexpr const char* name = "moe::HashRouter";

    Index k_ = 1, num_logits_ = 0;
    std::uint64_t seed_ = 0;
};

/// Recipe of a router that sends every token where a hash of its vocabulary id says: nothing to
/// learn, nothing to balance, and as even as the ids are spread. The gate beside it takes as many
/// experts, without weights: TopK{.k = k, .ones = true}.
///
/// Needs Context::token_ids. To choose the experts oneself, see TokenTable.
///
/// Source: Hash layers (arXiv:2106.04426) section 3.1, random hash.
struct HashRouter {
    Index k = 1;             ///< different experts per token, 1 to L
    std::uint64_t seed = 0;  ///< layers of one network need one each, or they all choose alike

    /// @throws std::invalid_argument if k is out of range or logits are not one per expert
    template <class S>
    HashRouterModule<S> build(const Shape& shape, Random&) const {
        detail::check_expert_logits("moe::HashRouter", shape);
        return HashRouterModule<S>(k, seed, shape.num_logits);
    }
};

/// What HashRouter{k, seed} says as a table for TokenTable: row-major [vocabulary, k], row
/// v with e_0, e_1, ...
/// @throws std::invalid_argument if vocabulary is negative, or k not in [1, experts]
inline std::vector<std::int32_t> random_table(Index vocabulary, Index experts, Index k = 1,
                                              std::uint64_t seed = 0) {
    if (vocabulary < 0)
        detail::fail("moe::random_table: vocabulary is ", vocabulary, ", it must be >= 0");
    detail::check_k("moe::random_table", k, experts);
    std::vector<std::int32_t> table;
    table.reserve(static_cast<std::size_t>(detail::checked_product(vocabulary, k)));
    for (Index v = 0; v < vocabulary; ++v) {
        const auto row = static_cast<std::ptrdiff_t>(table.size());
        detail::take_different(
            k, experts, [&](Index j, Index bound) { return detail::hashed(seed, v, j, bound); },
            [&](Index e) { return std::count(table.begin() + row, table.end(), e) > 0; },
            [&](Index e) { table.push_back(static_cast<std::int32_t>(e)); });
    }
    return table;
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_ROUTERS_HASH_HPP
