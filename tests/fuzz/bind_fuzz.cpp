// SPDX-License-Identifier: MIT
// Any bytes as a checkpoint of a small layer, of the kind that the first byte says: moe::bind and
// moe::load throw what they document, with a sentence, or give layers that compute the same bits,
// as they are and frozen, and that survive saving and loading.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include <moe/experts/glu.hpp>
#include <moe/experts/shared.hpp>
#include <moe/frozen.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/io/bind.hpp>
#include <moe/io/checkpoint.hpp>
#include <moe/io/safetensors.hpp>
#include <moe/io/safetensors_writer.hpp>
#include <moe/io/save.hpp>
#include <moe/layer.hpp>
#include <moe/presets/dbrx.hpp>
#include <moe/presets/deepseek_v3.hpp>
#include <moe/presets/gpt_oss.hpp>
#include <moe/presets/mixtral.hpp>
#include <moe/presets/qwen_moe.hpp>
#include <moe/routers/linear.hpp>

#include "fuzz/checkpoint_parts.hpp"

namespace {

using moe::Index;
using moe::Names;
using moe::Storage;

void require(bool condition) {
    if (!condition) std::abort();
}

/// The same number; NaNs are one.
bool same(float a, float b) { return std::memcmp(&a, &b, sizeof a) == 0 || (a != a && b != b); }

void check_message(const std::exception& error) {
    const std::string_view text = error.what();
    require(text.starts_with("moe::") && text.size() < 2000);
    require(moe::detail::utf8_prefix(text) == text.size());
}

/// Whether f() went through; what it may throw says a sentence.
template <class F>
bool accepts(const F& f) {
    try {
        f();
        return true;
    } catch (const moe::FormatError& error) {
        check_message(error);
    } catch (const std::invalid_argument& error) {
        check_message(error);
    } catch (const std::length_error& error) {
        check_message(error);
    }
    return false;
}

/// Two prefixes; the first expert in a tensor of its own, the others stacked; a router outside.
Names scattered_names() {
    const moe::Layout single{.orientation = moe::Orientation::in_out};
    const moe::Layout rows{.stacking = moe::Stacking::rows};
    return {std::vector<std::string>{"a.0.ffn.", "0.ffn."},
            {{"experts.#.down", "first.#", single, {}, 0, 1},
             {"experts.#.down", "rest", rows, {}, 1},
             {"experts.#.gate", "gate.#"},
             {"experts.#.gate", "gates", {.stacking = moe::Stacking::leading}},
             {"experts.#.up", "up.#"},
             {"router.weight", "../router"}}};
}

/// With partial blocks in matrices that are smaller than those of DeepSeek-V3.
Names with_block(const Names& names, Index block) {
    auto table = names.table();
    for (auto& entry : table) entry.layout.block = block;
    return {names.prefixes(), table};
}

// Both widths are one, so that a transposed matrix has the right shape, and all experts are chosen.
constexpr Index small = 4, large = 32;

template <class... Groups>
struct Kind {
    unsigned number;
    Names names;
    Index dim;
    std::tuple<moe::LinearRouter, moe::TopK, Groups...> parts;

