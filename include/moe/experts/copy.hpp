// SPDX-License-Identifier: MIT
#ifndef MOE_EXPERTS_COPY_HPP
#define MOE_EXPERTS_COPY_HPP

#include <moe/core/concepts.hpp>
#include <moe/core/group.hpp>
#include <moe/kernels/dispatch.hpp>

namespace moe::inline MOE_ABI {

/// Experts that give back what they read.
///
///     y[t] = fma(weight * input_weight, x[t], y[t])
///
/// One pass over the token, no product: a token that needs no work skips the layer here.
/// Source: MoE++ (arXiv:2410.07348) section 3.1, copy expert; LongCat-Flash (arXiv:2509.01322)
/// calls the same "zero-computation experts".
template <class S>
struct CopyModule {
    using Scalar = S;
    Index count = 0;
    Index model_dim = 0;

    Index num_experts() const { return count; }
    /// Capacity class 1: experts that replace computation have a capacity rule of their own.
    ExpertFacts facts(Index) const {
        return {.is_free = true,
                .capacity_class = 1,
                .flops_per_row = 2 * static_cast<double>(model_dim)};
    }

    /// @throws std::invalid_argument if outputs are not as wide as tokens
    void check(const Shape& shape) const {
        if (shape.output_dim != shape.model_dim)
            detail::fail("moe::Copy: output_dim is ", shape.output_dim, ", model_dim is ",
                         shape.model_dim, "; a token can only be copied if they are equal");
    }

    void forward(In<S> x, const Rows<S>& rows, Out<S> y, const Call<S>& call) const {
        const KernelTable<S>& kernel = kernels<S>();
        const double flops = 2.0 * static_cast<double>(rows.num_rows() * x.cols());
        detail::scatter_rows(call.ws.executor(), rows, rows.to, y.rows(), flops,
                             [&](Index, Index r) {
                                 const auto i = static_cast<std::size_t>(r);
                                 kernel.axpy(x.cols(), rows.weights[i] * rows.input_weight(r),
                                             row_data(x, rows.from[i]), row_data(y, rows.to[i]));
                             });
    }

    void backward(In<S> x, const Rows<S>& rows, In<S> dy, Out<S> dx,
                  const RowGradients<S>& dweights, CopyModule&, const Call<S>& call) const {
        const KernelTable<S>& kernel = kernels<S>();
        const double flops = 4.0 * static_cast<double>(rows.num_rows() * x.cols());
        detail::scatter_rows(call.ws.executor(), rows, rows.from, dx.rows(), flops,
                             [&](Index, Index r) {
                                 const auto i = static_cast<std::size_t>(r);
                                 const S* x_row = row_data(x, rows.from[i]);
                                 const S* dy_row = row_data(dy, rows.to[i]);
                                 const S product = kernel.dot(x.cols(), dy_row, x_row);
                                 dweights.weights[i] = rows.input_weight(r) * product;
                                 if (!dweights.input_weights.empty())
                                     dweights.input_weights[i] = rows.weights[i] * product;
                                 kernel.axpy(x.cols(), rows.weights[i] * rows.input_weight(r),
                                             dy_row, row_data(dx, rows.from[i]));
                             });
    }
};

/// Recipe for `count` copy experts. Needs output_dim == model_dim.
struct Copy {
    Index count = 1;  ///< at least 1

    template <class S>
    CopyModule<S> build(const Shape& shape, Random&) const {
        detail::check_count("moe::Copy", count);
        return {.count = count, .model_dim = shape.model_dim};
    }
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_EXPERTS_COPY_HPP
