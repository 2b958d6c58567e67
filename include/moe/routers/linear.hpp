// SPDX-License-Identifier: MIT
#ifndef MOE_ROUTERS_LINEAR_HPP
#define MOE_ROUTERS_LINEAR_HPP

#include <algorithm>
#include <cmath>
#include <vector>

#include <moe/core/concepts.hpp>
#include <moe/core/freeze.hpp>
#include <moe/core/parameters.hpp>
#include <moe/core/views.hpp>
#include <moe/kernels/dispatch.hpp>
#include <moe/kernels/product.hpp>

namespace moe::inline MOE_ABI {

struct LinearRouter;

/// logits = x W^T + b        W: [L, D], b: [L]
///
/// Products are chains of fused multiply-adds in the scalar of the layer, the bias is added once
/// after them.
template <class S>
class LinearRouterModule {
public:
    using Scalar = S;
    static constexpr bool skips_empty_gradients = true;

    /// Holds nothing; a gradient like this is not wanted.
    LinearRouterModule() = default;

    Parameter<S> weight;  // [L, D]
    Parameter<S> bias;    // [1, L] or empty

    /// @param x  [T, D]   @param logits  [T, L], overwritten
    void forward(In<S> x, Out<S> logits, const Call<S>& call) const {
        const KernelTable<S>& table = packed_.empty() ? kernels<S>() : *packed_.front().table();
        const Operand<S> w = packed_.empty()
                                 ? Operand<S>(Strided<S>{weight.data(), 1, weight.cols()})
                                 : Operand<S>(packed_.front());
        over_rows(x, call, [&](Index first, Index count, S* packing) {
            product(table, count, weight.rows(), x.cols(),
                    Strided<S>{row_data(x, first), x.outerStride(), 1}, w, row_data(logits, first),
                    logits.outerStride(), false, packing);
            for (Index t = first; t < first + count && !bias.empty(); ++t)
                table.axpy(bias.size(), S(1), bias.data(), row_data(logits, t));
        });
    }

    /// @throws std::invalid_argument unless W is [num_logits, model_dim] of the layer
    void check(const Shape& shape) const {
        if (weight.rows() != shape.num_logits || weight.cols() != shape.model_dim)
            detail::fail("moe::LinearRouter: weight is [", weight.rows(), ", ", weight.cols(),
                         "], the layer wants [", shape.num_logits, ", ", shape.model_dim,
                         "]: logits per token, model_dim");
        if (!bias.empty() && bias.size() != shape.num_logits)
            detail::fail("moe::LinearRouter: bias has ", bias.size(), " elements, the layer has ",
                         shape.num_logits, " logits per token");
    }

    /// dx = dlogits W, dW += dlogits^T x, db += column sums of dlogits
    void backward(In<S> x, In<S> dlogits, Out<S> dx, LinearRouterModule& grad,
                  const Call<S>& call) const {
        const KernelTable<S>& table = kernels<S>();
        const Strided<S> w{weight.data(), weight.cols(), 1};
        over_rows(x, call, [&](Index first, Index count, S* packing) {
            product(table, count, x.cols(), weight.rows(),
                    Strided<S>{row_data(dlogits, first), dlogits.outerStride(), 1}, Operand<S>(w),
                    row_data(dx, first), dx.outerStride(), false, packing);
        });
        if (!grad.weight.empty()) {
            auto& state = call.ws.template state<State>();
            const Index step = 4 * table.panel_width;  // columns of dW that one task makes
            detail::parallel_for(
                call.ws.executor(), (x.cols() + step - 1) / step, flops(x),
                [&](Index i, int worker) {
                    const Index first = i * step, columns = std::min(step, x.cols() - first);
                    product(table, weight.rows(), columns, x.rows(),
                            Strided<S>{dlogits.data(), 1, dlogits.outerStride()},
                            Operand<S>(Strided<S>{x.data() + first, x.outerStride(), 1}),
                            grad.weight.data() + first, x.cols(), true,
                            state.packing[static_cast<std::size_t>(worker)].data());
                });
        }
        for (Index t = 0; t < x.rows() && !grad.bias.empty(); ++t)
            table.axpy(bias.size(), S(1), row_data(dlogits, t), grad.bias.data());
    }

    Index workspace_bytes(Index, Index, Keep, int workers) const {
        return workers * scratch_size() * static_cast<Index>(sizeof(S));
    }
    double flops_per_token() const { return 2 * static_cast<double>(weight.size()); }

    /// Of what freeze() packed.
    Index bytes() const { return packed_.empty() ? 0 : packed_.front().bytes(); }

    /// The same router with W packed once, for inference.
    LinearRouterModule freeze(const FreezeOptions&) const {
        LinearRouterModule frozen = *this;
        frozen.packed_.resize(1);
        frozen.packed_.front().pack(kernels<S>(), Strided<S>{weight.data(), 1, weight.cols()},
                                    weight.cols(), weight.rows());
        return frozen;
    }

    void reserve(Index, Index, Workspace<S>& ws) const {
        ws.template state<State>().reserve(ws.executor().concurrency(), scratch_size());
    }

    void visit_parameters(auto&& visit) {
        visit("weight", weight);
        if (biased_) visit("bias", bias);
    }

private:
    friend struct LinearRouter;
    struct State {
        std::vector<Buffer<S>> packing;  // one per worker

        void reserve(int workers, Index scratch) {
            packing.resize(std::max(packing.size(), static_cast<std::size_t>(workers)));
            for (Buffer<S>& buffer : packing) buffer.resize(scratch);
        }
    };

    /// Elements that the widest of the three products needs.
    Index scratch_size() const {
        return product_scratch(kernels<S>(), std::max(weight.rows(), weight.cols()));
    }

    double flops(In<S> x) const { return flops_per_token() * static_cast<double>(x.rows()); }

    /// f(first, count, packing scratch) over blocks of rows, in parallel.
    template <class F>
    void over_rows(In<S> x, const Call<S>& call, F&& f) const {
        constexpr Index step = 64;
        Executor& executor = call.ws.executor();
        auto& state = call.ws.template state<State>();
        state.reserve(executor.concurrency(), scratch_size());
        detail::parallel_for(executor, (x.rows() + step - 1) / step, flops(x),
                             [&](Index i, int worker) {
                                 f(i * step, std::min(step, x.rows() - i * step),
                                   state.packing[static_cast<std::size_t>(worker)].data());
                             });
    }

    std::vector<PackedMatrix<S>> packed_;
    bool biased_ = false;  // also where the gradient of the bias is not wanted
};

/// Recipe of the usual learned router, computed in the scalar of the layer, float at least. W
/// starts as N(0, 1 / D), so that logits of normed tokens are N(0, 1); b starts at 0.
///
/// Source: Shazeer et al. (arXiv:1701.06538) section 2.1, without its noise.
struct LinearRouter {
    bool bias = false;  ///< gpt-oss has one; most models do not

    template <class S>
    LinearRouterModule<S> build(const Shape& shape, Random& random) const {
        LinearRouterModule<S> router;
        router.weight = Parameter<S>(shape.num_logits, shape.model_dim);
        random.fill_normal(router.weight, 1 / std::sqrt(static_cast<double>(shape.model_dim)));
        if (bias) router.bias = Parameter<S>(1, shape.num_logits);
        router.biased_ = bias;
        return router;
    }
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_ROUTERS_LINEAR_HPP
