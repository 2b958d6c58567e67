// SPDX-License-Identifier: MIT
// Same flags as baseline.cpp: everything that is not inline is defined twice from here on.
#include <moe/moe.hpp>
