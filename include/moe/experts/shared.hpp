// SPDX-License-Identifier: MIT
#ifndef MOE_EXPERTS_SHARED_HPP
#define MOE_EXPERTS_SHARED_HPP

#include <algorithm>
#include <cstdint>
#include <span>
#include <utility>

#include <moe/core/concepts.hpp>
#include <moe/core/gradient.hpp>
#include <moe/core/group.hpp>
#include <moe/core/parameters.hpp>
#include <moe/kernels/dispatch.hpp>

namespace moe::inline MOE_ABI {

/// What the outputs of shared experts are multiplied by.
enum class SharedGate {
    none,     ///< 1: DeepSeekMoE and most others
    sigmoid,  ///< sigmoid(<w, u>), w: [1, D], one for all experts of the group: Qwen1.5-MoE,
              ///< Qwen2-MoE
};

/// A group of experts that every token goes to; it owns no routed expert.
///
///     u    = input_weight * x[t]
///     g    = sigmoid(<w, u>), or 1
///     y[t] = fma(weight * g, expert_e(u), y[t])     for every expert e, ascending
///
/// The gradient at the gate, with h = weight * sum over e of <dy, expert_e(u)>:
///
///     s = h g (1 - g),  du += s w,  dw += s u
///
/// @tparam Group  the expert group inside
/// Source: DeepSeekMoE (arXiv:2401.06066) section 3.2; Qwen2 (arXiv:2407.10671) section 2.2.2.
template <class S, class Group>
class SharedModule {
public:
    using Scalar = S;
    static constexpr bool skips_empty_gradients = true;  // it lends the group inside a whole one

    /// Holds nothing; a gradient like this is not wanted.
    SharedModule() = default;
    /// @param gate  [1, D] w above; empty: g is 1
    explicit SharedModule(Group experts, Parameter<S> gate = {})
        : experts_(std::move(experts)), gate_(std::move(gate)), gated_(!gate_.empty()) {}

    Index num_experts() const { return 0; }
    /// What every token costs here: all experts, and the gate's dot product.
    double flops_per_token() const {
        double flops = 2 * static_cast<double>(gate_.size());
        for (Index e = 0; e < experts_.num_experts(); ++e)
            if constexpr (requires { experts_.facts(e); }) flops += experts_.facts(e).flops_per_row;
        return flops;
    }
    const Group& experts() const { return experts_; }
    Group& experts() { return experts_; }
    const Parameter<S>& gate() const { return gate_; }
    Parameter<S>& gate() { return gate_; }

    void check(const Shape& shape) const {
        if constexpr (requires { experts_.check(shape); }) experts_.check(shape);
    }

    /// @param rows  one run of rows, for all the experts
    void forward(In<S> x, const Rows<S>& rows, Out<S> y, const Call<S>& call) const {
        State& state = call.ws.template state<State>();
        score(x, rows, state, call.ws.executor());
        experts_.forward(x, repeat(rows, state), y, call.child(0));
    }

    void backward(In<S> x, const Rows<S>& rows, In<S> dy, Out<S> dx,
                  const RowGradients<S>& dweights, SharedModule& grad,
                  const Call<S>& call) const requires TrainableGroup<Group, S> {
        State& state = call.ws.template state<State>();
        const Rows<S> inner = repeat(rows, state);
        const Index n = rows.num_rows(), all = inner.num_rows();
        const bool input_wanted = !dweights.input_weights.empty();
        const RowGradients<S> products{
            .weights = state.dweights.assign(all, S(0)),
            .input_weights = state.dinput.assign(input_wanted ? all : 0, S(0))};
        const Call<S> within = call.child(0);
        detail::lend_gradient(experts_, grad.experts_, within.ws, [&](Group& experts_grad) {
            experts_.backward(x, inner, dy, dx, products, experts_grad, within);
        });

        const auto dlogits = state.dlogits.resize(gated() ? n : 0);
        for (Index i = 0; i < n; ++i) {
            const Index r = rows.offsets.front() + i;
            S product = 0, input = 0;  // sums over experts
            for (Index j = i; j < all; j += n) product += products.weights[at(j)];
            for (Index j = i; j < all && input_wanted; j += n)
                input += products.input_weights[at(j)];
            if (gated()) {
                const S g = state.factors[i];
                const S dlogit = rows.weights[at(r)] * product * (g * (1 - g));
                product *= g;
                input = std::fma(dlogit, state.products[i], input);
                dlogits[at(i)] = dlogit * rows.input_weight(r);
            }
            dweights.weights[at(r)] = product;
            if (input_wanted) dweights.input_weights[at(r)] = input;
        }
        if (gated()) gate_backward(x, rows, dx, dlogits, grad, call.ws.executor());
    }

