// SPDX-License-Identifier: MIT
#ifndef MOE_COMPOSE_CONTEST_HPP
#define MOE_COMPOSE_CONTEST_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>

#include <moe/bank.hpp>
#include <moe/compose/output_lengths.hpp>
#include <moe/core/batch_rows.hpp>
#include <moe/core/fingerprint.hpp>
#include <moe/core/gradient.hpp>
#include <moe/core/group.hpp>
#include <moe/core/views.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/kernels/dispatch.hpp>

namespace moe::inline MOE_ABI::detail {

/// What a Competition leaves in its workspace besides what a Layer does.
struct ContestRecord {
    bool was_held = false;  // by the last call
    Routing nothing;        // for a gate that chose nothing
};

/// The calls of a Competition in which all experts of a bank work on all tokens:
///
///     score(t, e) = (1 - logit_share) |expert_e(x_t)| + logit_share z(t, e)
///     w           = softmax over the k best scores of a token
///     y_t         = sum over those experts e, ascending, of multiplier * w(t, e) * expert_e(x_t)
///
/// Two passes: the first keeps of an output only its length; the second is about the winners' rows,
/// each of which has a row of its own to write to. So backward finds outputs and their gradients
/// row by row, and sends both paths to an expert at once:
///
///     dout = multiplier * w dy_t + (1 - logit_share) dscore out / |out|,   out = expert_e(x_t)
template <class S>
class Contest {
public:
    Contest() = default;
    Contest(Index k, double logit_share, Index num_experts)
        : gate_({.k = k, .score = Score::softmax_of_selected}, num_experts),
          logit_share_(static_cast<S>(logit_share)) {}

    /// Writes y and, in ws, the routing. `node` is the contest's own.
    /// @param ws  routed by the head with the same x and context
    template <class Bank>
    void forward(const Bank& bank, In<S> x, Out<S> y, Workspace<S>& ws, Workspace<S>& node,
                 const Context& context) const {
        check("forward", bank, x, y, "y");
        if (overlap<S>(x, y))
            fail(
                "moe::Competition::forward: y shares memory with x, which is read while y is "
                "written; give it a matrix of its own");
        if (context.forces())
            fail(
                "moe::Context: forced is set, but experts win a moe::Competition by what they "
                "return; leave it unset where the call competes");
        const KernelTable<S>& kernel = kernels<S>();
        State& s = node.template state<State>();
        s.fingerprint = 0;  // until all is there
        const Context known = bank.with_facts(context);
        View<S> scores = s.scores.matrix(x.rows(), bank.num_experts());
        judge(bank, x, ws.logits(), scores, s, node, known);
        Routing& routing = ws.edit_routing();
        choose(scores, routing, {known, node.child(gate_node<Bank>)});

        s.fill(routing, known, static_cast<S>(bank.config().input_scale));
        View<S> outputs = s.outputs.matrix(routing.num_kept(), y.cols());
        outputs.setZero();
        y.setZero();
        Index first = 0;
        bank.for_each_group([&](std::size_t i, const auto& group) {
            const Call<S> call{known, node.child(i)};
            if (group.num_experts() == 0) return group.forward(x, s.rows.of_tokens(), y, call);
            const Index last = first + group.num_experts();
            group.forward(x, s.own_rows(first, last), outputs, call);
            const Rows<S> rows = s.rows.of_experts(first, last);
            const double added = 2.0 * static_cast<double>(rows.num_rows() * y.cols());
            scatter_rows(node.executor(), rows, rows.to, y.rows(), added, [&](Index, Index r) {
                kernel.axpy(y.cols(), rows.weights[at(r)], row_data(outputs, r),
                            row_data(y, rows.to[at(r)]));
            });
            first = last;
        });
        s.fingerprint = ws.keeps() ? fingerprint(x, routing, context) : 0;
    }

    /// Writes dx, adds to grad, and to ws.dlogits() what goes through the scores.
    template <class Bank>
    void backward(const Bank& bank, In<S> x, In<S> dy, Out<S> dx, Bank& grad, Workspace<S>& ws,
                  Workspace<S>& node, const Context& context) const {
        check("backward", bank, x, dy, "dy");
        check_gradient(bank, x, dy, dx, grad);
        State* const state = node.template find<State>();
        if (state == nullptr || state->fingerprint != fingerprint(x, ws.routing(), context))
            fail_without_batch(ws);
        State& s = *state;
        const Context known = bank.with_facts(context);
        s.fill(ws.routing(), known, static_cast<S>(bank.config().input_scale));
        View<S> douts = s.douts.matrix(ws.routing().num_kept(), dy.cols());
        output_gradients(dy, douts, s, ws, {known, node.child(gate_node<Bank>)});

        dx.setZero();
        const auto unasked = s.unasked.resize(std::max(douts.rows(), x.rows()));
        Index first = 0;
        bank.for_each_pair(grad, [&](std::size_t i, const auto& group, auto& given) {
            const Index last = first + group.num_experts();
            const bool is_routed = group.num_experts() > 0;
            const Rows<S> rows = is_routed ? s.own_rows(first, last) : s.rows.of_tokens();
            const Eigen::Ref<const Matrix<S>> wanted =
                is_routed ? Eigen::Ref<const Matrix<S>>(douts) : dy;
            lend_gradient(group, given, node.child(i), [&](auto& group_grad) {
                group.backward(x, rows, wanted, dx, RowGradients<S>{.weights = unasked}, group_grad,
                               Call<S>{known, node.child(i)});
            });
            first = last;
        });
    }

