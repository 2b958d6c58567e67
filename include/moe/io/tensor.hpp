// SPDX-License-Identifier: MIT
#ifndef MOE_IO_TENSOR_HPP
#define MOE_IO_TENSOR_HPP

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include <moe/core/dtype.hpp>
#include <moe/core/error.hpp>
#include <moe/core/types.hpp>
#include <moe/io/limits.hpp>
#include <moe/io/text.hpp>

namespace moe::inline MOE_ABI {

/// The dimensions of a stored tensor, outermost first: 0 to SafetensorsLimits::rank of them, none
/// negative. No dimensions make a scalar.
class Extents {
public:
    Extents() = default;
    /// @throws std::length_error over the rank limit, std::invalid_argument for a negative one
    Extents(std::initializer_list<Index> extents) : Extents(std::span(extents)) {}
    explicit Extents(std::span<const Index> extents) {
        for (const Index extent : extents) push_back(extent);
    }

    void push_back(Index extent) {
        if (extent < 0) detail::fail("moe::Extents: dimension ", extent, " is negative");
        if (size_ == max_rank)
            detail::fail<std::length_error>("moe::Extents: more than ", size_, " dimensions");
        values_[static_cast<std::size_t>(size_++)] = extent;
    }

    Index size() const { return size_; }
    Index operator[](Index i) const { return values_[static_cast<std::size_t>(i)]; }
    const Index* begin() const { return values_.data(); }
    const Index* end() const { return values_.data() + size_; }

    /// Elements in all; a scalar has 1.
    /// @throws std::length_error if that does not fit an Index
    Index product() const {
        Index product = 1;
        for (const Index extent : *this) product = detail::checked_product(product, extent);
        return product;
    }

    friend bool operator==(const Extents& a, const Extents& b) {
        return std::equal(a.begin(), a.end(), b.begin(), b.end());
    }

    /// "[2, 3]"
    friend std::string to_string(const Extents& extents) {
        std::string out = "[";
        for (const Index extent : extents) {
            if (out.size() > 1) out += ", ";
            out += std::to_string(extent);
        }
        return out + "]";
    }

private:
    static constexpr Index max_rank = static_cast<Index>(SafetensorsLimits::rank);

    std::array<Index, SafetensorsLimits::rank> values_{};
    Index size_ = 0;
};

/// A named tensor in somebody else's memory: row-major, little-endian, at any alignment.
///
/// As a matrix it is [rows, cols] with cols its last dimension and rows the product of the others,
/// so one dimension is one row, a scalar is [1, 1], and [E, F, D] is [E F, D].
/// Every function throws FormatError, with the tensor's name, for what it cannot deliver, and
/// std::length_error for a shape whose product does not fit an Index.
struct TensorView {
    std::string_view name;
    Dtype dtype = Dtype::unknown;
    Extents shape;
    std::span<const std::byte> bytes;
    std::string_view dtype_text = {};  ///< as the file spells it, for errors when dtype is unknown

    Index cols() const { return shape.size() == 0 ? 1 : shape[shape.size() - 1]; }
    Index rows() const {
        Index rows = 1;
        for (Index i = 0; i + 1 < shape.size(); ++i) rows = detail::checked_product(rows, shape[i]);
        return rows;
    }

    /// The memory itself as [rows, cols], for S of exactly the stored type (float for F32, ...,
    /// Eigen::half for F16, Eigen::bfloat16 for BF16). Lives as long as the memory does.
    /// @throws FormatError if the type differs or the first byte is not aligned for S; copy() has
    ///         neither condition
    template <class S>
    ConstView<S> matrix() const {
        static_assert(dtype_of<S> != Dtype::unknown && !std::is_same_v<S, bool>,
                      "moe::TensorView::matrix: no stored type is viewed as this scalar");
        if (dtype != dtype_of<S>)
            refuse(dtype_label() + ", not " + dtype_name(dtype_of<S>) + "; copy() converts");
        check_size();
        if (reinterpret_cast<std::uintptr_t>(bytes.data()) % alignof(S) != 0)
            refuse("at an address that is no multiple of " + std::to_string(alignof(S)) +
                   "; copy() does without");
        return {reinterpret_cast<const S*>(bytes.data()), rows(), cols(),
                Eigen::OuterStride<>(cols())};
    }

    /// The values converted to S, [rows, cols], from any alignment.
    ///
    /// To float and double from every type but the 8-bit floats, whose values need scales that are
    /// elsewhere (see BlockCodes): exact where S can hold the value, else rounded to the nearest.
    /// To an integer from integers and booleans (0 or 1), always exact.
    /// @throws FormatError also if a value does not fit an integer S
    template <class S>
    Matrix<S> copy() const {
        static_assert(is_scalar<S> || (std::is_integral_v<S> && !std::is_same_v<S, bool>),
                      "moe::TensorView::copy: converts to float, double and integers");
        check_size();
        Matrix<S> values(rows(), cols());
        const bool known = detail::with_dtype(
            dtype, [&](auto stored) { convert<decltype(stored)::value>(values); });
        if (!known)
            refuse(dtype_label() +
                   ", whose values need scales: decode_row() reads them as moe::BlockCodes");
        return values;
    }

    /// The values of an integer or boolean tensor, [rows, cols].
    Matrix<std::int64_t> integers() const { return copy<std::int64_t>(); }

private:
    template <Dtype stored, class S>
    void convert(Matrix<S>& values) const {
        using Value = decltype(detail::decode<stored>(nullptr));
        if constexpr (std::is_integral_v<S> && std::is_floating_point_v<Value>) {
            refuse(dtype_label() + ", not integers");
        } else {
            const std::byte* from = bytes.data();
            for (Index i = 0; i < values.size(); ++i, from += element_size(stored)) {
                const Value value = detail::decode<stored>(from);
                if constexpr (std::is_integral_v<S>)
                    if (!std::in_range<S>(value))
                        refuse("holding " + std::to_string(value) + ", which does not fit " +
                               std::to_string(8 * sizeof(S)) + " bits");
                values.data()[i] = static_cast<S>(value);
            }
        }
    }

    /// For views made by hand: those of a SafetensorsView always pass.
    void check_size() const {
        if (dtype == Dtype::unknown) refuse(dtype_label() + ", which has no conversion");
        const Index expected = detail::checked_product(shape.product(), element_size(dtype));
        if (bytes.size() != static_cast<std::size_t>(expected))
            refuse(to_string(shape) + " of " + dtype_name(dtype) + " in " +
                   std::to_string(bytes.size()) + " bytes");
    }

    std::string dtype_label() const {
        return dtype == Dtype::unknown ? "of dtype " + detail::in_quotes(dtype_text)
                                       : std::string(dtype_name(dtype));
    }

    [[noreturn]] void refuse(const std::string& what) const {
        detail::fail<FormatError>("moe::TensorView: tensor ", detail::in_quotes(name), " is ",
                                  what);
    }
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_IO_TENSOR_HPP
