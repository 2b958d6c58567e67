// SPDX-License-Identifier: MIT
#ifndef MOE_KERNELS_X86_AMX_HPP
#define MOE_KERNELS_X86_AMX_HPP

#include <cstdint>

#include <moe/core/types.hpp>

namespace moe::inline MOE_ABI {

/// The eight tile registers of AMX: up to 16 rows of up to 64 bytes each.
///
/// Assembler of our own: the intrinsics of g++ 12 do not say that they read memory, and it removes
/// the stores that fill what a tile is loaded from. Tile numbers are template arguments.
namespace amx {

/// What configure() takes; see LDTILECFG in Intel's manual, volume 2. A tile without rows has 0
/// bytes per row.
struct TileConfig {
    std::uint8_t palette = 1;
    std::uint8_t start_row = 0;
    std::uint8_t reserved[14] = {};
    std::uint16_t row_bytes[16] = {};
    std::uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfig) == 64);

/// Shapes the tiles of this thread and clears them.
[[gnu::always_inline]] inline void configure(const TileConfig& config) {
    __asm__ volatile("ldtilecfg %0" ::"m"(config));
}
/// Gives the tiles back: from here on a context switch does not save them.
[[gnu::always_inline]] inline void release() { __asm__ volatile("tilerelease"); }

template <int tile>
[[gnu::always_inline]] inline void zero() {
    __asm__ volatile("tilezero %%tmm%c0" ::"i"(tile));
}
/// Row i is at p + i * stride bytes.
template <int tile>
[[gnu::always_inline]] inline void load(const void* p, Index stride) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(stride), "i"(tile) : "memory");
}
/// The same for what is read once: it does not push other things out of the first-level cache.
template <int tile>
[[gnu::always_inline]] inline void load_once(const void* p, Index stride) {
    __asm__ volatile("tileloaddt1 (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(stride), "i"(tile) : "memory");
}
template <int tile>
[[gnu::always_inline]] inline void store(void* p, Index stride) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(stride), "i"(tile) : "memory");
}

/// c += a b in float: a [rows, 2 k] of bf16, b pairs of rows, [k, 16, 2]. The order of the sums is
/// in storage_table.hpp.
template <int c, int a, int b>
[[gnu::always_inline]] inline void dot_bf16() {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(c), "i"(a), "i"(b));
}
/// c += a b in int32: a [rows, 4 k] of signed bytes, b fours of rows of signed bytes, [k, 16, 4].
template <int c, int a, int b>
[[gnu::always_inline]] inline void dot_signed() {
    __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(c), "i"(a), "i"(b));
}
/// The same with unsigned b.
template <int c, int a, int b>
[[gnu::always_inline]] inline void dot_unsigned() {
    __asm__ volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(c), "i"(a), "i"(b));
}

/// Asks the operating system once whether this process may use tiles: their 8 KiB are saved on a
/// context switch only for those who asked. Holds for all threads, and for good.
inline bool permitted() {
#if defined(__linux__)
    static const bool granted = [] {
        long result = 158;  // arch_prctl(ARCH_REQ_XCOMP_PERM, the feature of tile data)
        __asm__ volatile("syscall"
                         : "+a"(result)
                         : "D"(0x1023L), "S"(18L)
                         : "rcx", "r11", "memory");
        return result == 0;
    }();
    return granted;
#else
    return false;
#endif
}

}  // namespace amx
}  // namespace moe::inline MOE_ABI

#endif  // MOE_KERNELS_X86_AMX_HPP