    template <class Bank>
    void reserve(const Bank& bank, Index tokens, Index assignments, Workspace<S>& node) const {
        State& s = node.template state<State>();
        const Index experts = bank.num_experts(), out = bank.output_dim();
        const Index rows = most_rows(bank, tokens, assignments);
        s.scores.matrix(tokens, experts);
        s.lengths.reserve(tokens, experts, bank.config().input_scale);
        s.outputs.matrix(rows, out);
        s.rows.reserve(tokens, assignments);
        s.own.resize(assignments), s.ones.resize(assignments);
        gate_.reserve(tokens, assignments, node.child(gate_node<Bank>));
        bank.reserve_groups(tokens, rows, node);
        if (!node.keeps()) return;
        s.douts.matrix(assignments, out);
        s.dscores.matrix(tokens, experts);
        s.dweights.resize(assignments), s.unasked.resize(std::max(tokens, assignments));
    }
    /// Bytes of that room.
    template <class Bank>
    Index workspace_bytes(const Bank& bank, Index tokens, Index assignments, Keep keep,
                          int workers) const {
        const Index experts = bank.num_experts(), out = bank.output_dim();
        const Index rows = most_rows(bank, tokens, assignments);
        Index scalars = checked_product(tokens, experts) + checked_product(rows, out) + assignments;
        if (keep != Keep::nothing)
            scalars += checked_product(assignments, out + 1) + checked_product(tokens, experts) +
                       std::max(tokens, assignments);
        return checked_product(scalars, static_cast<Index>(sizeof(S))) +
               assignments * static_cast<Index>(sizeof(std::int32_t)) +
               OutputLengths<S>::bytes(tokens, experts, bank.config().input_scale) +
               BatchRows<S>::bytes(tokens, assignments) +
               gate_.workspace_bytes(tokens, assignments, keep, workers) +
               bank.group_bytes(tokens, rows, keep, workers);
    }

private:
    struct State {
        // First pass.
        Buffer<S> scores;  // [T, E]
        OutputLengths<S> lengths;
        // Second pass, and backward.
        BatchRows<S> rows;                     // the winners'
        Buffer<std::int32_t> own;              // [num_kept] 0, 1, ..: where each writes
        Buffer<S> ones;                        // [num_kept] what it writes with
        Buffer<S> outputs, douts;              // [num_kept, O]; outputs are the first pass's, too
        Buffer<S> dscores, dweights, unasked;  // [T, E], [N], [num_kept or T]
        TopKModule<S> no_gate;                 // the gate's gradient: it has no parameters
        std::uint64_t fingerprint = 0;

        void fill(const Routing& routing, const Context& context, S input_scale) {
            rows.fill(routing, context, input_scale);
            const auto numbers = own.resize(routing.num_kept());
            std::iota(numbers.begin(), numbers.end(), 0);
            ones.assign(routing.num_kept(), S(1));
        }
        /// The rows of some experts, each writing to the row of its own number with weight 1.
        Rows<S> own_rows(Index first, Index last) const {
            Rows<S> result = rows.of_experts(first, last);
            result.to = own.span();
            result.weights = ones.span();
            return result;
        }
    };

    template <class Bank>
    static constexpr std::size_t gate_node = Bank::num_groups;

    /// Rows that groups have in either pass.
    template <class Bank>
    static Index most_rows(const Bank& bank, Index tokens, Index assignments) {
        return std::max(OutputLengths<S>::most_rows(tokens, bank.num_experts()), assignments);
    }
    std::uint64_t fingerprint(In<S> x, const Routing& routing, const Context& context) const {
        return Fingerprint(identity_)
            .template batch<S>(x)
            .context(context)
            .routing(routing)
            .value();
    }

    /// The first pass: scores of every expert for every token.
    template <class Bank>
    void judge(const Bank& bank, In<S> x, In<S> logits, View<S> scores, State& s,
               Workspace<S>& node, const Context& context) const {
        constexpr S none = -std::numeric_limits<S>::infinity();
        std::fill_n(scores.data(), scores.size(), none);
        s.lengths.for_each(bank, x, s.outputs, node, context, [&](Index t, Index e, S length) {
            if (logits(t, e) != none) scores(t, e) = score(length, logits(t, e));
        });
    }

