// SPDX-License-Identifier: MIT
#ifndef MOE_CORE_DTYPE_HPP
#define MOE_CORE_DTYPE_HPP

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <string_view>
#include <type_traits>

#include <moe/core/error.hpp>
#include <moe/core/types.hpp>

namespace moe::inline MOE_ABI {

/// How an element is stored in a file or a weight view. Little-endian, as safetensors has it.
///
/// Declared in ascending order of the alignment that a safetensors writer gives each, so comparing
/// two enumerators orders tensors as the format's reference does. `unknown` is any spelling not
/// listed here: such a tensor can be looked at as bytes but has no element size.
enum class Dtype : std::uint8_t {
    boolean,
    u8,
    i8,
    f8_e5m2,
    f8_e4m3,
    i16,
    u16,
    f16,
    bf16,
    i32,
    u32,
    f32,
    f64,
    i64,
    u64,
    unknown
};

static_assert(std::numeric_limits<float>::is_iec559 && std::numeric_limits<double>::is_iec559,
              "moe: stored numbers are IEEE 754; this machine's float or double is not");

/// Bytes of one element; 0 for `unknown`.
constexpr Index element_size(Dtype dtype) {
    switch (dtype) {
        case Dtype::boolean:
        case Dtype::u8:
        case Dtype::i8:
        case Dtype::f8_e5m2:
        case Dtype::f8_e4m3:
            return 1;
        case Dtype::i16:
        case Dtype::u16:
        case Dtype::f16:
        case Dtype::bf16:
            return 2;
        case Dtype::i32:
        case Dtype::u32:
        case Dtype::f32:
            return 4;
        case Dtype::f64:
        case Dtype::i64:
        case Dtype::u64:
            return 8;
        case Dtype::unknown:
            break;
    }
    return 0;
}

/// The format's own spelling, such as "BF16"; "unknown" for `unknown`.
constexpr const char* dtype_name(Dtype dtype) {
    switch (dtype) {
        case Dtype::boolean:
            return "BOOL";
        case Dtype::u8:
            return "U8";
        case Dtype::i8:
            return "I8";
        case Dtype::f8_e5m2:
            return "F8_E5M2";
        case Dtype::f8_e4m3:
            return "F8_E4M3";
        case Dtype::i16:
            return "I16";
        case Dtype::u16:
            return "U16";
        case Dtype::f16:
            return "F16";
        case Dtype::bf16:
            return "BF16";
        case Dtype::i32:
            return "I32";
        case Dtype::u32:
            return "U32";
        case Dtype::f32:
            return "F32";
        case Dtype::f64:
            return "F64";
        case Dtype::i64:
            return "I64";
        case Dtype::u64:
            return "U64";
        case Dtype::unknown:
            break;
    }
    return "unknown";
}

/// The inverse of dtype_name(); `unknown` for every other spelling, lower case included.
constexpr Dtype parse_dtype(std::string_view name) {
    for (int i = 0; i < static_cast<int>(Dtype::unknown); ++i)
        if (name == dtype_name(static_cast<Dtype>(i))) return static_cast<Dtype>(i);
    return Dtype::unknown;
}

/// The Dtype that stores a C++ scalar as it is; `unknown` for types that none does.
template <class T>
inline constexpr Dtype dtype_of = Dtype::unknown;
template <>
inline constexpr Dtype dtype_of<bool> = Dtype::boolean;
template <>
inline constexpr Dtype dtype_of<std::uint8_t> = Dtype::u8;
template <>
inline constexpr Dtype dtype_of<std::int8_t> = Dtype::i8;
template <>
inline constexpr Dtype dtype_of<std::int16_t> = Dtype::i16;
template <>
inline constexpr Dtype dtype_of<std::uint16_t> = Dtype::u16;
template <>
inline constexpr Dtype dtype_of<std::int32_t> = Dtype::i32;
template <>
inline constexpr Dtype dtype_of<std::uint32_t> = Dtype::u32;
template <>
inline constexpr Dtype dtype_of<std::int64_t> = Dtype::i64;
template <>
inline constexpr Dtype dtype_of<std::uint64_t> = Dtype::u64;
template <>
inline constexpr Dtype dtype_of<float> = Dtype::f32;
template <>
inline constexpr Dtype dtype_of<double> = Dtype::f64;
template <>
inline constexpr Dtype dtype_of<Eigen::half> = Dtype::f16;
template <>
inline constexpr Dtype dtype_of<Eigen::bfloat16> = Dtype::bf16;

/// The float whose upper half is `bits`: exact, NaN payloads and signed zeros kept.
constexpr float decode_bf16(std::uint16_t bits) {
    return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

/// The float equal to an IEEE half: exact, denormals included; a NaN keeps sign and payload.
constexpr float decode_f16(std::uint16_t bits) {
    const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000u) << 16;
    const std::uint32_t exponent = (bits >> 10) & 0x1fu;
    const std::uint32_t fraction = bits & 0x3ffu;
    if (exponent == 0x1f)  // infinity or NaN
        return std::bit_cast<float>(sign | 0x7f800000u | fraction << 13);
    if (exponent != 0)  // the exponent's bias grows from 15 to 127
        return std::bit_cast<float>(sign | (exponent + 112) << 23 | fraction << 13);
    if (fraction == 0) return std::bit_cast<float>(sign);
    // A denormal, fraction * 2^-24, is a normal float: move its leading one to bit 10.
    const auto shift = static_cast<std::uint32_t>(std::countl_zero(fraction)) - 21;
    return std::bit_cast<float>(sign | (113 - shift) << 23 | ((fraction << shift) & 0x3ffu) << 13);
}

// Narrower numbers mean something only together with scales: see core/block_codes.hpp.

/// The float equal to an OCP E4M3 (the one without infinities, torch's float8_e4m3fn): exact, up to
/// 448, denormals included; 0x7f and 0xff are NaN.
constexpr float decode_f8_e4m3(std::uint8_t bits) {
    const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x80u) << 24;
    const std::uint32_t exponent = (bits >> 3) & 0xfu;
    const std::uint32_t fraction = bits & 7u;
    if (exponent == 0xf && fraction == 7) return std::bit_cast<float>(sign | 0x7ff00000u);
    if (exponent != 0)  // the exponent's bias grows from 7 to 127
        return std::bit_cast<float>(sign | (exponent + 120) << 23 | fraction << 20);
    if (fraction == 0) return std::bit_cast<float>(sign);
    // A denormal, fraction * 2^-9, is a normal float: move its leading one to bit 3.
    const auto shift = static_cast<std::uint32_t>(std::countl_zero(fraction)) - 28;
    return std::bit_cast<float>(sign | (121 - shift) << 23 | ((fraction << shift) & 7u) << 20);
}

