// SPDX-License-Identifier: MIT
#include <moe/io/frozen.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/constant.hpp>
#include <moe/experts/copy.hpp>
#include <moe/experts/glu.hpp>
#include <moe/experts/mlp.hpp>
#include <moe/experts/shared.hpp>
#include <moe/experts/swiglu.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/io/checkpoint.hpp>
#include <moe/io/file.hpp>
#include <moe/io/safetensors.hpp>
#include <moe/io/safetensors_writer.hpp>
#include <moe/routers/linear.hpp>
#include <moe/testing/compare.hpp>
#include <moe/testing/random.hpp>

#include "support/message.hpp"

namespace io_frozen_test {
namespace {

using moe::Compute;
using moe::FormatError;
using moe::FreezeOptions;
using moe::Index;
using moe::SafetensorsView;
using moe::Storage;
using moe::testing::same_bits;
using support::message;

constexpr Index dim = 37;

/// What can differ between layers of one type.
struct Recipes {
    moe::Config config{.model_dim = dim};
    moe::TopK gate{.k = 3};
    moe::Glu glu{.count = 3, .ffn_dim = 41, .bias = true, .limit = 2, .up_offset = 0.5};
    moe::Mlp mlp{.count = 2, .ffn_dim = 19, .activation = moe::Activation::gelu, .bias = true};
    moe::Constant constant{};

