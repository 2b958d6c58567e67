// SPDX-License-Identifier: MIT
#ifndef MOE_ROUTERS_EXTERNAL_HPP
#define MOE_ROUTERS_EXTERNAL_HPP

#include <algorithm>
#include <cstddef>
#include <span>

#include <moe/core/concepts.hpp>
#include <moe/core/sequences.hpp>
#include <moe/core/views.hpp>
#include <moe/kernels/dispatch.hpp>
#include <moe/routers/decide.hpp>

namespace moe::inline MOE_ABI {

/// The router that ExternalRouter describes.
template <class S>
class ExternalRouterModule {
public:
    using Scalar = S;
    static constexpr bool skips_empty_gradients = true;

    /// Holds nothing; a gradient like this is not wanted.
    ExternalRouterModule() = default;
    explicit ExternalRouterModule(Index num_logits) : num_logits_(num_logits) {}

    /// @param x       [T, D], not read
    /// @param logits  [T, L], overwritten
    /// @throws std::invalid_argument unless Context::side_vectors is [T, L] or, with
    ///         sequence_offsets, [B, L], of the scalar S
    void forward(In<S> x, Out<S> logits, const Call<S>& call) const {
        detail::check_router_extents<S>(name, x, logits, num_logits_);
        if (x.rows() == 0) return;
        const auto given = call.context.side_vectors.template as<S>();
        for_each_given(x.rows(), call, [&](Index row, Index first, Index last) {
            for (Index t = first; t < last; ++t)
                std::copy_n(row_data(given, row), num_logits_, row_data(logits, t));
        });
    }

    /// dx = 0; **adds** dlogits to Context::gradients->side_vectors, if that is wanted
    void backward(In<S> x, In<S> dlogits, Out<S> dx, ExternalRouterModule&,
                  const Call<S>& call) const {
        detail::write_no_gradient<S>(name, x, dx);
        const ContextGradients* const gradients = call.context.gradients;
        if (x.rows() == 0 || gradients == nullptr || gradients->side_vectors.empty()) return;
        auto given = gradients->side_vectors.template as<S>();
        for_each_given(x.rows(), call, [&](Index row, Index first, Index last) {
            for (Index t = first; t < last; ++t)
                kernels<S>().axpy(num_logits_, S(1), row_data(dlogits, t), row_data(given, row));
        });
    }

    /// @throws std::invalid_argument if the layer has another number of logits
    void check(const Shape& shape) const { detail::check_router(name, num_logits_, shape); }

private:
    static constexpr const char* name = "moe::ExternalRouter";

    /// f(row, first, last): row `row` of the side vectors is for tokens [first, last).
    template <class F>
    void for_each_given(Index tokens, const Call<S>& call, F&& f) const {
        const SideVectors& given = call.context.side_vectors;
        const std::span<const Index> offsets = call.context.sequence_offsets;
        const bool per_token = given.rows() == tokens;
        if (given.cols() != num_logits_ ||
            !(per_token || given.rows() + 1 == static_cast<Index>(offsets.size())))
            detail::fail(name, ": side_vectors is [", given.rows(), ", ", given.cols(),
                         "], it must have ", num_logits_, " columns and a row for each of the ",
                         tokens, " tokens, or for each sequence of sequence_offsets");
        if (!per_token) detail::check_sequences(name, offsets, tokens);
        const double flops = static_cast<double>(num_logits_) * static_cast<double>(tokens) /
                             static_cast<double>(given.rows());
        detail::for_tokens(call.ws.executor(), given.rows(), flops, [&](Index row, int) {
            const auto b = static_cast<std::size_t>(row);
            f(row, per_token ? row : offsets[b], per_token ? row + 1 : offsets[b + 1]);
        });
    }

    Index num_logits_ = 0;
};

/// Recipe of a router whose logits come with the call: those of a router that runs elsewhere, of a
/// teacher, of another layer, recorded ones, or what the caller computes from anything at all.
///
///     logits(t) = side_vectors(t), or side_vectors(b) for the tokens of sequence b
///     d(side_vectors)(b) += sum of dlogits(t) over those tokens, in order
///
/// Context::side_vectors, of the layer's scalar, has a row of L logits per token ([T, L]) or else
/// one per sequence ([B, L], with sequence_offsets). Their gradient is added to
/// Context::gradients->side_vectors, if that is given; from there it is the caller's. dx has no
/// share of it.
struct ExternalRouter {
    template <class S>
    ExternalRouterModule<S> build(const Shape& shape, Random&) const {
        return ExternalRouterModule<S>(shape.num_logits);
    }
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_ROUTERS_EXTERNAL_HPP
