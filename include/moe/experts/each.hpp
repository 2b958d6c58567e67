// SPDX-License-Identifier: MIT
#ifndef MOE_EXPERTS_EACH_HPP
#define MOE_EXPERTS_EACH_HPP

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <moe/core/concepts.hpp>
#include <moe/core/gradient.hpp>
#include <moe/core/group.hpp>
#include <moe/core/hooks.hpp>
#include <moe/core/parameters.hpp>
#include <moe/core/views.hpp>
#include <moe/kernels/dispatch.hpp>

namespace moe::inline MOE_ABI {

/// A group of experts of one type of the user's, each with values of its own.
///
/// The rows of an expert are gathered, [n, D], multiplied by their input weights, and handed over
/// in one call; an expert without rows is not called. Experts run in parallel, one task each, so
/// forward and backward of different objects must not share mutable state. Outputs are added up
/// afterwards, experts ascending: the bits do not depend on the number of threads. An exception
/// from an expert arrives at the caller of the layer.
///
/// An expert that takes a Call has a workspace node of its own, finds its number in call.expert and
/// those of its tokens in call.ids, so that call.random() gives it numbers that do not depend on
/// the rest of the batch. Its gradient always has all its matrices: where one is not wanted, the
/// expert gets a scratch object in its place.
///
/// @tparam E  has forward(x, y) const and, to be trained, backward(x, dy, dx, grad) const; both may
///            take a last argument const Call<S>&
template <class S, class E>
class EachModule {
    static_assert(detail::HasForward<E, S>,
                  "moe: the expert needs forward(x, y) const with x: moe::In<S>, y: moe::Out<S>, S "
                  "the scalar of the layer; or with a last argument const moe::Call<S>&");
    static_assert(
        Expert<E, S> || !detail::HasBackward<E>,
        "moe: the expert's backward does not fit: it needs backward(x, dy, dx, grad) const "
        "with x, dy: moe::In<S>, dx: moe::Out<S>, grad: a reference to its own type, S the "
        "scalar of the layer; with a last argument const moe::Call<S>& if forward has one");

    /// Whether experts get a Call, with a node, token numbers and a number of their own.
    static constexpr bool takes_call =
        requires(const E expert, In<S> x, Out<S> y, const Call<S>& call) {
        expert.forward(x, y, call);
    };

public:
    using Scalar = S;
    static constexpr bool skips_empty_gradients = true;  // it lends each expert a whole one

    /// Holds nothing; a gradient like this is not wanted.
    EachModule() = default;
    /// @param shape  of the layer, for reserve(); may be left out
    explicit EachModule(std::vector<E> experts, const Shape& shape = {})
        : experts_(std::move(experts)), in_(shape.model_dim), out_(shape.output_dim) {}

    Index num_experts() const { return static_cast<Index>(experts_.size()); }
    const E& expert(Index e) const { return experts_[at(e)]; }
    E& expert(Index e) { return experts_[at(e)]; }

    /// Two operations per parameter and row, unless the expert has flops_per_row().
    ExpertFacts facts(Index e) const {
        const E& expert = experts_[at(e)];
        if constexpr (requires { static_cast<double>(expert.flops_per_row()); })
            return {.flops_per_row = static_cast<double>(expert.flops_per_row())};
        else
            return {.flops_per_row = 2 * static_cast<double>(moe::num_parameters(expert))};
    }

    /// Asks the experts, if they have check(shape).
    void check(const Shape& shape) const {
        if constexpr (requires(const E& expert) { expert.check(shape); })
            for (const E& expert : experts_) expert.check(shape);
    }

