// SPDX-License-Identifier: MIT
#ifndef MOE_IO_SAFETENSORS_WRITER_HPP
#define MOE_IO_SAFETENSORS_WRITER_HPP

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <Eigen/Core>

#include <moe/core/dtype.hpp>
#include <moe/core/error.hpp>
#include <moe/core/types.hpp>
#include <moe/io/json.hpp>
#include <moe/io/limits.hpp>
#include <moe/io/tensor.hpp>
#include <moe/io/text.hpp>

namespace moe::inline MOE_ABI {

/// Collects named tensors and metadata and makes a safetensors file of them.
///
///     SafetensorsWriter writer;
///     writer.add("router.weight", weight);                          // [E, D] of F32
///     writer.add("experts", std::span(ids), {tokens, slots});       // [T, K] of I32
///     write_file("layer.safetensors", writer.bytes());
///
/// The bytes depend on what was added, not on the order: wider types first, then by name, which
/// with a header padded to 8 bytes aligns every tensor to its element. They are those of the
/// format's reference for the same tensors. SafetensorsView reads whatever a writer accepted.
///
/// Every add() throws std::invalid_argument for a name that is taken, reserved, or not UTF-8 and
/// std::length_error beyond SafetensorsLimits, and then has added nothing.
class SafetensorsWriter {
    static_assert(std::endian::native == std::endian::little,
                  "moe::SafetensorsWriter: tensors are little-endian, this machine is not");

public:
    /// Copies a matrix of any storage order, or an expression, as [rows, cols]; what is a row or a
    /// column by its type (RowVector) as [n].
    template <class Derived>
    void add(std::string_view name, const Eigen::DenseBase<Derived>& values) {
        using S = typename Derived::Scalar;
        static_assert(storable<S>, "moe::SafetensorsWriter::add: no dtype stores this scalar");
        const Matrix<S> rows = [&] {  // [rows, cols] in row-major order
            if constexpr (Derived::IsVectorAtCompileTime) {
                Matrix<S> row(1, values.size());
                for (Index i = 0; i < values.size(); ++i) row(0, i) = values.derived().coeff(i);
                return row;
            } else {
                return Matrix<S>(values.derived().matrix());
            }
        }();
        Extents shape;
        if constexpr (!Derived::IsVectorAtCompileTime) shape.push_back(values.rows());
        shape.push_back(rows.cols());
        add(name, std::span<const S>(rows.data(), static_cast<std::size_t>(rows.size())), shape);
    }

    /// Copies `values`, which are row-major, as `shape`.
    /// @throws std::invalid_argument if there are not shape.product() of them
    template <class T, std::size_t n>
    void add(std::string_view name, std::span<T, n> values, const Extents& shape) {
        using S = std::remove_const_t<T>;
        static_assert(storable<S>, "moe::SafetensorsWriter::add: no dtype stores this scalar");
        const auto bytes = std::as_bytes(values);
        insert({name, dtype_of<S>, shape, bytes}, true);
    }

    /// Copies `values` as [n].
    template <class T, std::size_t n>
    void add(std::string_view name, std::span<T, n> values) {
        add(name, values, Extents{static_cast<Index>(values.size())});
    }
    template <class T>
    void add(std::string_view name, const std::vector<T>& values) {
        add(name, std::span<const T>(values));
    }

    /// Adds a tensor that is not copied: its memory must live until the last call of bytes() or
    /// write(). Takes every dtype but unknown.
    /// @throws std::invalid_argument if its bytes are not shape x element size
    void add_view(const TensorView& tensor) { insert(tensor, false); }

    /// Pads the header so that the tensors begin at a multiple of `bytes` of the file, and of 8;
    /// asked more than once, of the largest. The first tensors are the widest.
    /// @param bytes  a power of two, up to 4096
    void align(Index bytes) {
        if (bytes < 1 || bytes > 4096 || (bytes & (bytes - 1)) != 0)
            detail::fail("moe::SafetensorsWriter::align: ", bytes,
                         " bytes, it must be a power of two, from 1 to 4096");
        alignment_ = std::max(alignment_, static_cast<std::size_t>(bytes));
    }

    /// Adds an entry to __metadata__. @throws as add(), each entry counting as a tensor would
    void add_metadata(std::string_view key, std::string_view value) {
        check_text(key, "metadata key");
        if (detail::utf8_prefix(value) != value.size())
            detail::fail("moe::SafetensorsWriter: metadata ", detail::in_quotes(key),
                         " is not valid UTF-8");
        if (metadata_.size() == SafetensorsLimits::tensors) fail_full();
        if (!metadata_.emplace(key, value).second)
            detail::fail("moe::SafetensorsWriter: metadata ", detail::in_quotes(key),
                         " is added twice");
    }

    /// The whole file.
    /// @throws std::length_error if the header or the file gets too large
    std::vector<std::byte> bytes() const {
        std::vector<std::byte> file;
        write(
            [&](std::span<const std::byte> part) {
                file.insert(file.end(), part.begin(), part.end());
            },
            [&](std::size_t size) { file.reserve(size); });
        return file;
    }

    /// Hands the file to `sink(std::span<const std::byte>)` piece by piece, in order, so that no
    /// second copy of the tensors is made. @throws as bytes(), before the first piece
    template <class Sink>
    void write(Sink&& sink) const {
        write(sink, [](std::size_t) {});
    }

private:
    struct Tensor {
        Dtype dtype;
        Extents shape;
        std::span<const std::byte> view;  // of a tensor added as one
        std::vector<std::byte> owned;     // of any other

