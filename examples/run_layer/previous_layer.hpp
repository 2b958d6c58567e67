// SPDX-License-Identifier: MIT
#ifndef RUN_LAYER_PREVIOUS_LAYER_HPP
#define RUN_LAYER_PREVIOUS_LAYER_HPP

#include <moe/core/types.hpp>
#include <moe/core/workspace.hpp>

namespace run_layer {

/// Leaves logits in a workspace as the layer before would: a router that hears them looks there,
/// see moe::Context::previous.
void leave_logits(const moe::Matrix<float>& logits, moe::Workspace<float>& ws);

}  // namespace run_layer

#endif  // RUN_LAYER_PREVIOUS_LAYER_HPP
