// SPDX-License-Identifier: MIT
#ifndef MOE_KERNELS_STORED_MATRIX_HPP
#define MOE_KERNELS_STORED_MATRIX_HPP

#include <algorithm>
#include <cstddef>
#include <memory>
#include <utility>

#include <moe/config.hpp>
#include <moe/core/memory.hpp>
#include <moe/kernels/pack.hpp>
#include <moe/kernels/round_weights.hpp>
#include <moe/kernels/storage_table.hpp>

namespace moe::inline MOE_ABI {

/// A right-hand side [k, cols] of products whose elements are rounded to a Storage other than fp32;
/// owns its panels, or views somebody's, laid out as kernels/storage_table.hpp says.
class StoredMatrix {
public:
    StoredMatrix() = default;
    StoredMatrix(const StoredMatrix& other) {
        if (other.empty()) return;
        if (other.is_view()) {
            *this = of_view(other.storage_, *other.table_, other.k_, other.cols_, other.data_,
                            other.owner_);
            return;
        }
        resize(other.storage_, *other.table_, other.k_, other.cols_);
        std::copy_n(other.data_, bytes(), memory_.get());
    }
    /// What was moved from is empty.
    StoredMatrix(StoredMatrix&& other) noexcept
        : memory_(std::move(other.memory_)),
          owner_(std::move(other.owner_)),
          data_(std::exchange(other.data_, nullptr)),
          table_(std::exchange(other.table_, nullptr)),
          storage_(other.storage_),
          k_(std::exchange(other.k_, 0)),
          cols_(std::exchange(other.cols_, 0)) {}
    StoredMatrix& operator=(StoredMatrix other) noexcept {
        std::swap(memory_, other.memory_);
        std::swap(owner_, other.owner_);
        std::swap(data_, other.data_);
        std::swap(table_, other.table_);
        std::swap(storage_, other.storage_);
        std::swap(k_, other.k_);
        std::swap(cols_, other.cols_);
        return *this;
    }
    ~StoredMatrix() = default;

    /// Panels that lie somewhere, only read; copies are views, too. What they hold is not checked:
    /// any bytes are weights, of an error at worst.
    /// @param table   one of the panel width that they were packed for
    /// @param panels  bytes() bytes, quickest at a multiple of 64 bytes, at one of 4 at least
    /// @param owner   what keeps them alive; null: the caller does
    static StoredMatrix of_view(Storage storage, const StorageTable& table, Index k, Index cols,
                                const std::byte* panels, std::shared_ptr<const void> owner) {
        StoredMatrix view;
        view.owner_ = std::move(owner);
        view.data_ = panels;
        view.table_ = &table;
        view.storage_ = storage;
        view.k_ = k;
        view.cols_ = cols;
        return view;
    }

    /// Makes room for a [k, cols] matrix; the panels are not initialised.
    /// @param storage  any but fp32
    /// @throws std::length_error if the panels do not fit an Index
    void resize(Storage storage, const StorageTable& table, Index k, Index cols) {
        auto memory = detail::allocate<std::byte>(size(storage, table.panel_width, k, cols));
        memory_ = std::move(memory);
        owner_.reset();
        data_ = memory_.get();
        storage_ = storage;
        table_ = &table;
        k_ = k;
        cols_ = cols;
    }

    /// Bytes of the panels of a [k, cols] matrix.
    /// @param storage  any but fp32
    /// @throws std::length_error if they do not fit an Index
    static Index size(Storage storage, Index panel_width, Index k, Index cols) {
        MOE_ASSERT(storage != Storage::fp32 && k >= 0 && cols >= 0, "a storage with a layout");
        const PanelLayout layout = panel_layout(storage, panel_width);
        detail::checked_product(k, layout.record_bytes);  // more than the bytes of a panel
        return detail::checked_product(panels(panel_width, cols), layout.bytes(k));
    }

