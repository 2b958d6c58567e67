// SPDX-License-Identifier: MIT
#ifndef MOE_IO_SAFETENSORS_HPP
#define MOE_IO_SAFETENSORS_HPP

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <moe/core/dtype.hpp>
#include <moe/core/error.hpp>
#include <moe/core/types.hpp>
#include <moe/io/json.hpp>
#include <moe/io/limits.hpp>
#include <moe/io/tensor.hpp>
#include <moe/io/text.hpp>

namespace moe::inline MOE_ABI {

/// A safetensors file in memory, checked. No tensor is copied.
///
///     8 bytes   n, little-endian
///     n bytes   {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...}
///     the rest  the tensors, row-major, little-endian
///
/// The constructor checks everything, so each object that exists describes a sound file: offsets
/// are contiguous from the first data byte to the last (no holes, no overlaps, nothing behind),
/// each range is shape x element size, names are unique UTF-8, limits are SafetensorsLimits.
/// Stricter than the format's reference in what no known writer does: a field or name given twice,
/// fields it does not know, more than 8 dimensions, products of non-zero dimensions over Index, and
/// padding other than spaces are errors. A tensor of unknown dtype is listed, and refused when its
/// values are asked for.
///
/// The file's memory must outlive the view and every tensor from it, and must not change: bytes
/// that change under the view (a memory map of a file that somebody truncates) are outside every
/// promise here. Names that hold JSON escapes live in the view and its copies, all others in the
/// file. Copies share one index and are cheap; all functions may run on several threads at once.
/// Format: github.com/huggingface/safetensors.
class SafetensorsView {
    static_assert(std::endian::native == std::endian::little,
                  "moe::SafetensorsView: tensors are little-endian, this machine is not");

public:
    using Metadata = std::map<std::string, std::string, std::less<>>;

    /// @param file  the whole file; any alignment (matrix() needs the tensors aligned, copy() not)
    /// @throws FormatError if anything is wrong with it
    explicit SafetensorsView(std::span<const std::byte> file) : contents_(read(file)) {}
    explicit SafetensorsView(const std::vector<std::byte>&&) = delete;  // would dangle

    SafetensorsView(const SafetensorsView&) = default;  // and no move, which would leave a husk
    SafetensorsView& operator=(const SafetensorsView&) = default;
    ~SafetensorsView() = default;

    /// Tensors, in the order of their bytes.
    Index size() const { return static_cast<Index>(contents_->tensors.size()); }
    const TensorView* begin() const { return contents_->tensors.data(); }
    const TensorView* end() const { return begin() + size(); }

    /// @return the tensor, or nullptr if there is none of that name
    const TensorView* find(std::string_view name) const {
        const auto& by_name = contents_->by_name;
        const auto found = std::lower_bound(by_name.begin(), by_name.end(), name,
                                            [this](std::uint32_t i, std::string_view wanted) {
                                                return contents_->tensors[i].name < wanted;
                                            });
        if (found == by_name.end() || contents_->tensors[*found].name != name) return nullptr;
        return &contents_->tensors[*found];
    }

    /// @throws FormatError if there is none of that name; says which names come near
    TensorView at(std::string_view name) const {
        const TensorView* tensor = find(name);
        if (tensor == nullptr) fail_missing(name);
        return *tensor;
    }

    /// The tensor's memory as [rows, cols]: see TensorView::matrix.
    template <class S>
    ConstView<S> matrix(std::string_view name) const {
        return at(name).template matrix<S>();
    }

    /// The tensor's values converted to S, [rows, cols]: see TensorView::copy.
    template <class S>
    Matrix<S> copy(std::string_view name) const {
        return at(name).template copy<S>();
    }

    /// The values of an integer or boolean tensor, [rows, cols].
    Matrix<std::int64_t> integers(std::string_view name) const { return at(name).integers(); }

