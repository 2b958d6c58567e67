// SPDX-License-Identifier: MIT
#ifndef MOE_KERNELS_X86_CPUID_HPP
#define MOE_KERNELS_X86_CPUID_HPP

#include <cstdint>

#include <cpuid.h>

#include <moe/core/types.hpp>

namespace moe::inline MOE_ABI {

/// What the processor has and the operating system saves on a context switch (both are needed: a
/// hypervisor or an old kernel may leave AVX-512 registers out), and what kind it is.
struct CpuFeatures {
    bool avx2 = false;      ///< AVX2, FMA and F16C
    bool avx_vnni = false;  ///< avx2 and AVX-VNNI
    bool avx512 = false;    ///< avx2 and AVX-512 F, BW, DQ, VL
    bool vnni = false;      ///< avx512 and AVX512_VNNI
    bool amx = false;       ///< vnni and AMX-TILE, AMX-INT8, AMX-BF16
    bool zen3 = false;      ///< of AMD, family 19h (Zen 3 and 4) or a later one
};

/// The family that word a of CPUID leaf 1 says: 0x17 is Zen 1 and 2, 0x19 Zen 3 and 4, 0x1A Zen 5.
constexpr unsigned cpu_family(unsigned signature) {
    const unsigned base = signature >> 8 & 0xFU, extended = signature >> 20 & 0xFFU;
    return base == 0xF ? base + extended : base;
}

/// Asks CPUID and XGETBV; a few hundred cycles, more under a hypervisor.
inline CpuFeatures cpu_features() {
    CpuFeatures features;
    const auto bit = [](unsigned word, int position) { return ((word >> position) & 1U) != 0; };
    unsigned a = 0, b = 0, c = 0, d = 0;

    const bool amd = __get_cpuid(0, &a, &b, &c, &d) != 0 && b == signature_AMD_ebx &&
                     c == signature_AMD_ecx && d == signature_AMD_edx;
    if (__get_cpuid(1, &a, &b, &c, &d) == 0) return features;
    features.zen3 = amd && cpu_family(a) >= 0x19;
    const bool fma = bit(c, 12), osxsave = bit(c, 27), f16c = bit(c, 29);
    if (!osxsave) return features;

    // XCR0: bits 1 and 2 are xmm and ymm; 5, 6 and 7 the masks and the two parts of zmm; 17 and 18
    // the configuration of tiles and the tiles.
    std::uint32_t saved = 0, unused = 0;
    __asm__("xgetbv" : "=a"(saved), "=d"(unused) : "c"(0));

    if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return features;
    features.avx2 = fma && f16c && bit(b, 5) && (saved & 0x06U) == 0x06U;
    features.avx512 = features.avx2 && bit(b, 16) && bit(b, 17) && bit(b, 30) && bit(b, 31) &&
                      (saved & 0xE6U) == 0xE6U;
    features.vnni = features.avx512 && bit(c, 11);
    const bool tiles =
        features.vnni && bit(d, 22) && bit(d, 24) && bit(d, 25) && (saved & 0x60000U) == 0x60000U;

    if (a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0)  // 7.0 said that there is a 7.1
        features.avx_vnni = features.avx2 && bit(a, 4);

    // Some hypervisors announce tiles without a palette to configure them with: the one we use has
    // 8 tiles of 16 rows of 64 bytes.
    features.amx = tiles && __get_cpuid_count(0x1D, 1, &a, &b, &c, &d) != 0 && b >> 16 >= 8 &&
                   (b & 0xFFFFU) >= 64 && (c & 0xFFFFU) >= 16;
    return features;
}

namespace detail {

/// cpu_features(), asked once.
inline const CpuFeatures& machine() {
    static const CpuFeatures features = cpu_features();
    return features;
}

}  // namespace detail
}  // namespace moe::inline MOE_ABI

#endif  // MOE_KERNELS_X86_CPUID_HPP
