// SPDX-License-Identifier: MIT
#ifndef MOE_CORE_WEIGHTS_HPP
#define MOE_CORE_WEIGHTS_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <moe/config.hpp>
#include <moe/core/block_codes.hpp>
#include <moe/core/dtype.hpp>
#include <moe/core/error.hpp>
#include <moe/core/parameters.hpp>
#include <moe/core/random.hpp>
#include <moe/core/types.hpp>
#include <moe/kernels/dispatch.hpp>
#include <moe/kernels/pack.hpp>

namespace moe::inline MOE_ABI {

/// A [rows, cols] matrix of weights wherever and however it is stored; only viewed.
///
///     W(i, j) = element number i * row_stride + j * col_stride of data      f64, f32, bf16, f16
///             = float(that element) * scales[i], rounded once               i8
///
/// Owned weights are row-major [out, in]. A view of a checkpoint may be transposed (strides
/// swapped) or interleaved with another matrix (row_stride 2 * cols). Layers of double read f64
/// only, layers of float the other four types, each where it lies: products give the bits that they
/// give with a copy of the values in float.
struct WeightView {
    const void* data = nullptr;
    Dtype dtype = Dtype::unknown;
    Index rows = 0, cols = 0;
    Index row_stride = 0, col_stride = 1;  ///< elements; row_stride 0: cols
    const float* scales = nullptr;         ///< [rows], finite, for i8; null for other dtypes
};

/// One matrix [rows, cols] per expert of a group: owned, stacked in one allocation, or views of
/// memory that an owner or the caller keeps alive, one per expert, read-only; or codes there, which
/// are decoded when they are packed; or deferred, extents without memory.
template <class S>
class Weights {
public:
    Weights() = default;
    /// Owned, all zeros.
    Weights(Index count, Index rows, Index cols) : rows_(rows), cols_(cols) { own(count); }
    /// Views, all [rows, cols], of dtypes that WeightView says, which may differ.
    /// @throws std::invalid_argument if extents differ, if a dtype is none of those, if scales are
    ///         missing, not finite or not wanted, or if a view that is not empty has no data
    /// @param owner  what keeps the memory alive; null: the caller does
    explicit Weights(std::vector<WeightView> views, std::shared_ptr<const void> owner = {})
        : views_(std::move(views)), owner_(std::move(owner)) {
        if (views_.empty()) return;
        rows_ = views_.front().rows;
        cols_ = views_.front().cols;
        for (std::size_t e = 0; e < views_.size(); ++e) {
            check(e);
            if (views_[e].row_stride == 0) views_[e].row_stride = cols_;
            contiguous_ = contiguous_ && (views_[e].col_stride == 1 || cols_ <= 1);
            if constexpr (std::is_same_v<S, float>)
                if (views_[e].dtype != Dtype::f32)
                    narrow_tables_ = &detail::all_narrow_tables<std::int8_t>();
        }
    }
    /// Codes with scales, all [rows, cols]: only freeze() takes them.
    /// @throws std::invalid_argument if extents differ or codes are not such as BlockCodes says
    explicit Weights(std::vector<BlockCodes> codes, std::shared_ptr<const void> owner = {})
        : codes_(std::move(codes)), owner_(std::move(owner)) {
        for (std::size_t e = 0; e < codes_.size(); ++e) {
            if (e == 0) rows_ = codes_[0].rows, cols_ = codes_[0].cols;
            detail::check_block_codes("moe::Weights", codes_[e]);
            check_extents(e, codes_[e].rows, codes_[e].cols);
        }
    }
    /// Extents of matrices that get their memory later.
    static Weights deferred(Index count, Index rows, Index cols) {
        Weights weights;
        weights.deferred_ = count;
        weights.rows_ = rows;
        weights.cols_ = cols;
        return weights;
    }
    /// A copy of owned weights is stacked again; a copy of views is views.
    Weights(const Weights& other)
        : deferred_(other.deferred_),
          rows_(other.rows_),
          cols_(other.cols_),
          contiguous_(other.contiguous_),
          narrow_tables_(other.narrow_tables_),
          views_(other.views_),
          codes_(other.codes_),
          owner_(other.owner_) {
        own(static_cast<Index>(other.owned_.size()));
        for (std::size_t e = 0; e < owned_.size(); ++e) {
            if (other.owned_[e].empty()) owned_[e] = {};
            std::copy_n(other.owned_[e].data(), owned_[e].size(), owned_[e].data());
        }
    }
    Weights(Weights&&) noexcept = default;
    Weights& operator=(Weights other) noexcept {
        std::swap(owned_, other.owned_);
        std::swap(views_, other.views_);
        std::swap(codes_, other.codes_);
        std::swap(owner_, other.owner_);
        std::swap(deferred_, other.deferred_);
        std::swap(rows_, other.rows_);
        std::swap(cols_, other.cols_);
        std::swap(contiguous_, other.contiguous_);
        std::swap(narrow_tables_, other.narrow_tables_);
        return *this;
    }
    ~Weights() = default;