    /// The __metadata__ strings; empty if there are none.
    const Metadata& metadata() const { return contents_->metadata; }

private:
    struct Contents {
        std::vector<TensorView> tensors;     // by address, then size, then name
        std::vector<std::uint32_t> by_name;  // indices into tensors
        Metadata metadata;
        std::deque<std::string> decoded;  // strings that held escapes; addresses stay
    };

    template <class... Parts>
    [[noreturn]] static void fail(const Parts&... parts) {
        detail::fail<FormatError>("moe::SafetensorsView: ", parts...);
    }

    static std::shared_ptr<const Contents> read(std::span<const std::byte> file) {
        constexpr std::size_t length_bytes = 8;
        if (file.size() < length_bytes)
            fail("a safetensors file has at least 8 bytes, this one has ", file.size());
        const auto length = detail::load<std::uint64_t>(file.data());
        if (length > SafetensorsLimits::header_bytes)
            fail("the header would have ", length, " bytes, the limit is ",
                 SafetensorsLimits::header_bytes, "; is this a safetensors file?");
        if (length > file.size() - length_bytes)
            fail("the header has ", length, " bytes, the file only ", file.size() - length_bytes,
                 " after its length");
        const auto header_bytes = static_cast<std::size_t>(length);
        const std::string_view header(reinterpret_cast<const char*>(file.data()) + length_bytes,
                                      header_bytes);
        const auto contents = std::make_shared<Contents>();
        read_header(header, file.subspan(length_bytes + header_bytes), *contents);
        return contents;
    }

    static void read_header(std::string_view header, std::span<const std::byte> data,
                            Contents& contents) {
        detail::JsonReader json(header, "moe::SafetensorsView: header");
        if (!header.starts_with('{')) json.fail_here("expected '{'");
        json.begin_object();
        std::string_view key;
        std::string scratch;
        bool has_metadata = false;
        while (json.next_key(key, scratch)) {
            if (key.size() > SafetensorsLimits::name_bytes) fail_long(key);
            if (key == "__metadata__") {
                if (has_metadata) fail("__metadata__ is given twice");
                has_metadata = true;
                read_metadata(json, contents.metadata);
                continue;
            }
            if (contents.tensors.size() == SafetensorsLimits::tensors)
                fail("more than ", SafetensorsLimits::tensors, " tensors");
            TensorView tensor;
            tensor.name = keep(key, scratch, contents);
            read_tensor(json, data, tensor, contents);
            contents.tensors.push_back(tensor);
        }
        json.finish();
        check_coverage(data, contents.tensors);
        contents.by_name = index_names(contents.tensors);
    }

    static void read_metadata(detail::JsonReader& json, Metadata& metadata) {
        json.begin_object();
        std::string_view key;
        std::string key_scratch, value_scratch;
        while (json.next_key(key, key_scratch)) {
            if (key.size() > SafetensorsLimits::name_bytes) fail_long(key);
            if (metadata.size() == SafetensorsLimits::tensors)
                fail("more than ", SafetensorsLimits::tensors, " entries in __metadata__");
            const std::string_view value = json.string(value_scratch);
            if (!metadata.emplace(key, value).second)
                fail("metadata ", detail::in_quotes(key), " is given twice");
        }
    }

