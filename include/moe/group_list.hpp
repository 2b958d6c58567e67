// SPDX-License-Identifier: MIT
#ifndef MOE_GROUP_LIST_HPP
#define MOE_GROUP_LIST_HPP

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include <moe/core/concepts.hpp>
#include <moe/core/gradient.hpp>
#include <moe/core/memory.hpp>
#include <moe/core/parameters.hpp>
#include <moe/core/random.hpp>
#include <moe/core/shape.hpp>

namespace moe::inline MOE_ABI::detail {

/// Takes what visit_weights() has to show.
struct AnyWeights {
    void operator()(const char*, auto&) const {}
};
template <class Group>
concept HasWeights = requires(Group& group, AnyWeights visit) {
    group.visit_weights(visit);
};

/// Takes what visit_packed() has to show.
struct AnyPacked {
    void operator()(auto&) const {}
};
template <class Group>
concept HasPacked = requires(Group& group, AnyPacked visit) {
    group.visit_packed(visit);
};

/// The groups of a Bank in the order of the arguments, which is that of their experts: the global
/// number of an expert is its position in that order. What can be said of groups without a batch.
template <class S, class... Groups>
class GroupList {
    static_assert((ExpertGroup<built_t<Groups, S>, S> && ...),
                  "moe: an expert group needs num_experts() const and forward(x, rows, y, call) "
                  "const; wrap a single expert type: moe::experts(count, prototype)");
    static_assert((std::default_initializable<built_t<Groups, S>> && ...),
                  "moe: an expert group needs a default constructor; what it makes stands for a "
                  "gradient that is not wanted");

public:
    using GroupTuple = std::tuple<built_t<Groups, S>...>;
    static constexpr std::size_t num_groups = sizeof...(Groups);
    static constexpr bool is_trainable = (TrainableGroup<built_t<Groups, S>, S> && ...);

    /// One entry per routed expert.
    const std::vector<ExpertFacts>& facts() const { return facts_; }
    /// The context that groups get: Context::experts says what is known of the experts.
    Context with_facts(const Context& context) const {
        Context filled = context;
        filled.experts = elements(facts_);
        return filled;
    }
    /// Floating-point operations that every token costs in groups without routed experts, forward.
    double shared_flops_per_token() const {
        double flops = 0;
        for_each_group([&](std::size_t, const auto& group) {
            if constexpr (requires { group.flops_per_token(); }) flops += group.flops_per_token();
        });
        return flops;
    }
    template <std::size_t I>
    const auto& group() const {
        return std::get<I>(groups_);
    }
    template <std::size_t I>
    auto& group() {
        return std::get<I>(groups_);
    }
    const GroupTuple& groups() const { return groups_; }
    GroupTuple& groups() { return groups_; }

    /// f(i, group) for every group in order.
    template <class F>
    void for_each_group(F&& f) const {
        [&]<std::size_t... I>(std::index_sequence<I...>) { (f(I, std::get<I>(groups_)), ...); }
        (std::index_sequence_for<Groups...>{});
    }
    /// f(i, group, the same group of grad) for every group in order.
    template <class F>
    void for_each_pair(GroupList& grad, F&& f) const {
        [&]<std::size_t... I>(std::index_sequence<I...>) {
            (f(I, std::get<I>(groups_), std::get<I>(grad.groups_)), ...);
        }
        (std::index_sequence_for<Groups...>{});
    }

    /// Rooms of the groups, each in a child of `ws` with its number.
    /// @param rows  of a group with routed experts; one without has `tokens`
    void reserve_groups(Index tokens, Index rows, Workspace<S>& ws) const {
        for_each_group([&](std::size_t i, const auto& group) {
            Workspace<S>& node = ws.child(i);  // made for groups that reserve nothing, too
            if (ws.keeps()) reserve_gradient(group, node);
            const Index own = group.num_experts() > 0 ? rows : tokens;
            if constexpr (requires { group.reserve(tokens, own, node); })
                group.reserve(tokens, own, node);
        });
    }
    /// Bytes of those rooms. A group that does not say counts as 0.
    Index group_bytes(Index tokens, Index rows, Keep keep, int workers) const {
        Index bytes = 0;
        for_each_group([&](std::size_t, const auto& group) {
            if (keep != Keep::nothing) bytes += gradient_bytes(group);
            const Index own = group.num_experts() > 0 ? rows : tokens;
            if constexpr (requires { group.workspace_bytes(tokens, own, keep, workers); })
                bytes += group.workspace_bytes(tokens, own, keep, workers);
        });
        return bytes;
    }

