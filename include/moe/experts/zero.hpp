// SPDX-License-Identifier: MIT
#ifndef MOE_EXPERTS_ZERO_HPP
#define MOE_EXPERTS_ZERO_HPP

#include <cmath>
#include <limits>

#include <moe/core/concepts.hpp>
#include <moe/core/group.hpp>

namespace moe::inline MOE_ABI {

/// Experts whose output is 0 and that keep their combine weight.
///
///     y[t] = fma(weight, 0, y[t])
///
/// Nothing is read and nothing computed: a token that goes here is discarded to the extent of the
/// weight, because gates that normalise count it. An expert that is left out of normalisation is
/// Null. The gradient at the weight is 0. A weight or input weight that is NaN or infinite makes
/// the token's output NaN, so that the fault shows. Source: MoE++ (arXiv:2410.07348) section 3.1,
/// zero expert.
template <class S>
struct ZeroModule {
    using Scalar = S;
    Index count = 0;

    Index num_experts() const { return count; }
    /// Capacity class 1: experts that replace computation have a capacity rule of their own.
    ExpertFacts facts(Index) const { return {.is_free = true, .capacity_class = 1}; }

    void forward(In<S>, const Rows<S>& rows, Out<S> y, const Call<S>&) const {
        for (Index r = rows.offsets.front(); r < rows.offsets.back(); ++r) {
            const S weight = rows.weights[static_cast<std::size_t>(r)];
            if (std::isfinite(weight) && std::isfinite(rows.input_weight(r))) continue;
            const Index to = rows.to[static_cast<std::size_t>(r)];
            for (Index o = 0; o < y.cols(); ++o) y(to, o) = std::numeric_limits<S>::quiet_NaN();
        }
    }

    void backward(In<S>, const Rows<S>& rows, In<S>, Out<S>, const RowGradients<S>& dweights,
                  ZeroModule&, const Call<S>&) const {
        for (Index r = rows.offsets.front(); r < rows.offsets.back(); ++r) {
            dweights.weights[static_cast<std::size_t>(r)] = S(0);
            if (!dweights.input_weights.empty())
                dweights.input_weights[static_cast<std::size_t>(r)] = S(0);
        }
    }
};

/// Recipe for `count` zero experts.
struct Zero {
    Index count = 1;  ///< at least 1

    template <class S>
    ZeroModule<S> build(const Shape&, Random&) const {
        detail::check_count("moe::Zero", count);
        return {.count = count};
    }
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_EXPERTS_ZERO_HPP
