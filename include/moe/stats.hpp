// SPDX-License-Identifier: MIT
#ifndef MOE_STATS_HPP
#define MOE_STATS_HPP

/// Everything that shows what experts do (statistics, traces, diagnoses, pictures), and what acts
/// on it: steering. A trace's file is in io/trace.hpp.
#include <moe/stats/activation.hpp>
#include <moe/stats/affinity.hpp>
#include <moe/stats/co_activation.hpp>
#include <moe/stats/color_ramp.hpp>
#include <moe/stats/diagnosis.hpp>
#include <moe/stats/drop_by_position.hpp>
#include <moe/stats/expert_mean.hpp>
#include <moe/stats/finding.hpp>
#include <moe/stats/format.hpp>
#include <moe/stats/heat_map.hpp>
#include <moe/stats/information.hpp>
#include <moe/stats/layer_evidence.hpp>
#include <moe/stats/load.hpp>
#include <moe/stats/load_over_time.hpp>
#include <moe/stats/locality.hpp>
#include <moe/stats/marker.hpp>
#include <moe/stats/memory.hpp>
#include <moe/stats/report.hpp>
#include <moe/stats/router.hpp>
#include <moe/stats/routing_divergence.hpp>
#include <moe/stats/score_sum.hpp>
#include <moe/stats/specialization.hpp>
#include <moe/stats/svg.hpp>
#include <moe/stats/table.hpp>
#include <moe/stats/token_experts.hpp>
#include <moe/stats/trace.hpp>
#include <moe/stats/trace_diff.hpp>
#include <moe/stats/trace_record.hpp>
#include <moe/steering/expert_scores.hpp>
#include <moe/steering/logit_offset_optimizer.hpp>
#include <moe/steering/only_expert.hpp>
#include <moe/steering/steering.hpp>

#endif  // MOE_STATS_HPP
