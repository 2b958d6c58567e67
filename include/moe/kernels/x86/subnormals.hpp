// SPDX-License-Identifier: MIT
#ifndef MOE_KERNELS_X86_SUBNORMALS_HPP
#define MOE_KERNELS_X86_SUBNORMALS_HPP

#include <xmmintrin.h>

#include <moe/config.hpp>

namespace moe::inline MOE_ABI::x86 {

/// The floating-point state of a thread, as MXCSR holds it.
using Control = unsigned;
/// From here on subnormal inputs and results are 0. Returns the state before.
[[gnu::always_inline]] inline Control flush_subnormals() {
    const Control before = _mm_getcsr();
    _mm_setcsr(0x9FC0);  // no exceptions, to nearest, both flush bits
    return before;
}
[[gnu::always_inline]] inline void restore(Control before) { _mm_setcsr(before); }

}  // namespace moe::inline MOE_ABI::x86

#endif  // MOE_KERNELS_X86_SUBNORMALS_HPP