    Index count() const {
        if (is_deferred()) return deferred_;
        return static_cast<Index>(std::max({owned_.size(), views_.size(), codes_.size()}));
    }
    Index rows() const { return rows_; }
    Index cols() const { return cols_; }
    bool is_bound() const { return !views_.empty(); }
    bool is_coded() const { return !codes_.empty(); }
    /// Whether the matrices have no memory yet.
    bool is_deferred() const { return deferred_ > 0; }
    /// Whether the elements of every row lie side by side.
    bool has_contiguous_rows() const { return contiguous_; }

    /// Expert e's matrix, owned or bound.
    /// @throws std::invalid_argument, as all that is asked of one expert, if there is no such one,
    ///         no memory yet, or only codes
    WeightView operator[](Index e) const {
        const auto i = number(e);
        if (is_bound()) return views_[i];
        return {.data = owned_[i].data(),
                .dtype = dtype_of<S>,
                .rows = rows_,
                .cols = cols_,
                .row_stride = cols_,
                .col_stride = 1};
    }

    /// The codes of expert e.
    const BlockCodes& codes(Index e) const {
        MOE_ASSERT(is_coded() && 0 <= e && e < count(), "an expert with codes");
        return codes_[static_cast<std::size_t>(e)];
    }

    /// Whether any matrix is a view of narrower elements than S.
    bool has_narrow() const { return narrow_tables_ != nullptr; }
    /// Whether expert e's matrix is a view of narrower elements than S.
    bool is_narrow(Index e) const { return has_narrow() && views_[number(e)].dtype != dtype_of<S>; }
    /// That matrix, for products with the kernels of `isa`.
    NarrowStrided narrow(Index e, Isa isa) const {
        MOE_ASSERT(is_narrow(e), "a view of narrow elements");
        const WeightView& w = views_[number(e)];
        const NarrowTable& table = *(*narrow_tables_)[static_cast<std::size_t>(isa)];
        return {.data = static_cast<const std::byte*>(w.data),
                .row_stride = w.row_stride,
                .col_stride = w.col_stride,
                .scales = w.scales,
                .scale_row = w.scales == nullptr ? 0 : 1,
                .scale_col = 0,
                .kernels = &table.of(w.dtype)};
    }

    /// Expert e's own matrix; views have none.
    /// @throws std::invalid_argument if the weights are views
    Parameter<S>& owned(Index e) {
        check_owned();
        return owned_[number(e)];
    }
    const Parameter<S>& owned(Index e) const {
        check_owned();
        return owned_[number(e)];
    }

    /// Where the gradient of expert e goes; null if it is not wanted.
    S* gradient(Index e) {
        const auto i = static_cast<std::size_t>(e);
        if (i >= owned_.size() || owned_[i].empty()) return nullptr;
        MOE_ASSERT(owned_[i].size() == rows_ * cols_, "a gradient is as large as its matrix");
        return owned_[i].data();
    }

    /// Normal numbers with mean 0.
    void fill_normal(Random& random, double stddev) {
        for (Parameter<S>& matrix : owned_) random.fill_normal(matrix, stddev);
    }

    /// Values of matrices that own no memory: views, codes, and those without any yet.
    Index num_unowned() const {
        if (!owned_.empty()) return 0;
        return detail::checked_product(count(), detail::checked_product(rows_, cols_));
    }

    /// Turns a copy of bound or deferred weights into zeros of its own, for gradients.
    void own_gradients() {
        if (is_bound() || is_coded() || is_deferred()) *this = Weights(count(), rows_, cols_);
    }

    /// visit("<e>.<name>", matrix) for expert e, if it is owned.
    void visit(Index e, const char* name, auto&& visit) {
        if (static_cast<std::size_t>(e) < owned_.size())
            visit(std::to_string(e) + "." + name, owned_[static_cast<std::size_t>(e)],
                  Role::trainable);
    }

private:
    std::size_t number(Index e) const {
        if (e < 0 || e >= count())
            detail::fail("moe::Weights: there is no matrix of expert ", e, ", there are ", count());
        if (is_deferred())
            detail::fail("moe::Weights: the matrix of expert ", e,
                         " has no memory yet; moe::load or moe::bind gives it some");
        if (is_coded())
            detail::fail("moe::Weights: the matrix of expert ", e,
                         " is codes, which are decoded when they are packed: moe::freeze");
        return static_cast<std::size_t>(e);
    }
    void check_owned() const {
        if (is_bound())
            detail::fail(
                "moe::Weights::owned: these weights are views, which are only read, by weights[e]; "
                "assign Weights(count, rows, cols) to have matrices to write to");
    }