/// The float equal to an OCP E5M2, which is the upper half of an IEEE half: exact, infinities and
/// denormals included.
constexpr float decode_f8_e5m2(std::uint8_t bits) {
    return decode_f16(static_cast<std::uint16_t>(bits << 8));
}

/// The float equal to an OCP E8M0, a scale: 2^(bits - 127), of which the first is a denormal; 255
/// is NaN.
constexpr float decode_e8m0(std::uint8_t bits) {
    if (bits == 0) return 0x1p-127f;
    return std::bit_cast<float>(bits == 255 ? 0x7fc00000u : static_cast<std::uint32_t>(bits) << 23);
}

/// The float equal to an OCP E2M1: 0, 0.5, 1, 1.5, 2, 3, 4, 6, and with bit 3 their negatives, -0
/// among them. The upper four bits are ignored.
constexpr float decode_e2m1(std::uint8_t bits) {
    const std::uint32_t sign = static_cast<std::uint32_t>(bits & 8u) << 28;
    const std::uint32_t exponent = (bits >> 1) & 3u;
    const std::uint32_t fraction = bits & 1u;
    if (exponent == 0) return std::bit_cast<float>(sign | (fraction == 0 ? 0u : 0x3f000000u));
    return std::bit_cast<float>(sign | (exponent + 126) << 23 | fraction << 22);
}

