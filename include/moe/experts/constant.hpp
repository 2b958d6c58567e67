// SPDX-License-Identifier: MIT
#ifndef MOE_EXPERTS_CONSTANT_HPP
#define MOE_EXPERTS_CONSTANT_HPP

#include <algorithm>
#include <cmath>
#include <span>
#include <string>
#include <vector>

#include <moe/core/concepts.hpp>
#include <moe/core/group.hpp>
#include <moe/core/parameters.hpp>
#include <moe/kernels/dispatch.hpp>

namespace moe::inline MOE_ABI {

/// Experts that blend each token with one learned vector.
///
///     u      = input_weight * x
///     [a, b] = softmax(W u)        W: [2, D]
///     out    = a u + b v           v: [1, D]
///
/// Two dot products per token instead of three matrix products, so tokens that need little work
/// can go here. With g = weight * dy and s = a b (<g, u> - <g, v>):
///
///     du += a g + s (W0 - W1),  dW0 += s u,  dW1 -= s u,  dv += b g
///
/// Source: MoE++ (arXiv:2410.07348) section 3.1, constant expert.
template <class S>
struct ConstantModule {
    using Scalar = S;
    static constexpr bool skips_empty_gradients = true;
    std::vector<Parameter<S>> mix;    // [2, D] each, W above
    std::vector<Parameter<S>> value;  // [1, D] each, v above

    Index num_experts() const { return static_cast<Index>(mix.size()); }
    /// Capacity class 1: experts that replace computation have a capacity rule of their own.
    ExpertFacts facts(Index e) const {
        return {.capacity_class = 1, .flops_per_row = 9 * static_cast<double>(value[at(e)].cols())};
    }

    /// @throws std::invalid_argument if outputs are not as wide as tokens
    void check(const Shape& shape) const {
        if (shape.output_dim != shape.model_dim)
            detail::fail("moe::Constant: output_dim is ", shape.output_dim, ", model_dim is ",
                         shape.model_dim, "; a token can only be blended if they are equal");
    }

    void forward(In<S> x, const Rows<S>& rows, Out<S> y, const Call<S>& call) const {
        const KernelTable<S>& kernel = kernels<S>();
        const auto blends = call.ws.template state<State>().blends.resize(num_slots(rows));
        detail::scatter_rows(
            call.ws.executor(), rows, rows.to, y.rows(), flops(rows, x), [&](Index e, Index r) {
                const S* u = row_data(x, rows.from[at(r)]);
                S* out = row_data(y, rows.to[at(r)]);
                const S* v = value[at(e)].data();
                const Blend blend = blends[at(r)] = blend_of(e, u, rows.input_weight(r));
                S chunk[chunk_width];  // of the expert's output
                for (Index d = 0; d < x.cols(); d += chunk_width) {
                    const Index width = std::min(chunk_width, x.cols() - d);
                    kernel.scale(width, blend.value, v + d, chunk);
                    kernel.axpy(width, blend.token * rows.input_weight(r), u + d, chunk);
                    kernel.axpy(width, rows.weights[at(r)], chunk, out + d);
                }
            });
    }

    void backward(In<S> x, const Rows<S>& rows, In<S> dy, Out<S> dx,
                  const RowGradients<S>& dweights, ConstantModule& grad,
                  const Call<S>& call) const {
        if (!grad.mix.empty() && grad.mix.size() != mix.size())
            detail::fail("moe::Layer::backward: grad is of another layer: it has ", grad.mix.size(),
                         " constant experts, the layer has ", mix.size(),
                         "; make it with zeros_like(layer)");
        const KernelTable<S>& kernel = kernels<S>();
        const Index dim = x.cols();
        State& state = call.ws.template state<State>();
        const auto blends = state.blends.span();
        const auto dlogits = state.dlogits.resize(num_slots(rows));  // s above
        detail::scatter_rows(
            call.ws.executor(), rows, rows.from, dx.rows(), 2 * flops(rows, x),
            [&](Index e, Index r) {
                const std::size_t i = at(r);
                const S* x_row = row_data(x, rows.from[i]);
                const S* dy_row = row_data(dy, rows.to[i]);
                S* dx_row = row_data(dx, rows.from[i]);
                const Blend blend = blends[i];
                const S input_weight = rows.input_weight(r), weight = rows.weights[i];
                const S dy_x = kernel.dot(dim, dy_row, x_row);
                const S dy_u = input_weight * dy_x;
                const S dy_v = kernel.dot(dim, dy_row, value[at(e)].data());
                const S difference = std::fma(input_weight, dy_x, -dy_v);
                const S dlogit = weight * (blend.token * blend.value * difference);
                dlogits[i] = dlogit;
                dweights.weights[i] = std::fma(blend.token, dy_u, blend.value * dy_v);
                if (!dweights.input_weights.empty())
                    dweights.input_weights[i] =
                        std::fma(weight * blend.token, dy_x, dlogit * blend.margin);
                kernel.axpy(dim, input_weight * (weight * blend.token), dy_row, dx_row);
                kernel.axpy(dim, input_weight * dlogit, mix[at(e)].row(0), dx_row);
                kernel.axpy(dim, -(input_weight * dlogit), mix[at(e)].row(1), dx_row);
            });
        for (Index e = 0; e < rows.num_experts() && !grad.mix.empty(); ++e)
            add_gradient(rows, e, x, dy, blends, dlogits, grad, call.ws.executor());
    }

