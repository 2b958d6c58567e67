// SPDX-License-Identifier: MIT
#ifndef MOE_CORE_FREEZE_HPP
#define MOE_CORE_FREEZE_HPP

#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <moe/core/error.hpp>
#include <moe/core/executor.hpp>
#include <moe/core/storage.hpp>
#include <moe/core/types.hpp>

namespace moe::inline MOE_ABI {

/// What moe::freeze() makes of a layer. A router or group that has something to prepare for
/// inference offers `freeze(const FreezeOptions&) const`; all else is copied as it is. One that may
/// refuse also offers `check_freeze(const FreezeOptions&) const`: where a layer is given up, all
/// its parts are asked before the first one is frozen. A group of experts that packs its matrices
/// also offers `without_panels() const`, what freeze() makes before it packs, for open_frozen().
///
/// Storage is that of the matrices of feed-forward experts. Routers and biases stay in the scalar
/// of the layer.
struct FreezeOptions {
    Storage storage = Storage::fp32;
    Compute compute = Compute::exact;
    /// One per routed expert of the layer, in its order; experts without weights ignore theirs.
    /// Empty: all as `storage`, which shared experts have in any case. A group is handed its part.
    std::vector<Storage> experts{};
    /// Checks and packs in parallel if given. Where memory belongs to nodes (NUMA), Linux puts
    /// pages on the node of the worker that packs them; not tried on such a machine.
    Executor* executor = nullptr;
    /// Set by the layer, for messages: which of its experts is the group's first; -1: shared ones.
    Index first_expert = 0;

    /// That of expert e.
    Storage of(Index e) const {
        return experts.empty() ? storage : experts[static_cast<std::size_t>(e)];
    }
    /// "expert 5": expert e of the group as the layer counts.
    std::string name_of(Index e) const {
        return first_expert < 0 ? "shared expert " + detail::text(e)
                                : "expert " + detail::text(first_expert + e);
    }
};

namespace detail {

template <class Part>
auto frozen(Part&& part, const FreezeOptions& options) {
    if constexpr (requires { std::forward<Part>(part).freeze(options); })
        return std::forward<Part>(part).freeze(options);
    else
        return std::remove_cvref_t<Part>(std::forward<Part>(part));
}
template <class Part>
using frozen_t =
    decltype(frozen(std::declval<const Part&>(), std::declval<const FreezeOptions&>()));

template <class Part>
void check_freeze(const Part& part, const FreezeOptions& options) {
    if constexpr (requires { part.check_freeze(options); }) part.check_freeze(options);
}

/// What is wanted of the next `count` experts, from `first` on, which is moved behind them.
inline FreezeOptions next_options(const FreezeOptions& options, Index& first, Index count) {
    FreezeOptions part = options;
    part.first_expert = count > 0 ? first : -1;
    if (!options.experts.empty()) {
        const auto begin = options.experts.begin() + first;
        part.experts.assign(begin, begin + count);
    }
    first += count;
    return part;
}

/// @throws std::invalid_argument unless there is one storage for each of `count` experts, or none,
///         all are enumerators, and the executor has workers
inline void check_experts(const FreezeOptions& options, const char* whose, Index count) {
    const auto found = static_cast<Index>(options.experts.size());
    if (found != 0 && found != count)
        fail("moe::freeze: FreezeOptions::experts has ", found, " entries, ", whose, " has ", count,
             " experts; give each one entry, or leave it empty and set storage");
    if (name(options.compute) == nullptr)
        fail("moe::freeze: compute is ", static_cast<int>(options.compute),
             ", which is none of moe::Compute");
    const auto check = [](const std::string& whose_storage, Storage storage) {
        if (name(storage) == nullptr)
            fail("moe::freeze: the storage", whose_storage, " is ", static_cast<int>(storage),
                 ", which is none of moe::Storage");
    };
    if (options.executor != nullptr) check_executor("moe::freeze", *options.executor);
    check("", options.storage);
    for (Index e = 0; e < found; ++e) check(" of " + options.name_of(e), options.of(e));
}

/// For experts with weights of scalar S.
/// @throws std::invalid_argument if their storage and compute do not go together
template <class S>
void check_options(const FreezeOptions& options, Index count) {
    check_experts(options, "this group", count);
    for (Index e = 0; e < count; ++e) {
        const Storage storage = options.of(e);
        if (sizeof(S) != sizeof(float) &&
            (storage != Storage::fp32 || options.compute != Compute::exact))
            fail("moe::freeze: storage ", name(storage), " and compute ", name(options.compute),
                 " are for layers of float; one of double keeps its weights: leave storage fp32 "
                 "and compute exact");
        if (!fits(storage, options.compute))
            fail("moe::freeze: compute ", name(options.compute),
                 " does not multiply weights "
                 "stored as ",
                 name(storage), ", as those of ", options.name_of(e), " are to be; store them as ",
                 options.compute == Compute::bf16 ? "bf16"
                                                  : "int8, int8_block, int4, int4_zero or ternary",
                 ", or use Compute::exact (shared experts have FreezeOptions::storage)");
    }
}

}  // namespace detail
}  // namespace moe::inline MOE_ABI

#endif  // MOE_CORE_FREEZE_HPP
