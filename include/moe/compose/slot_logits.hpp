// SPDX-License-Identifier: MIT
#ifndef MOE_COMPOSE_SLOT_LOGITS_HPP
#define MOE_COMPOSE_SLOT_LOGITS_HPP

#include <algorithm>
#include <cmath>

#include <moe/compose/product_tiles.hpp>
#include <moe/compose/slot_shares.hpp>
#include <moe/compose/unit_rows.hpp>
#include <moe/core/concepts.hpp>
#include <moe/core/group.hpp>
#include <moe/core/parameters.hpp>
#include <moe/core/views.hpp>
#include <moe/kernels/dispatch.hpp>

namespace moe::inline MOE_ABI {

/// What tokens and slot parameters are divided by before they are compared.
enum class SlotNorm {
    length,  ///< sqrt(<v, v> + epsilon), and the logits have a learned scale (V-MoE)
    rms,     ///< that over sqrt(D), and each side has a learned gain per column (soft-moe-pytorch)
};

namespace detail {

/// The parameters of slots, and how near a token is to each:
///
///     L(t, p) = <u_t, v_p>,   u_t = x_t / |x_t|,   v_p = scale phi_p / |phi_p|
///
/// with |v| = sqrt(<v, v> + epsilon). With SlotNorm::rms u_t = sqrt(D) g * x_t / |x_t| and v_p =
/// sqrt(D) h * phi_p / |phi_p|.
template <class S>
class SlotLogits {
public:
    SlotLogits() = default;
    /// @param start  of the scale, with SlotNorm::length
    SlotLogits(SlotNorm norm, double epsilon, double start, Index slots, Index model_dim,
               Random& random)
        : phi(slots, model_dim), norm_(norm), epsilon_(epsilon) {
        random.fill_normal(phi, 1 / std::sqrt(static_cast<double>(model_dim)));
        if (norm == SlotNorm::rms) {
            token_gain = slot_gain = Parameter<S>(1, model_dim);
            std::fill_n(token_gain.data(), token_gain.size(), S(1));
            std::fill_n(slot_gain.data(), slot_gain.size(), S(1));
        } else {
            scale = Parameter<S>(1, 1);
            scale(0, 0) = static_cast<S>(start);
        }
    }

    Parameter<S> phi;                    // [P, D], the slots of an expert next to each other
    Parameter<S> scale;                  // [1, 1] or empty
    Parameter<S> token_gain, slot_gain;  // [1, D] or empty

    /// @throws std::invalid_argument unless each matrix of grad is empty or like ours
    void check_gradient(const SlotLogits& grad) const {
        const auto fits = [](const char* name, const Parameter<S>& found,
                             const Parameter<S>& ours) {
            if (!found.empty() && (found.rows() != ours.rows() || found.cols() != ours.cols()))
                fail("moe::SoftMoe::backward: grad is of another layer: its ", name, " is [",
                     found.rows(), ", ", found.cols(), "], the layer's is [", ours.rows(), ", ",
                     ours.cols(), "]; make it with zeros_like(layer)");
        };
        fits("phi", grad.phi, phi), fits("scale", grad.scale, scale);
        fits("token_gain", grad.token_gain, token_gain);
        fits("slot_gain", grad.slot_gain, slot_gain);
    }

    /// phi, then scale or token_gain and slot_gain
    void visit_parameters(auto&& visit) {
        visit("phi", phi);
        if (norm_ == SlotNorm::rms)
            visit("token_gain", token_gain), visit("slot_gain", slot_gain);
        else
            visit("scale", scale);
    }

protected:
    struct LogitState {
        Buffer<S> units, inverse;            // [T, D] u, [T] 1 / |x|
        Buffer<S> slot_units, slot_inverse;  // [P, D] v, [P] 1 / |phi|
        Buffer<S> dunits, dslot_units;       // [T, D], [P, D]
        ProductTiles<S> products;

        void reserve(Index tokens, Index slots, Index columns, Workspace<S>& ws) {
            units.matrix(tokens, columns), inverse.resize(tokens);
            slot_units.matrix(slots, columns), slot_inverse.resize(slots);
            products.reserve(ws.executor());
            if (ws.keeps()) dunits.matrix(tokens, columns), dslot_units.matrix(slots, columns);
        }
        /// Bytes of that room.
        static Index bytes(Index tokens, Index slots, Index columns, Keep keep, int workers) {
            const Index of_row = columns * (keep == Keep::nothing ? 1 : 2) + 1;
            return checked_product(tokens + slots, of_row) * static_cast<Index>(sizeof(S)) +
                   ProductTiles<S>::bytes(workers);
        }
    };

