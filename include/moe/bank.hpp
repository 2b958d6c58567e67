// SPDX-License-Identifier: MIT
#ifndef MOE_BANK_HPP
#define MOE_BANK_HPP

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include <moe/core/batch_rows.hpp>
#include <moe/core/concepts.hpp>
#include <moe/core/fingerprint.hpp>
#include <moe/core/gradient.hpp>
#include <moe/core/parameters.hpp>
#include <moe/core/views.hpp>
#include <moe/kernels/dispatch.hpp>

namespace moe::inline MOE_ABI {

/// Groups of experts: a Routing and tokens to outputs. The second half of a layer.
///
///     y[t] = sum over groups in argument order, over experts ascending, of
///            multiplier * weight * expert(input_scale * input_weight * x[t])
///
/// with the context's gate_multiplier of the expert, or 1. An assignment that is
/// Dropped::pass_through adds weight * input_weight * x[t] after all of them, with neither factor.
/// The global number of an expert is its position in the order of the arguments. A group that owns
/// no routed expert (Shared) works on every token that is not padding, with weight 1.
///
/// It works in a workspace node of its own, whose children are the groups'. A Head needs another.
template <class S, class... Groups>
class Bank {
    static_assert(is_scalar<S>, "moe::Bank: the scalar must be float or double");
    static_assert((ExpertGroup<detail::built_t<Groups, S>, S> && ...),
                  "moe: an expert group needs num_experts() const and forward(x, rows, y, call) "
                  "const; wrap a single expert type: moe::experts(count, prototype)");
    static_assert((std::default_initializable<detail::built_t<Groups, S>> && ...),
                  "moe: an expert group needs a default constructor; what it makes stands for a "
                  "gradient that is not wanted");

public:
    using Scalar = S;
    using GroupTuple = std::tuple<detail::built_t<Groups, S>...>;
    static constexpr bool is_trainable = (TrainableGroup<detail::built_t<Groups, S>, S> && ...);

    /// Holds nothing; a gradient like this is not wanted.
    Bank() = default;

    explicit Bank(const Config& config, const Groups&... groups)
        : Bank(config, detail::shape_of(config, 0), std::index_sequence_for<Groups...>{},
               groups...) {}

    /// Made of modules that exist already, e.g. frozen ones, or groups that have grown.
    /// @throws std::invalid_argument if they do not fit the config
    Bank(const Config& config, GroupTuple groups) : groups_(std::move(groups)) { adopt(config); }

    const Config& config() const { return config_; }
    Index output_dim() const { return shape_.output_dim; }
    Index num_experts() const { return shape_.num_experts; }
    /// One entry per routed expert.
    const std::vector<ExpertFacts>& facts() const { return facts_; }
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

    /// Writes y from x and a plan.
    /// @param x  [T, D]   @param y  [T, O], overwritten; must not overlap x
    /// @throws std::invalid_argument if extents disagree, or a token passes through and O is not D
    void apply(In<S> x, const Routing& routing, Out<S> y, Workspace<S>& ws,
               const Context& context = {}) const {
        check("forward", x, routing, y, "y", context);
        State& state = ws.template state<State>();
        state.fingerprint = 0;  // until all is there
        y.setZero();
        const Context groups_context = with_facts(context);
        state.rows.fill(routing, groups_context, static_cast<S>(config_.input_scale));
        Index first = 0;
        for_each_group([&](std::size_t i, const auto& group) {
            group.forward(x, rows_of(group, first, state), y, Call<S>{groups_context, ws.child(i)});
            first += group.num_experts();
        });
        for_each_passed(routing, [&](std::size_t, const Assignment& a) {
            kernels<S>().axpy(x.cols(), static_cast<S>(a.weight * a.input_weight),
                              row_data(x, a.token), row_data(y, a.token));
        });
        state.fingerprint = ws.keeps() ? fingerprint(x, routing, context) : 0;
    }