    /// resize, then all panels.
    /// @param b  [k, cols] of weights that detail::check_storable() passes, only read during the
    ///           call
    void pack(Storage storage, const StorageTable& table, Strided<float> b, Index k, Index cols) {
        resize(storage, table, k, cols);
        pack(b, 0, panels());
    }
    /// Panels [begin, end) only, after resize; for packing in several tasks.
    void pack(Strided<float> b, Index begin, Index end) {
        MOE_ASSERT(0 <= begin && begin <= end && end <= panels(), "panels of the matrix");
        MOE_ASSERT(!is_view(), "resize() comes before packing");
        for (Index j = begin; j < end; ++j) round_panel(j, b.from(0, j * table_->panel_width));
    }
    /// The same of NarrowStrided or GateUp; allocates room for one panel of floats.
    template <class B>
    void pack(const B& b, Index begin, Index end) {
        const Index width = table_->panel_width;
        MOE_ASSERT(0 <= begin && begin <= end && end <= panels(), "panels of the matrix");
        MOE_ASSERT(b.kernels->panel_width == width, "kernels of one instruction set");
        Buffer<float> panel;
        panel.resize(detail::checked_product(k_, width));
        for (Index j = begin; j < end; ++j) {
            b.from(0, j * width).pack(k_, std::min(width, cols_ - j * width), panel.data());
            round_panel(j, {panel.data(), width, 1});
        }
    }

    /// Whether nothing was packed.
    bool empty() const { return table_ == nullptr; }
    /// Whether the panels are somebody else's.
    bool is_view() const { return data_ != memory_.get(); }
    Storage storage() const { return storage_; }
    Index rows() const { return k_; }
    Index cols() const { return cols_; }
    /// The table it was packed for, nullptr if nothing was.
    const StorageTable* table() const { return table_; }
    Index panels() const { return empty() ? 0 : panels(table_->panel_width, cols_); }
    /// Records of each panel.
    Index records() const { return PanelLayout::records(k_); }
    PanelLayout layout() const { return panel_layout(storage_, table_->panel_width); }
    Index panel_bytes() const { return layout().bytes(k_); }
    /// @param j  0 to panels(); the last is where the panels end
    const std::byte* panel(Index j) const {
        MOE_ASSERT(!empty() && 0 <= j && j <= panels(), "a panel of the matrix");
        return data_ + j * panel_bytes();
    }
    /// Memory held, or viewed.
    Index bytes() const { return empty() ? 0 : panels() * panel_bytes(); }

    /// [k, cols], the weights as the kernels see them.
    template <class S = float>  // compiled where it is used
    Matrix<S> decode() const {
        Matrix<S> all(k_, cols_);
        if (empty()) return all;
        const Index width = table_->panel_width, scale_bytes = layout().scale_bytes;
        Buffer<float> decoded;
        decoded.resize(records() * record_rows * width);
        for (Index j = 0; j < panels(); ++j) {
            table_->decode(storage_, records(), panel(j) + scale_bytes,
                           reinterpret_cast<const float*>(panel(j)), decoded.data());
            const Index cols = std::min(width, cols_ - j * width);
            for (Index p = 0; p < k_; ++p)
                std::copy_n(decoded.data() + p * width, cols, &all(p, j * width));
        }
        return all;
    }

private:
    /// @param b  the columns of panel j
    void round_panel(Index j, Strided<float> b) {
        const Index width = table_->panel_width;
        detail::round_panel(storage_, width, b, k_, std::min(width, cols_ - j * width),
                            memory_.get() + j * panel_bytes());
    }

    static Index panels(Index panel_width, Index cols) {
        return cols / panel_width + (cols % panel_width != 0 ? 1 : 0);
    }

    std::unique_ptr<std::byte, detail::AlignedDelete> memory_;
    std::shared_ptr<const void> owner_;  // of what is viewed, if it is not the caller
    const std::byte* data_ = nullptr;    // where the panels are
    const StorageTable* table_ = nullptr;
    Storage storage_ = Storage::fp32;
    Index k_ = 0;
    Index cols_ = 0;
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_KERNELS_STORED_MATRIX_HPP
