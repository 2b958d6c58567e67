// SPDX-License-Identifier: MIT
#include <moe/moe.hpp>

int first_part() { return MOE_VERSION_MINOR; }