    /// make(config, router, gate, groups...)
    template <class Make>
    auto with(const Make& make) const {
        return make(config, moe::LinearRouter{.bias = true}, gate, glu, moe::Copy{}, mlp, constant,
                    moe::Shared{moe::Swiglu{.count = 2, .ffn_dim = 23}, moe::SharedGate::sigmoid},
                    moe::Shared{moe::Swiglu{.ffn_dim = 5}});
    }
    auto layer() const {
        auto made = with([](const auto&... parts) { return moe::Layer{parts...}; });
        // Biases start at 0.
        moe::for_each_parameter(made, [](std::string_view name, std::span<float> values) {
            for (std::size_t i = 0; name.ends_with("bias") && i < values.size(); ++i)
                values[i] = 0.1f * static_cast<float>(i % 7) - 0.3f;
        });
        return made;
    }
};
using Layer = decltype(Recipes{}.layer());
using Frozen = moe::Frozen<Layer>;

Frozen open(const moe::Checkpoint& file, std::string_view prefix = "",
            const Recipes& recipes = {}) {
    return recipes.with(
        [&](const auto&... parts) { return moe::open_frozen(file, prefix, parts...); });
}

moe::Matrix<float> batch() { return moe::testing::random_matrix<float>(21, dim, 1); }

/// A file in memory that begins `shift` bytes behind a multiple of 64, as a mapped one does with 0.
class File {
public:
    explicit File(const std::vector<std::byte>& bytes, std::size_t shift = 0)
        : shift_(shift), size_(bytes.size()) {
        std::copy(bytes.begin(), bytes.end(),
                  memory_.resize(static_cast<Index>(size_ + shift)).begin() +
                      static_cast<std::ptrdiff_t>(shift));
    }
    std::span<std::byte> bytes() { return memory_.span().subspan(shift_); }
    std::span<const std::byte> bytes() const { return memory_.span().subspan(shift_); }
    SafetensorsView view() const { return SafetensorsView(bytes()); }
    bool holds(const void* at) const {
        const auto* const byte = static_cast<const std::byte*>(at);
        return bytes().data() <= byte && byte < bytes().data() + size_;
    }

private:
    moe::Buffer<std::byte> memory_;
    std::size_t shift_, size_;
};

template <class L>
std::vector<std::byte> saved(const L& frozen, std::string_view prefix = "") {
    moe::SafetensorsWriter writer;
    moe::save_frozen(frozen, writer, prefix);
    return writer.bytes();
}

/// All that the layer can be frozen as, and one storage for each expert.
std::vector<FreezeOptions> all_options() {
    std::vector<FreezeOptions> all;
    for (const Storage storage : moe::all_storages)
        for (const Compute compute : moe::all_computes)
            if (moe::fits(storage, compute))
                all.push_back({.storage = storage, .compute = compute});
    all.push_back({.storage = Storage::f16,
                   .experts = {Storage::int8, Storage::fp32, Storage::int4, Storage::fp32,
                               Storage::ternary, Storage::bf16, Storage::fp32}});
    return all;
}

template <class F>
void for_each_matrix(const Frozen& layer, F&& f) {
    const auto of = [&](const auto& group, const std::string& prefix, Index first) {
        for (Index e = 0; e < group.num_experts(); ++e) {
            const std::string name = prefix + std::to_string(first + e);
            f(name + (group.shape().gated ? ".gate_up" : ".up"), group.packed_up().panels(e));
            f(name + ".down", group.packed_down().panels(e));
        }
    };
    of(layer.bank().group<0>(), "experts.", 0);
    of(layer.bank().group<2>(), "experts.", 4);
    of(layer.bank().group<4>().experts(), "shared.", 0);
    of(layer.bank().group<5>().experts(), "shared.", 2);
}

TEST(OpenFrozen, GivesTheBitsOfWhatWasSavedForEveryStorageAndCompute) {
    const Layer layer = Recipes{}.layer();
    for (const FreezeOptions& options : all_options()) {
        SCOPED_TRACE(std::string(moe::name(options.storage)) + " " + moe::name(options.compute));
        const Frozen frozen = moe::freeze(layer, options);
        const File file(saved(frozen));
        const Frozen opened = open(file.view());
        EXPECT_TRUE(same_bits(opened(batch()), frozen(batch())));
        EXPECT_EQ(opened.num_parameters(), moe::num_parameters(layer));
        EXPECT_EQ(opened.bank().group<0>().compute(), options.compute);
        EXPECT_EQ(opened.bank().group<0>().storage(2), options.of(2));
        EXPECT_TRUE(opened.bank().group<2>().packed_down().decode(1) ==
                    frozen.bank().group<2>().packed_down().decode(1));
        EXPECT_EQ(saved(opened), saved(frozen)) << "saved again, the same file";
    }
}

TEST(OpenFrozen, ReadsPanelsWhereTheyLieAtMultiplesOf64Bytes) {
    for (const FreezeOptions& options : all_options()) {
        const File file(saved(moe::freeze(Recipes{}.layer(), options)));
        const SafetensorsView view = file.view();
        std::optional<Frozen> opened = open(view);
        const Frozen copy = *opened;
        int count = 0;
        const auto check = [&](const std::string& name, std::span<const std::byte> panels) {
            EXPECT_EQ(panels.data(), view.at(name).bytes.data()) << name;
            EXPECT_EQ(panels.size(), view.at(name).bytes.size()) << name;
            EXPECT_EQ((panels.data() - file.bytes().data()) % 64, 0) << name;
            ++count;
        };
        for_each_matrix(*opened, check);
        for_each_matrix(copy, check);
        EXPECT_EQ(count, 2 * 2 * (3 + 2 + 3));
        EXPECT_GT(copy.bank().group<0>().bytes(), 0);
        const moe::Matrix<float> y = (*opened)(batch());
        opened.reset();
        EXPECT_TRUE(same_bits(copy(batch()), y));
        const Frozen moved = std::move(const_cast<Frozen&>(copy));
        EXPECT_TRUE(same_bits(moved(batch()), y));
    }
}

TEST(OpenFrozen, CopiesPanelsThatAreNotAligned) {
    const Frozen frozen = moe::freeze(Recipes{}.layer(), {.storage = Storage::int8});
    for (const std::size_t shift : {1u, 4u, 32u, 63u}) {
        const File file(saved(frozen), shift);
        const Frozen opened = open(file.view());
        for_each_matrix(opened, [&](const std::string& name, std::span<const std::byte> panels) {
            EXPECT_FALSE(file.holds(panels.data())) << name;
            EXPECT_EQ(reinterpret_cast<std::uintptr_t>(panels.data()) % 64, 0u) << name;
        });
        EXPECT_TRUE(same_bits(opened(batch()), frozen(batch())));
    }
}

TEST(OpenFrozen, FindsLayersUnderTheirPrefixes) {
    const Recipes other{.config = {.model_dim = dim, .seed = 2}};
    const Frozen first = moe::freeze(Recipes{}.layer(), {.storage = Storage::int4});
    const Frozen second = moe::freeze(other.layer());
    moe::SafetensorsWriter writer;
    moe::save_frozen(second, writer, "layers.1.");
    moe::save_frozen(first, writer, "layers.0.");
    writer.add("other", std::vector<float>{1, 2, 3});
    const File file(writer.bytes());
    EXPECT_TRUE(same_bits(open(file.view(), "layers.0.")(batch()), first(batch())));
    const Frozen opened = open(file.view(), "layers.1.");
    EXPECT_TRUE(same_bits(opened(batch()), second(batch())));
    for_each_matrix(opened, [&](const std::string& name, std::span<const std::byte> panels) {
        EXPECT_TRUE(file.holds(panels.data())) << name;
    });
    EXPECT_NE(message<FormatError>([&] {
                  open(file.view(), "layers.2.");
              }).find("\"layers.2.frozen\"; near it: \"layers."),
              std::string::npos);
}

TEST(OpenFrozen, KeepsAMappedCheckpointAlive) {
    const std::string path = testing::TempDir() + "moe_frozen_test_" +
                             std::to_string(reinterpret_cast<std::uintptr_t>(&path));
    const Frozen frozen = moe::freeze(Recipes{}.layer(), {.storage = Storage::bf16});
    moe::write_file(path, saved(frozen));
    std::optional<Frozen> opened = open(moe::Checkpoint::open(path));
    const Frozen copy = *opened;
    opened.reset();
    EXPECT_TRUE(same_bits(copy(batch()), frozen(batch())));
    std::remove(path.c_str());
}

TEST(OpenFrozen, ReadsPanelsOfOtherInstructionSetsOfTheSameWidth) {
    for (const moe::Isa packing : moe::supported_isas())
        for (const moe::Isa reading : moe::supported_isas())
            for (const FreezeOptions& options : all_options()) {
                SCOPED_TRACE(std::string(moe::name(packing)) + " to " + moe::name(reading));
                std::vector<std::byte> bytes;
                moe::Matrix<float> y;
                {
                    const moe::ScopedIsa forced(packing);
                    const Frozen frozen = moe::freeze(Recipes{}.layer(), options);
                    bytes = saved(frozen);
                    y = frozen(batch());
                }
                const moe::ScopedIsa forced(reading);
                const File file(bytes);
                const Index width = moe::kernels<float>(packing).panel_width;
                if (width == moe::kernels<float>(reading).panel_width) {
                    EXPECT_TRUE(same_bits(open(file.view())(batch()), y));
                    continue;
                }
                EXPECT_NE(message<FormatError>([&] {
                              open(file.view());
                          }).find("packed for panels of \"" + std::to_string(width)),
                          std::string::npos);
            }
}

/// The file with other text, or with a tensor under another name.
std::vector<std::byte> edited(const std::vector<std::byte>& file, const std::string& from,
                              const std::string& to) {
    const SafetensorsView view{file};
    moe::SafetensorsWriter writer;
    writer.align(64);
    for (const moe::TensorView& tensor : view) {
        if (tensor.name == "frozen") {
            std::string text(reinterpret_cast<const char*>(tensor.bytes.data()),
                             tensor.bytes.size());
            if (const auto at = text.find(from); at != std::string::npos)
                text.replace(at, from.size(), to);
            writer.add("frozen", std::vector<std::uint8_t>(text.begin(), text.end()));
            continue;
        }
        moe::TensorView renamed = tensor;
        if (tensor.name == from) renamed.name = to;
        writer.add_view(renamed);
    }
    return writer.bytes();
}

TEST(OpenFrozen, SaysWhatDoesNotFit) {
    const std::vector<std::byte> sound =
        saved(moe::freeze(Recipes{}.layer(), {.storage = Storage::int8}));
    const std::string width = std::to_string(moe::kernels<float>().panel_width);
    const struct {
        std::string from, to, says;
    } cases[] = {
        {"moe-frozen 1", "moe-frozen 2",
         "moe::open_frozen: the text begins with \"moe-frozen 2\", this library reads "
         "\"moe-frozen 1\"; freeze the layer again and save that"},
        {"panels " + width, "panels 48",
         "moe::open_frozen: packed for panels of \"48\" columns, this machine's kernels (" +
             std::string(moe::name(moe::isa())) + ") read " + width +
             "; freeze the layer again here"},
        {"scalar F32", "scalar F64",
         "the layer has \"scalar F64\", recipes and config say \"scalar F32\""},
        {"experts.0 gated silu 37 41 37 limit 2", "experts.0 gated silu 41 37 37 limit 2",
         "the layer has \"experts.0 gated silu 41 37 37 limit 2 up_offset 0.5 int8 exact\""},
        {"experts.3 free", "experts.3 null", "recipes and config say \"experts.3 free class "},
        {"int8 exact", "int8 wrong", "then a storage and a compute that go together"},
        {"int8 exact", "int7 exact", "then a storage and a compute that go together"},
        {"int8 exact", "int8 bf16", "then a storage and a compute that go together"},
        {" int8 exact", "", "then a storage and a compute that go together"},
        {"37 int8 exact\nshared.1", "37 int8 int8\nshared.1",
         "compute of \"shared.1.down\" is exact, that of the experts before it int8"},
        {"int8 exact", "f16 exact", "tensor \"experts.0.gate_up\" is ["},
        {"class 1 flops 333\n", "class 1 flops 333\nexperts.7 free\n",
         "the text goes on with \"experts.7 free\" where the recipes have no expert any more"},
        {"router.bias", "router.bios", "called \"router.bias\"; near it: \"router.bios\""},
        {"experts.4.down", "experts.7.down", "called \"experts.4.down\"; near it: "},
    };
    for (const auto& [from, to, says] : cases) {
        const File file(edited(sound, from, to));
        EXPECT_NE(message<FormatError>([&] { open(file.view()); }).find(says), std::string::npos)
            << message<FormatError>([&] { open(file.view()); }) << "\n  wanted: " << says;
    }
    moe::SafetensorsWriter writer;
    const Frozen frozen = moe::freeze(Recipes{}.layer());
    moe::save_frozen(frozen, writer);
    writer.add("experts.9.down", std::vector<float>{1});
    const File file(writer.bytes());
    EXPECT_EQ(message<FormatError>([&] { open(file.view()); }),
              "moe::open_frozen: tensor \"experts.9.down\" [1] is no part of a layer of these "
              "recipes; are they those of the layer that was frozen?");
}

TEST(OpenFrozen, RefusesOtherRecipes) {
    const File file(saved(moe::freeze(Recipes{}.layer())));
    const auto refused = [&](auto&& change) {
        Recipes recipes;
        change(recipes);
        return message<FormatError>([&] { open(file.view(), "", recipes); }) != "";
    };
    EXPECT_TRUE(refused([](Recipes& r) { r.config.input_scale = 2; }));
    EXPECT_TRUE(refused([](Recipes& r) { r.glu.count = 4; }));
    EXPECT_TRUE(refused([](Recipes& r) { r.glu.ffn_dim = 42; }));
    EXPECT_TRUE(refused([](Recipes& r) { r.glu.activation = moe::Activation::gelu; }));
    EXPECT_TRUE(refused([](Recipes& r) { r.glu.limit = 3; }));
    EXPECT_TRUE(refused([](Recipes& r) { r.glu.bias = false; }));
    EXPECT_TRUE(refused([](Recipes& r) { r.mlp.bias = false; }));
    EXPECT_TRUE(refused([](Recipes& r) { r.constant.count = 2; }));
    EXPECT_FALSE(refused([](Recipes& r) { r.gate.k = 2; })) << "a setting, the recipe's";
    EXPECT_FALSE(refused([](Recipes& r) { r.config.seed = 9; })) << "of initial values";
}

TEST(OpenFrozen, ReadsNothingElseWhateverPanelsHold) {
    for (const FreezeOptions& options : all_options()) {
        File file(saved(moe::freeze(Recipes{}.layer(), options)));
        const SafetensorsView view = file.view();
        const Frozen opened = open(view);
        for (const unsigned fill : {0xffu, 0x00u, 0x7fu, 0xa5u}) {
            for_each_matrix(opened, [&](const std::string&, std::span<const std::byte> panels) {
                const auto at = static_cast<std::size_t>(panels.data() - file.bytes().data());
                const auto bytes = file.bytes().subspan(at, panels.size());
                for (std::size_t i = 0; i < bytes.size(); ++i)
                    bytes[i] = static_cast<std::byte>(fill == 0xa5u ? i * i >> 3 : fill);
            });
            EXPECT_EQ(opened(batch()).rows(), 21);
        }
    }
}

/// A small layer of double.
auto small_layer() {
    return moe::make_layer<double>(moe::Config{.model_dim = 3}, moe::LinearRouter{},
                                   moe::TopK{.k = 1}, moe::Swiglu{.count = 1, .ffn_dim = 2});
}
auto open_small(std::span<const std::byte> file) {
    const SafetensorsView view(file);
    return moe::open_frozen<double>(view, moe::Config{.model_dim = 3}, moe::LinearRouter{},
                                    moe::TopK{.k = 1}, moe::Swiglu{.count = 1, .ffn_dim = 2});
}

TEST(OpenFrozen, WorksForDouble) {
    const auto frozen = moe::freeze(small_layer());
    const File file(saved(frozen));
    const auto opened = open_small(file.bytes());
    EXPECT_TRUE(opened.bank().group<0>().down(0) == frozen.bank().group<0>().down(0));
    EXPECT_EQ(saved(opened), saved(frozen));
    EXPECT_TRUE(file.holds(opened.bank().group<0>().packed_up().panels(0).data()));
    const File other(edited(saved(frozen), "fp32 exact", "f16 exact"));
    EXPECT_NE(message<FormatError>([&] { open_small(other.bytes()); }), "");
}

TEST(OpenFrozen, FindsEveryCutAndFlippedByteInFrontOfThePanelsAndInTheText) {
    const auto frozen = moe::freeze(small_layer());
    File file(saved(frozen));
    const std::size_t header =
        static_cast<std::size_t>(file.view().begin()->bytes.data() - file.bytes().data());
    const std::size_t text = file.view().at("frozen").bytes.size(), all = file.bytes().size();
    const std::vector<std::byte> sound = saved(frozen);
    ASSERT_EQ(saved(open_small(file.bytes())), sound);
    EXPECT_EQ(header % 64, 0u);
    for (std::size_t size = 0; size < all; size = size < header ? size + 1 : all - 1) {
        EXPECT_NE(message<FormatError>([&] { open_small(file.bytes().first(size)); }), "") << size;
        if (size == all - 1) break;
    }
    int refused = 0;
    for (std::size_t i = 0; i < all; i = i + 1 == header ? all - text : i + 1)
        for (const unsigned flip : {0x01u, 0x10u, 0x20u, 0x80u}) {
            std::byte& byte = file.bytes()[i];
            byte ^= static_cast<std::byte>(flip);
            std::optional<decltype(open_small(file.bytes()))> opened;
            const std::string error =
                message<FormatError>([&] { opened.emplace(open_small(file.bytes())); });
            if (opened)
                EXPECT_EQ(saved(*opened), sound) << i;
            else
                ++refused;
            byte ^= static_cast<std::byte>(flip);
        }
    EXPECT_GT(refused, static_cast<int>(4 * header / 2));
}

TEST(SaveFrozen, HoldsBiasesThatWereViews) {
    Layer layer = Recipes{}.layer();
    const Index count = moe::num_parameters(layer);
    const Frozen owned = moe::freeze(layer);
    auto& biases = layer.bank().group<2>().up_bias;
    const moe::Weights<float> values = biases;
    biases = moe::Weights<float>(std::vector<moe::WeightView>{values[0], values[1]});
    EXPECT_EQ(moe::num_parameters(layer), count);
    const std::vector<std::byte> file = saved(moe::freeze(layer));
    EXPECT_EQ(file, saved(owned));
    const File copy(file);
    EXPECT_TRUE(same_bits(open(copy.view())(batch()), owned(batch())));
}

TEST(PackedFeedForward, WithoutPanelsSaysSo) {
    const auto layer = Recipes{}.layer();
    auto group = layer.bank().group<2>().without_panels();
    EXPECT_EQ(group.num_experts(), 2);
    moe::Workspace<float> ws;
    moe::Matrix<float> y(21, dim);
    const moe::Context context;
    const moe::Call<float> call{context, ws};
    EXPECT_EQ(message([&] { group.forward(batch(), moe::Rows<float>{}, y, call); }),
              "moe::PackedFeedForward: the experts have no panels yet; bind() gives them some");
    EXPECT_NE(message([&] { group.bind(Compute::exact, {}, {}); }), "");
    EXPECT_NE(message([&] {
                  group.bind(Compute::exact, std::vector<moe::FrozenPanels>(2),
                             std::vector<moe::FrozenPanels>(2));
              }).find("expert 0's panels have 0 bytes, weights stored as fp32 need "),
              std::string::npos);
}

TEST(NumParameters, CountsMatricesWithoutMemory) {
    const auto waiting = Recipes{}.with([](const auto&... parts) {
        return moe::Layer{moe::deferred, parts...};
    });
    const Layer layer = Recipes{}.layer();
    EXPECT_EQ(moe::num_parameters(waiting), moe::num_parameters(layer));
    Index owned = 0;
    moe::visit_parameters(waiting,
                          [&](auto, const auto& matrix, moe::Role) { owned += matrix.size(); });
    EXPECT_LT(owned, moe::num_parameters(waiting));
    std::vector<float> values(static_cast<std::size_t>(owned));
    moe::copy_parameters(waiting, std::span<float>(values));  // of those that it owns
}

}  // namespace
}  // namespace io_frozen_test
