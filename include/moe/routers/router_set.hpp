// SPDX-License-Identifier: MIT
#ifndef MOE_ROUTERS_ROUTER_SET_HPP
#define MOE_ROUTERS_ROUTER_SET_HPP

#include <algorithm>
#include <cstdint>
#include <limits>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <moe/core/group.hpp>
#include <moe/core/views.hpp>
#include <moe/routers/decide.hpp>
#include <moe/routers/wrapper.hpp>

namespace moe::inline MOE_ABI {

/// The experts first, first + 1, ... up to and without `last`.
struct ExpertRange {
    Index first = 0, last = 0;

    bool holds(Index expert) const { return first <= expert && expert < last; }
};

namespace detail {

/// Which group the tokens of a batch belong to: all to one, or each to its own.
struct TokenGroups {
    std::span<const std::int32_t> of_tokens{};  // [T] or empty
    Index of_batch = 0;

    bool is_one() const { return of_tokens.empty(); }
    Index operator()(Index token) const { return is_one() ? of_batch : of_tokens[at(token)]; }
};

/// What PerTask and PerModality share: one router per group of tokens, or one for all of them, and
/// a range of experts for each group. logits(t, e) = -inf where e is outside the range of t's
/// group, and no gradient passes there.
///
/// The router of a group sees the tokens of that group only, in their order; one that gets none is
/// not run. Nothing that a context says of tokens, of sequences or of the layer before reaches it,
/// even if all tokens are of its group, so that no call fails for the groups that its tokens happen
/// to be of. Where there is one router, or the whole batch is said to belong to one group, it sees
/// the batch as it is. Padding belongs to no group unless the whole batch does: its logits are
/// -inf.
template <class S, class Inner>
class RouterSet {
public:
    using Scalar = S;
    static constexpr bool per_token = hooks::per_token<Inner>;
    static constexpr bool skips_empty_gradients = true;  // it lends each router a whole one

    /// Holds nothing; a gradient like this is not wanted.
    RouterSet() = default;
    /// @param routers  one per group; or one
    /// @param ranges   one per group
    RouterSet(std::vector<Inner> routers, bool is_shared, std::vector<ExpertRange> ranges,
              const Shape& shape)
        : routers_(std::move(routers)),
          ranges_(std::move(ranges)),
          shape_(shape),
          is_shared_(is_shared) {}

    Index num_groups() const { return static_cast<Index>(ranges_.size()); }
    const std::vector<ExpertRange>& ranges() const { return ranges_; }
    const std::vector<Inner>& routers() const { return routers_; }
    std::vector<Inner>& routers() { return routers_; }

    void check(const Shape& shape) const {
        constexpr const char* name = "moe: a set of routers with a range of experts for each group";
        check_router(name, shape_.num_logits, shape);
        for (const ExpertRange& range : ranges_)
            if (range.first > 0 || range.last < shape.num_logits) check_expert_logits(name, shape);
        for (const Inner& router : routers_)
            if constexpr (requires { router.check(shape); }) router.check(shape);
    }
    /// @throws std::invalid_argument if grad has another number of routers; each is checked for
    ///         itself when it is used
    void check_gradient(const RouterSet& grad) const {
        if (!grad.routers_.empty() && grad.routers_.size() != routers_.size())
            fail("moe::Layer::backward: grad is of another layer: it has ", grad.routers_.size(),
                 " routers, the layer has ", routers_.size(), "; make it with zeros_like(layer)");
    }

    /// A token goes through one of them.
    double flops_per_token() const {
        if constexpr (requires { routers_.front().flops_per_token(); })
            return routers_.empty() ? 0 : routers_.front().flops_per_token();
        else
            return 0;
    }

