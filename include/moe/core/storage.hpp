// SPDX-License-Identifier: MIT
#ifndef MOE_CORE_STORAGE_HPP
#define MOE_CORE_STORAGE_HPP

#include <moe/core/types.hpp>

namespace moe::inline MOE_ABI {

/// How frozen weights are stored. Each weight is rounded to nearest once, when it is frozen.
///
///     fp32        as trained, in the scalar of the layer
///     bf16        the upper half of a float
///     f16         IEEE half precision, up to 65504
///     int8        q s: q in [-127, 127], one float s per output
///     int8_block  q s: the same, one f16 s per output and 32 inputs (GGUF's Q8_0)
///     int4        (q - 8) s: q in [0, 15], one f16 s per output and 32 inputs (Q4_0)
///     int4_zero   (q - z) s: q and z in [0, 15], one f16 s and one z per output and 32 inputs
///     ternary     q s: q in {-1, 0, 1}, one float s per output (BitNet b1.58, arXiv 2402.17764)
///
/// s is max|w| / 127 for int8 and int8_block; minus an eighth of the weight of largest magnitude
/// for int4; (max - min) / 15 for int4_zero, with 0 between them; the mean of |w| for ternary. A
/// block whose s is not above 2^-25 becomes 0, the smallest f16 being 2^-24. The error on normal
/// weights, as root mean square, is 0.17 % for bf16, 0.02 % for f16, 0.8 % and 0.53 % for int8
/// (2048 inputs) and int8_block, 8.6 % and 8.1 % for int4 and int4_zero, 51 % for ternary, which is
/// for models that were trained with it.
///
/// A new one of integers goes to the end, another one before int8, and into: what is below;
/// Plan::tile_rows(); kernels/storage_table.hpp (layout, code_bits, code_zero) and
/// round_weights.hpp; the plain loops of storage_reference.hpp and storage_portable.hpp;
/// storage_decode.inl and, of integers, storage_int8.inl, whose tiles each file in x86/ gives a
/// height, and x86/storage_amx*; tests/kernels/stored_panels.hpp and the tests of these;
/// bench/layer/shapes.hpp if it is to have rows there. Where a switch lacks it compilers warn;
/// comparisons are in this file and in storage_portable.hpp, storage_amx.hpp and
/// storage_reference.hpp.
enum class Storage { fp32, bf16, f16, int8, int8_block, int4, int4_zero, ternary };

/// How weights are multiplied: frozen ones as FreezeOptions say, those of experts in training
/// (exact or bf16, weights stay float) as their recipe says.
///
///     exact  one chain of fused multiply-adds in float per element on the decoded weights, which
///            are q s rounded once: the bits of a layer that holds the decoded weights. Any
///            storage.
///     bf16   inputs are rounded to bf16, products are exact, sums in float in the order of AMX
///            tiles (kernels/storage_table.hpp). Storage bf16; in training weights are rounded
///            too, for each product.
///     int8   inputs are rounded to 8 bits with one scale per row; products and their sums are
///            exact integers. Storage int8, int8_block, int4, int4_zero or ternary.
enum class Compute { exact, bf16, int8 };

/// All of them.
inline constexpr Storage all_storages[] = {Storage::fp32,      Storage::bf16,       Storage::f16,
                                           Storage::int8,      Storage::int8_block, Storage::int4,
                                           Storage::int4_zero, Storage::ternary};
inline constexpr Compute all_computes[] = {Compute::exact, Compute::bf16, Compute::int8};

/// nullptr if it is none of the enumerators.
constexpr const char* name(Storage storage) {
    switch (storage) {
        case Storage::fp32:
            return "fp32";
        case Storage::bf16:
            return "bf16";
        case Storage::f16:
            return "f16";
        case Storage::int8:
            return "int8";
        case Storage::int8_block:
            return "int8_block";
        case Storage::int4:
            return "int4";
        case Storage::int4_zero:
            return "int4_zero";
        case Storage::ternary:
            return "ternary";
    }
    return nullptr;
}

constexpr const char* name(Compute compute) {
    switch (compute) {
        case Compute::exact:
            return "exact";
        case Compute::bf16:
            return "bf16";
        case Compute::int8:
            return "int8";
    }
    return nullptr;
}

/// Whether weights are integers times a scale.
constexpr bool is_coded(Storage storage) { return storage >= Storage::int8; }

/// Whether there is a scale for every 32 inputs, and not one per output.
constexpr bool has_block_scales(Storage storage) {
    return storage == Storage::int8_block || storage == Storage::int4 ||
           storage == Storage::int4_zero;
}

/// Whether weights stored so can be multiplied so.
constexpr bool fits(Storage storage, Compute compute) {
    return compute == Compute::exact ||
           (compute == Compute::bf16 ? storage == Storage::bf16 : is_coded(storage));
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_CORE_STORAGE_HPP
