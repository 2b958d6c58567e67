// SPDX-License-Identifier: MIT
#ifndef MOE_BENCH_MACHINE_HPP
#define MOE_BENCH_MACHINE_HPP

/// What this machine can do, measured in this process: `machine::peak`, `machine::read_bandwidth`.

#include "machine/bandwidth.hpp"
#include "machine/memory.hpp"
#include "machine/peak.hpp"
#include "machine/timing.hpp"

#endif  // MOE_BENCH_MACHINE_HPP
