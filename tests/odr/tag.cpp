// SPDX-License-Identifier: MIT
// For the preprocessor alone: tags.cmake reads the last line.
#include <moe/config.hpp>

namespace_of_moe = MOE_ABI;
