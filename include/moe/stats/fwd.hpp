// SPDX-License-Identifier: MIT
#ifndef MOE_STATS_FWD_HPP
#define MOE_STATS_FWD_HPP

#include <moe/config.hpp>

/// The part of moe/fwd.hpp that is about statistics, traces and steering.

namespace moe::inline MOE_ABI {

// Statistics
class LoadSum;
struct LoadStats;
struct RouterStats;
struct MemoryBudget;
struct ReportOptions;
struct Color;
struct HeatMapOptions;
struct HeatMapPanel;

// Traces and what they tell
struct ActivationOptions;
enum class Affinity;
enum class CoActivation;
struct DiagnosisOptions;
struct DropByPosition;
enum class MeanOver;
enum class FindingKind;
struct Figure;
struct Finding;
struct FindingReportOptions;
struct RoutingDivergence;
struct Segments;
struct SegmentActivations;
struct SegmentRouting;
struct SegmentCache;
struct SegmentCacheHits;
class ScoreSum;
struct ByTokenId;
struct ByGroup;
struct ByPosition;
struct ByBatch;
struct ByStep;
struct Specialization;
struct ExpertsByKey;
enum class SpecializationSlots;
struct TableNames;
class Trace;
struct LayerDiff;
struct TraceDiff;
struct TraceBatch;
struct TraceRecord;

// Steering
struct ExpertScore;
struct LogitOffsetSettings;
class LogitOffsetOptimizer;
struct OnlyExpert;
struct SteeringSettings;
class Steering;

}  // namespace moe::inline MOE_ABI

#endif  // MOE_STATS_FWD_HPP
