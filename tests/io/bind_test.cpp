// SPDX-License-Identifier: MIT
#include <moe/io/bind.hpp>

#include <cstddef>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <moe/io/safetensors.hpp>
#include <moe/io/safetensors_writer.hpp>
#include <moe/moe.hpp>
#include <moe/testing/compare.hpp>

namespace bind_test {
namespace {

using moe::Index;
using moe::Layout;
using moe::Orientation;
using moe::Part;
using moe::Stacking;

constexpr Index model_dim = 6, ffn_dim = 6, experts = 3;  // square on purpose

moe::Names separate() {
    return {"a.mlp.",
            {{"router.weight", "gate.weight"},
             {"experts.#.gate", "experts.#.w1.weight"},
             {"experts.#.up", "experts.#.w3.weight"},
             {"experts.#.down", "experts.#.w2.weight"}}};
}

auto owned_layer() {
    return moe::Layer{moe::Config{.model_dim = model_dim}, moe::LinearRouter{}, moe::TopK{.k = 2},
                      moe::Swiglu{.count = experts, .ffn_dim = ffn_dim}};
}
auto bound(const moe::SafetensorsView& file, const moe::Names& names) {
    return moe::bind(file, names, moe::Config{.model_dim = model_dim}, moe::LinearRouter{},
                     moe::TopK{.k = 2}, moe::Swiglu{.count = experts, .ffn_dim = ffn_dim});
}

/// The layer in the "separate" layout.
std::vector<std::byte> file_of(const decltype(owned_layer())& layer) {
    moe::SafetensorsWriter writer;
    writer.add("a.mlp.gate.weight", layer.router().weight.view());
    const auto& group = layer.bank().group<0>();
    for (Index e = 0; e < experts; ++e) {
        const std::string expert = "a.mlp.experts." + std::to_string(e);
        writer.add(expert + ".w1.weight", group.gate.owned(e).view());
        writer.add(expert + ".w3.weight", group.up.owned(e).view());
        writer.add(expert + ".w2.weight", group.down.owned(e).view());
    }
    writer.add("b.other", std::vector<float>{1});
    return writer.bytes();
}

TEST(Bind, ReadsWhereTheWeightsLieAndGivesTheBitsOfTheLayer) {
    const auto layer = owned_layer();
    const auto file = file_of(layer);
    const moe::SafetensorsView view{file};
    const auto views = bound(view, separate());
    const auto data = views.bank().group<0>().down[2].data;
    EXPECT_EQ(data, view.at("a.mlp.experts.2.w2.weight").bytes.data());
    EXPECT_EQ(moe::num_parameters(views), moe::num_parameters(layer));
    EXPECT_EQ(moe::num_parameters(moe::freeze(views)), moe::num_parameters(layer));
    std::vector<float> owned(static_cast<std::size_t>(experts * model_dim));
    moe::copy_parameters(views, std::span<float>(owned));
    EXPECT_EQ(owned.back(), layer.router().weight(experts - 1, model_dim - 1));

    const moe::Matrix<float> x = moe::Matrix<float>::Random(5, model_dim);
    EXPECT_TRUE(moe::testing::same_bits(layer(x), views(x)));
    EXPECT_TRUE(moe::testing::same_bits(layer(x), moe::freeze(views)(x)));

    moe::Layer loaded{moe::deferred, moe::Config{.model_dim = model_dim}, moe::LinearRouter{},
                      moe::TopK{.k = 2}, moe::Swiglu{.count = experts, .ffn_dim = ffn_dim}};
    EXPECT_THROW(loaded(x), std::invalid_argument);
    moe::load(view, separate(), loaded);
    EXPECT_TRUE(moe::testing::same_bits(layer(x), loaded(x)));
}

}  // namespace
}  // namespace bind_test
