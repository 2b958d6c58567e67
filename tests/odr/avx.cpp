// SPDX-License-Identifier: MIT
#include "forward.hpp"

std::vector<std::uint32_t> bits_of_avx() { return bits_of_a_step(); }
