// SPDX-License-Identifier: MIT
#ifndef MOE_CORE_PLAN_HPP
#define MOE_CORE_PLAN_HPP

#include <limits>

#include <moe/core/error.hpp>
#include <moe/core/storage.hpp>
#include <moe/core/types.hpp>

namespace moe::inline MOE_ABI {

/// Where a call takes one of two ways that give the same bits: Workspace::plan(). The defaults are
/// what was quicker on the machines that the library was measured on; tune() (moe/tune.hpp) asks
/// the machine it runs on. Rows are those of one expert.
///
/// Tiles are those of AMX, which the instruction set amx has; others do not read these members.
struct Plan {
    /// Up to so many rows are multiplied by weights where they lie, more pack them first: layers
    /// that are not frozen. >= 0; what is above KernelTable::column_rows counts as that.
    Index column_rows = 8;
    /// From so many rows on Compute::bf16 uses tiles instead of vectors, >= 1. Tiles are used
    /// earlier where rows (k + 16) > 16384, for k inputs padded to a multiple of 64: vectors have
    /// no room for more.
    Index bf16_tile_rows = 6;
    /// The same of Compute::int8 with Storage::int8, >= 1.
    Index int8_tile_rows = 4;
    /// With scales per 32 inputs (int8_block, int4, int4_zero), >= 1. There tiles are half empty,
    /// and each record goes through memory: 2048 x 1024 in int4 took 147 us with 16 rows and 236
    /// with 32, vectors 133 and 353.
    Index block_tile_rows = 17;
    /// With Storage::ternary, >= 1.
    Index ternary_tile_rows = 12;
    /// Phases of a call that are fewer operations run on one thread, >= 0, infinity: all of them.
    /// The default is about 20 microseconds of one core, the price of a few fork-joins.
    double serial_flops = 1e6;

    /// From how many rows on tiles multiply weights of a storage.
    /// @param storage  bf16 or one of integers; others are never multiplied by tiles
    constexpr Index tile_rows(Storage storage) const {
        switch (storage) {
            case Storage::fp32:
            case Storage::f16:
                break;
            case Storage::bf16:
                return bf16_tile_rows;
            case Storage::int8:
                return int8_tile_rows;
            case Storage::int8_block:
            case Storage::int4:
            case Storage::int4_zero:
                return block_tile_rows;
            case Storage::ternary:
                return ternary_tile_rows;
        }
        return std::numeric_limits<Index>::max();
    }

    friend bool operator==(const Plan&, const Plan&) = default;
};

namespace detail {

/// @throws std::invalid_argument if a member is negative, NaN, or a number of tile rows 0
inline void check_plan(const char* who, const Plan& plan) {
    const auto check = [&](const char* name, auto value, int least) {
        if (!(value >= static_cast<decltype(value)>(least)))
            fail(who, ": plan.", name, " is ", value, ", it must be >= ", least, "; moe::Plan{}.",
                 name, " is a good one");
    };
    check("column_rows", plan.column_rows, 0);
    check("bf16_tile_rows", plan.bf16_tile_rows, 1);
    check("int8_tile_rows", plan.int8_tile_rows, 1);
    check("block_tile_rows", plan.block_tile_rows, 1);
    check("ternary_tile_rows", plan.ternary_tile_rows, 1);
    check("serial_flops", plan.serial_flops, 0);
}

}  // namespace detail
}  // namespace moe::inline MOE_ABI

#endif  // MOE_CORE_PLAN_HPP
