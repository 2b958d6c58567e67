// SPDX-License-Identifier: MIT
#ifndef MOE_KERNELS_STORAGE_DISPATCH_HPP
#define MOE_KERNELS_STORAGE_DISPATCH_HPP

#include <array>
#include <cstddef>

#include <moe/kernels/bf16_table.hpp>
#include <moe/kernels/dispatch.hpp>
#include <moe/kernels/storage_table.hpp>

#if defined(__x86_64__)
#include <moe/kernels/x86/amx.hpp>
#endif

#if !defined(MOE_EXTERN_KERNELS) || defined(MOE_IMPLEMENT_KERNELS)
#include <moe/kernels/storage_portable.hpp>
#if defined(__x86_64__)
#include <moe/kernels/x86/storage_amx.hpp>
#include <moe/kernels/x86/storage_avx2.hpp>
#include <moe/kernels/x86/storage_avx512.hpp>
#endif
#endif

namespace moe::inline MOE_ABI {
namespace detail {

/// What storage_tables holds, in its order. Processors got an instruction for products of integers
/// (VNNI) later than the rest of avx2 and avx512.
enum class StorageKernels { scalar, avx2, avx2_vnni, avx512, avx512_vnni, amx };
inline constexpr std::size_t storage_kernels_count = 6;

using StorageTables = std::array<const StorageTable*, storage_kernels_count>;
using Bf16Tables = std::array<const Bf16Table*, storage_kernels_count>;

// Templates, so that they are compiled where storage_kernels() is, and parsing this costs less.
#if !defined(MOE_EXTERN_KERNELS) || defined(MOE_IMPLEMENT_KERNELS)
#if defined(__x86_64__)
template <class All>
inline constexpr StorageTables storage_tables_of{
    &storage_portable::table<All>,      &storage_avx2::table<All>,   &storage_avx2_vnni::table<All>,
    &storage_avx512::words::table<All>, &storage_avx512::table<All>, &storage_amx::table<All>};
template <class All>
inline constexpr Bf16Tables bf16_tables_of{
    &storage_portable::bf16_table<All>, &storage_avx2::bf16_table<All>,
    &storage_avx2::bf16_table<All>,     &storage_avx512::bf16_table<All>,
    &storage_avx512::bf16_table<All>,   &storage_amx::bf16_table<All>};
#else
template <class All>
inline constexpr StorageTables storage_tables_of{&storage_portable::table<All>};
template <class All>
inline constexpr Bf16Tables bf16_tables_of{&storage_portable::bf16_table<All>};
#endif
#endif

// As float_tables: all that a translation unit compiles of these kernels with MOE_EXTERN_KERNELS.
#if defined(MOE_EXTERN_KERNELS)
extern const StorageTables storage_tables;
extern const Bf16Tables bf16_tables;
#if defined(MOE_IMPLEMENT_KERNELS)
constexpr StorageTables storage_tables = storage_tables_of<StorageTable>;
constexpr Bf16Tables bf16_tables = bf16_tables_of<StorageTable>;
#endif
#endif

/// All of them.
/// @tparam All  StorageTable, a parameter for what storage_tables_of says
template <class All = StorageTable>
const StorageTables& all_storage_tables() {
#if defined(MOE_EXTERN_KERNELS)
    return storage_tables;
#else
    return storage_tables_of<All>;
#endif
}

/// Whether processor and operating system support them. For amx this process must be permitted,
/// too, and asks the first time.
inline bool supports(StorageKernels kernels) {
#if defined(__x86_64__)
    const CpuFeatures& features = machine();
    switch (kernels) {
        case StorageKernels::scalar:
            return true;
        case StorageKernels::avx2:
            return features.avx2;
        case StorageKernels::avx2_vnni:
            return features.avx_vnni;
        case StorageKernels::avx512:
            return features.avx512;
        case StorageKernels::avx512_vnni:
            return features.vnni;
        case StorageKernels::amx:
            return features.amx && amx::permitted();
    }
#endif
    return kernels == StorageKernels::scalar;
}

/// The best of those that `isa` contains.
inline StorageKernels storage_kernels_of(Isa isa) {
    if (isa == Isa::amx && supports(StorageKernels::amx)) return StorageKernels::amx;
    if (isa == Isa::avx512 || isa == Isa::amx)
        return supports(StorageKernels::avx512_vnni) ? StorageKernels::avx512_vnni
                                                     : StorageKernels::avx512;
    if (isa == Isa::avx2)
        return supports(StorageKernels::avx2_vnni) ? StorageKernels::avx2_vnni
                                                   : StorageKernels::avx2;
    return StorageKernels::scalar;
}

}  // namespace detail

/// The table for stored weights of one instruction set, which this machine must support.
///
/// The first call for amx asks Linux to let this process use tiles, which holds until it ends; if
/// that is refused, the table is that of avx512. With another word in MOE_ISA nobody asks.
template <class All = StorageTable>
const StorageTable& storage_kernels(Isa isa) {
    return *detail::all_storage_tables<All>()[static_cast<std::size_t>(
        detail::storage_kernels_of(isa))];
}

/// The kernels for stored weights in use. Stored weights are read by the table they were stored
/// for.
template <class All = StorageTable>
const StorageTable& storage_kernels() {
    return storage_kernels<All>(isa());
}

/// The table for products in bf16 of one instruction set, which this machine must support; the
/// first call for amx asks Linux as storage_kernels() does.
template <class All = StorageTable>  // as all_storage_tables() says
const Bf16Table& bf16_kernels(Isa isa) {
    const auto i = static_cast<std::size_t>(detail::storage_kernels_of(isa));
#if defined(MOE_EXTERN_KERNELS)
    return *detail::bf16_tables[i];
#else
    return *detail::bf16_tables_of<All>[i];
#endif
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_KERNELS_STORAGE_DISPATCH_HPP
