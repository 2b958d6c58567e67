// SPDX-License-Identifier: MIT
#ifndef MOE_KERNELS_PACK_HPP
#define MOE_KERNELS_PACK_HPP

#include <algorithm>
#include <memory>
#include <utility>

#include <moe/config.hpp>
#include <moe/core/error.hpp>
#include <moe/core/memory.hpp>
#include <moe/kernels/table.hpp>

namespace moe::inline MOE_ABI {

/// A matrix in memory with any strides: element (i, j) = data[i * row_stride + j * col_stride].
/// The transpose is the same with the strides exchanged.
template <class S>
struct Strided {
    const S* data;
    Index row_stride;
    Index col_stride;

    Strided transpose() const { return {data, col_stride, row_stride}; }
    /// What begins at element (i, j).
    Strided from(Index i, Index j) const {
        return {data + i * row_stride + j * col_stride, row_stride, col_stride};
    }
    /// The same for NarrowStrided: where it lies, and how many S take the room of its elements.
    const S* address() const { return data; }
    Index in_scalars(Index count) const { return count; }
};

namespace detail {

/// One panel of B, as KernelTable::pack() writes it.
template <class S>
void pack_panel(const KernelTable<S>& table, const Strided<S>& b, Index k, Index cols, S* panel) {
    table.pack(k, cols, b.data, b.row_stride, b.col_stride, panel);
}
/// The same of NarrowStrided and GateUp.
template <class S, class B>
void pack_panel([[maybe_unused]] const KernelTable<S>& table, const B& b, Index k, Index cols,
                S* panel) {
    MOE_ASSERT(b.kernels->panel_width == table.panel_width, "kernels of one instruction set");
    b.pack(k, cols, panel);
}

}  // namespace detail

/// Panels that the columns of a product's right-hand side are cut into; the last may be partial.
template <class S>
Index num_panels(const KernelTable<S>& table, Index cols) {
    return cols / table.panel_width + (cols % table.panel_width != 0 ? 1 : 0);
}

/// Elements that all panels of a [k, cols] matrix take, padding included.
/// @throws std::length_error if they do not fit an Index
template <class S>
Index packed_size(const KernelTable<S>& table, Index k, Index cols) {
    const Index width = detail::checked_product(num_panels(table, cols), table.panel_width);
    return detail::checked_product(k, width);
}

/// Where the panels of a packed [k, cols] matrix lie: panel j at data + j k panel_width, row p of
/// it panel_width elements from p panel_width on.
template <class S>
struct Panels {
    const S* data;
    /// The panels that are read next, as many and as large, and may be prefetched; null if they
    /// are not known.
    const S* ahead = nullptr;
};

/// Packs panels [begin, end) of B to where they belong in the packed matrix that starts at `to`.
/// Different panels may be packed by different tasks.
/// @param b  [k, cols], Strided<S>, NarrowStrided or GateUp; quick where one of the strides is 1
template <class S, class B>
void pack_panels(const KernelTable<S>& table, const B& b, Index k, Index cols, Index begin,
                 Index end, S* to) {
    MOE_ASSERT(0 <= begin && begin <= end && end <= num_panels(table, cols),
               "panels of the matrix");
    const Index width = table.panel_width;
    for (Index j = begin; j < end; ++j)
        detail::pack_panel(table, b.from(0, j * width), k, std::min(width, cols - j * width),
                           to + j * k * width);
}

/// A right-hand side [k, cols] packed once for many products; owns its panels, or views panels that
/// somebody packed before.
template <class S>
class PackedMatrix {
public:
    PackedMatrix() = default;
    PackedMatrix(const PackedMatrix& other) {
        if (other.table_ == nullptr) return;
        if (other.is_view()) {
            *this = of_view(*other.table_, other.k_, other.cols_, other.data_, other.owner_);
            return;
        }
        resize(*other.table_, other.k_, other.cols_);
        std::copy_n(other.data_, packed_size(*table_, k_, cols_), memory_.get());
    }
    /// What was moved from is empty and may be packed again.
    PackedMatrix(PackedMatrix&& other) noexcept { *this = std::move(other); }
    PackedMatrix& operator=(const PackedMatrix& other) { return *this = PackedMatrix(other); }
    PackedMatrix& operator=(PackedMatrix&& other) noexcept {
        memory_ = std::move(other.memory_);
        owner_ = std::move(other.owner_);
        data_ = std::exchange(other.data_, nullptr);
        capacity_ = std::exchange(other.capacity_, 0);
        table_ = std::exchange(other.table_, nullptr);
        k_ = std::exchange(other.k_, 0);
        cols_ = std::exchange(other.cols_, 0);
        return *this;
    }
    ~PackedMatrix() = default;