namespace detail {

template <class T>
T load(const std::byte* from) {
    T value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

/// The value of one stored element in the smallest C++ type that holds it exactly. `from` may be
/// unaligned. A boolean is 1 for every byte but 0.
template <Dtype dtype>
auto decode(const std::byte* from) {
    if constexpr (dtype == Dtype::boolean)
        return static_cast<std::uint8_t>(load<std::uint8_t>(from) != 0);
    else if constexpr (dtype == Dtype::u8)
        return load<std::uint8_t>(from);
    else if constexpr (dtype == Dtype::i8)
        return load<std::int8_t>(from);
    else if constexpr (dtype == Dtype::i16)
        return load<std::int16_t>(from);
    else if constexpr (dtype == Dtype::u16)
        return load<std::uint16_t>(from);
    else if constexpr (dtype == Dtype::f16)
        return decode_f16(load<std::uint16_t>(from));
    else if constexpr (dtype == Dtype::bf16)
        return decode_bf16(load<std::uint16_t>(from));
    else if constexpr (dtype == Dtype::i32)
        return load<std::int32_t>(from);
    else if constexpr (dtype == Dtype::u32)
        return load<std::uint32_t>(from);
    else if constexpr (dtype == Dtype::f32)
        return load<float>(from);
    else if constexpr (dtype == Dtype::f64)
        return load<double>(from);
    else if constexpr (dtype == Dtype::i64)
        return load<std::int64_t>(from);
    else
        return load<std::uint64_t>(from);
}

/// Calls f(std::integral_constant<Dtype, dtype>) for a dtype that decode() takes.
/// @return false, without a call, for the 8-bit floats (they mean nothing without their scales)
///         and for `unknown`
template <class F>
bool with_dtype(Dtype dtype, F&& f) {
    using enum Dtype;
    switch (dtype) {
        case boolean:
            f(std::integral_constant<Dtype, boolean>{});
            return true;
        case u8:
            f(std::integral_constant<Dtype, u8>{});
            return true;
        case i8:
            f(std::integral_constant<Dtype, i8>{});
            return true;
        case i16:
            f(std::integral_constant<Dtype, i16>{});
            return true;
        case u16:
            f(std::integral_constant<Dtype, u16>{});
            return true;
        case f16:
            f(std::integral_constant<Dtype, f16>{});
            return true;
        case bf16:
            f(std::integral_constant<Dtype, bf16>{});
            return true;
        case i32:
            f(std::integral_constant<Dtype, i32>{});
            return true;
        case u32:
            f(std::integral_constant<Dtype, u32>{});
            return true;
        case f32:
            f(std::integral_constant<Dtype, f32>{});
            return true;
        case f64:
            f(std::integral_constant<Dtype, f64>{});
            return true;
        case i64:
            f(std::integral_constant<Dtype, i64>{});
            return true;
        case u64:
            f(std::integral_constant<Dtype, u64>{});
            return true;
        case f8_e5m2:
        case f8_e4m3:
        case unknown:
            break;
    }
    return false;
}

}  // namespace detail

/// One stored element as S, float or double. F16, BF16 and F32 are exact, F64 and wide integers
/// round to the nearest S.
/// @param from  element_size(dtype) readable bytes, any alignment
/// @throws std::invalid_argument for an 8-bit float or an unknown dtype
template <class S>
S read_element(Dtype dtype, const std::byte* from) {
    static_assert(is_scalar<S>, "moe::read_element: elements are read as float or double");
    S value{};
    const bool known = detail::with_dtype(dtype, [&](auto stored) {
        value = static_cast<S>(detail::decode<decltype(stored)::value>(from));
    });
    if (!known) detail::fail("moe::read_element: ", dtype_name(dtype), " has no value of its own");
    return value;
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_CORE_DTYPE_HPP
