// SPDX-License-Identifier: MIT
#include "forward.hpp"
#include "storage.hpp"

std::vector<std::uint32_t> bits_of_baseline() { return bits_of_a_step(); }
std::vector<std::uint32_t> storage_bits_of_baseline() { return bits_of_storage(); }
