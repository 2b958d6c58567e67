// SPDX-License-Identifier: MIT
// Any bytes as a frozen layer: moe::open_frozen throws what it documents, with a sentence, or gives
// a layer that computes, wherever its panels lie, and that survives saving and opening.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>
#include <stdexcept>
#include <string_view>
#include <vector>

#include <moe/experts/copy.hpp>
#include <moe/experts/glu.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/io/frozen.hpp>
#include <moe/io/safetensors.hpp>
#include <moe/io/safetensors_writer.hpp>
#include <moe/routers/linear.hpp>

namespace {

using moe::Index;

constexpr Index dim = 4;

void require(bool condition) {
    if (!condition) std::abort();
}

void check_message(const std::exception& error) {
    const std::string_view text = error.what();
    require(text.starts_with("moe::") && text.size() < 2000);
    for (const char c : text) require(c >= ' ' && c <= '~');
}

auto open(std::span<const std::byte> file) {
    const moe::Glu glu{.count = 2, .ffn_dim = dim, .bias = true, .limit = 7, .up_offset = 1};
    return moe::open_frozen(moe::SafetensorsView(file), "layer.", moe::Config{.model_dim = dim},
                            moe::LinearRouter{}, moe::TopK{.k = 3}, glu, moe::Copy{});
}
using Layer = decltype(open({}));

std::vector<float> outputs(const Layer& layer, Index tokens) {
    moe::Matrix<float> x(tokens, dim), y(tokens, dim);
    for (Index i = 0; i < x.size(); ++i) x.data()[i] = static_cast<float>(i * 7 % 23 - 11) / 8.0f;
    moe::Workspace<float> ws;
    ws.threads(1);
    layer.forward(x, y, ws);
    return {y.data(), y.data() + y.size()};
}

/// The same numbers; NaNs are one.
void require_same(const std::vector<float>& a, const std::vector<float>& b) {
    require(a.size() == b.size());
    for (std::size_t i = 0; i < a.size(); ++i)
        require(std::memcmp(&a[i], &b[i], sizeof(float)) == 0 || (a[i] != a[i] && b[i] != b[i]));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const std::span<const std::byte> file(reinterpret_cast<const std::byte*>(data), size);
    try {
        const Layer layer = open(file);
        const std::vector<float> one = outputs(layer, 1), three = outputs(layer, 3);

        moe::SafetensorsWriter writer;
        moe::save_frozen(layer, writer, "layer.");
        std::vector<std::byte> saved = writer.bytes();
        require_same(outputs(open(saved), 1), one);
        saved.insert(saved.begin(), std::byte{0});  // at an odd address
        require_same(outputs(open(std::span<const std::byte>(saved).subspan(1)), 3), three);
    } catch (const moe::FormatError& error) {
        check_message(error);
    }
    return 0;
}
