// SPDX-License-Identifier: MIT
#ifndef MOE_IO_SAFETENSORS_HPP
#define MOE_IO_SAFETENSORS_HPP

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <moe/core/types.hpp>
#include <moe/io/safetensors_header.hpp>
#include <moe/io/tensor.hpp>
#include <moe/io/tensor_names.hpp>

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
    using Metadata = detail::SafetensorsContents::Metadata;

    /// @param file  the whole file; any alignment (matrix() needs the tensors aligned, copy() not)
    /// @param file_name  how errors of this constructor call it; need not live any longer
    /// @throws FormatError if anything is wrong with it
    explicit SafetensorsView(std::span<const std::byte> file, std::string_view file_name = {})
        : contents_(detail::SafetensorsReader(file_name).read(file)) {}
    explicit SafetensorsView(const std::vector<std::byte>&&,
                             std::string_view = {}) = delete;  // would dangle

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
        if (tensor == nullptr) detail::fail_missing("moe::SafetensorsView", *this, name);
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
    std::shared_ptr<const detail::SafetensorsContents> contents_;
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_IO_SAFETENSORS_HPP
