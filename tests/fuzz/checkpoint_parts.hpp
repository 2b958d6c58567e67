// SPDX-License-Identifier: MIT
#ifndef MOE_TESTS_FUZZ_CHECKPOINT_PARTS_HPP
#define MOE_TESTS_FUZZ_CHECKPOINT_PARTS_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <moe/core/dtype.hpp>
#include <moe/core/error.hpp>
#include <moe/io/checkpoint.hpp>

namespace moe_test {

/// Any bytes as an index and the files beside it, which are called "a", "b", ...: each part is four
/// bytes of length, little-endian, and as many bytes, or what is left.
struct CheckpointParts {
    explicit CheckpointParts(std::span<const std::byte> input) {
        std::vector<std::byte> text;
        take(input, text);
        index.assign(reinterpret_cast<const char*>(text.data()), text.size());
        while (!input.empty() && files.size() < 26) take(input, files.emplace_back());
    }

    moe::Checkpoint open() const {
        return moe::Checkpoint::from_index(index, [this](const std::string& name) {
            const std::size_t number =
                name.size() == 1 ? static_cast<std::size_t>(name[0] - 'a') : files.size();
            if (number >= files.size()) throw moe::FormatError("moe::Checkpoint: no such file");
            return moe::SafetensorsView(files[number], name);
        });
    }

    std::string index;
    std::vector<std::vector<std::byte>> files;  // in blocks of their exact size

private:
    static void take(std::span<const std::byte>& input, std::vector<std::byte>& part) {
        if (input.size() < 4) {
            input = {};
            return;
        }
        const std::size_t length = moe::detail::load<std::uint32_t>(input.data());
        input = input.subspan(4);
        const auto bytes = input.first(std::min(length, input.size()));
        part = std::vector<std::byte>(bytes.begin(), bytes.end());
        input = input.subspan(bytes.size());
    }
};

}  // namespace moe_test

#endif  // MOE_TESTS_FUZZ_CHECKPOINT_PARTS_HPP
