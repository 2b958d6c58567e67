// SPDX-License-Identifier: MIT
// Any bytes as an index and its files: the reader throws FormatError, or gives the tensors of the
// files that the index names, each once, where they lie.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <moe/io/checkpoint.hpp>

#include "fuzz/checkpoint_parts.hpp"

namespace {

void require(bool condition) {
    if (!condition) std::abort();
}

// Which file a tensor lies in, by what that file itself says.
std::size_t file_of(const moe::TensorView& tensor, const std::vector<moe::SafetensorsView>& views) {
    for (std::size_t i = 0; i < views.size(); ++i) {
        const moe::TensorView* const own = views[i].find(tensor.name);
        if (own != nullptr && own->bytes.data() == tensor.bytes.data() &&
            own->bytes.size() == tensor.bytes.size() && own->dtype == tensor.dtype &&
            own->shape == tensor.shape)
            return i;
    }
    std::abort();
}

void check(const moe::Checkpoint& checkpoint) {
    const moe::TensorView* previous = nullptr;
    for (const moe::TensorView& tensor : checkpoint) {
        require(checkpoint.find(tensor.name) == &tensor);
        require(previous == nullptr || previous->name < tensor.name);
        previous = &tensor;
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const moe_test::CheckpointParts parts({reinterpret_cast<const std::byte*>(data), size});
    try {
        const moe::Checkpoint checkpoint = parts.open();
        check(checkpoint);
        std::vector<moe::SafetensorsView> views;  // of all sound files, named by the index or not
        for (const auto& file : parts.files) {
            try {
                views.emplace_back(file);
            } catch (const moe::FormatError&) {
                continue;
            }
        }
        std::vector<moe::Index> tensors(views.size());
        for (const moe::TensorView& tensor : checkpoint) ++tensors[file_of(tensor, views)];
        for (std::size_t i = 0; i < views.size(); ++i)
            require(tensors[i] == 0 || tensors[i] == views[i].size());
        checkpoint.at(std::string_view(parts.index).substr(0, 20));
    } catch (const moe::FormatError& error) {
        const std::string_view text = error.what();
        require(text.starts_with("moe::Checkpoint: ") ||
                text.starts_with("moe::SafetensorsView: "));
        for (const char c : text) require(c >= ' ' && c <= '~');
    }
    return 0;
}