    /// Writes L [T, P]; leaves u and v in the state.
    void logits(In<S> x, S* values, LogitState& s, Executor& executor) const {
        const KernelTable<S>& kernel = kernels<S>();
        const UnitRows<S> of_tokens = token_norm(), of_slots = slot_norm();
        const Index slots = phi.rows(), columns = phi.cols();
        View<S> units = s.units.matrix(x.rows(), columns);
        s.inverse.resize(x.rows());
        for_rows(executor, x.rows(), 4 * columns, [&](Index t) {
            s.inverse[t] = of_tokens.forward(kernel, row_data(x, t), row_data(units, t));
        });
        View<S> slot_units = s.slot_units.matrix(slots, columns);
        s.slot_inverse.resize(slots);
        for_rows(executor, slots, 4 * columns, [&](Index p) {
            s.slot_inverse[p] = of_slots.forward(kernel, phi.row(p), row_data(slot_units, p));
        });
        s.products.run(executor, {x.rows(), slots, columns, rows_of(s.units, columns),
                                  rows_of(s.slot_units, columns).transpose(), values, slots});
    }

    /// From d(loss)/dL [T, P] on: adds to dx, which it leaves 0 for padding, and to grad.
    /// @param x       [T, D] padding as 0
    /// @param has_du  whether s.dunits holds what reaches u on other ways
    void logits_backward(In<S> x, const Buffer<S>& dlogits, bool has_du, Out<S> dx,
                         SlotLogits& grad, LogitState& s, Executor& executor,
                         const Context& context) const {
        const Index slots = phi.rows(), columns = phi.cols();
        s.products.run(executor, {x.rows(), columns, slots, rows_of(dlogits, slots),
                                  rows_of(s.slot_units, columns),
                                  s.dunits.matrix(x.rows(), columns).data(), columns, has_du});
        slots_backward(x.rows(), dlogits, s, grad, executor);
        tokens_backward(x, dx, s, grad, executor, context);
    }

    static Strided<S> rows_of(const Buffer<S>& matrix, Index columns) {
        return {matrix.data(), columns, 1};
    }
    static Strided<S> rows_of(In<S> matrix) { return {matrix.data(), matrix.outerStride(), 1}; }

private:
    UnitRows<S> token_norm() const {
        return norm_ == SlotNorm::rms ? gained(token_gain) : UnitRows<S>{phi.cols(), epsilon_};
    }
    UnitRows<S> slot_norm() const {
        return norm_ == SlotNorm::rms ? gained(slot_gain)
                                      : UnitRows<S>{phi.cols(), epsilon_, scale(0, 0)};
    }
    UnitRows<S> gained(const Parameter<S>& gain) const {
        const auto root = static_cast<S>(std::sqrt(static_cast<double>(gain.cols())));
        return {gain.cols(), epsilon_, root, gain.data()};
    }

    /// From d(loss)/dL to phi, and to the scale or the gain of slots.
    void slots_backward(Index tokens, const Buffer<S>& dlogits, LogitState& s, SlotLogits& grad,
                        Executor& executor) const {
        if (grad.phi.empty() && grad.scale.empty() && grad.slot_gain.empty()) return;
        const KernelTable<S>& kernel = kernels<S>();
        const UnitRows<S> norm = slot_norm();
        const Index slots = phi.rows(), columns = phi.cols();
        View<S> dunits = s.dslot_units.matrix(slots, columns);
        s.products.run(executor, {slots, columns, tokens, rows_of(dlogits, slots).transpose(),
                                  rows_of(s.units, columns), dunits.data(), columns});
        for (Index p = 0; p < slots && !grad.scale.empty(); ++p)
            grad.scale(0, 0) =
                std::fma(s.slot_inverse[p], kernel.dot(columns, phi.row(p), row_data(dunits, p)),
                         grad.scale(0, 0));
        for (Index p = 0; p < slots && !grad.slot_gain.empty(); ++p)
            norm.backward_gain(0, columns, phi.row(p), s.slot_inverse[p], row_data(dunits, p),
                               grad.slot_gain.data());
        for_rows(executor, grad.phi.rows(), 6 * columns, [&](Index p) {
            norm.backward(kernel, phi.row(p), s.slot_inverse[p], row_data(dunits, p),
                          grad.phi.row(p));
        });
    }

    /// From d(loss)/du to dx, and to the gain of tokens.
    void tokens_backward(In<S> x, Out<S> dx, LogitState& s, SlotLogits& grad, Executor& executor,
                         const Context& context) const {
        const KernelTable<S>& kernel = kernels<S>();
        const UnitRows<S> norm = token_norm();
        const Index columns = x.cols();
        if (!grad.token_gain.empty())
            for_column_runs(executor, columns, 4 * static_cast<double>(x.size()),
                            [&](Index at, Index width) {
                                for (Index t = 0; t < x.rows(); ++t)
                                    if (!context.is_padding(t))
                                        norm.backward_gain(at, width, row_data(x, t), s.inverse[t],
                                                           s.dunits.data() + t * columns,
                                                           grad.token_gain.data());
                            });
        for_rows(executor, x.rows(), 6 * columns, [&](Index t) {
            if (context.is_padding(t))
                std::fill_n(row_data(dx, t), columns, S(0));
            else
                norm.backward(kernel, row_data(x, t), s.inverse[t], s.dunits.data() + t * columns,
                              row_data(dx, t));
        });
    }

    SlotNorm norm_ = SlotNorm::length;
    double epsilon_ = 0;
};

}  // namespace detail
}  // namespace moe::inline MOE_ABI

#endif  // MOE_COMPOSE_SLOT_LOGITS_HPP