    /// Panels that lie somewhere, only read; copies are views, too.
    /// @param table   one of the panel width that they were packed for
    /// @param panels  packed_size(table, k, cols) elements, quickest at a multiple of 64 bytes
    /// @param owner   what keeps them alive; null: the caller does
    static PackedMatrix of_view(const KernelTable<S>& table, Index k, Index cols, const S* panels,
                                std::shared_ptr<const void> owner) {
        PackedMatrix view;
        view.owner_ = std::move(owner);
        view.data_ = panels;
        view.table_ = &table;
        view.k_ = k;
        view.cols_ = cols;
        return view;
    }

    /// Makes room for a [k, cols] matrix; the panels are not initialised, and the old ones are
    /// lost. Allocates only if the matrix is larger than any before.
    /// @throws std::length_error if the panels do not fit an Index
    void resize(const KernelTable<S>& table, Index k, Index cols) {
        const Index size = packed_size(table, k, cols);
        owner_.reset();
        if (size > capacity_) {
            memory_.reset();
            data_ = nullptr;
            capacity_ = 0;
            table_ = nullptr;
            k_ = cols_ = 0;
            memory_ = detail::allocate<S>(size);
            capacity_ = size;
        }
        data_ = memory_.get();
        table_ = &table;
        k_ = k;
        cols_ = cols;
    }

    /// resize, then all panels.
    /// @param b  [k, cols], only read during the call
    void pack(const KernelTable<S>& table, Strided<S> b, Index k, Index cols) {
        resize(table, k, cols);
        pack_panels(table, b, k, cols, 0, panels(), memory_.get());
    }

    /// Panels [begin, end) only, after resize; for packing in several tasks.
    /// @param b  as pack_panels() takes it
    template <class B = Strided<S>>
    void pack(const B& b, Index begin, Index end) {
        MOE_ASSERT(table_ != nullptr && !is_view(),
                   "resize() comes before packing some of the panels");
        pack_panels(*table_, b, k_, cols_, begin, end, memory_.get());
    }

    Index rows() const { return k_; }
    Index cols() const { return cols_; }
    /// The table it was packed for, nullptr if nothing was.
    const KernelTable<S>* table() const { return table_; }
    Index panels() const { return table_ ? num_panels(*table_, cols_) : 0; }
    /// Whether the panels are somebody else's.
    bool is_view() const { return data_ != memory_.get(); }
    /// @param j  0 to panels(); the last is where the panels end
    const S* panel(Index j) const {
        MOE_ASSERT(table_ != nullptr && 0 <= j && j <= panels(), "a panel of the matrix");
        return data_ + j * k_ * table_->panel_width;
    }
    /// All panels without the first ones.
    Panels<S> view(Index first = 0) const {
        return {data_ + first * k_ * (table_ ? table_->panel_width : 0)};
    }
    /// Memory held, or viewed.
    Index bytes() const {
        const Index size = is_view() ? packed_size(*table_, k_, cols_) : capacity_;
        return size * static_cast<Index>(sizeof(S));
    }

private:
    std::unique_ptr<S, detail::AlignedDelete> memory_;
    std::shared_ptr<const void> owner_;  // of what is viewed, if it is not the caller
    const S* data_ = nullptr;            // where the panels are
    Index capacity_ = 0;
    const KernelTable<S>* table_ = nullptr;
    Index k_ = 0;
    Index cols_ = 0;
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_KERNELS_PACK_HPP