    /// experts.<global number>.*, then shared.<number>.* of groups without routed experts
    void visit_parameters(auto&& visit) {
        Index first = 0, shared = 0;
        for_each_group_mutable([&](auto& group) {
            const bool routed = group.num_experts() > 0;
            const std::string prefix = routed ? "experts." : "shared.";
            const Index offset = routed ? first : shared;
            Index last = offset;
            moe::visit_parameters(group, [&](std::string_view name, auto& matrix, Role role) {
                // A group numbers its experts from 0: "2.gate". The layer numbers them throughout.
                // What belongs to the group as a whole, "base", goes under its first expert.
                std::size_t digits = 0;
                Index local = 0;
                while (digits < name.size() && name[digits] >= '0' && name[digits] <= '9')
                    local = 10 * local + (name[digits++] - '0');
                last = std::max(last, offset + local + 1);
                visit(prefix + std::to_string(offset + local) + (digits == 0 ? "." : "") +
                          std::string(name.substr(digits)),
                      matrix, role);
            });
            if constexpr (HasWeights<decltype(group)>)
                group.visit_weights([&](const char*, const auto& weights) {
                    last = std::max(last, offset + weights.count());  // views have no parameters
                });
            if constexpr (HasPacked<decltype(group)>)
                group.visit_packed([&](const auto& packed) {
                    last = std::max(last, offset + packed.num_experts());
                });
            first += group.num_experts();
            if (!routed) shared = last;
        });
    }

    /// visit(pattern, weights, first) for the matrices of groups that have Weights: that of expert
    /// e of the group is the parameter called `pattern` with first + e in the place of '#'.
    /// "experts.#.gate", then "shared.#.gate" of groups without routed experts.
    void visit_weights(auto&& visit) {
        Index first = 0, shared = 0;
        for_each_group_mutable([&](auto& group) {
            const bool routed = group.num_experts() > 0;
            const std::string prefix = routed ? "experts.#." : "shared.#.";
            const Index offset = routed ? first : shared;
            Index last = offset;
            if constexpr (HasWeights<decltype(group)>)
                group.visit_weights([&](const char* name, auto& weights) {
                    last = std::max(last, offset + weights.count());
                    visit(prefix + name, weights, offset);
                });
            first += group.num_experts();
            if (!routed) shared = last;
        });
    }

    /// visit(prefix, packed, first) for the groups that freeze() packed: parameters of expert e of
    /// the group are called `prefix` with first + e in the place of '#', then their name.
    /// "experts.#.", then "shared.#." of groups without routed experts.
    void visit_packed(auto&& visit) {
        Index first = 0, shared = 0;
        for_each_group_mutable([&](auto& group) {
            const bool routed = group.num_experts() > 0;
            Index& next = routed ? first : shared;
            Index count = group.num_experts();
            if constexpr (HasPacked<decltype(group)>)
                group.visit_packed([&](auto& packed) {
                    count = packed.num_experts();
                    visit(std::string(routed ? "experts.#." : "shared.#."), packed, next);
                });
            next += count;
        });
    }

    void own_gradients() {
        for_each_group_mutable([](auto& group) {
            if constexpr (requires { group.own_gradients(); }) group.own_gradients();
        });
    }

protected:
    GroupList() = default;
    explicit GroupList(GroupTuple groups) : groups_(std::move(groups)) {}
    /// Built from recipes or copied, each from random numbers of its own.
    explicit GroupList(const Config& config, const Groups&... groups)
        : GroupList(config, shape_of(config, 0), std::index_sequence_for<Groups...>{}, groups...) {}
    GroupList(Deferred, const Config& config, const Groups&... groups)
        : GroupList(config, deferred_shape_of(config), std::index_sequence_for<Groups...>{},
                    groups...) {}

    /// Routed experts of the groups as they are: users may put other groups in their place.
    Index experts_now() const {
        Index experts = 0;
        for_each_group([&](std::size_t, const auto& group) { experts += group.num_experts(); });
        return experts;
    }
    /// Learns the facts.
    /// @throws std::invalid_argument if a group does not fit the shape
    void adopt(const Shape& shape) {
        for_each_group([&](std::size_t, const auto& group) {
            if constexpr (requires { group.check(shape); }) group.check(shape);
            for (Index e = 0; e < group.num_experts(); ++e) {
                if constexpr (requires { group.facts(e); })
                    facts_.push_back(group.facts(e));
                else
                    facts_.emplace_back();
            }
        });
    }

private:
    template <std::size_t... I>
    GroupList(const Config& config, const Shape& shape, std::index_sequence<I...>,
              const Groups&... groups)
        : groups_{build_group<I>(config, shape, groups)...} {}

    static Shape deferred_shape_of(const Config& config) {
        Shape shape = shape_of(config, 0);
        shape.deferred = true;
        return shape;
    }

    template <std::size_t I, class Group>
    static auto build_group(const Config& config, const Shape& shape, const Group& group) {
        Random random = Random(config.seed, 2).child(I);
        return built<Group, S>(group, shape, random);
    }

    template <class F>
    void for_each_group_mutable(F&& f) {
        [&]<std::size_t... I>(std::index_sequence<I...>) { (f(std::get<I>(groups_)), ...); }
        (std::index_sequence_for<Groups...>{});
    }

    GroupTuple groups_;
    std::vector<ExpertFacts> facts_;
};

/// The same of a const bank, whose groups are const.
template <class Bank, class Visit>
void visit_packed(const Bank& bank, Visit&& visit) {
    const_cast<Bank&>(bank).visit_packed([&visit](const std::string& prefix, const auto& packed,
                                                  Index first) { visit(prefix, packed, first); });
}

}  // namespace moe::inline MOE_ABI::detail

#endif  // MOE_GROUP_LIST_HPP