    void reserve(Index tokens, Index assignments, Workspace<S>& ws) const {
        State& state = ws.template state<State>();
        if (!is_shared_) {
            state.rows.resize(tokens);
            state.ids.resize(tokens);
            state.tokens.matrix(tokens, shape_.model_dim);
            state.logits.matrix(tokens, shape_.num_logits);
            if (ws.keeps()) state.dtokens.matrix(tokens, shape_.model_dim);
        }
        state.offsets.resize(num_routers() + 1);
        if (ws.keeps()) state.dlogits.matrix(tokens, shape_.num_logits);
        for (Index r = 0; r < num_routers(); ++r) {
            Workspace<S>& within = ws.child(at(r));
            if (ws.keeps()) reserve_gradient(routers_[at(r)], within);
            if constexpr (requires(const Inner& router) {
                              router.reserve(tokens, assignments, within);
                          })
                routers_[at(r)].reserve(tokens, assignments, within);
        }
    }
    Index workspace_bytes(Index tokens, Index assignments, Keep keep, int workers) const {
        const auto scalar = static_cast<Index>(sizeof(S));
        const Index keeps = keep == Keep::nothing ? 0 : 1;
        Index each = keeps * shape_.num_logits * scalar;
        if (!is_shared_)
            each += static_cast<Index>(sizeof(Index) + sizeof(std::int64_t)) +
                    ((1 + keeps) * shape_.model_dim + shape_.num_logits) * scalar;
        Index bytes =
            checked_product(tokens, each) + (num_routers() + 1) * static_cast<Index>(sizeof(Index));
        for (const Inner& router : routers_) {
            bytes += keeps * gradient_bytes(router);
            if constexpr (requires { router.workspace_bytes(tokens, assignments, keep, workers); })
                bytes += router.workspace_bytes(tokens, assignments, keep, workers);
        }
        return bytes;
    }

    void check_freeze(const FreezeOptions& options) const {
        for (const Inner& router : routers_) detail::check_freeze(router, options);
    }
    Index bytes() const {
        Index sum = 0;
        if constexpr (requires { routers_.front().bytes(); })
            for (const Inner& router : routers_) sum += router.bytes();
        return sum;
    }

    /// Those of router g as "g.name"; of a router for all groups as they are.
    void visit_parameters(auto&& visit) {
        for (std::size_t r = 0; r < routers_.size(); ++r) {
            const std::string prefix = is_shared_ ? "" : std::to_string(r) + ".";
            moe::visit_parameters(routers_[r], [&](std::string_view name, auto& matrix, Role role) {
                with_prefix(prefix, name,
                            [&](std::string_view whole) { visit(whole, matrix, role); });
            });
        }
    }
    void own_gradients() {
        for (Inner& router : routers_)
            if constexpr (requires { router.own_gradients(); }) router.own_gradients();
    }

protected:
    void forward(In<S> x, Out<S> logits, const TokenGroups& groups, const Call<S>& call) const {
        State& state = call.ws.template state<State>();
        const Index whole = sort(x.rows(), groups, call, state);
        const Context context = context_of_part(groups, call.context);
        const auto through = [&](Index r, In<S> tokens, Out<S> z, const Call<S>& part) {
            explained(groups, [&] { hooks::forward<S>(routers_[at(r)], tokens, z, part); });
        };
        if (whole >= 0) {
            through(whole, x, logits, of_whole(whole, context, call));
        } else {
            gather(x, state, state.tokens, call.ws.executor());
            state.logits.matrix(state.rows.size(), logits.cols());
            for_each_part(state, context, call, [&](Index r, Index first, Index n, auto& part) {
                through(r, rows_of(state.tokens, x.cols(), first, n),
                        rows_of(state.logits, logits.cols(), first, n), part);
            });
            scatter(state, state.logits, logits, call.ws.executor());
        }
        for (Index t = 0; t < logits.rows(); ++t)
            for_each_forbidden(t, logits.cols(), groups, call.context, [&](Index e) {
                logits(t, e) = -std::numeric_limits<S>::infinity();
            });
    }