        std::span<const std::byte> bytes() const { return owned.empty() ? view : owned; }
    };
    using Entry = std::pair<const std::string, Tensor>;

    template <class S>
    static constexpr bool storable = dtype_of<S> != Dtype::unknown && !std::is_same_v<S, bool>;

    void insert(const TensorView& tensor, bool owned) {
        check_text(tensor.name, "tensor name");
        if (tensor.name == "__metadata__")
            detail::fail("moe::SafetensorsWriter: __metadata__ is no tensor; use add_metadata()");
        if (tensor.dtype == Dtype::unknown)
            detail::fail("moe::SafetensorsWriter: tensor ", detail::in_quotes(tensor.name),
                         " has an unknown dtype");
        check_size(tensor);
        if (tensors_.size() == SafetensorsLimits::tensors) fail_full();
        Tensor entry{tensor.dtype, tensor.shape, {}, {}};
        if (owned)
            entry.owned.assign(tensor.bytes.begin(), tensor.bytes.end());
        else
            entry.view = tensor.bytes;
        if (!tensors_.emplace(tensor.name, std::move(entry)).second)
            detail::fail("moe::SafetensorsWriter: tensor ", detail::in_quotes(tensor.name),
                         " is added twice");
    }

    static void check_size(const TensorView& tensor) {
        Index span = element_size(tensor.dtype);  // with zeros as ones, as the reader has it
        for (const Index extent : tensor.shape)
            span = detail::checked_product(span, std::max<Index>(extent, 1));
        const Index size = tensor.shape.product() * element_size(tensor.dtype);
        if (tensor.bytes.size() != static_cast<std::size_t>(size))
            detail::fail("moe::SafetensorsWriter: tensor ", detail::in_quotes(tensor.name),
                         " has shape ", to_string(tensor.shape), " of ", dtype_name(tensor.dtype),
                         ", which is ", size, " bytes, but ", tensor.bytes.size(), " are given");
    }

    static void check_text(std::string_view text, const char* what) {
        if (text.size() > SafetensorsLimits::name_bytes)
            detail::fail<std::length_error>("moe::SafetensorsWriter: ", what, " ",
                                            detail::in_quotes(text), " has ", text.size(),
                                            " bytes, the limit is ", SafetensorsLimits::name_bytes);
        if (detail::utf8_prefix(text) != text.size())
            detail::fail("moe::SafetensorsWriter: ", what, " ", detail::in_quotes(text),
                         " is not valid UTF-8");
    }

    [[noreturn]] static void fail_full() {
        detail::fail<std::length_error>("moe::SafetensorsWriter: more than ",
                                        SafetensorsLimits::tensors, " entries");
    }

    template <class Sink, class Announce>
    void write(Sink&& sink, Announce&& announce) const {
        std::vector<const Entry*> order;
        for (const Entry& entry : tensors_) order.push_back(&entry);
        std::stable_sort(order.begin(), order.end(), [](const Entry* a, const Entry* b) {
            return a->second.dtype > b->second.dtype;  // and by name, as the map has them
        });
        std::size_t data_bytes = 0;
        const std::string header = make_header(order, data_bytes);
        const auto length =
            std::bit_cast<std::array<std::byte, 8>>(static_cast<std::uint64_t>(header.size()));
        announce(length.size() + header.size() + data_bytes);
        sink(std::span<const std::byte>(length));
        sink(std::as_bytes(std::span<const char>(header)));
        for (const Entry* entry : order) sink(entry->second.bytes());
    }

    std::string make_header(const std::vector<const Entry*>& order, std::size_t& end) const {
        std::string header = "{";
        const auto separate = [&] {
            if (header.size() > 1) header += ',';
        };
        if (!metadata_.empty()) {
            header += "\"__metadata__\":{";
            for (const auto& [key, value] : metadata_) {
                if (header.back() != '{') header += ',';
                detail::append_json_string(header, key);
                header += ':';
                detail::append_json_string(header, value);
            }
            header += '}';
        }
        for (const Entry* entry : order) {
            const Tensor& tensor = entry->second;
            constexpr auto most = static_cast<std::size_t>(std::numeric_limits<Index>::max());
            if (tensor.bytes().size() > most - SafetensorsLimits::header_bytes - 8 - end)
                detail::fail<std::length_error>("moe::SafetensorsWriter: the file gets too large");
            separate();
            detail::append_json_string(header, entry->first);
            header += std::string(":{\"dtype\":\"") + dtype_name(tensor.dtype) + "\",\"shape\":[";
            for (const Index extent : tensor.shape) {
                if (header.back() != '[') header += ',';
                header += std::to_string(extent);
            }
            header += "],\"data_offsets\":[" + std::to_string(end) + ',';
            end += tensor.bytes().size();
            header += std::to_string(end) + "]}";
        }
        header += '}';
        constexpr std::size_t length = 8;  // of the header's length, in front of it
        header.append((alignment_ - (length + header.size()) % alignment_) % alignment_, ' ');
        if (header.size() > SafetensorsLimits::header_bytes)
            detail::fail<std::length_error>("moe::SafetensorsWriter: the header gets ",
                                            header.size(), " bytes, the limit is ",
                                            SafetensorsLimits::header_bytes);
        return header;
    }

    std::map<std::string, Tensor, std::less<>> tensors_;
    std::map<std::string, std::string, std::less<>> metadata_;
    std::size_t alignment_ = 8;  // of the first tensor in the file
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_IO_SAFETENSORS_WRITER_HPP
