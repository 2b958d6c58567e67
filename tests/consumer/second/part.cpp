// SPDX-License-Identifier: MIT
#include <moe/moe.hpp>

int second_part() { return MOE_VERSION_MINOR; }
