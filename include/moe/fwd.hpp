// SPDX-License-Identifier: MIT
#ifndef MOE_FWD_HPP
#define MOE_FWD_HPP

#include <cstddef>
#include <cstdint>

#include <moe/config.hpp>
#include <moe/stats/fwd.hpp>

/// Names of the public types, for headers that only mention them. Aliases of Eigen's types (Index,
/// Matrix, In, Out, View, ...) are in core/types.hpp, which costs Eigen/Core.
namespace moe::inline MOE_ABI {

// What a layer is made of
struct Config;
struct Shape;
template <class S, class R, class G>
class Head;
template <class S, class... Groups>
class Bank;
template <class S, class R, class G, class... Groups>
class Layer;
template <class S, class R, class G, class... Groups>
class FrozenLayer;
template <class S>
class AnyLayer;
struct NoGradient;
enum class Storage;
enum class Compute;
struct FreezeOptions;

// What a call is given and leaves behind
struct Context;
struct ContextGradients;
struct Dial;
enum class OffsetUnit;
enum class MultiplierOrder;
struct ExpertFacts;
class SideVectors;
class SideGradients;
enum class Keep;
class WorkspaceBase;
template <class S>
class Workspace;
template <class S>
struct Routed;
template <class S>
struct Call;
template <class T>
class Buffer;
struct Assignment;
enum class Dropped : std::uint8_t;
class Routing;
template <class S>
struct WeightGradients;
template <class S>
struct Rows;
template <class S>
struct RowGradients;

// Who runs it
template <class>
class FunctionRef;
using TaskRef = FunctionRef<void(std::ptrdiff_t task, int worker)>;
class Executor;
class SerialExecutor;
class OpenMpExecutor;
class ThreadPool;
struct Plan;
struct TuneOptions;

// Weights
enum class Role;
enum class Dtype : std::uint8_t;
template <class S>
class Parameter;
template <class S>
class Weights;
struct BlockCodes;
struct BlockScales;
struct WeightView;
class Random;
class CounterRandom;

// Routers
struct LinearRouter;
template <class S>
class LinearRouterModule;
template <class S>
class AttentionRouterModule;
struct AttentionRouter;
template <class S>
class BalancedRouterModule;
struct BalancedRouter;
enum class RouterInput;
template <class S, class Inner>
class ConditionedModule;
template <class Inner>
struct Conditioned;
template <class S>
class CosineRouterModule;
struct CosineRouter;
template <class S>
class ExternalRouterModule;
struct ExternalRouter;
template <class S>
class HashRouterModule;
struct HashRouter;
template <class S, class Inner>
class JitterModule;
template <class Inner>
struct Jitter;
struct KMeans;
struct KMeansFit;
template <class S>
class LabelRouterModule;
struct LabelRouter;
enum class RouterActivation;
template <class S>
class MlpRouterModule;
struct MlpRouter;
template <class S, class Inner>
class PerModalityModule;
template <class Inner>
struct PerModality;
enum class PoolScope;
template <class S, class Inner>
class PooledModule;
template <class Inner>
struct Pooled;
enum class PreGatePlace;
template <class S, class Inner>
class PreGatedModule;
template <class Inner>
struct PreGated;
template <class S>
class RandomRouterModule;
struct RandomRouter;
enum class ResidualPlace;
template <class S, class Inner>
class GatingResidualModule;
template <class Inner>
struct GatingResidual;
struct ExpertRange;
template <class S, class Inner>
class PerTaskModule;
template <class Inner>
struct PerTask;
template <class S>
class TokenTableModule;
struct TokenTable;
template <class S, class Inner>
struct RouterWrapper;

// Gates
struct TopK;
template <class S>
class TopKModule;
struct TopP;
template <class S>
class TopPModule;
template <class S, class Inner>
struct GateWrapper;
enum class Score;
enum class Normalize;
enum class Placement;
enum class TieBreak;
enum class GroupScore;
enum class GroupMask;
template <class S>
class AuctionModule;
struct Auction;
struct Capacity;
template <class S, class Inner>
class CapacityModule;
template <class Inner>
struct WithCapacity;
enum class CapacityPriority;
struct CapacityLimit;
template <class S>
class DenseToSparseModule;
struct DenseToSparse;
template <class S>
class DynamicCapacityModule;
struct DynamicCapacity;
template <class S>
class ExpertChoiceModule;
struct ExpertChoice;
template <class S>
class GShardTop2Module;
struct GShardTop2;
template <class S>
class HybridEntropyModule;
struct HybridEntropy;
enum class MassRule;
template <class S>
class MinPModule;
struct KeepAny;
template <class S>
class KeepAnyModule;
struct MinP;
struct GateNoise;
template <class S, class Inner>
class NoisyModule;
template <class Inner>
struct Noisy;
template <class S, class Inner>
class OnlinePruningModule;
template <class Inner>
struct OnlinePruning;
template <class S>
class ProductKeyTopKModule;
struct ProductKeyTopK;
template <class S>
class RanksModule;
struct Ranks;
template <class S>
class ReluModule;
struct Relu;
template <class S>
class SequenceBudgetModule;
struct SequenceBudget;
template <class S>
class SinkhornModule;
struct Sinkhorn;
template <class S>
class SparseMixerModule;
struct SparseMixer;
struct Schedule;
template <class S>
class ThresholdModule;
struct Threshold;
template <class S, class Gate>
class TokenGate;
template <class S>
class TopAnyModule;
struct TopAny;

// Balance
struct SignUpdate;
struct ProportionalUpdate;
class ActivationRecord;
struct ExpertChanges;
struct QuantileUpdate;
struct InverseStepUpdate;
struct TargetShareUpdate;

// Experts
struct Swiglu;
struct Glu;
struct Mlp;
enum class Activation;
struct FeedForwardShape;
template <class S>
class FeedForwardModule;
template <class S>
class PackedFeedForward;
template <class S>
class FrozenWeights;
struct Zero;
template <class S>
struct ZeroModule;
struct Null;
template <class S>
struct NullModule;
struct Copy;
template <class S>
struct CopyModule;
struct Constant;
template <class S>
struct ConstantModule;
enum class SharedGate;
template <class Experts>
struct InBf16;
template <class Experts>
struct Shared;
template <class S, class Group>
class SharedModule;
template <class E>
struct Each;
template <class S, class E>
class EachModule;

// Compositions
struct CompetitionRule;
template <class S, class R, class G, class... Groups>
class Competition;
template <class S, class... Groups>
class SoftMoe;
template <class S, class... Groups>
class FrozenSoftMoe;
template <class S>
class SoftSlotsModule;
enum class SlotNorm;
struct SoftSlots;

// Losses
struct Loss;
struct LoadBalance;
struct Contrastive;
struct CostBudget;
struct DeviceBalance;
struct TokenPair;
struct Importance;
struct SmoothLoad;
class LoadFraction;
template <class S>
struct LayerLogits;
enum class Scored;
struct TokenUniformity;
struct TsallisEntropy;
enum class Variance;

// Files
class FormatError;
class Checkpoint;
struct CheckpointLimits;
class MappedFile;
struct SafetensorsLimits;
class SafetensorsView;
class SafetensorsWriter;
struct TensorView;
class Extents;

// Kernels
enum class Isa;
class ScopedIsa;
template <class S>
struct KernelTable;
template <class S>
struct Ahead;
template <class S>
struct Strided;
enum class Bf16 : std::uint16_t;
enum class F16 : std::uint16_t;
struct NarrowKernels;
struct NarrowTable;
struct NarrowStrided;
template <class S, class G, class U>
struct GateUp;
template <class S>
struct Panels;
template <class S>
struct Operand;
template <class S>
class PackedMatrix;
struct PanelLayout;
struct Int8Rows;
struct StorageTable;
struct Bf16Table;
class StoredMatrix;
template <class S>
struct WeightOperand;

namespace testing {

struct Comparison;
struct CompareOptions;
struct GradientComparison;
struct GradientOptions;
struct ModuleOptions;

}  // namespace testing
}  // namespace moe::inline MOE_ABI

#endif  // MOE_FWD_HPP