    void check_extents(std::size_t e, Index rows, Index cols) const {
        if (rows != rows_ || cols != cols_)
            detail::fail("moe::Weights: expert ", e, "'s matrix is [", rows, ", ", cols,
                         "], the first one's is [", rows_, ", ", cols_, "]");
    }
    /// Of expert e's view.
    void check(std::size_t e) const {
        const WeightView& view = views_[e];
        check_extents(e, view.rows, view.cols);
        const bool scaled = view.dtype == Dtype::i8;
        if constexpr (std::is_same_v<S, float>) {
            if (view.dtype != Dtype::f32 && view.dtype != Dtype::bf16 && view.dtype != Dtype::f16 &&
                !scaled)
                detail::fail("moe::Weights: expert ", e, "'s matrix holds ", dtype_name(view.dtype),
                             ", only F32, BF16, F16 and I8 can be read where they lie; ",
                             view.dtype == Dtype::unknown ? "set WeightView::dtype"
                                                          : "convert it and view the copy");
        } else if (view.dtype != dtype_of<S>) {
            detail::fail("moe::Weights: expert ", e, "'s matrix holds ", dtype_name(view.dtype),
                         ", only ", dtype_name(dtype_of<S>),
                         " can be read where it lies; convert it and view the copy");
        }
        if (!scaled && view.scales != nullptr)
            detail::fail("moe::Weights: expert ", e, "'s matrix holds ", dtype_name(view.dtype),
                         " and has scales, which are applied to I8 only; multiply them into a copy "
                         "and view that without scales");
        if (scaled && view.scales == nullptr && rows_ != 0 && cols_ != 0)
            detail::fail("moe::Weights: expert ", e,
                         "'s matrix holds I8 but its scales are null; point them to one float for "
                         "each of its ",
                         rows_, " rows");
        for (Index i = 0; view.scales != nullptr && i < rows_; ++i)
            if (!std::isfinite(view.scales[i]))
                detail::fail("moe::Weights: expert ", e, "'s matrix has the scale ", view.scales[i],
                             " in row ", i, "; scales must be finite, mend it");
        if (view.data == nullptr && rows_ != 0 && cols_ != 0)
            detail::fail("moe::Weights: expert ", e, "'s matrix is [", rows_, ", ", cols_,
                         "] but its data is null; point it to the elements");
    }

    void own(Index count) {
        const Index each = detail::checked_product(rows_, cols_);
        const Index all = detail::checked_product(count, each);
        const std::shared_ptr<S> memory(detail::allocate<S>(all));
        std::fill_n(memory.get(), all, S(0));
        owned_.resize(static_cast<std::size_t>(count));
        for (Index e = 0; e < count; ++e)
            owned(e) = Parameter<S>(rows_, cols_, memory.get() + e * each, memory);
    }

    Index deferred_ = 0;  // matrices without memory
    Index rows_ = 0, cols_ = 0;
    bool contiguous_ = true;
    const detail::NarrowTables* narrow_tables_ = nullptr;
    std::vector<Parameter<S>> owned_;
    std::vector<WeightView> views_;
    std::vector<BlockCodes> codes_;
    std::shared_ptr<const void> owner_;  // of what is viewed, if it is not the caller
};

namespace detail {

/// A matrix of weights that are stored in the scalar of the layer.
template <class S>
Strided<S> strided(const WeightView& w) {
    MOE_ASSERT(w.dtype == dtype_of<S>, "weights are stored in the scalar of the layer");
    return {static_cast<const S*>(w.data), w.row_stride, w.col_stride};
}

/// f(W) for expert e's matrix W as it lies in memory: a Strided<S> or, where its elements are
/// narrower, a NarrowStrided for the kernels of `isa`. Codes are decoded for the call.
template <class S, class F>
auto with_matrix(const Weights<S>& weights, Index e, Isa isa, F&& f) {
    if (weights.is_coded()) {
        Buffer<S> decoded;
        const Index rows = weights.rows(), cols = weights.cols();
        S* const to = decoded.resize(checked_product(rows, cols)).data();
        for (Index i = 0; i < rows; ++i) decode_row(weights.codes(e), i, to + i * cols);
        return f(Strided<S>{to, cols, 1});
    }
    if constexpr (std::is_same_v<S, float>)
        if (weights.is_narrow(e)) return f(weights.narrow(e, isa));
    return f(strided<S>(weights[e]));
}

}  // namespace detail
}  // namespace moe::inline MOE_ABI

#endif  // MOE_CORE_WEIGHTS_HPP