    void forward(In<S> x, const Rows<S>& rows, Out<S> y, const Call<S>& call) const {
        const KernelTable<S>& kernel = kernels<S>();
        State& state = call.ws.template state<State>();
        const auto total = static_cast<Index>(rows.weights.size());
        const View<S> inputs = state.inputs.matrix(total, x.cols());
        View<S> outputs = state.outputs.matrix(total, y.cols());
        make_nodes(call);
        number_tokens(rows, state);
        Executor& executor = call.ws.executor();
        detail::parallel_for(
            executor, rows.num_experts(), flops(rows, x.cols(), y.cols()), [&](Index i, int) {
                const Index begin = rows.begin(i), n = rows.size(i), e = rows.first_expert + i;
                if (n == 0) return;
                for (Index r = begin; r < begin + n; ++r)
                    kernel.scale(x.cols(), rows.input_weight(r), row_data(x, rows.from[at(r)]),
                                 state.inputs.data() + r * x.cols());
                hooks::forward<S>(experts_[at(e)], inputs.middleRows(begin, n),
                                  outputs.middleRows(begin, n), node(call, e, begin, n, state));
            });
        const double added = 2.0 * static_cast<double>(rows.num_rows() * y.cols());
        detail::scatter_rows(executor, rows, rows.to, y.rows(), added, [&](Index, Index r) {
            kernel.axpy(y.cols(), rows.weights[at(r)], row_data(outputs, r),
                        row_data(y, rows.to[at(r)]));
        });
    }

    void backward(In<S> x, const Rows<S>& rows, In<S> dy, Out<S> dx,
                  const RowGradients<S>& dweights, EachModule& grad,
                  const Call<S>& call) const requires Expert<E, S> {
        const KernelTable<S>& kernel = kernels<S>();
        State& state = call.ws.template state<State>();
        const auto total = static_cast<Index>(rows.weights.size());
        const View<S> inputs = state.inputs.matrix(total, x.cols());  // as forward left them
        const View<S> outputs = state.outputs.matrix(total, dy.cols());
        View<S> douts = state.douts.matrix(total, dy.cols());
        View<S> dins = state.dins.matrix(total, x.cols());
        state.gradients.resize(std::max(state.gradients.size(), experts_.size()));
        make_nodes(call);
        number_tokens(rows, state);
        Executor& executor = call.ws.executor();
        detail::parallel_for(
            executor, rows.num_experts(), 3 * flops(rows, x.cols(), dy.cols()), [&](Index i, int) {
                const Index begin = rows.begin(i), n = rows.size(i), e = rows.first_expert + i;
                if (n == 0) return;
                for (Index r = begin; r < begin + n; ++r) {
                    const S* dy_row = row_data(dy, rows.to[at(r)]);
                    dweights.weights[at(r)] = kernel.dot(dy.cols(), dy_row, row_data(outputs, r));
                    kernel.scale(dy.cols(), rows.weights[at(r)], dy_row,
                                 state.douts.data() + r * dy.cols());
                }
                E* const given = at(e) < grad.experts_.size() ? &grad.experts_[at(e)] : nullptr;
                state.gradients[at(e)].lend(experts_[at(e)], given, [&](E& gradient) {
                    hooks::backward<S>(experts_[at(e)], inputs.middleRows(begin, n),
                                       douts.middleRows(begin, n), dins.middleRows(begin, n),
                                       gradient, node(call, e, begin, n, state));
                });
                for (Index r = begin; r < begin + n && !dweights.input_weights.empty(); ++r)
                    dweights.input_weights[at(r)] =
                        kernel.dot(x.cols(), row_data(dins, r), row_data(x, rows.from[at(r)]));
            });
        const double added = 2.0 * static_cast<double>(rows.num_rows() * x.cols());
        detail::scatter_rows(executor, rows, rows.from, dx.rows(), added, [&](Index, Index r) {
            kernel.axpy(x.cols(), rows.input_weight(r), row_data(dins, r),
                        row_data(dx, rows.from[at(r)]));
        });
    }

    /// Room for calls with up to `rows` rows; not for what the experts themselves allocate.
    void reserve(Index, Index rows, Workspace<S>& ws) const {
        State& state = ws.template state<State>();
        state.inputs.matrix(rows, in_);
        state.outputs.matrix(rows, out_);
        if constexpr (takes_call) {
            state.ids.resize(rows);
            if (num_experts() > 0) ws.child(at(num_experts() - 1));
        }
        if (!ws.keeps()) return;
        state.douts.matrix(rows, out_);
        state.dins.matrix(rows, in_);
        state.gradients.resize(std::max(state.gradients.size(), experts_.size()));
    }
    Index workspace_bytes(Index, Index rows, Keep keep, int) const {
        const Index buffers = keep != Keep::nothing ? 2 : 1;
        return rows * (buffers * (in_ + out_) * static_cast<Index>(sizeof(S)) +
                       (takes_call ? static_cast<Index>(sizeof(std::int64_t)) : 0));
    }

