// SPDX-License-Identifier: MIT
#ifndef MOE_CORE_BLOCK_CODES_HPP
#define MOE_CORE_BLOCK_CODES_HPP

#include <cstddef>

#include <moe/core/dtype.hpp>
#include <moe/core/error.hpp>
#include <moe/core/types.hpp>

namespace moe::inline MOE_ABI {

struct BlockScales {
    const std::byte* data = nullptr;
    Dtype dtype = Dtype::unknown;
    Index block_rows = 1, block_cols = 1;
    Index row_stride = 0;
};
struct BlockCodes {
    const std::byte* data = nullptr;
    Dtype dtype = Dtype::unknown;
    Index rows = 0, cols = 0;
    Index row_stride = 0;
    BlockScales scales{};
};
template <class S>
void decode_row(const BlockCodes&, Index, S*) {
    detail::fail("moe::decode_row: to come");
}
namespace detail {
inline void check_block_codes(const BlockCodes&) {}
}  // namespace detail
}  // namespace moe::inline MOE_ABI

#endif  // MOE_CORE_BLOCK_CODES_HPP