    auto layer() const {
        return std::apply(
            [&](const auto&... part) {
                return moe::Layer<float, moe::LinearRouter, moe::TopK, Groups...>(
                    moe::deferred, moe::Config{.model_dim = dim}, part...);
            },
            parts);
    }
    auto bind(const moe::Checkpoint& checkpoint) const {
        return std::apply(
            [&](const auto&... part) {
                return moe::bind(checkpoint, names, moe::Config{.model_dim = dim}, part...);
            },
            parts);
    }
};

/// Element (i, j) of a matrix of expert e, counted by hand, in tensors without an orientation that
/// shapes would tell; NaN for kinds that are not here.
float element_by_hand(const moe::Checkpoint& file, unsigned kind, char matrix, Index e, Index i,
                      Index j) {
    const Index n = kind == 6 ? large : small;
    const bool down = matrix == 'd', up = matrix == 'u';
    const auto read = [&](const std::string& name, Index element) {
        const moe::TensorView tensor = file.at(name);
        return moe::read_element<float>(
            tensor.dtype, tensor.bytes.data() + element * moe::element_size(tensor.dtype));
    };
    const auto stacked = [&](Index element, Index of_down) {
        return down ? read("mlp.experts.down_proj", of_down)
                    : read("mlp.experts.gate_up_proj", element);
    };
    const std::string blocks = down ? "mlp.experts.down_proj" : "mlp.experts.gate_up_proj";
    switch (kind) {
        case 0:
            return read("moe.experts." + std::to_string(e) +
                            (down ? ".w2"
                             : up ? ".w3"
                                  : ".w1") +
                            ".weight",
                        i * n + j);
        case 1:
            return stacked((e * 2 * n + (up ? n : 0) + i) * n + j, (e * n + i) * n + j);
        case 2:
            return stacked((e * n + j) * 2 * n + (up ? n : 0) + i, (e * n + j) * n + i);
        case 3:
            return down ? read("ffn.experts.mlp.w2", (e * n + j) * n + i)
                        : read(up ? "ffn.experts.mlp.v1" : "ffn.experts.mlp.w1",
                               (e * n + i) * n + j);
        case 5:
        case 6: {
            if (file.find(blocks) != nullptr)
                return stacked((e * n + j) * 2 * n + 2 * i + (up ? 1 : 0), (e * n + j) * n + i);
            const Index row = down ? e * n + i : e * 2 * n + 2 * i + (up ? 1 : 0);
            const auto pair = file.at(blocks + "_blocks").bytes[moe::detail::at(row * 16 + j / 2)];
            const auto scale = file.at(blocks + "_scales").bytes[moe::detail::at(row)];
            const unsigned code = (std::to_integer<unsigned>(pair) >> (j % 2 == 0 ? 0 : 4)) & 15u;
            constexpr float e2m1[] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
            const float value = (code & 8u) != 0 ? -e2m1[code & 7u] : e2m1[code & 7u];
            const int exponent = std::to_integer<int>(scale);
            return exponent == 255 ? NAN : std::ldexp(value, exponent - 127);
        }
        default:
            return NAN;
    }
}

/// What was loaded is what lies there.
template <class Layer>
void require_right(Layer& layer, unsigned kind, const moe::Checkpoint& file) {
    moe::visit_parameters(layer, [&](std::string_view name, auto& matrix, moe::Role) {
        constexpr std::string_view experts = "experts.";
        if (kind == 4 || kind == 7 || !name.starts_with(experts) || name.ends_with("bias")) return;
        const Index e = name[experts.size()] - '0';
        for (Index i = 0; i < matrix.rows(); ++i)
            for (Index j = 0; j < matrix.cols(); ++j)
                require(same(matrix(i, j),
                             element_by_hand(file, kind, name[experts.size() + 2], e, i, j)));
    });
}

template <class Layer>
std::vector<float> outputs(const Layer& layer, Index tokens) {
    moe::Matrix<float> x(tokens, layer.model_dim()), y(tokens, layer.output_dim());
    for (Index i = 0; i < x.size(); ++i) x.data()[i] = static_cast<float>(i * 7 % 23 - 11) / 8.0f;
    moe::Workspace<float> ws;
    ws.threads(1);
    layer.forward(x, y, ws);
    return {y.data(), y.data() + y.size()};
}

void require_same(const std::vector<float>& a, const std::vector<float>& b) {
    require(a.size() == b.size());
    for (std::size_t i = 0; i < a.size(); ++i) require(same(a[i], b[i]));
}

/// All that a layer holds.
template <class Layer>
std::vector<float> values(Layer& layer) {
    std::vector<float> all;
    moe::visit_parameters(layer, [&](std::string_view, auto& matrix, moe::Role) {
        all.insert(all.end(), matrix.data(), matrix.data() + matrix.size());
    });
    return all;
}

/// Saves a layer and loads it again.
template <class K, class Layer>
void require_survives(const K& kind, const Layer& layer, const std::vector<float>& expected) {
    moe::SafetensorsWriter writer;
    moe::save(layer, kind.names, writer);
    const std::vector<std::byte> file = writer.bytes();
    auto again = kind.layer();
    moe::load(moe::Checkpoint({moe::SafetensorsView(file)}), kind.names, again);
    require_same(values(again), expected);
}

template <class K>
void check(const K& kind, Storage storage, const moe::Checkpoint& checkpoint) {
    auto loaded = kind.layer();
    if (!accepts([&] { moe::load(checkpoint, kind.names, loaded); })) {
        require(!accepts([&] { kind.bind(checkpoint); }));
        return;
    }
    require_right(loaded, kind.number, checkpoint);
    const std::vector<float> all = values(loaded);
    require_survives(kind, loaded, all);
    const std::vector<float> one = outputs(loaded, 1), three = outputs(loaded, 3);
    const auto frozen_outputs = [&](const auto& layer, Storage as, Index tokens) {
        return outputs(moe::freeze(layer, {.storage = as}), tokens);
    };
    std::vector<float> rounded;
    const bool can_round = accepts([&] { rounded = frozen_outputs(loaded, storage, 3); });

    std::optional<decltype(kind.layer())> bound;
    if (!accepts([&] { bound = kind.bind(checkpoint); })) return;  // to be converted, or aligned
    bool coded = false;
    moe::detail::visit_weights(*bound, [&](const auto&, const auto& weights, Index) {
        coded = coded || weights.is_coded();
        for (Index e = 0; weights.is_bound() && e < weights.count(); ++e) {
            const moe::WeightView view = weights[e];
            require(reinterpret_cast<std::uintptr_t>(view.data) %
                        static_cast<std::uintptr_t>(moe::element_size(view.dtype)) ==
                    0);
        }
    });
    if (!coded) {
        require_same(outputs(*bound, 1), one);
        require_same(outputs(*bound, 3), three);
        require_survives(kind, *bound, all);
    }
    require_same(frozen_outputs(*bound, Storage::fp32, 1), one);
    std::vector<float> bound_rounded;
    require(can_round == accepts([&] { bound_rounded = frozen_outputs(*bound, storage, 3); }));
    require_same(bound_rounded, rounded);
}

void check(unsigned number, Storage storage, const moe::Checkpoint& checkpoint) {
    using moe::Glu;
    const moe::TopK both{.k = 2};
    const Glu swiglu{.count = 2, .ffn_dim = small};
    const auto plain = [&](const Names& names) {
        check(Kind<Glu>{number, names, small, {{}, both, swiglu}}, storage, checkpoint);
    };
    const auto gpt_oss = [&](Index dim) {
        const Glu glu{.count = 2,
                      .ffn_dim = dim,
                      .activation = moe::Activation::quick_gelu,
                      .bias = true,
                      .limit = 7,
                      .up_offset = 1};
        check(Kind<Glu>{number, moe::names::gpt_oss("mlp"), dim, {{.bias = true}, both, glu}},
              storage, checkpoint);
    };
    switch (number) {
        case 0:
            return plain(moe::names::mixtral("moe"));
        case 1:
            return plain(moe::names::qwen3_vl_moe("mlp", moe::Orientation::out_in));
        case 2:
            return plain(moe::names::qwen3_vl_moe("mlp", moe::Orientation::in_out));
        case 3:
            return plain(moe::names::dbrx("ffn"));
        case 4:
            return plain(scattered_names());
        case 5:
            return gpt_oss(small);
        case 6:
            return gpt_oss(large);
        default:
            check(Kind<Glu, moe::Shared<Glu>>{number,
                                              with_block(moe::names::deepseek_v3("mlp"), 3),
                                              small,
                                              {{},
                                               {.k = 2,
                                                .score = moe::Score::sigmoid,
                                                .normalize = moe::Normalize::add_epsilon,
                                                .scale = 2.5,
                                                .selection_bias = true},
                                               swiglu,
                                               moe::Shared{Glu{.ffn_dim = small}}}},
                  storage, checkpoint);
    }
}

}  // namespace

// The first byte: the kind of layer (3 bits), several files or one, whether it lies at an odd
// address, and how frozen layers round (3 bits).
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    if (size == 0) return 0;
    const unsigned choice = data[0];
    const std::span<const std::byte> input(reinterpret_cast<const std::byte*>(data) + 1, size - 1);
    const Storage storage = moe::all_storages[choice / 32];
    accepts([&] {
        if ((choice & 8u) != 0)
            return check(choice % 8, storage, moe_test::CheckpointParts(input).open());
        const std::vector<std::byte> aligned(input.begin(), input.end());
        const std::span<const std::byte> file = (choice & 16u) != 0 ? input : aligned;
        check(choice % 8, storage, moe::Checkpoint({moe::SafetensorsView(file)}));
    });
    return 0;
}