    S score(S length, S logit) const {
        if (logit_share_ == 0) return length;
        return std::fma(logit_share_, logit, (1 - logit_share_) * length);
    }

    void choose(In<S> scores, Routing& routing, const Call<S>& call) const {
        routing.reset(scores.rows(), scores.cols());
        gate_.select(scores, routing, call);
        routing.group();
        gate_.weigh(scores, routing, call);
        routing.group();
    }

    /// Writes douts, row by row; adds to ws.dlogits().
    void output_gradients(In<S> dy, View<S> douts, State& s, Workspace<S>& ws,
                          const Call<S>& of_gate) const {
        const KernelTable<S>& kernel = kernels<S>();
        const Context& context = of_gate.context;
        const Routing& routing = ws.routing();
        const Rows<S> rows = s.rows.of_experts(0, routing.num_experts());
        View<S> outputs = s.outputs.matrix(douts.rows(), dy.cols());  // as forward left them
        const auto dweights = s.dweights.assign(routing.num_assignments(), S(0));
        for (Index r = 0; r < douts.rows(); ++r) {
            const Index a = routing.expert_assignments()[at(r)];
            const Assignment& winner = routing.assignments()[at(a)];
            const S slope = kernel.dot(dy.cols(), row_data(dy, winner.token), row_data(outputs, r));
            if (BatchRows<S>::multiplies_outputs(context))
                add_multiplier_gradient(context, winner.token, winner.expert,
                                        static_cast<double>(slope) * winner.weight);
            dweights[at(a)] = slope * static_cast<S>(BatchRows<S>::multiplier(context, winner.token,
                                                                              winner.expert));
        }
        const Index tokens = dy.rows(), experts = routing.num_experts();
        View<S> scores = s.scores.matrix(tokens, experts);
        View<S> dscores = s.dscores.matrix(tokens, experts);
        dscores.setZero();
        gate_.backward(scores, routing, {.output = dweights}, dscores, s.no_gate, of_gate);

        View<S> dlogits = ws.dlogits();
        const double flops = 6.0 * static_cast<double>(douts.size());
        for_row_runs(ws.executor(), douts.rows(), flops, [&](Index begin, Index end, int) {
            for (Index r = begin; r < end; ++r) {
                const Index a = routing.expert_assignments()[at(r)];
                const Assignment& winner = routing.assignments()[at(a)];
                const S slope = dscores(winner.token, winner.expert);
                const S norm = row_length(kernel, outputs, r);
                kernel.scale(dy.cols(), rows.weights[at(r)], row_data(dy, winner.token),
                             row_data(douts, r));
                if (norm != 0)
                    kernel.axpy(dy.cols(), (1 - logit_share_) * slope / norm, row_data(outputs, r),
                                row_data(douts, r));
                if (logit_share_ != 0) {
                    S& logit = dlogits(winner.token, winner.expert);
                    logit = std::fma(logit_share_, slope, logit);
                }
            }
        });
    }

    /// @param y  y or dy, as `what` says
    template <class Bank>
    static void check(const char* call, const Bank& bank, In<S> x, In<S> y, const char* what) {
        if (y.rows() != x.rows() || y.cols() != bank.output_dim())
            fail("moe::Competition::", call, ": ", what, " is [", y.rows(), ", ", y.cols(),
                 "], it must be [", x.rows(), ", ", bank.output_dim(), "]");
    }
    template <class Bank>
    static void check_gradient(const Bank& bank, In<S> x, In<S> dy, Out<S> dx, const Bank& grad) {
        if (&grad == &bank)
            fail(
                "moe::Competition::backward: grad is the layer itself; make a gradient with "
                "zeros_like(layer)");
        if (dx.rows() != x.rows() || dx.cols() != x.cols())
            fail("moe::Competition::backward: dx is [", dx.rows(), ", ", dx.cols(),
                 "], it must be [", x.rows(), ", ", x.cols(), "]");
        if (overlap<S>(x, dx) || overlap<S>(dy, dx))
            fail("moe::Competition::backward: dx shares memory with ",
                 overlap<S>(x, dx) ? "x" : "dy",
                 ", which is read while dx is written; give it a matrix of its own");
        if (grad.num_experts() != 0 && grad.num_experts() != bank.num_experts())
            fail("moe::Competition::backward: grad is of another layer: it has ",
                 grad.num_experts(), " experts, the layer has ", bank.num_experts(),
                 "; make it with zeros_like(layer)");
    }

    Identity identity_;
    TopKModule<S> gate_;  // on scores
    S logit_share_ = 0;
};

}  // namespace moe::inline MOE_ABI::detail

#endif  // MOE_COMPOSE_CONTEST_HPP
