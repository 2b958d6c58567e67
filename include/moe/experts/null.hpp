// SPDX-License-Identifier: MIT
#ifndef MOE_EXPERTS_NULL_HPP
#define MOE_EXPERTS_NULL_HPP

#include <moe/core/concepts.hpp>
#include <moe/core/group.hpp>

namespace moe::inline MOE_ABI {

/// Experts that take a slot, do nothing, and are left out of normalisation.
///
/// A token spends some of its slots here and needs fewer true experts, whose weights still sum to
/// what they would without it; a token with nothing but null experts has output 0. The gate leaves
/// them out, because their ExpertFacts say is_null; whatever weight they are given has no effect.
/// An expert that outputs 0 and keeps its weight is Zero. A token all of whose slots go to null
/// experts outputs 0 whatever its logits, also if one of them is NaN: nothing is weighed.
/// Source: AdaMoE (arXiv:2406.13233) section 3.2.
template <class S>
struct NullModule {
    using Scalar = S;
    Index count = 0;

    Index num_experts() const { return count; }
    /// Capacity class 1: experts that replace computation have a capacity rule of their own.
    ExpertFacts facts(Index) const {
        return {.is_null = true, .is_free = true, .capacity_class = 1};
    }

    void forward(In<S>, const Rows<S>&, Out<S>, const Call<S>&) const {}

    void backward(In<S>, const Rows<S>& rows, In<S>, Out<S>, const RowGradients<S>& dweights,
                  NullModule&, const Call<S>&) const {
        for (Index r = rows.offsets.front(); r < rows.offsets.back(); ++r) {
            dweights.weights[static_cast<std::size_t>(r)] = S(0);
            if (!dweights.input_weights.empty())
                dweights.input_weights[static_cast<std::size_t>(r)] = S(0);
        }
    }
};

/// Recipe for `count` null experts.
struct Null {
    Index count = 1;  ///< at least 1

    template <class S>
    NullModule<S> build(const Shape&, Random&) const {
        detail::check_count("moe::Null", count);
        return {.count = count};
    }
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_EXPERTS_NULL_HPP
