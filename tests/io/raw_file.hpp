// SPDX-License-Identifier: MIT
#ifndef MOE_TESTS_IO_RAW_FILE_HPP
#define MOE_TESTS_IO_RAW_FILE_HPP

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include <moe/io/safetensors.hpp>

#include "support/message.hpp"

namespace moe_test {

/// A safetensors file of any header, sound or not, and `data` zero bytes; `length` may lie.
inline std::vector<std::byte> raw_file(std::string_view header, std::size_t data,
                                       std::uint64_t length) {
    std::vector<std::byte> file(8 + header.size() + data);
    std::memcpy(file.data(), &length, 8);
    if (!header.empty()) std::memcpy(file.data() + 8, header.data(), header.size());
    return file;
}

inline std::vector<std::byte> raw_file(std::string_view header, std::size_t data = 0) {
    return raw_file(header, data, header.size());
}

/// What the reader says about a file; "" if it has nothing against it.
inline std::string error_of(const std::vector<std::byte>& file) {
    return support::message<moe::FormatError>([&] { const moe::SafetensorsView view(file); });
}

inline std::string error_of(std::string_view header, std::size_t data = 0) {
    return error_of(raw_file(header, data));
}

}  // namespace moe_test

#endif  // MOE_TESTS_IO_RAW_FILE_HPP
