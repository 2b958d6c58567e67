// SPDX-License-Identifier: MIT
#ifndef MOE_IO_SAFETENSORS_HEADER_HPP
#define MOE_IO_SAFETENSORS_HEADER_HPP

#include <algorithm>
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
namespace detail {

/// What a safetensors file says, checked.
struct SafetensorsContents {
    using Metadata = std::map<std::string, std::string, std::less<>>;

    std::vector<TensorView> tensors;     ///< by address, then size, then name
    std::vector<std::uint32_t> by_name;  ///< indices into tensors
    Metadata metadata;
    std::deque<std::string> decoded;  ///< strings that held escapes; addresses stay
};

/// Reads and checks a whole file: see SafetensorsView, which is what others use.
class SafetensorsReader {
public:
    /// @param file_name  how errors call the file; empty: not at all
    explicit SafetensorsReader(std::string_view file_name) {
        if (!file_name.empty()) who_ += in_quotes(file_name) + ": ";
    }

    /// @throws FormatError if anything is wrong with it
    std::shared_ptr<const SafetensorsContents> read(std::span<const std::byte> file) const {
        constexpr std::size_t length_bytes = 8;
        if (file.size() < length_bytes)
            fail("a safetensors file has at least 8 bytes, this one has ", file.size());
        const auto length = load<std::uint64_t>(file.data());
        if (length > SafetensorsLimits::header_bytes)
            fail("the header would have ", length, " bytes, the limit is ",
                 SafetensorsLimits::header_bytes, "; is this a safetensors file?");
        if (length > file.size() - length_bytes)
            fail("the header has ", length, " bytes, the file only ", file.size() - length_bytes,
                 " after its length");
        const auto header_bytes = static_cast<std::size_t>(length);
        const std::string_view header(reinterpret_cast<const char*>(file.data()) + length_bytes,
                                      header_bytes);
        const auto contents = std::make_shared<SafetensorsContents>();
        read_header(header, file.subspan(length_bytes + header_bytes), *contents);
        return contents;
    }

private:
    void read_header(std::string_view header, std::span<const std::byte> data,
                     SafetensorsContents& contents) const {
        JsonReader json(header, who_ + "header");
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

    void read_metadata(JsonReader& json, SafetensorsContents::Metadata& metadata) const {
        json.begin_object();
        std::string_view key;
        std::string key_scratch, value_scratch;
        while (json.next_key(key, key_scratch)) {
            if (key.size() > SafetensorsLimits::name_bytes) fail_long(key);
            if (metadata.size() == SafetensorsLimits::tensors)
                fail("more than ", SafetensorsLimits::tensors, " entries in __metadata__");
            const std::string_view value = json.string(value_scratch);
            if (!metadata.emplace(key, value).second)
                fail("metadata ", in_quotes(key), " is given twice");
        }
    }

    void read_tensor(JsonReader& json, std::span<const std::byte> data, TensorView& tensor,
                     SafetensorsContents& contents) const {
        bool has_dtype = false, has_shape = false, has_offsets = false;
        std::uint64_t begin = 0, end = 0;
        std::string_view field;
        std::string scratch;
        const auto first = [&](bool& seen) {
            if (std::exchange(seen, true))
                fail("tensor ", in_quotes(tensor.name), " has ", in_quotes(field), " twice");
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
                fail("tensor ", in_quotes(tensor.name), " has an unknown field ", in_quotes(field));
            }
        }
        if (!has_dtype || !has_shape || !has_offsets)
            fail("tensor ", in_quotes(tensor.name), " has no ",
                 !has_dtype   ? "dtype"
                 : !has_shape ? "shape"
                              : "data_offsets");
        if (end > data.size())
            fail("tensor ", in_quotes(tensor.name), " ends at byte ", end, ", the file has ",
                 data.size(), " data bytes");
        if (begin > end)
            fail("tensor ", in_quotes(tensor.name), " begins at byte ", begin,
                 " and ends before it, at ", end);
        tensor.bytes =
            data.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin));
        check_size(tensor);
    }

    /// Reads what fits an Index: the product of all non-zero extents must too, so that no product
    /// of some of them can overflow later, not even in an empty tensor.
    void read_shape(JsonReader& json, TensorView& tensor) const {
        constexpr auto most = static_cast<std::uint64_t>(std::numeric_limits<Index>::max());
        std::uint64_t product = 1;
        json.begin_array();
        while (json.next_element()) {
            const std::uint64_t extent = json.unsigned_integer();
            if (tensor.shape.size() == static_cast<Index>(SafetensorsLimits::rank))
                fail("tensor ", in_quotes(tensor.name), " has more than ", SafetensorsLimits::rank,
                     " dimensions");
            const std::uint64_t factor = extent == 0 ? 1 : extent;
            if (product > most / factor) fail_overflow(tensor);
            product *= factor;
            tensor.shape.push_back(static_cast<Index>(extent));
        }
    }

    void read_offsets(JsonReader& json, std::string_view name, std::uint64_t& begin,
                      std::uint64_t& end) const {
        json.begin_array();
        int count = 0;
        while (json.next_element()) {
            const std::uint64_t offset = json.unsigned_integer();
            if (count < 2) (count == 0 ? begin : end) = offset;
            if (++count > 2) break;
        }
        if (count != 2) fail("tensor ", in_quotes(name), " needs 2 data_offsets");
    }

    /// The range must be shape x element size. Of an unknown dtype the element size is not known,
    /// but it is a whole number of bits, and nothing takes no room.
    void check_size(const TensorView& tensor) const {
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
                fail("tensor ", in_quotes(tensor.name), " has shape ", to_string(tensor.shape),
                     ", which ", bytes, " bytes cannot hold evenly");
            return;
        }
        const auto size = static_cast<std::uint64_t>(element_size(tensor.dtype));
        if (span > most / size) fail_overflow(tensor);
        if (bytes != elements * size)
            fail("tensor ", in_quotes(tensor.name), " has shape ", to_string(tensor.shape), " of ",
                 dtype_name(tensor.dtype), ", which is ", elements * size,
                 " bytes, but data_offsets span ", bytes);
    }

    /// Sorts the tensors by their bytes and checks that those follow one another from the first
    /// data byte to the last.
    void check_coverage(std::span<const std::byte> data, std::vector<TensorView>& tensors) const {
        std::sort(tensors.begin(), tensors.end(), [](const TensorView& a, const TensorView& b) {
            if (a.bytes.data() != b.bytes.data()) return a.bytes.data() < b.bytes.data();
            if (a.bytes.size() != b.bytes.size()) return a.bytes.size() < b.bytes.size();
            return a.name < b.name;
        });
        std::size_t covered = 0;
        for (const TensorView& tensor : tensors) {
            const auto begin = static_cast<std::size_t>(tensor.bytes.data() - data.data());
            if (begin != covered)
                fail("tensor ", in_quotes(tensor.name), " begins at data byte ", begin,
                     ", but the tensors before it end at ", covered, "; there must be no ",
                     begin > covered ? "holes" : "overlaps");
            covered += tensor.bytes.size();  // at most data.size(): the range was checked
        }
        if (covered != data.size())
            fail("the tensors end at data byte ", covered, ", but the file has ", data.size(),
                 " data bytes");
    }

    std::vector<std::uint32_t> index_names(const std::vector<TensorView>& tensors) const {
        std::vector<std::uint32_t> by_name(tensors.size());
        for (std::size_t i = 0; i < by_name.size(); ++i) by_name[i] = static_cast<std::uint32_t>(i);
        std::sort(by_name.begin(), by_name.end(), [&](std::uint32_t a, std::uint32_t b) {
            return tensors[a].name < tensors[b].name;
        });
        for (std::size_t i = 1; i < by_name.size(); ++i)
            if (tensors[by_name[i]].name == tensors[by_name[i - 1]].name)
                fail("tensor ", in_quotes(tensors[by_name[i]].name), " is given twice");
        return by_name;
    }

    /// `text` as a string that lives as long as the contents or the file.
    static std::string_view keep(std::string_view text, const std::string& scratch,
                                 SafetensorsContents& contents) {
        if (text.data() != scratch.data()) return text;
        return contents.decoded.emplace_back(text);
    }

    [[noreturn]] void fail_long(std::string_view name) const {
        fail("name ", in_quotes(name), " has ", name.size(), " bytes, the limit is ",
             SafetensorsLimits::name_bytes);
    }

    [[noreturn]] void fail_overflow(const TensorView& tensor) const {
        fail("tensor ", in_quotes(tensor.name), " has a shape whose size overflows");
    }

    template <class... Parts>
    [[noreturn]] void fail(const Parts&... parts) const {
        detail::fail<FormatError>(who_, parts...);
    }

    std::string who_ = "moe::SafetensorsView: ";
};

}  // namespace detail
}  // namespace moe::inline MOE_ABI

#endif  // MOE_IO_SAFETENSORS_HEADER_HPP
