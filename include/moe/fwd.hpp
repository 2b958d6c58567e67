// SPDX-License-Identifier: MIT
#ifndef MOE_FWD_HPP
#define MOE_FWD_HPP

#include <cstdint>

#include <moe/config.hpp>

/// Names of the public types, for headers that only mention them.
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
struct FreezeOptions;
struct NoGradient;

// What a call is given and leaves behind
struct Context;
struct ContextGradients;
struct Dial;
struct ExpertFacts;
class SideVectors;
class SideGradients;
enum class Keep;
class WorkspaceBase;
template <class S>
class Workspace;
template <class S>
struct Call;
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
class Executor;
class SerialExecutor;
class OpenMpExecutor;
class ThreadPool;

// Weights
enum class Role;
enum class Dtype : std::uint8_t;
template <class S>
class Parameter;
template <class S>
class Weights;
struct WeightView;
class Random;
class CounterRandom;

// Routers, gates, experts
struct LinearRouter;
template <class S>
class LinearRouterModule;
struct TopK;
template <class S>
class TopKModule;
struct TopP;
template <class S>
class TopPModule;
struct Swiglu;
struct Mlp;
template <class S>
class FeedForwardModule;
template <class S>
class PackedFeedForward;
struct Zero;
struct Null;
struct Copy;
struct Constant;
enum class SharedGate;
template <class Recipe>
struct Shared;

// Losses, statistics, files
struct Loss;
struct LoadBalance;
struct LoadStats;
struct RouterStats;
class FormatError;
class SafetensorsView;
class SafetensorsWriter;

// Kernels
enum class Activation;
enum class Isa;
template <class S>
struct KernelTable;
template <class S>
struct Strided;
template <class S>
struct Operand;
template <class S>
class PackedMatrix;

}  // namespace moe::inline MOE_ABI

#endif  // MOE_FWD_HPP