    static void read_tensor(detail::JsonReader& json, std::span<const std::byte> data,
                            TensorView& tensor, Contents& contents) {
        bool has_dtype = false, has_shape = false, has_offsets = false;
        std::uint64_t begin = 0, end = 0;
        std::string_view field;
        std::string scratch;
        const auto first = [&](bool& seen) {
            if (std::exchange(seen, true))
                fail("tensor ", detail::in_quotes(tensor.name), " has ", detail::in_quotes(field),
                     " twice");
        };
        json.begin_object();
        while (json.next_key(field, scratch)) {
            if (field == "dtype") {
                first(has_dtype);
                const std::string_view text = json.string(scratch);
                tensor.dtype = parse_dtype(text);
                tensor.dtype_text = tensor.dtype == Dtype::unknown
                                        ? keep(text, scratch, contents)
                                        : std::string_view(dtype_name(tensor.dtype));
            } else if (field == "shape") {
                first(has_shape);
                read_shape(json, tensor);
            } else if (field == "data_offsets") {
                first(has_offsets);
                read_offsets(json, tensor.name, begin, end);
            } else {
                fail("tensor ", detail::in_quotes(tensor.name), " has an unknown field ",
                     detail::in_quotes(field));
            }
        }
        if (!has_dtype || !has_shape || !has_offsets)
            fail("tensor ", detail::in_quotes(tensor.name), " has no ",
                 !has_dtype   ? "dtype"
                 : !has_shape ? "shape"
                              : "data_offsets");
        if (end > data.size())
            fail("tensor ", detail::in_quotes(tensor.name), " ends at byte ", end,
                 ", the file has ", data.size(), " data bytes");
        if (begin > end)
            fail("tensor ", detail::in_quotes(tensor.name), " begins at byte ", begin,
                 " and ends before it, at ", end);
        tensor.bytes =
            data.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin));
        check_size(tensor);
    }

    /// Reads what fits an Index: the product of all non-zero extents must too, so that no product
    /// of some of them can overflow later, not even in an empty tensor.
    static void read_shape(detail::JsonReader& json, TensorView& tensor) {
        constexpr auto most = static_cast<std::uint64_t>(std::numeric_limits<Index>::max());
        std::uint64_t product = 1;
        json.begin_array();
        while (json.next_element()) {
            const std::uint64_t extent = json.unsigned_integer();
            if (tensor.shape.size() == static_cast<Index>(SafetensorsLimits::rank))
                fail("tensor ", detail::in_quotes(tensor.name), " has more than ",
                     SafetensorsLimits::rank, " dimensions");
            const std::uint64_t factor = extent == 0 ? 1 : extent;
            if (product > most / factor) fail_overflow(tensor);
            product *= factor;
            tensor.shape.push_back(static_cast<Index>(extent));
        }
    }

    static void read_offsets(detail::JsonReader& json, std::string_view name, std::uint64_t& begin,
                             std::uint64_t& end) {
        json.begin_array();
        int count = 0;
        while (json.next_element()) {
            const std::uint64_t offset = json.unsigned_integer();
            if (count < 2) (count == 0 ? begin : end) = offset;
            if (++count > 2) break;
        }
        if (count != 2) fail("tensor ", detail::in_quotes(name), " needs 2 data_offsets");
    }

    /// The range must be shape x element size. Of an unknown dtype the element size is not known,
    /// but it is a whole number of bits, and nothing takes no room.
    static void check_size(const TensorView& tensor) {
        constexpr auto most = static_cast<std::uint64_t>(std::numeric_limits<Index>::max());
        std::uint64_t span = 1;  // of the non-zero extents: fits an Index by read_shape
        for (const Index extent : tensor.shape)
            span *= extent == 0 ? 1u : static_cast<std::uint64_t>(extent);
        const auto elements = static_cast<std::uint64_t>(tensor.shape.product());
        const std::uint64_t bytes = tensor.bytes.size();
        if (tensor.dtype == Dtype::unknown) {
            const bool plausible =
                elements == 0 ? bytes == 0
                              : bytes != 0 && bytes <= most / 8 && 8 * bytes % elements == 0;
            if (!plausible)
                fail("tensor ", detail::in_quotes(tensor.name), " has shape ",
                     to_string(tensor.shape), ", which ", bytes, " bytes cannot hold evenly");
            return;
        }
        const auto size = static_cast<std::uint64_t>(element_size(tensor.dtype));
        if (span > most / size) fail_overflow(tensor);
        if (bytes != elements * size)
            fail("tensor ", detail::in_quotes(tensor.name), " has shape ", to_string(tensor.shape),
                 " of ", dtype_name(tensor.dtype), ", which is ", elements * size,
                 " bytes, but data_offsets span ", bytes);
    }

    /// Sorts the tensors by their bytes and checks that those follow one another from the first
    /// data byte to the last.
    static void check_coverage(std::span<const std::byte> data, std::vector<TensorView>& tensors) {
        std::sort(tensors.begin(), tensors.end(), [](const TensorView& a, const TensorView& b) {
            if (a.bytes.data() != b.bytes.data()) return a.bytes.data() < b.bytes.data();
            if (a.bytes.size() != b.bytes.size()) return a.bytes.size() < b.bytes.size();
            return a.name < b.name;
        });
        std::size_t covered = 0;
        for (const TensorView& tensor : tensors) {
            const auto begin = static_cast<std::size_t>(tensor.bytes.data() - data.data());
            if (begin != covered)
                fail("tensor ", detail::in_quotes(tensor.name), " begins at data byte ", begin,
                     ", but the tensors before it end at ", covered, "; there must be no ",
                     begin > covered ? "holes" : "overlaps");
            covered += tensor.bytes.size();  // at most data.size(): the range was checked
        }
        if (covered != data.size())
            fail("the tensors end at data byte ", covered, ", but the file has ", data.size(),
                 " data bytes");
    }

    static std::vector<std::uint32_t> index_names(const std::vector<TensorView>& tensors) {
        std::vector<std::uint32_t> by_name(tensors.size());
        for (std::size_t i = 0; i < by_name.size(); ++i) by_name[i] = static_cast<std::uint32_t>(i);
        std::sort(by_name.begin(), by_name.end(), [&](std::uint32_t a, std::uint32_t b) {
            return tensors[a].name < tensors[b].name;
        });
        for (std::size_t i = 1; i < by_name.size(); ++i)
            if (tensors[by_name[i]].name == tensors[by_name[i - 1]].name)
                fail("tensor ", detail::in_quotes(tensors[by_name[i]].name), " is given twice");
        return by_name;
    }

    /// `text` as a string that lives as long as the contents or the file.
    static std::string_view keep(std::string_view text, const std::string& scratch,
                                 Contents& contents) {
        if (text.data() != scratch.data()) return text;
        return contents.decoded.emplace_back(text);
    }

    /// Names whose beginning and end agree with `name` over more than half its length.
    [[noreturn]] void fail_missing(std::string_view name) const {
        constexpr std::size_t shown = 3;
        std::vector<std::pair<std::size_t, std::string_view>> near;  // best first
        for (const TensorView& tensor : *this) {
            const std::size_t length = std::min(name.size(), tensor.name.size());
            std::size_t head = 0, tail = 0;
            while (head < length && name[head] == tensor.name[head]) ++head;
            while (head + tail < length &&
                   name[name.size() - 1 - tail] == tensor.name[tensor.name.size() - 1 - tail])
                ++tail;
            if (2 * (head + tail) <= name.size()) continue;
            const std::pair<std::size_t, std::string_view> entry(head + tail, tensor.name);
            const auto place = std::find_if(near.begin(), near.end(), [&](const auto& other) {
                return other.first < entry.first;
            });
            near.insert(place, entry);
            if (near.size() > shown) near.pop_back();
        }
        std::string hint = near.empty() ? "" : "; near it:";
        for (const auto& entry : near)
            hint += (hint.back() == ':' ? " " : ", ") + detail::in_quotes(entry.second);
        fail("none of the ", size(), " tensors is called ", detail::in_quotes(name), hint);
    }

    [[noreturn]] static void fail_long(std::string_view name) {
        fail("name ", detail::in_quotes(name), " has ", name.size(), " bytes, the limit is ",
             SafetensorsLimits::name_bytes);
    }

    [[noreturn]] static void fail_overflow(const TensorView& tensor) {
        fail("tensor ", detail::in_quotes(tensor.name), " has a shape whose size overflows");
    }

    std::shared_ptr<const Contents> contents_;
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_IO_SAFETENSORS_HPP