    /// The way back.
    /// @param dx       [T, D], overwritten; must not overlap x or dy
    /// @param dweight  [N] d(loss)/d(weight) by assignment number, overwritten; 0 where dropped,
    ///                 unless the token passes through
    /// @param dinput   [N] the same for input weights; empty: not wanted
    /// @throws std::logic_error if ws was not last filled by apply() with these arguments
    /// @throws std::invalid_argument if an extent is wrong or grad is of another layer
    void apply_backward(In<S> x, const Routing& routing, In<S> dy, Out<S> dx, std::span<S> dweight,
                        std::span<S> dinput, Bank& grad, Workspace<S>& ws,
                        const Context& context = {}) const {
        static_assert(
            is_trainable,
            "moe: an expert needs backward(x, dy, dx, grad) const to be trained, an expert "
            "group backward(x, rows, dy, dx, dweights, grad, call) const; frozen groups have "
            "none");
        check("backward", x, routing, dy, "dy", context);
        if (&grad == this)
            detail::fail(
                "moe::Layer::backward: grad is the layer itself; make a gradient with "
                "zeros_like(layer)");
        if (dx.rows() != x.rows() || dx.cols() != x.cols())
            detail::fail("moe::Layer::backward: dx is [", dx.rows(), ", ", dx.cols(),
                         "], it must be [", x.rows(), ", ", x.cols(), "]");
        if (detail::overlap<S>(x, dx) || detail::overlap<S>(dy, dx))
            detail::fail("moe::Layer::backward: dx shares memory with ",
                         detail::overlap<S>(x, dx) ? "x" : "dy",
                         ", which is read while dx is written; give it a matrix of its own");
        if (static_cast<Index>(dweight.size()) != routing.num_assignments() ||
            (!dinput.empty() && dinput.size() != dweight.size()))
            detail::fail("moe::Bank::apply_backward: dweight has ", dweight.size(),
                         " entries and dinput ", dinput.size(), ", the routing has ",
                         routing.num_assignments(), " assignments");
        State* state = ws.template find<State>();
        if (state == nullptr || state->fingerprint != fingerprint(x, routing, context))
            detail::fail_without_batch(ws);
        dx.setZero();
        const Context groups_context = with_facts(context);
        state->rows.fill(routing, groups_context, static_cast<S>(config_.input_scale));
        const auto by_row = state->dweights.assign(routing.num_kept(), S(0));
        const auto by_row_input =
            state->dinput.assign(dinput.empty() ? 0 : routing.num_kept(), S(0));
        const auto shared = state->shared_dweights.resize(x.rows());
        Index first = 0;
        for_each_group([&](std::size_t i, const auto& group) {
            const bool routed = group.num_experts() > 0;
            const RowGradients<S> gradients{
                .weights = routed ? by_row : shared,
                .input_weights = routed ? by_row_input : std::span<S>{}};
            using Group = std::remove_cvref_t<decltype(group)>;
            visit_group<Group>(grad.groups_, i, [&](Group& given) {
                if (given.num_experts() != 0 && given.num_experts() != group.num_experts())
                    detail::fail("moe::Layer::backward: grad is of another layer: a group has ",
                                 given.num_experts(), " experts, the layer's has ",
                                 group.num_experts(), "; make it with zeros_like(layer)");
                detail::lend_gradient(group, given, ws.child(i), [&](Group& group_grad) {
                    group.backward(x, rows_of(group, first, *state), dy, dx, gradients, group_grad,
                                   Call<S>{groups_context, ws.child(i)});
                });
            });
            first += group.num_experts();
        });
        std::fill(dweight.begin(), dweight.end(), S(0));
        std::fill(dinput.begin(), dinput.end(), S(0));
        const auto scale = static_cast<S>(config_.input_scale);
        for (std::size_t r = 0; r < by_row.size(); ++r) {
            const auto a = static_cast<std::size_t>(routing.expert_assignments()[r]);
            dweight[a] = by_row[r];
            if (!dinput.empty()) dinput[a] = scale * by_row_input[r];
        }
        for_each_passed(routing, [&](std::size_t a, const Assignment& at) {
            const S* const dy_row = row_data(dy, at.token);
            const S product = kernels<S>().dot(x.cols(), dy_row, row_data(x, at.token));
            dweight[a] = static_cast<S>(at.input_weight) * product;
            if (!dinput.empty()) dinput[a] = static_cast<S>(at.weight) * product;
            kernels<S>().axpy(x.cols(), static_cast<S>(at.weight * at.input_weight), dy_row,
                              row_data(dx, at.token));
        });
        if (detail::BatchRows<S>::multiplies_outputs(context))
            through_multiplier(routing, dweight, groups_context);
    }

