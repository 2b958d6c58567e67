// SPDX-License-Identifier: MIT
// Any bytes: the reader throws FormatError or gives tensors that lie in the file, one after the
// other, with values that can be read, and that survive writing and reading again.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include <moe/io/safetensors.hpp>
#include <moe/io/safetensors_writer.hpp>

namespace {

void require(bool condition) {
    if (!condition) std::abort();
}

// Keeps reads from being optimised away.
volatile std::uint64_t sink;

template <class S>
void touch(const moe::TensorView& tensor) {
    std::uint64_t seen = 0;
    const auto look = [&](const S* data, moe::Index size) {
        for (moe::Index i = 0; i < size; ++i) {
            std::uint64_t bits = 0;
            std::memcpy(&bits, data + i, sizeof(S));
            seen += bits;
        }
    };
    try {
        const auto view = tensor.matrix<S>();
        require(view.rows() == tensor.rows() && view.cols() == tensor.cols());
        look(view.data(), view.size());
    } catch (const moe::FormatError&) {  // another type, or not aligned
    }
    try {
        const auto copy = tensor.copy<S>();
        require(copy.rows() == tensor.rows() && copy.cols() == tensor.cols());
        look(copy.data(), copy.size());
    } catch (const moe::FormatError&) {  // no conversion, or too large a value
    }
    sink = seen;
}

void read_again(const moe::SafetensorsView& view) {
    moe::SafetensorsWriter writer;
    moe::Index known = 0;
    for (const moe::TensorView& tensor : view) {
        if (tensor.dtype == moe::Dtype::unknown) continue;
        writer.add_view(tensor);
        ++known;
    }
    for (const auto& [key, value] : view.metadata()) writer.add_metadata(key, value);
    const std::vector<std::byte> file = writer.bytes();
    const moe::SafetensorsView again(file);
    require(again.size() == known && again.metadata() == view.metadata());
    for (const moe::TensorView& tensor : again) {
        const moe::TensorView& first = *view.find(tensor.name);
        require(first.dtype == tensor.dtype && first.shape == tensor.shape);
        require(first.bytes.size() == tensor.bytes.size());
        require(tensor.bytes.empty() ||
                std::memcmp(first.bytes.data(), tensor.bytes.data(), tensor.bytes.size()) == 0);
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const std::span<const std::byte> file(reinterpret_cast<const std::byte*>(data), size);
    try {
        const moe::SafetensorsView view(file);
        std::size_t bytes = 0;
        for (const moe::TensorView& tensor : view) {
            require(view.find(tensor.name) == &tensor);
            bytes += tensor.bytes.size();
            touch<float>(tensor);
            touch<double>(tensor);
            touch<std::int32_t>(tensor);
            touch<std::int64_t>(tensor);
        }
        require(bytes <= size);
        if (view.size() > 0) {
            const std::byte* const first = view.begin()->bytes.data();
            require(first >= file.data() + 8 && first + bytes == file.data() + size);
        }
        read_again(view);
        view.at(std::string_view(reinterpret_cast<const char*>(data), size).substr(0, 20));
    } catch (const moe::FormatError& error) {
        require(std::string_view(error.what()).starts_with("moe::SafetensorsView: "));
        for (const char c : std::string_view(error.what())) require(c >= ' ' && c <= '~');
    }
    return 0;
}
