// SPDX-License-Identifier: MIT
#ifndef MOE_EXPERTS_IN_BF16_HPP
#define MOE_EXPERTS_IN_BF16_HPP

#include <type_traits>

#include <moe/core/concepts.hpp>
#include <moe/experts/feed_forward.hpp>
#include <moe/experts/feed_forward_bf16.hpp>
#include <moe/experts/feed_forward_bf16_backward.hpp>

namespace moe::inline MOE_ABI {
namespace detail {

template <class S>
void reserve_bf16(const FeedForwardShape& shape, Index count, Index rows, Workspace<S>& ws) {
    ws.template state<FeedForwardBf16State<S>>().reserve(shape, count, rows, ws.keep(),
                                                         ws.executor().concurrency());
}

template <class S>
inline constexpr FeedForwardPasses<S> bf16_passes{.compute = Compute::bf16,
                                                  .forward = feed_forward_bf16<S>,
                                                  .backward = feed_forward_bf16_backward<S>,
                                                  .reserve = reserve_bf16<S>,
                                                  .bytes = FeedForwardBf16State<S>::bytes};

}  // namespace detail

/// Recipe: the experts of Swiglu, Glu or Mlp, in layers of float, trained with products in bf16.
///
///     moe::InBf16{moe::Swiglu{.count = 8, .ffn_dim = 512}}
///
/// The operands of every product, forward and backward, are rounded to bf16 for it and sums are
/// float in the order of AMX tiles; master weights, gradients, biases and everything between the
/// products stay float. With ' for rounded, w the combine weight:
///
///     forward   g = gate' x', u = up' x', h = act(g) u, y += w (down' h')
///               the bits of the same weights frozen with Storage::bf16 and Compute::bf16, and
///               not of those frozen as fp32
///     backward  dA = dy' down', d(w) = <dA, h>, (dg, du) from w dA
///               dx += dg' gate' + du' up'
///               d(down) += (w dy)'^T h', d(gate) += dg'^T x', d(up) += du'^T x'
///
/// Rounding counts as the identity there, and weights of inputs multiply before it. The rows of an
/// expert are summed by 1024, from the first of a call on, before they are added to a gradient: as
/// with exact products the bits depend neither on threads nor on the instruction set, and y and dx
/// not on the other rows; but two calls add up to other bits than one call on the rows of both.
/// Weights are rounded anew in each call; what is above the largest bf16 becomes an infinity.
/// With AMX a step is quicker so from about 20 rows per expert on, and takes a half to a quarter of
/// the time with 128 and more; with fewer rows, and without AMX, exact is quicker. A type and not a
/// setting: programs that do not name it do not compile its kernels.
template <class Experts>
struct InBf16 {
    Experts experts;

    /// @throws std::invalid_argument as the recipe inside, and in layers of double
    template <class S>
    auto build(const Shape& shape, Random& random) const {
        using Group = detail::built_t<Experts, S>;
        static_assert(
            std::is_same_v<Group, FeedForwardModule<S>>,
            "moe: moe::InBf16 takes moe::Swiglu, moe::Glu or moe::Mlp; of other recipes it is the "
            "innermost: moe::Shared{moe::InBf16{moe::Swiglu{...}}}");
        Group group = detail::built<Experts, S>(experts, shape, random);
        if constexpr (std::is_same_v<Group, FeedForwardModule<float>>)
            group.use(detail::bf16_passes<S>);
        else if constexpr (!std::is_same_v<S, float>)
            detail::fail(
                "moe::InBf16: products in bf16 are for layers of float, this one is of double; "
                "leave InBf16 out");
        return group;
    }
};

template <class Experts>
InBf16(Experts) -> InBf16<Experts>;

}  // namespace moe::inline MOE_ABI

#endif  // MOE_EXPERTS_IN_BF16_HPP