    void reserve(Index tokens, Index assignments, Workspace<S>& ws) const {
        State& state = ws.template state<State>();
        state.rows.reserve(tokens, assignments);
        if (ws.keeps()) {
            state.dweights.resize(assignments);
            state.dinput.resize(assignments);
            state.shared_dweights.resize(tokens);
        }
        for_each_group([&](std::size_t i, const auto& group) {
            if (ws.keeps()) detail::reserve_gradient(group, ws.child(i));
            const Index rows = group.num_experts() > 0 ? assignments : tokens;
            if constexpr (requires { group.reserve(tokens, rows, ws.child(i)); })
                group.reserve(tokens, rows, ws.child(i));
        });
    }

    /// Bytes of those rooms, for a call by `workers` threads. A group that does not say counts as
    /// 0.
    Index workspace_bytes(Index tokens, Index assignments, Keep keep, int workers) const {
        Index bytes = detail::BatchRows<S>::bytes(tokens, assignments);
        if (keep != Keep::nothing)
            bytes += (2 * assignments + tokens) * static_cast<Index>(sizeof(S));
        for_each_group([&](std::size_t, const auto& group) {
            const Index rows = group.num_experts() > 0 ? assignments : tokens;
            if (keep != Keep::nothing) bytes += detail::gradient_bytes(group);
            if constexpr (requires { group.workspace_bytes(tokens, rows, keep, workers); })
                bytes += group.workspace_bytes(tokens, rows, keep, workers);
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
            first += group.num_experts();
            if (!routed) shared = last;
        });
    }

    void own_gradients() {
        for_each_group_mutable([](auto& group) {
            if constexpr (requires { group.own_gradients(); }) group.own_gradients();
        });
    }

    /// f(i, group) for every group in order.
    template <class F>
    void for_each_group(F&& f) const {
        [&]<std::size_t... I>(std::index_sequence<I...>) { (f(I, std::get<I>(groups_)), ...); }
        (std::index_sequence_for<Groups...>{});
    }

private:
    struct State {
        detail::BatchRows<S> rows;
        Buffer<S> dweights, dinput;  // [num_kept] gradients at the weights, row by row
        Buffer<S> shared_dweights;   // [T] of groups without routed experts; nobody asks
        std::uint64_t fingerprint = 0;
    };

    template <std::size_t... I>
    Bank(const Config& config, const Shape& shape, std::index_sequence<I...>,
         const Groups&... groups)
        : groups_{build_group<I>(config, shape, groups)...} {
        adopt(config);
    }

    template <std::size_t I, class Group>
    static auto build_group(const Config& config, const Shape& shape, const Group& group) {
        Random random = Random(config.seed, 2).child(I);
        return detail::built<Group, S>(group, shape, random);
    }

    void adopt(const Config& config) {
        config_ = config;
        shape_ = detail::shape_of(config, experts_now());
        for_each_group([&](std::size_t, const auto& group) {
            if constexpr (requires { group.check(shape_); }) group.check(shape_);
            for (Index e = 0; e < group.num_experts(); ++e) {
                if constexpr (requires { group.facts(e); })
                    facts_.push_back(group.facts(e));
                else
                    facts_.emplace_back();
            }
        });
    }

    /// The context that groups get: Context::experts says what the bank knows of its experts.
    Context with_facts(const Context& context) const {
        Context filled = context;
        filled.experts = detail::elements(facts_);
        return filled;
    }

    template <class F>
    void for_each_group_mutable(F&& f) {
        [&]<std::size_t... I>(std::index_sequence<I...>) { (f(std::get<I>(groups_)), ...); }
        (std::index_sequence_for<Groups...>{});
    }
    /// f(group) for the group number `wanted`, which is a Group.
    template <class Group, class F>
    static void visit_group(GroupTuple& groups, std::size_t wanted, F&& f) {
        const auto visit = [&](std::size_t i, auto& group) {
            if constexpr (std::is_same_v<std::remove_reference_t<decltype(group)>, Group>)
                if (i == wanted) f(group);
        };
        [&]<std::size_t... I>(std::index_sequence<I...>) { (visit(I, std::get<I>(groups)), ...); }
        (std::index_sequence_for<Groups...>{});
    }