    void backward(In<S> x, In<S> dlogits, Out<S> dx, RouterSet& grad, const TokenGroups& groups,
                  const Call<S>& call) const {
        State& state = call.ws.template state<State>();
        const Index whole = sort(x.rows(), groups, call, state), width = dlogits.cols();
        const Index count = whole >= 0 ? x.rows() : state.rows.size();
        auto allowed = state.dlogits.matrix(count, width);
        for (Index i = 0; i < count; ++i) {
            const Index t = whole >= 0 ? i : state.rows[i];
            std::copy_n(row_data(dlogits, t), width, row_data(allowed, i));
            for_each_forbidden(t, width, groups, call.context, [&](Index e) { allowed(i, e) = 0; });
        }
        const auto through = [&](Index r, In<S> tokens, In<S> logits_gradient, Out<S> dtokens,
                                 const Call<S>& part) {
            Inner unwanted{};
            Inner& given = grad.routers_.empty() ? unwanted : grad.routers_[at(r)];
            lend_gradient(routers_[at(r)], given, part.ws, [&](Inner& whole_gradient) {
                hooks::backward<S>(routers_[at(r)], tokens, logits_gradient, dtokens,
                                   whole_gradient, part);
            });
        };
        const Context context = context_of_part(groups, call.context);
        if (whole >= 0) return through(whole, x, allowed, dx, of_whole(whole, context, call));

        gather(x, state, state.tokens, call.ws.executor());
        state.dtokens.matrix(count, x.cols());
        for_each_part(state, context, call, [&](Index r, Index first, Index n, auto& part) {
            through(r, rows_of(state.tokens, x.cols(), first, n),
                    rows_of(state.dlogits, width, first, n),
                    rows_of(state.dtokens, x.cols(), first, n), part);
        });
        for (Index t = 0; t < dx.rows() && count < dx.rows(); ++t)  // padding
            std::fill_n(row_data(dx, t), dx.cols(), S(0));
        scatter(state, state.dtokens, dx, call.ws.executor());
    }

    /// f(router frozen) for each: what a frozen set holds.
    auto frozen_routers(const FreezeOptions& options) const {
        std::vector<frozen_t<Inner>> result;
        for (const Inner& router : routers_) result.push_back(detail::frozen(router, options));
        return result;
    }
    bool is_shared() const { return is_shared_; }
    const Shape& shape() const { return shape_; }

    /// The groups as Context::token_groups has them.
    /// @throws std::invalid_argument if they are missing or a token that is not padding has none
    TokenGroups groups_of_tokens(Index tokens, const Context& context, const char* who,
                                 const char* what) const {
        const auto groups = context.token_groups;
        check_extent("token_groups", groups.size(), tokens, "one per token");
        if (groups.empty() && tokens > 0)
            fail("moe::Context: token_groups is empty, ", who, " wants the ", what,
                 " of each token; set Context::token_groups");
        for (Index t = 0; t < tokens; ++t) {
            const Index group = groups[at(t)];
            if (!context.is_padding(t) && (group < 0 || group >= num_groups()))
                fail("moe::Context: token_groups[", t, "] is ", group, ", ", who, " has ",
                     num_groups(), " of them: a ", what, " must be in [0, ", num_groups(), ")");
        }
        return {.of_tokens = groups};
    }

private:
    struct State {
        Buffer<Index> rows;         // [n] tokens by router, then ascending
        Buffer<Index> offsets;      // [routers + 1] first of each router in `rows`
        Buffer<std::int64_t> ids;   // [n] numbers of those tokens
        Buffer<S> tokens, dtokens;  // [n, D]
        Buffer<S> logits, dlogits;  // [n, L]
    };

    Index num_routers() const { return static_cast<Index>(routers_.size()); }
    static View<S> rows_of(Buffer<S>& buffer, Index cols, Index first, Index count) {
        return View<S>(buffer.data() + first * cols, count, cols, Eigen::OuterStride<>(cols));
    }

