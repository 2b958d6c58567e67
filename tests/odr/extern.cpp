// SPDX-License-Identifier: MIT
// Flags of baseline.cpp, kernels from extern_kernels.cpp.
#define MOE_EXTERN_KERNELS
#include "forward.hpp"

std::vector<std::uint32_t> bits_of_extern() { return bits_of_a_step(); }
