// SPDX-License-Identifier: MIT
#ifndef MOE_BANK_HPP
#define MOE_BANK_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#include <moe/core/batch_rows.hpp>
#include <moe/core/concepts.hpp>
#include <moe/core/fingerprint.hpp>
#include <moe/core/gradient.hpp>
#include <moe/core/views.hpp>
#include <moe/group_list.hpp>
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
/// What can be said of the groups without a batch is in detail::GroupList.
///
/// It works in a workspace node of its own, whose children are the groups'. A Head needs another.
template <class S, class... Groups>
class Bank : public detail::GroupList<S, Groups...> {
    static_assert(is_scalar<S>, "moe::Bank: the scalar must be float or double");
    using List = detail::GroupList<S, Groups...>;

public:
    using Scalar = S;
    using List::for_each_group, List::for_each_pair, List::with_facts;
    using typename List::GroupTuple;

    /// Holds nothing; a gradient like this is not wanted.
    Bank() = default;

    explicit Bank(const Config& config, const Groups&... groups) : List(config, groups...) {
        adopt(config);
    }
    Bank(Deferred, const Config& config, const Groups&... groups)
        : List(deferred, config, groups...) {
        adopt(config);
    }

    /// Made of modules that exist already, e.g. frozen ones, or groups that have grown.
    /// @throws std::invalid_argument if they do not fit the config
    Bank(const Config& config, GroupTuple groups) : List(std::move(groups)) { adopt(config); }

    const Config& config() const { return config_; }
    Index output_dim() const { return shape_.output_dim; }
    Index num_experts() const { return shape_.num_experts; }

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
            List::is_trainable,
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
        for_each_pair(grad, [&](std::size_t i, const auto& group, auto& given) {
            const bool routed = group.num_experts() > 0;
            const RowGradients<S> gradients{
                .weights = routed ? by_row : shared,
                .input_weights = routed ? by_row_input : std::span<S>{}};
            if (given.num_experts() != 0 && given.num_experts() != group.num_experts())
                detail::fail("moe::Layer::backward: grad is of another layer: a group has ",
                             given.num_experts(), " experts, the layer's has ", group.num_experts(),
                             "; make it with zeros_like(layer)");
            detail::lend_gradient(group, given, ws.child(i), [&](auto& group_grad) {
                group.backward(x, rows_of(group, first, *state), dy, dx, gradients, group_grad,
                               Call<S>{groups_context, ws.child(i)});
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
        List::reserve_groups(tokens, assignments, ws);
    }

    /// Bytes of those rooms, for a call by `workers` threads. A group that does not say counts as
    /// 0.
    Index workspace_bytes(Index tokens, Index assignments, Keep keep, int workers) const {
        Index bytes = detail::BatchRows<S>::bytes(tokens, assignments);
        if (keep != Keep::nothing)
            bytes += (2 * assignments + tokens) * static_cast<Index>(sizeof(S));
        return bytes + List::group_bytes(tokens, assignments, keep, workers);
    }

private:
    struct State {
        detail::BatchRows<S> rows;
        Buffer<S> dweights, dinput;  // [num_kept] gradients at the weights, row by row
        Buffer<S> shared_dweights;   // [T] of groups without routed experts; nobody asks
        std::uint64_t fingerprint = 0;
    };

    void adopt(const Config& config) {
        config_ = config;
        shape_ = detail::shape_of(config, List::experts_now());
        List::adopt(shape_);
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
        if (List::experts_now() != num_experts())
            detail::fail("moe::Layer::", call, ": the groups have ", List::experts_now(),
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
};

template <class... Groups>
explicit Bank(Config, Groups...) -> Bank<float, Groups...>;

}  // namespace moe::inline MOE_ABI

#endif  // MOE_BANK_HPP
