// SPDX-License-Identifier: MIT
// Flags of baseline.cpp, kernels from extern_kernels.cpp.
#define MOE_EXTERN_KERNELS
#include "forward.hpp"
#include "storage.hpp"

std::vector<std::uint32_t> bits_of_extern() { return bits_of_a_step(); }
std::vector<std::uint32_t> storage_bits_of_extern() { return bits_of_storage(); }