    template <class Options>
        requires requires(const Group& group, const Options& options) {
            group.check_freeze(options);
        }
    void check_freeze(const Options& options) const { experts_.check_freeze(options); }
    /// The same group for inference only.
    template <class Options>
        requires requires(const Group& group, const Options& options) { group.freeze(options); }
    auto freeze(const Options& options) const& {
        using Frozen = decltype(experts_.freeze(options));
        return SharedModule<S, Frozen>(experts_.freeze(options), gate_);
    }
    template <class Options>
        requires requires(const Group& group, const Options& options) { group.freeze(options); }
    auto freeze(const Options& options) && {
        using Frozen = decltype(std::move(experts_).freeze(options));
        return SharedModule<S, Frozen>(std::move(experts_).freeze(options), std::move(gate_));
    }

    /// That without panels; see FeedForwardModule.
    auto without_panels() const requires requires(const Group& group) { group.without_panels(); }
    {
        using Frozen = decltype(experts_.without_panels());
        return SharedModule<S, Frozen>(experts_.without_panels(), gate_);
    }

    void reserve(Index tokens, Index num_rows, Workspace<S>& ws) const {
        State& state = ws.template state<State>();
        const Index inner = experts_.num_experts(), all = detail::checked_product(inner, num_rows);
        state.offsets.resize(inner + 1);
        state.weights.resize(all);
        state.dweights.resize(all);
        if (inner > 1) {
            state.from.resize(all);
            state.to.resize(all);
            state.ids.resize(all);
            state.input_weights.resize(all);
        }
        if (gated()) {
            state.products.resize(num_rows);
            state.factors.resize(num_rows);
            state.dlogits.resize(num_rows);
        }
        if (ws.keeps()) detail::reserve_gradient(experts_, ws.child(0));
        if constexpr (requires { experts_.reserve(tokens, all, ws.child(0)); })
            experts_.reserve(tokens, all, ws.child(0));
    }

    Index workspace_bytes(Index tokens, Index rows, Keep keep, int workers) const {
        const Index all = experts_.num_experts() * rows;
        const auto scalar = static_cast<Index>(sizeof(S));
        Index inner = all * (3 * scalar + 16) + rows * 3 * scalar;
        if constexpr (requires { experts_.workspace_bytes(tokens, all, keep, workers); })
            inner += experts_.workspace_bytes(tokens, all, keep, workers);
        return inner;
    }
    /// Bytes of packed weights, if the experts are packed.
    Index bytes() const requires requires(const Group& group) { group.bytes(); }
    { return experts_.bytes(); }

    /// @throws std::invalid_argument if the gate's gradient is of another extent; those of the
    ///         experts are checked when they are used
    void check_gradient(const SharedModule& grad) const {
        if (!grad.gate_.empty() && grad.gate_.size() != gate_.size())
            detail::fail("moe::Layer::backward: grad is of another layer: its shared gate has ",
                         grad.gate_.size(), " elements, the layer's has ", gate_.size(),
                         "; make it with zeros_like(layer)");
    }

    /// Those of the experts, numbered from 0, and 0.shared_gate
    void visit_parameters(auto&& visit) {
        moe::visit_parameters(experts_, visit);
        if (gated()) visit("0.shared_gate", gate_);
    }
    /// As those of the experts.
    void visit_weights(auto&& visit) requires requires(Group& group) { group.visit_weights(visit); }
    { experts_.visit_weights(visit); }
    void visit_packed(auto&& visit) requires requires(Group& group) { group.visit_packed(visit); }
    { experts_.visit_packed(visit); }
    void own_gradients() {
        if constexpr (requires { experts_.own_gradients(); }) experts_.own_gradients();
    }

private:
    struct State {
        Buffer<Index> offsets;
        Buffer<std::int32_t> from, to;
        Buffer<std::int64_t> ids;
        Buffer<S> weights, input_weights;
        Buffer<S> products;  // [n] <w, x>
        Buffer<S> factors;   // [n] g
        Buffer<S> dweights, dinput, dlogits;
    };

    static std::size_t at(Index i) { return static_cast<std::size_t>(i); }
    bool gated() const { return gated_; }

    void score(In<S> x, const Rows<S>& rows, State& state, Executor& executor) const {
        const Index n = gated() ? rows.num_rows() : 0;
        const auto products = state.products.resize(n), factors = state.factors.resize(n);
        const double flops = 2.0 * static_cast<double>(n * x.cols());
        detail::for_row_runs(executor, n, flops, [&](Index first, Index last, int) {
            for (Index i = first; i < last; ++i) {
                const Index r = rows.offsets.front() + i;
                products[at(i)] =
                    kernels<S>().dot(x.cols(), gate_.data(), row_data(x, rows.from[at(r)]));
                factors[at(i)] = rows.input_weight(r) * products[at(i)];
            }
            kernels<S>().sigmoid(last - first, &factors[at(first)], &factors[at(first)]);
        });
    }

