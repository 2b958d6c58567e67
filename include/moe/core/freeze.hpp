// SPDX-License-Identifier: MIT
#ifndef MOE_CORE_FREEZE_HPP
#define MOE_CORE_FREEZE_HPP

#include <utility>

#include <moe/core/storage.hpp>

namespace moe::inline MOE_ABI {

/// What moe::freeze() makes of a layer. A router or group that has something to prepare for
/// inference offers `freeze(const FreezeOptions&) const`; all else is copied as it is.
struct FreezeOptions {
    Storage storage = Storage::fp32;
    Compute compute = Compute::exact;
};

namespace detail {

template <class Part>
auto frozen(const Part& part, const FreezeOptions& options) {
    if constexpr (requires { part.freeze(options); })
        return part.freeze(options);
    else
        return part;
}
template <class Part>
using frozen_t =
    decltype(frozen(std::declval<const Part&>(), std::declval<const FreezeOptions&>()));

}  // namespace detail
}  // namespace moe::inline MOE_ABI

#endif  // MOE_CORE_FREEZE_HPP
