// SPDX-License-Identifier: MIT
#ifndef MOE_CORE_SHAPE_HPP
#define MOE_CORE_SHAPE_HPP

#include <cmath>
#include <cstdint>

#include <moe/core/error.hpp>
#include <moe/core/types.hpp>

namespace moe::inline MOE_ABI {

/// What a layer is told about itself as a whole.
struct Config {
    Index model_dim = 0;     ///< D, columns of x; required
    Index output_dim = 0;    ///< columns of y; 0: D
    double input_scale = 1;  ///< experts see input_scale * x, the router sees x (MoE++: 2)
    std::uint64_t seed = 0;  ///< keys the initial parameters: layers of one network need one each
};

/// Asks for a layer whose matrices of experts have extents and no memory: moe::load(), moe::bind()
/// or an assignment to each of its Weights gives them some. Until then calls throw.
///
///     moe::Layer layer{moe::deferred, moe::Config{.model_dim = 4096}, moe::LinearRouter{}, ...};
struct Deferred {};
inline constexpr Deferred deferred{};

/// Extents a recipe is built for, and that check(shape) of a part compares itself with.
///
/// Experts are built first, then the gate, then the router, so that E is 0 while experts are built
/// and L is E while the gate is; check() sees all of them.
struct Shape {
    Index model_dim = 0;            ///< D, columns of x
    Index num_experts = 0;          ///< E, routed experts of the whole layer
    Index output_dim = 0;           ///< columns of y
    Index num_logits = 0;           ///< L, logits per token: E unless the gate wants another number
    bool has_expert_logits = true;  ///< whether the first E of them are the experts' own
    bool deferred = false;          ///< see moe::deferred; a recipe that ignores it allocates
};

namespace detail {

/// The extents a config gives to parts of a layer with `experts` routed experts.
/// @throws std::invalid_argument if a dimension is out of range
inline Shape shape_of(const Config& config, Index experts) {
    if (config.model_dim < 1)
        fail("moe::Config: model_dim is ", config.model_dim,
             ", it must be >= 1; set it: moe::Config{.model_dim = 256}");
    if (config.output_dim < 0)
        fail("moe::Config: output_dim is ", config.output_dim, ", it must be >= 0 (0: model_dim)");
    if (!std::isfinite(config.input_scale))
        fail("moe::Config: input_scale is ", config.input_scale, ", it must be finite");
    return {.model_dim = config.model_dim,
            .num_experts = experts,
            .output_dim = config.output_dim == 0 ? config.model_dim : config.output_dim,
            .num_logits = experts};
}

}  // namespace detail
}  // namespace moe::inline MOE_ABI

#endif  // MOE_CORE_SHAPE_HPP
