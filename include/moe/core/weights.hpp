// SPDX-License-Identifier: MIT
#ifndef MOE_CORE_WEIGHTS_HPP
#define MOE_CORE_WEIGHTS_HPP

#include <algorithm>
#include <cstddef>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <moe/core/dtype.hpp>
#include <moe/core/error.hpp>
#include <moe/core/parameters.hpp>
#include <moe/core/random.hpp>
#include <moe/core/types.hpp>

namespace moe::inline MOE_ABI {

/// A [rows, cols] matrix of weights wherever and however it is stored; only viewed.
///
///     W(i, j) = element number i * row_stride + j * col_stride of data
///
/// Owned weights are row-major [out, in]. A view of a checkpoint may be transposed (strides
/// swapped) or interleaved with another matrix (row_stride 2 * cols).
struct WeightView {
    const void* data = nullptr;
    Dtype dtype = Dtype::unknown;
    Index rows = 0, cols = 0;
    Index row_stride = 0, col_stride = 1;  ///< elements
    const void* scales = nullptr;          ///< per row or per block, for dtypes that need them
};

/// One matrix [rows, cols] per expert of a group: owned, stacked in one allocation, or views of
/// memory that the caller keeps alive, one per expert, read-only.
template <class S>
class Weights {
public:
    Weights() = default;
    /// Owned, all zeros.
    Weights(Index count, Index rows, Index cols) : rows_(rows), cols_(cols) { own(count); }
    /// Views, all [rows, cols]; element types may differ.
    explicit Weights(std::vector<WeightView> views) : views_(std::move(views)) {
        if (views_.empty()) return;
        rows_ = views_.front().rows;
        cols_ = views_.front().cols;
        for (const WeightView& view : views_)
            if (view.rows != rows_ || view.cols != cols_)
                detail::fail("moe::Weights: one expert's matrix is [", view.rows, ", ", view.cols,
                             "], the first one's is [", rows_, ", ", cols_, "]");
    }
    /// A copy of owned weights is stacked again; a copy of views is views.
    Weights(const Weights& other) : rows_(other.rows_), cols_(other.cols_), views_(other.views_) {
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
        std::swap(rows_, other.rows_);
        std::swap(cols_, other.cols_);
        return *this;
    }
    ~Weights() = default;

    Index count() const { return static_cast<Index>(is_bound() ? views_.size() : owned_.size()); }
    Index rows() const { return rows_; }
    Index cols() const { return cols_; }
    bool is_bound() const { return !views_.empty(); }

    /// Expert e's matrix, owned or bound.
    WeightView operator[](Index e) const {
        const auto i = static_cast<std::size_t>(e);
        if (is_bound()) return views_[i];
        return {.data = owned_[i].data(), .dtype = dtype_of<S>, .rows = rows_, .cols = cols_,
                .row_stride = cols_, .col_stride = 1};
    }

    /// Expert e's own matrix; bound weights have none.
    Parameter<S>& owned(Index e) { return owned_[static_cast<std::size_t>(e)]; }
    const Parameter<S>& owned(Index e) const { return owned_[static_cast<std::size_t>(e)]; }

    /// Where the gradient of expert e goes; null if it is not wanted.
    S* gradient(Index e) {
        const auto i = static_cast<std::size_t>(e);
        return i < owned_.size() && !owned_[i].empty() ? owned_[i].data() : nullptr;
    }

    /// Normal numbers with mean 0.
    void fill_normal(Random& random, double stddev) {
        for (Parameter<S>& matrix : owned_) random.fill_normal(matrix, stddev);
    }

    /// Turns a copy of bound weights into zeros of its own, for gradients.
    void own_gradients() {
        if (is_bound()) {
            const Index count = this->count();
            views_.clear();
            own(count);
        }
    }

    /// visit("<e>.<name>", matrix) for expert e, if it is owned.
    void visit(Index e, const char* name, auto&& visit) {
        if (static_cast<std::size_t>(e) < owned_.size())
            visit(std::to_string(e) + "." + name, owned_[static_cast<std::size_t>(e)],
                  Role::trainable);
    }

private:
    void own(Index count) {
        const Index each = detail::checked_product(rows_, cols_);
        const Index all = detail::checked_product(count, each);
        const std::shared_ptr<S> memory(detail::allocate<S>(all));
        std::fill_n(memory.get(), all, S(0));
        owned_.resize(static_cast<std::size_t>(count));
        for (Index e = 0; e < count; ++e)
            owned(e) = Parameter<S>(rows_, cols_, memory.get() + e * each, memory);
    }

    Index rows_ = 0, cols_ = 0;
    std::vector<Parameter<S>> owned_;
    std::vector<WeightView> views_;
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_CORE_WEIGHTS_HPP