    /// Whether tokens of one batch may go through different routers.
    bool splits(const TokenGroups& groups) const { return num_routers() > 1 && !groups.is_one(); }
    /// What a router is told.
    Context context_of_part(const TokenGroups& groups, const Context& context) const {
        if (!splits(groups)) return context;
        Context part = context.without_tokens();
        part.previous = nullptr;  // its rows are those of the whole batch
        return part;
    }
    static Call<S> of_whole(Index router, const Context& context, const Call<S>& call) {
        return {context, call.ws.child(at(router)), call.ids, call.expert};
    }
    /// f(); if a router misses what it is not told, the reason is said.
    template <class F>
    void explained([[maybe_unused]] const TokenGroups& groups, F&& f) const {
#if defined(__cpp_exceptions)
        try {
            return f();
        } catch (const std::invalid_argument& error) {
            if (!splits(groups)) throw;
            fail(error.what(),
                 "; a router for each group of tokens sees those tokens alone: what a context says "
                 "of tokens, of sequences or of the layer before does not reach it; use one router "
                 "for all groups, or moe::PerTask with Context::task");
        }
#else
        f();
#endif
    }

    /// Sorts the tokens by router, unless all of them go through the one that is returned; else -1.
    Index sort(Index tokens, const TokenGroups& groups, const Call<S>& call, State& state) const {
        if (!splits(groups)) return num_routers() == 1 ? 0 : groups.of_batch;
        const auto offsets = state.offsets.assign(num_routers() + 1, 0);
        for (Index t = 0; t < tokens; ++t)
            if (!call.context.is_padding(t)) ++offsets[at(groups(t)) + 1];
        const Index most = *std::max_element(offsets.begin(), offsets.end());
        for (std::size_t r = 1; r < offsets.size(); ++r) offsets[r] += offsets[r - 1];
        const Index count = offsets.back();
        const auto rows = state.rows.resize(count);
        const auto ids = state.ids.resize(count);
        for (Index t = 0; t < tokens; ++t) {
            if (call.context.is_padding(t)) continue;
            if (most == tokens) return groups(t);
            const auto next = at(offsets[at(groups(t))]++);
            rows[next] = t;
            ids[next] = call.token(t);
        }
        for (std::size_t r = offsets.size() - 1; r > 0; --r) offsets[r] = offsets[r - 1];
        offsets[0] = 0;
        return -1;
    }

    /// f(router, first, count, call) for every router that has tokens.
    template <class F>
    void for_each_part(State& state, const Context& context, const Call<S>& call, F&& f) const {
        for (Index r = 0; r < num_routers(); ++r) {
            const Index first = state.offsets[r], count = state.offsets[r + 1] - first;
            if (count == 0) continue;
            const Call<S> part{context, call.ws.child(at(r)),
                               state.ids.span().subspan(at(first), at(count)), call.expert};
            f(r, first, count, part);
        }
    }

    static void gather(In<S> x, State& state, Buffer<S>& to, Executor& executor) {
        auto target = to.matrix(state.rows.size(), x.cols());
        for_row_runs(executor, target.rows(), static_cast<double>(target.size()),
                     [&](Index first, Index last, int) {
                         for (Index i = first; i < last; ++i)
                             std::copy_n(row_data(x, state.rows[i]), x.cols(), row_data(target, i));
                     });
    }
    static void scatter(const State& state, const Buffer<S>& from, Out<S> to, Executor& executor) {
        for_row_runs(executor, state.rows.size(), static_cast<double>(from.size()),
                     [&](Index first, Index last, int) {
                         for (Index i = first; i < last; ++i)
                             std::copy_n(from.data() + i * to.cols(), to.cols(),
                                         row_data(to, state.rows[i]));
                     });
    }

    /// f(e) for each expert that the token may not use.
    template <class F>
    void for_each_forbidden(Index token, Index experts, const TokenGroups& groups,
                            const Context& context, F&& f) const {
        const bool none = !groups.is_one() && context.is_padding(token);
        const ExpertRange range = none ? ExpertRange{} : ranges_[at(groups(token))];
        for (Index e = 0; e < std::min(range.first, experts); ++e) f(e);
        for (Index e = range.last; e < experts; ++e) f(e);
    }

    std::vector<Inner> routers_;
    std::vector<ExpertRange> ranges_;
    Shape shape_{};
    bool is_shared_ = false;
};

}  // namespace detail
}  // namespace moe::inline MOE_ABI

#endif  // MOE_ROUTERS_ROUTER_SET_HPP
