// SPDX-License-Identifier: MIT
#ifndef MOE_IO_FWD_HPP
#define MOE_IO_FWD_HPP

#include <moe/config.hpp>

/// The part of moe/fwd.hpp that is about files and published models.

namespace moe::inline MOE_ABI {

// Files
class FormatError;
class Checkpoint;
struct CheckpointLimits;
class MappedFile;
struct SafetensorsLimits;
class SafetensorsView;
class SafetensorsWriter;
struct TensorView;
class Extents;
enum class Orientation;
enum class Stacking;
enum class Part;
enum class Coding;
struct Layout;
struct TensorName;
struct TensorPlace;
class Names;
struct SaveOptions;
struct Description;
class ModelConfig;

}  // namespace moe::inline MOE_ABI

#endif  // MOE_IO_FWD_HPP
