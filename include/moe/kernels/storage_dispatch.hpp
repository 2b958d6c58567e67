// SPDX-License-Identifier: MIT
#ifndef MOE_KERNELS_STORAGE_DISPATCH_HPP
#define MOE_KERNELS_STORAGE_DISPATCH_HPP

#include <array>

#include <moe/kernels/dispatch.hpp>
#include <moe/kernels/storage_table.hpp>

#if !defined(MOE_EXTERN_KERNELS) || defined(MOE_IMPLEMENT_KERNELS)
#include <moe/kernels/storage_portable.hpp>
#endif

namespace moe::inline MOE_ABI {
namespace detail {

/// What storage_tables holds, in its order. Products of integers have an instruction of their own
/// (VNNI) that processors got later than the rest of avx2 and avx512.
enum class StorageKernels { scalar, avx2, avx2_vnni, avx512, avx512_vnni, amx };

using StorageTables = std::array<const StorageTable*, 6>;

// As float_tables: all that a translation unit compiles of these kernels with MOE_EXTERN_KERNELS.
// Without it they are compiled where storage_kernels() is called.
#if defined(MOE_EXTERN_KERNELS)
extern const StorageTables storage_tables;
#define MOE_TABLES constexpr
#else
#define MOE_TABLES inline constexpr
#endif

#if !defined(MOE_EXTERN_KERNELS) || defined(MOE_IMPLEMENT_KERNELS)
MOE_TABLES StorageTables storage_tables{&storage_portable::table, &storage_portable::table,
                                        &storage_portable::table, &storage_portable::table,
                                        &storage_portable::table, &storage_portable::table};
#endif
#undef MOE_TABLES

/// The best of `isa` that processor and operating system support.
inline StorageKernels storage_kernels_of(Isa isa) {
#if defined(__x86_64__)
    const CpuFeatures& features = machine();
    if (isa == Isa::amx) return StorageKernels::amx;
    if (isa >= Isa::avx512)
        return features.vnni ? StorageKernels::avx512_vnni : StorageKernels::avx512;
    if (isa == Isa::avx2)
        return features.avx_vnni ? StorageKernels::avx2_vnni : StorageKernels::avx2;
#endif
    (void)isa;
    return StorageKernels::scalar;
}

}  // namespace detail

/// The table for stored weights of one instruction set, which this machine must support.
inline const StorageTable& storage_kernels(Isa isa) {
    return *detail::storage_tables[static_cast<std::size_t>(detail::storage_kernels_of(isa))];
}

/// The kernels for stored weights in use.
inline const StorageTable& storage_kernels() { return storage_kernels(isa()); }

}  // namespace moe::inline MOE_ABI

#endif  // MOE_KERNELS_STORAGE_DISPATCH_HPP