    /// The same rows once for every expert inside, weights times g.
    Rows<S> repeat(const Rows<S>& rows, State& state) const {
        const Index n = rows.num_rows(), times = experts_.num_experts();
        const auto offsets = state.offsets.resize(times + 1);
        for (Index e = 0; e <= times; ++e) offsets[at(e)] = e * n;
        const auto weights = state.weights.resize(detail::checked_product(times, n));
        for (Index i = 0; i < n; ++i) {
            const S weight = rows.weights[at(rows.offsets.front() + i)];
            const S factor = gated() ? weight * state.factors[i] : weight;
            for (Index e = 0; e < times; ++e) weights[at(e * n + i)] = factor;
        }
        return {.offsets = offsets,
                .from = repeat<std::int32_t>(rows, rows.from, state.from),
                .to = repeat<std::int32_t>(rows, rows.to, state.to),
                .weights = weights,
                .input_weights = repeat<S>(rows, rows.input_weights, state.input_weights),
                .ids = repeat<std::int64_t>(rows, rows.ids, state.ids)};
    }
    template <class T>
    std::span<const T> repeat(const Rows<S>& rows, std::span<const T> values,
                              Buffer<T>& buffer) const {
        if (values.empty()) return values;
        const Index n = rows.num_rows(), times = experts_.num_experts();
        const auto once = values.subspan(at(rows.offsets.front()), at(n));
        if (times == 1) return once;
        const auto all = buffer.resize(detail::checked_product(times, n));
        for (Index e = 0; e < times; ++e) std::copy(once.begin(), once.end(), all.begin() + e * n);
        return all;
    }

    void gate_backward(In<S> x, const Rows<S>& rows, Out<S> dx, std::span<const S> dlogits,
                       SharedModule& grad, Executor& executor) const {
        const KernelTable<S>& kernel = kernels<S>();
        const Index begin = rows.offsets.front(), end = rows.offsets.back();
        const double flops = 2.0 * static_cast<double>(rows.num_rows() * x.cols());
        detail::scatter_rows(executor, rows, rows.from, dx.rows(), flops, [&](Index, Index r) {
            kernel.axpy(x.cols(), dlogits[at(r - begin)], gate_.data(),
                        row_data(dx, rows.from[at(r)]));
        });
        if (grad.gate_.empty()) return;
        detail::for_column_runs(executor, x.cols(), flops, [&](Index d, Index width) {
            for (Index r = begin; r < end; ++r)
                kernel.axpy(width, dlogits[at(r - begin)], row_data(x, rows.from[at(r)]) + d,
                            grad.gate_.data() + d);
        });
    }

    Group experts_;
    Parameter<S> gate_;
    bool gated_ = false;  // also where the gradient of the gate is not wanted
};

/// Recipe: every token goes to the experts of another recipe, with no choice of the gate.
///
///     moe::Shared{moe::Swiglu{.count = 2, .ffn_dim = 1408}}
///     moe::Shared{moe::Swiglu{.ffn_dim = 5632}, moe::SharedGate::sigmoid}
template <class Experts>
struct Shared {
    Experts experts;
    SharedGate gate = SharedGate::none;

    template <class S>
    auto build(const Shape& shape, Random& random) const {
        using Group = detail::built_t<Experts, S>;
        static_assert(
            ExpertGroup<Group, S>,
            "moe: moe::Shared takes a group of experts, e.g. moe::Shared{moe::Swiglu{...}}; "
            "wrap an expert of your own: moe::Shared{moe::experts(1, prototype)}");
        Random of_experts = random.child(0), of_gate = random.child(1);
        Group group = detail::built<Experts, S>(experts, shape, of_experts);
        if (group.num_experts() < 1)
            detail::fail("moe::Shared: the group inside has ", group.num_experts(),
                         " experts, it must have at least 1");
        Parameter<S> weight;
        if (gate == SharedGate::sigmoid) {
            weight = Parameter<S>(1, shape.model_dim);
            of_gate.fill_normal(weight, 0.02);
        }
        return SharedModule<S, Group>(std::move(group), std::move(weight));
    }
};

template <class Experts>
Shared(Experts) -> Shared<Experts>;
template <class Experts>
Shared(Experts, SharedGate) -> Shared<Experts>;

}  // namespace moe::inline MOE_ABI

#endif  // MOE_EXPERTS_SHARED_HPP