    /// Routed experts of the groups as they are: users may put other groups in their place.
    Index experts_now() const {
        Index experts = 0;
        for_each_group([&](std::size_t, const auto& group) { experts += group.num_experts(); });
        return experts;
    }

    std::uint64_t fingerprint(In<S> x, const Routing& routing, const Context& context) const {
        return detail::Fingerprint(identity_).batch<S>(x).context(context).routing(routing).value();
    }

    /// @param call  forward or backward
    /// @param y     y or dy, as `what` says
    void check(const char* call, In<S> x, const Routing& routing, In<S> y, const char* what,
               const Context& context) const {
        if (x.cols() != shape_.model_dim)
            detail::fail("moe::Layer::", call, ": x has ", x.cols(), " columns, model_dim is ",
                         shape_.model_dim, "; a token is a row of x");
        if (y.rows() != x.rows() || y.cols() != shape_.output_dim)
            detail::fail("moe::Layer::", call, ": ", what, " is [", y.rows(), ", ", y.cols(),
                         "], it must be [", x.rows(), ", ", shape_.output_dim, "]");
        if (*what == 'y' && detail::overlap<S>(x, y))
            detail::fail("moe::Layer::", call,
                         ": y shares memory with x, which is read while y is "
                         "written; give it a matrix of its own");
        if (routing.num_tokens() != x.rows() || routing.num_experts() != num_experts())
            detail::fail("moe::Layer::", call, ": the routing is for ", routing.num_tokens(),
                         " tokens and ", routing.num_experts(), " experts, the batch has ",
                         x.rows(), " and the layer ", num_experts());
        if (experts_now() != num_experts())
            detail::fail("moe::Layer::", call, ": the groups have ", experts_now(),
                         " experts, the layer was made for ", num_experts(),
                         "; make another with Layer::of_modules");
        detail::check_bank_context(context, x.rows(), num_experts());
    }

    /// f(number, assignment) for those whose token stands in for a full expert.
    template <class F>
    void for_each_passed(const Routing& routing, F&& f) const {
        if (routing.num_kept() == routing.num_assignments()) return;
        const auto assignments = routing.assignments();
        for (std::size_t a = 0; a < assignments.size(); ++a) {
            if (assignments[a].dropped != Dropped::pass_through) continue;
            if (shape_.output_dim != shape_.model_dim)
                detail::fail("moe::Bank: a token passes through, but output_dim is ",
                             shape_.output_dim, " and model_dim ", shape_.model_dim,
                             "; they must be equal");
            f(a, assignments[a]);
        }
    }

    /// dweight is the gradient at multiplier * weight; makes it that at the weight.
    static void through_multiplier(const Routing& routing, std::span<S> dweight,
                                   const Context& context) {
        const auto assignments = routing.assignments();
        for (std::size_t a = 0; a < assignments.size(); ++a) {
            if (assignments[a].dropped != Dropped::no) continue;
            const Index t = assignments[a].token, e = assignments[a].expert;
            detail::add_multiplier_gradient(
                context, t, e, static_cast<double>(dweight[a]) * assignments[a].weight);
            dweight[a] *= static_cast<S>(context.multiplier(t, e));
        }
    }

    /// Rows of a group whose first expert has the number `first`.
    template <class Group>
    static Rows<S> rows_of(const Group& group, Index first, const State& state) {
        return group.num_experts() == 0 ? state.rows.of_tokens()
                                        : state.rows.of_experts(first, first + group.num_experts());
    }

    detail::Identity identity_;
    Config config_;
    Shape shape_;
    GroupTuple groups_;
    std::vector<ExpertFacts> facts_;
};

template <class... Groups>
explicit Bank(Config, Groups...) -> Bank<float, Groups...>;

}  // namespace moe::inline MOE_ABI

#endif  // MOE_BANK_HPP
