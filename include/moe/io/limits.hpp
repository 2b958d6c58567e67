// SPDX-License-Identifier: MIT
#ifndef MOE_IO_LIMITS_HPP
#define MOE_IO_LIMITS_HPP

#include <cstddef>

#include <moe/config.hpp>

namespace moe::inline MOE_ABI {

/// What the safetensors reader and writer accept at most.
///
/// Together they bound what a hostile file can make the reader allocate: a few hundred megabytes,
/// and only if its header is as large as that.
struct SafetensorsLimits {
    static constexpr std::size_t header_bytes = 100'000'000;  ///< the format's own limit
    static constexpr std::size_t tensors = 1'000'000;         ///< also entries of __metadata__
    static constexpr std::size_t rank = 8;                    ///< dimensions of one tensor
    static constexpr std::size_t name_bytes = 1024;           ///< of a tensor name or metadata key
    static constexpr int nesting = 3;                         ///< header, tensor, shape
};

/// What the reader of checkpoints of several files accepts at most, all its files together. Each
/// file is bounded by SafetensorsLimits too.
struct CheckpointLimits {
    static constexpr std::size_t index_bytes = 100'000'000;  ///< of model.safetensors.index.json
    static constexpr std::size_t tensors = 1'000'000;        ///< in all files, and in the index
    static constexpr std::size_t files = 10'000;             ///< safetensors files
    static constexpr std::size_t file_name_bytes = 255;      ///< of a file that the index names
    static constexpr int nesting = 16;                       ///< index, its metadata, ...
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_IO_LIMITS_HPP
