// SPDX-License-Identifier: MIT
#ifndef MOE_IO_ROUTING_HPP
#define MOE_IO_ROUTING_HPP

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <moe/core/dtype.hpp>
#include <moe/core/error.hpp>
#include <moe/core/routing.hpp>
#include <moe/core/types.hpp>
#include <moe/io/safetensors.hpp>
#include <moe/io/safetensors_writer.hpp>
#include <moe/io/text.hpp>

namespace moe::inline MOE_ABI {

/// A routing as tensors of a safetensors file, names behind a prefix:
///
///     name           shape    dtype  holds
///
///     header         [3]      I64    the version, which is 1; T; E
///     token_offsets  [T + 1]  I64    number of each token's first assignment; N at the end
///     expert         [N]      I32    in order of the tokens, within a token in order of the slots
///     weight         [N]      F64    combine weight
///     input_weight   [N]      F64    what the expert's input is multiplied by
///     dropped        [N]      U8     0: no, 1: for capacity, 2: pruned, 3: passed
///     load           [E]      I64    assignments that reach each expert, the dropped ones not
///
/// Weights keep their bits, NaN included. Several routings (layers, steps) share a file under
/// several prefixes.
///
/// @param prefix   such as "layers.3.routing."; may be empty
/// @param routing  grouped
/// @throws std::logic_error if it is not; std::invalid_argument as SafetensorsWriter::add
inline void add_routing(SafetensorsWriter& writer, std::string_view prefix,
                        const Routing& routing) {
    const auto assignments = routing.assignments();
    std::vector<std::int64_t> offsets, load;
    std::vector<std::int32_t> expert;
    std::vector<double> weight, input_weight;
    std::vector<std::uint8_t> dropped;
    for (Index t = 0; t <= routing.num_tokens(); ++t) offsets.push_back(routing.first(t));
    for (const Assignment& a : assignments) {
        expert.push_back(a.expert);
        weight.push_back(a.weight);
        input_weight.push_back(a.input_weight);
        dropped.push_back(static_cast<std::uint8_t>(a.dropped));
    }
    for (Index e = 0; e < routing.num_experts(); ++e)
        load.push_back(static_cast<std::int64_t>(routing.tokens_of(e).size()));
    const std::vector<std::int64_t> header{1, routing.num_tokens(), routing.num_experts()};
    const std::string p(prefix);
    writer.add(p + "header", header);
    writer.add(p + "token_offsets", offsets);
    writer.add(p + "expert", expert);
    writer.add(p + "weight", weight);
    writer.add(p + "input_weight", input_weight);
    writer.add(p + "dropped", dropped);
    writer.add(p + "load", load);
}

namespace detail {

/// One routing in a file; every number is checked before it is used.
class RoutingReader {
public:
    RoutingReader(const SafetensorsView& file, std::string_view prefix)
        : file_(file), prefix_(prefix) {}

    Routing read() const {
        const Matrix<std::int64_t> header = integers("header", Dtype::i64, 3);
        if (header(0, 0) != 1)
            refuse("is of version ", header(0, 0), ", this library reads version 1");
        const std::int64_t tokens = header(0, 1), experts = header(0, 2);
        constexpr std::int64_t most = std::numeric_limits<std::int32_t>::max();
        if (tokens < 0 || tokens > most || experts < 0 || experts > most)
            refuse("is for ", tokens, " tokens and ", experts,
                   " experts, both must lie in [0, 2147483647]");
        const auto offsets = integers("token_offsets", Dtype::i64, tokens + 1);
        const auto load = integers("load", Dtype::i64, experts);
        const Index count = cols("expert");
        const auto expert = integers("expert", Dtype::i32, count);
        const auto dropped = integers("dropped", Dtype::u8, count);
        const Matrix<double> weight = tensor("weight", Dtype::f64, count).copy<double>();
        const Matrix<double> input_weight =
            tensor("input_weight", Dtype::f64, count).copy<double>();
        check_offsets(offsets, count);

        Routing routing;
        routing.reset(tokens, experts);
        routing.reserve(tokens, experts, count);
        for (Index t = 0; t < tokens; ++t)
            for (Index i = offsets(0, t); i < offsets(0, t + 1); ++i) {
                if (expert(0, i) < 0 || expert(0, i) >= experts)
                    refuse("names expert ", expert(0, i), ", there are ", experts);
                if (dropped(0, i) > static_cast<std::int64_t>(Dropped::pass_through))
                    refuse("has an unknown reason ", dropped(0, i), " for a dropped assignment");
                routing.add(t, expert(0, i), weight(0, i), input_weight(0, i));
                routing.set_dropped(i, static_cast<Dropped>(dropped(0, i)));
            }
        routing.group();
        for (Index e = 0; e < experts; ++e)
            if (static_cast<std::int64_t>(routing.tokens_of(e).size()) != load(0, e))
                refuse("gives expert ", e, " a load of ", load(0, e), ", its assignments are ",
                       routing.tokens_of(e).size());
        return routing;
    }

private:
    /// A vector of this type and length.
    TensorView tensor(const char* name, Dtype dtype, Index count) const {
        const TensorView tensor = file_.at(prefix_ + name);
        if (tensor.dtype != dtype || tensor.shape != Extents{count})
            refuse("has ", name, " of ", dtype_name(tensor.dtype), " ", to_string(tensor.shape),
                   ", it must be ", dtype_name(dtype), " [", count, "]");
        return tensor;
    }
    Matrix<std::int64_t> integers(const char* name, Dtype dtype, Index count) const {
        return tensor(name, dtype, count).integers();
    }
    Index cols(const char* name) const { return file_.at(prefix_ + name).cols(); }

    void check_offsets(const Matrix<std::int64_t>& offsets, Index count) const {
        const Index last = offsets.cols() - 1;
        bool ascending = offsets(0, 0) == 0 && offsets(0, last) == count;
        for (Index t = 0; t < last; ++t) ascending &= offsets(0, t) <= offsets(0, t + 1);
        if (!ascending)
            refuse("has token_offsets that do not ascend from 0 to its ", count, " assignments");
    }

    template <class... Parts>
    [[noreturn]] void refuse(const Parts&... parts) const {
        fail<FormatError>("moe::read_routing: the routing ", in_quotes(prefix_), " ", parts...);
    }

    const SafetensorsView& file_;
    std::string prefix_;
};

}  // namespace detail

/// The routing that add_routing() put behind this prefix; equal to it, bit for bit.
/// @throws FormatError if a tensor is missing or of another type or length, if numbers contradict
///         one another, or if the version is unknown
inline Routing read_routing(const SafetensorsView& file, std::string_view prefix) {
    return detail::RoutingReader(file, prefix).read();
}

/// A routing as the bytes of a file of its own, for write_file(): the tensors of add_routing()
/// behind the prefix "routing.", and "format": "moe.routing" in the metadata.
/// @throws std::logic_error if it is not grouped
inline std::vector<std::byte> save_routing(const Routing& routing) {
    SafetensorsWriter writer;
    writer.add_metadata("format", "moe.routing");
    add_routing(writer, "routing.", routing);
    return writer.bytes();
}

/// The way back. @throws FormatError for anything that save_routing() cannot have written
inline Routing load_routing(std::span<const std::byte> bytes) {
    return read_routing(SafetensorsView(bytes), "routing.");
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_IO_ROUTING_HPP
