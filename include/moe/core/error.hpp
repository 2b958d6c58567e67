// SPDX-License-Identifier: MIT
#ifndef MOE_CORE_ERROR_HPP
#define MOE_CORE_ERROR_HPP

#include <charconv>
#include <cstdlib>
#include <limits>
#include <stdexcept>
#include <string>
#include <type_traits>

#include <moe/core/types.hpp>

#ifndef MOE_ON_ERROR
#define MOE_ON_ERROR(text) std::abort()
#endif

namespace moe::inline MOE_ABI {

/// A file that is damaged, cut short, or of another format.
class FormatError : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

namespace detail {

inline const char* text(const char* part) { return part; }
inline const std::string& text(const std::string& part) { return part; }
template <class N>
concept Number = std::is_arithmetic_v<N>;
template <Number N>
std::string text(N part) {
    if constexpr (std::is_floating_point_v<N>) {  // the shortest that reads back equal
        char digits[64];
        return std::string(digits, std::to_chars(digits, digits + sizeof digits, part).ptr);
    } else {
        return std::to_string(part);
    }
}

template <class Error>
[[noreturn, gnu::noinline, gnu::cold]] void raise([[maybe_unused]] const std::string& message) {
#if defined(__cpp_exceptions)
    throw Error(message);
#else
    MOE_ON_ERROR(message.c_str());
    std::abort();
#endif
}

/// Throws `Error` with the parts joined into one sentence: who, what it got, what it wanted.
template <class Error = std::invalid_argument, class... Parts>
[[noreturn, gnu::noinline, gnu::cold]] void fail(const Parts&... parts) {
    std::string message;
    ((message += text(parts)), ...);
    raise<Error>(message);
}

/// @param last  the enumerator of the largest value; they count from 0
/// @throws std::invalid_argument unless a setting is one of its enumerators
template <class Enum>
void check_choice(const char* who, const char* field, Enum value, Enum last) {
    const int number = static_cast<int>(value), most = static_cast<int>(last);
    if (number < 0 || number > most)
        fail(who, ": ", field, " is number ", number, " of its choices, they are 0 to ", most);
}

/// a * b for extents.
/// @throws std::length_error if the product does not fit an Index
inline Index checked_product(Index a, Index b) {
    if (a < 0 || b < 0 || (b != 0 && a > std::numeric_limits<Index>::max() / b))
        fail<std::length_error>("moe: ", a, " x ", b, " elements do not fit a signed ",
                                static_cast<int>(8 * sizeof(Index)), "-bit size");
    return a * b;
}

}  // namespace detail
}  // namespace moe::inline MOE_ABI

#endif  // MOE_CORE_ERROR_HPP