    /// @throws std::invalid_argument if grad has another number of experts, which is not 0
    void check_gradient(const EachModule& grad) const {
        if (grad.num_experts() != 0 && grad.num_experts() != num_experts())
            detail::fail("moe::Layer::backward: grad is of another layer: it has ",
                         grad.num_experts(), " of these experts, the layer has ", num_experts(),
                         "; make it with zeros_like(layer)");
    }

    /// <e>.<name as the expert gives it>
    void visit_parameters(auto&& visit) {
        for (std::size_t e = 0; e < experts_.size(); ++e)
            moe::visit_parameters(experts_[e], [&](std::string_view name, auto& matrix, Role role) {
                visit(std::to_string(e) + "." + std::string(name), matrix, role);
            });
    }
    void own_gradients() {
        if constexpr (requires(E & expert) { expert.own_gradients(); })
            for (E& expert : experts_) expert.own_gradients();
    }

private:
    struct State {
        Buffer<S> inputs, outputs;  // [N, D], [N, O] what the experts read and wrote
        Buffer<S> douts, dins;      // [N, O], [N, D] the gradients there
        Buffer<std::int64_t> ids;   // [N] token numbers, for experts that take a call
        std::vector<detail::WholeGradient<E>> gradients;  // one per expert
    };

    static std::size_t at(Index i) { return static_cast<std::size_t>(i); }

    /// Whether threads are worth it is decided by this. An expert of unknown cost, without
    /// parameters and flops_per_row(), is taken for one matrix product.
    double flops(const Rows<S>& rows, Index in, Index out) const {
        double sum = 0;
        for (Index i = 0; i < rows.num_experts(); ++i) {
            const double known = facts(rows.first_expert + i).flops_per_row;
            const double row = known > 0 ? known : 2 * static_cast<double>(in * out);
            sum += row * static_cast<double>(rows.size(i));
        }
        return sum;
    }

    /// Workspace nodes of the experts; making them is not for parallel tasks.
    void make_nodes(const Call<S>& call) const {
        if constexpr (takes_call)
            if (num_experts() > 0) call.ws.child(at(num_experts() - 1));
    }
    void number_tokens(const Rows<S>& rows, State& state) const {
        if constexpr (takes_call) {
            const auto ids = state.ids.resize(static_cast<Index>(rows.weights.size()));
            if (rows.ids.empty())
                std::copy(rows.from.begin(), rows.from.end(), ids.begin());
            else
                std::copy(rows.ids.begin(), rows.ids.end(), ids.begin());
        }
    }
    /// The call of expert e, which has n rows from `begin` on.
    Call<S> node(const Call<S>& call, Index e, Index begin, Index n, State& state) const {
        if constexpr (takes_call)
            return {call.context, call.ws.child(at(e)), state.ids.span().subspan(at(begin), at(n)),
                    e};
        else
            return call;
    }

    std::vector<E> experts_;
    Index in_ = 0, out_ = 0;  // columns of x and y
};

/// Recipe for experts of a type of the user's; made by experts() and each().
template <class E>
struct Each {
    std::vector<E> instances;  ///< one per expert: experts, or recipes that build one each

    template <class S>
    auto build(const Shape& shape, Random& random) const {
        using Built = detail::built_t<E, S>;
        detail::check_count("moe::each", static_cast<Index>(instances.size()));
        std::vector<Built> built;
        built.reserve(instances.size());
        for (std::size_t e = 0; e < instances.size(); ++e) {
            Random child = random.child(e);
            built.push_back(detail::built<E, S>(instances[e], shape, child));
        }
        return EachModule<S, Built>(std::move(built), shape);
    }
};

/// `count` experts that start as copies of `prototype`; if it is a recipe, each is built with
/// random numbers of its own.
///
///     moe::Layer layer{config, router, gate, moe::experts(4, ScaleShift{...})};
///
/// @throws std::invalid_argument if count is below 1
template <class E>
Each<E> experts(Index count, const E& prototype) {
    detail::check_count("moe::experts", count);
    return {.instances = std::vector<E>(static_cast<std::size_t>(count), prototype)};
}

/// Experts of one type that start with values of their own; the layer copies them.
/// @param instances  at least one
template <class E>
Each<E> each(std::vector<E> instances) {
    return {.instances = std::move(instances)};
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_EXPERTS_EACH_HPP
