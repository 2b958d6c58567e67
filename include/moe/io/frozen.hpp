// SPDX-License-Identifier: MIT
#ifndef MOE_IO_FROZEN_HPP
#define MOE_IO_FROZEN_HPP

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include <moe/core/dtype.hpp>
#include <moe/core/freeze.hpp>
#include <moe/core/memory.hpp>
#include <moe/core/parameters.hpp>
#include <moe/core/storage.hpp>
#include <moe/frozen.hpp>
#include <moe/io/frozen_reader.hpp>
#include <moe/io/frozen_text.hpp>
#include <moe/io/safetensors_writer.hpp>
#include <moe/layer.hpp>

namespace moe::inline MOE_ABI {
namespace detail {

/// What freeze() makes of a group, without panels where it has some.
template <class Group>
auto without_panels(const Group& group) {
    if constexpr (requires { group.without_panels(); }) {
        return group.without_panels();
    } else {
        static_assert(std::is_same_v<frozen_t<Group>, Group>,
                      "moe::open_frozen: a group of experts that has a freeze() of its own needs "
                      "without_panels(), as FeedForwardModule has it");
        return group;
    }
}

}  // namespace detail

/// Adds a frozen layer to a file, from which open_frozen() makes it again without packing anything.
///
///     const auto frozen = moe::freeze(layer, {.storage = moe::Storage::int8});
///     moe::SafetensorsWriter writer;
///     moe::save_frozen(frozen, writer);
///     moe::write_file("layer.safetensors", writer.bytes());
///
/// Under `prefix` there are
///
///     experts.<e>.gate_up or .up, experts.<e>.down, shared.<i>.* likewise      panels as they are
///     router.*, gate.*, biases, constants, states                              as layers name them
///     frozen         U8: a text of what a reader must know, which begins "moe-frozen 1"
///
/// Panels are U64, of which they are whole multiples of 8: the widest elements stand first in a
/// file, and SafetensorsWriter::align() lets them start at a multiple of 64 bytes. All panels are
/// multiples of 64 bytes long, so each starts at one, those of further layers in the file too; no
/// tensor is there as padding. Other U64 tensors of the file should be as long, else open_frozen()
/// has to copy what comes after them.
///
/// Nothing is copied but the text: the layer must live, and stay as it is, until the writer has
/// written. Settings of router, gate and groups that are not values (TopK::k) are not in the file,
/// nor is what experts of the user's do not show to visit_parameters().
/// @param prefix  goes in front of every name as it is, with its dot
/// @throws as SafetensorsWriter::add(); the writer then holds a part of the layer
template <class S, class R, class G, class... Groups>
void save_frozen(const FrozenLayer<S, R, G, Groups...>& layer, SafetensorsWriter& writer,
                 std::string_view prefix = {}) {
    const auto add = [&](const std::string& name, Dtype dtype, const Extents& shape,
                         std::span<const std::byte> bytes) {
        writer.add_view({.name = name, .dtype = dtype, .shape = shape, .bytes = bytes});
    };
    std::string text;
    detail::for_each_frozen_line<S>(
        layer.bank(), layer.num_parameters(), [&](const std::string& line) { text += line + '\n'; },
        [&](const std::string& line, const auto& group, Index e) {
            text += line + ' ' + name(group.storage(e)) + ' ' + name(group.compute()) + '\n';
        });
    writer.align(static_cast<Index>(cache_line));
    writer.add(std::string(prefix) + std::string(detail::frozen_text_name),
               std::vector<std::uint8_t>(text.begin(), text.end()));
    detail::for_each_unpacked(
        layer.head(), layer.bank(), [&](std::string_view name, const auto& matrix) {
            using T = detail::scalar_of<decltype(matrix)>;
            add(std::string(prefix) + std::string(name), dtype_of<T>, detail::shape_in_file(matrix),
                std::as_bytes(detail::span_of(matrix)));
        });
    detail::visit_packed(layer.bank(), [&](const std::string& pattern, const auto& group,
                                           Index first) {
        const auto add_panels = [&](const std::string& name, const FrozenWeights<S>& weights,
                                    Index e) {
            const auto bytes = weights.panels(e);
            add(name, Dtype::u64, detail::panels_shape(static_cast<Index>(bytes.size())), bytes);
        };
        for (Index e = 0; e < group.num_experts(); ++e) {
            const detail::PanelNames names(prefix, pattern, group.shape().gated, first + e);
            add_panels(names.up, group.packed_up(), e);
            add_panels(names.down, group.packed_down(), e);
        }
    });
}

/// Does not compile: the writer would view a layer that is gone.
template <class S, class R, class G, class... Groups>
void save_frozen(const FrozenLayer<S, R, G, Groups...>&& layer, SafetensorsWriter& writer,
                 std::string_view prefix = {}) = delete;

/// A frozen layer whose experts read their panels where a file has them; nothing of them is copied
/// or packed, and a mapped file is read where calls touch it. Router, gate, biases and constants
/// are copied. The same bits as the layer that was saved.
///
///     const auto file = moe::Checkpoint::open("layer.safetensors");
///     const auto layer = moe::open_frozen(file, moe::Config{.model_dim = 4096},
///                                         moe::LinearRouter{}, moe::TopK{.k = 2},
///                                         moe::Swiglu{.count = 8, .ffn_dim = 14336});
///
/// Recipes and config are those of the layer that was frozen; storage and compute are the file's.
/// Extents, activations, bounds and what is known of experts without matrices (null or free, class,
/// cost) are compared, all other settings are taken from the recipes. Panels are for kernels of one
/// panel width: 16 columns for scalar, avx2 and neon, which read each other's files, 32 for avx512
/// and amx, which do, too, whatever storage and compute; in double all have 16. Panels that are not
/// at a multiple of 64 bytes in memory, where rows of them would lie across two cache lines, are
/// copied to one.
///
/// Any bytes are safe to open: a file gives a layer of the recipes' extents, or an error. What the
/// panels hold is not checked, so that a damaged one gives wrong numbers.
/// @param file    a SafetensorsView, whose memory must outlive the layer, or a Checkpoint, which
///                the layer keeps alive
/// @param prefix  as save_frozen() had it; the layer must use every tensor under it
/// @throws FormatError if the file is of another layer, machine or version, or damaged;
///         std::invalid_argument if recipes do not fit each other
template <class S = float, class Source, class R, class G, class... Groups>
Frozen<Layer<S, R, G, Groups...>> open_frozen(const Source& file, std::string_view prefix,
                                              const Config& config, const R& router, const G& gate,
                                              const Groups&... groups) {
    Layer<S, R, G, Groups...> layer{deferred, config, router, gate, groups...};
    auto unbound = std::apply(
        [](const auto&... group) { return std::make_tuple(detail::without_panels(group)...); },
        layer.bank().groups());
    const auto bank_of = [&]<class... Unbound>(std::tuple<Unbound...>& all) {
        return Bank<S, Unbound...>(config, std::move(all));
    };
    auto bank = bank_of(unbound);
    const Index count = num_parameters(layer);

    detail::FrozenReader<S, Source> reader(file, prefix);
    reader.read_text(bank, count);
    reader.find_unpacked(layer.head(), bank);
    reader.bind_panels(bank);
    reader.check_left_over();
    reader.copy_unpacked(layer.head(), bank);

    const FreezeOptions options;
    detail::check_freeze(layer.router(), options);
    return detail::make_frozen<S>(config, detail::frozen(layer.router(), options), layer.gate(),
                                  std::move(bank.groups()), count);
}
template <class S = float, class Source, class R, class G, class... Groups>
Frozen<Layer<S, R, G, Groups...>> open_frozen(const Source& file, const Config& config,
                                              const R& router, const G& gate,
                                              const Groups&... groups) {
    return open_frozen<S>(file, std::string_view{}, config, router, gate, groups...);
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_IO_FROZEN_HPP