    void reserve(Index, Index num_rows, Workspace<S>& ws) const {
        State& state = ws.template state<State>();
        state.blends.resize(num_rows);
        state.dlogits.resize(num_rows);
    }

    Index workspace_bytes(Index, Index rows, Keep, int) const {
        return rows * static_cast<Index>(sizeof(Blend) + sizeof(S));
    }

    /// <e>.mix, <e>.value
    void visit_parameters(auto&& visit) {
        for (std::size_t e = 0; e < mix.size(); ++e) {
            visit(std::to_string(e) + ".mix", mix[e]);
            visit(std::to_string(e) + ".value", value[e]);
        }
    }

private:
    static constexpr Index chunk_width = 256;

    struct Blend {
        S token, value;  // a and b above
        S margin;        // <W0 - W1, x>
    };
    struct State {
        Buffer<Blend> blends;
        Buffer<S> dlogits;
    };

    static std::size_t at(Index i) { return static_cast<std::size_t>(i); }
    /// Length of the arrays of rows, of which this call may see a part.
    static Index num_slots(const Rows<S>& rows) { return static_cast<Index>(rows.weights.size()); }
    static double flops(const Rows<S>& rows, In<S> x) {
        return 9.0 * static_cast<double>(rows.num_rows() * x.cols());
    }

    Blend blend_of(Index e, const S* x, S input_weight) const {
        const KernelTable<S>& kernel = kernels<S>();
        const Parameter<S>& w = mix[at(e)];
        const S z0 = kernel.dot(w.cols(), w.row(0), x), z1 = kernel.dot(w.cols(), w.row(1), x);
        const S logits[2] = {input_weight * z0, input_weight * z1};
        S ab[2];
        kernel.softmax(2, logits, ab);
        return {.token = ab[0], .value = ab[1], .margin = z0 - z1};
    }

    /// Expert e of rows: sums over rows, split over columns.
    void add_gradient(const Rows<S>& rows, Index e, In<S> x, In<S> dy,
                      std::span<const Blend> blends, std::span<const S> dlogits,
                      ConstantModule& grad, Executor& executor) const {
        const KernelTable<S>& kernel = kernels<S>();
        Parameter<S>& dmix = grad.mix[at(rows.first_expert + e)];
        Parameter<S>& dvalue = grad.value[at(rows.first_expert + e)];
        const double flops = 6.0 * static_cast<double>(rows.size(e) * x.cols());
        detail::for_column_runs(executor, x.cols(), flops, [&](Index d, Index width) {
            for (Index r = rows.begin(e); r < rows.end(e); ++r) {
                const S* x_row = row_data(x, rows.from[at(r)]) + d;
                const S* dy_row = row_data(dy, rows.to[at(r)]) + d;
                const S du = dlogits[at(r)] * rows.input_weight(r);
                if (!dmix.empty()) {
                    kernel.axpy(width, du, x_row, dmix.row(0) + d);
                    kernel.axpy(width, -du, x_row, dmix.row(1) + d);
                }
                if (!dvalue.empty())
                    kernel.axpy(width, rows.weights[at(r)] * blends[at(r)].value, dy_row,
                                dvalue.data() + d);
            }
        });
    }
};

/// Recipe for `count` constant experts. Needs output_dim == model_dim.
///
/// v starts as independent N(0, 1) and W as N(0, 0.02^2), so that a and b start near 1/2.
struct Constant {
    Index count = 1;  ///< at least 1

    template <class S>
    ConstantModule<S> build(const Shape& shape, Random& random) const {
        detail::check_count("moe::Constant", count);
        ConstantModule<S> group;
        for (Index e = 0; e < count; ++e) {
            group.mix.emplace_back(2, shape.model_dim);
            group.value.emplace_back(1, shape.model_dim);
            random.fill_normal(group.mix.back(), 0.02);
            random.fill_normal(group.value.back(), 1);
        }
        return group;
    }
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_EXPERTS_CONSTANT_HPP
