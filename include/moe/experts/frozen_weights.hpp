// SPDX-License-Identifier: MIT
#ifndef MOE_EXPERTS_FROZEN_WEIGHTS_HPP
#define MOE_EXPERTS_FROZEN_WEIGHTS_HPP

#include <cstddef>
#include <memory>
#include <span>
#include <type_traits>
#include <vector>

#include <moe/core/executor.hpp>
#include <moe/core/freeze.hpp>
#include <moe/core/weights.hpp>
#include <moe/kernels/dispatch.hpp>
#include <moe/kernels/gate_up.hpp>
#include <moe/kernels/storage_dispatch.hpp>
#include <moe/kernels/stored_product.hpp>

namespace moe::inline MOE_ABI {
namespace detail {

/// @param name  of the matrix within its expert
/// @throws std::invalid_argument if a weight is not finite or too large for its storage
template <class S>
void check_storable(const Weights<S>& weights, const char* name, const FreezeOptions& options) {
    if constexpr (std::is_same_v<S, float>) {
        SerialExecutor serial;
        const Isa chosen = isa();
        const double cost = static_cast<double>(weights.rows()) *
                            static_cast<double>(weights.cols() * weights.count());
        parallel_for(options.executor == nullptr ? serial : *options.executor, weights.count(),
                     cost, [&](Index e, int) {
                         if (options.of(e) == Storage::fp32) return;
                         with_matrix(weights, e, chosen, [&](const auto& w) {
                             check_storable(options.of(e), w, weights.rows(), weights.cols(),
                                            name + (" of " + options.name_of(e)));
                         });
                     });
    }
}

}  // namespace detail

/// Extents of a frozen matrix [out, in]; of gate and up together each has them.
struct FrozenExtents {
    Index out = 0, in = 0;
    bool is_gate_up = false;  ///< GateUp

    /// Columns of the right-hand side [in, columns()] that is packed.
    Index columns() const { return is_gate_up ? gate_up_columns(out) : out; }
};

/// The panels of one matrix, and how its weights are stored in them.
struct FrozenPanels {
    Storage storage = Storage::fp32;
    std::span<const std::byte> bytes{};
    std::shared_ptr<const void> owner{};  ///< what keeps them alive; null: somebody else does
};

/// One weight matrix [out, in] per expert in the panels that the kernels read, of the same extents,
/// each with a storage of its own. Products are with the transpose. Gate and up of gated experts
/// are one matrix: GateUp.
template <class S>
class FrozenWeights {
public:
    FrozenWeights() = default;

    /// @param options  that detail::check_options() passes, for weights that
    ///                 detail::check_storable() passes
    FrozenWeights(const Weights<S>& weights, const FreezeOptions& options)
        : FrozenWeights(weights.count(), {.out = weights.rows(), .in = weights.cols()}) {
        const Isa chosen = isa();
        pack_all(options, chosen, [&](Index e, const auto& pack) {
            detail::with_matrix(weights, e, chosen, [&](const auto& w) { pack(w.transpose()); });
        });
    }
    /// Gate and up of the same extents as one matrix.
    FrozenWeights(const Weights<S>& gate, const Weights<S>& up, const FreezeOptions& options)
        : FrozenWeights(up.count(), {.out = up.rows(), .in = up.cols(), .is_gate_up = true}) {
        MOE_ASSERT(
            gate.count() == up.count() && gate.rows() == up.rows() && gate.cols() == up.cols(),
            "gate and up of the same experts");
        const Isa chosen = isa();
        pack_all(options, chosen, [&](Index e, const auto& pack) {
            detail::with_matrix(gate, e, chosen, [&](const auto& g) {
                detail::with_matrix(up, e, chosen, [&](const auto& u) {
                    pack(GateUp{kernels_, g.transpose(), u.transpose(), extents_.out});
                });
            });
        });
    }
    /// Views of panels that were packed for kernels of the same panel width as those in use.
    /// @param all  one per expert, aligned as S at least, best to 64 bytes; of double, fp32 only
    /// @throws std::invalid_argument if they are not panels_size() bytes
    FrozenWeights(const FrozenExtents& extents, const std::vector<FrozenPanels>& all)
        : FrozenWeights(static_cast<Index>(all.size()), extents) {
        const Isa chosen = isa();
        kernels_ = &moe::kernels<S>(chosen);
        for (std::size_t i = 0; i < all.size(); ++i) {
            const FrozenPanels& from = all[i];
            const Index size = panels_size(extents, from.storage, kernels_->panel_width);
            if (from.bytes.size() != static_cast<std::size_t>(size))
                detail::fail("moe::FrozenWeights: expert ", i, "'s panels have ", from.bytes.size(),
                             " bytes, weights stored as ", name(from.storage), " need ", size);
            if (from.storage == Storage::fp32) {
                packed_[i] = PackedMatrix<S>::of_view(*kernels_, extents.in, extents.columns(),
                                                      reinterpret_cast<const S*>(from.bytes.data()),
                                                      from.owner);
            } else if constexpr (std::is_same_v<S, float>) {
                stored_.resize(packed_.size());
                stored_[i] =
                    StoredMatrix::of_view(from.storage, storage_kernels(chosen), extents.in,
                                          extents.columns(), from.bytes.data(), from.owner);
            }
        }
    }

    /// Bytes of the panels of one matrix, a multiple of 64. Kernels of the same panel width read
    /// the same panels, whatever their instruction set: scalar, avx2 and neon have 16 columns,
    /// avx512 and amx 32; in double all have 16.
    /// @throws std::invalid_argument if layers of S have no weights stored so; std::length_error
    static Index panels_size(const FrozenExtents& extents, Storage storage, Index panel_width) {
        detail::checked_product(extents.out, 4 * gate_up_run);  // more than columns() computes with
        const Index columns = extents.columns();
        if (storage != Storage::fp32) {
            if (!std::is_same_v<S, float>)
                detail::fail("moe::FrozenWeights: layers of double have no weights stored as ",
                             name(storage));
            return StoredMatrix::size(storage, panel_width, extents.in, columns);
        }
        const Index panels = columns / panel_width + (columns % panel_width != 0 ? 1 : 0);
        return detail::checked_product(
            detail::checked_product(panels, panel_width * static_cast<Index>(sizeof(S))),
            extents.in);
    }

    Index count() const { return static_cast<Index>(packed_.size()); }
    /// The kernels to use: panels are read by those they were packed for.
    const KernelTable<S>& kernels() const { return *kernels_; }

    /// Whether each matrix is gate and up, GateUp.
    bool is_gate_up() const { return extents_.is_gate_up; }

    /// W^T as the right-hand side of X W^T.
    WeightOperand<S> transposed(Index e) const {
        const auto i = static_cast<std::size_t>(e);
        if (is_stored(i)) return WeightOperand<S>(stored_[i]);
        return WeightOperand<S>(Operand<S>(packed_[i]));
    }
    /// The same, of an expert whose storage is not fp32.
    const StoredMatrix& stored(Index e) const {
        MOE_ASSERT(0 <= e && is_stored(static_cast<std::size_t>(e)), "an expert stored otherwise");
        return stored_[static_cast<std::size_t>(e)];
    }

    /// How the weights of expert e are stored.
    Storage storage(Index e) const {
        const auto i = static_cast<std::size_t>(e);
        return is_stored(i) ? stored_[i].storage() : Storage::fp32;
    }
    /// The panels of expert e as they are in memory.
    std::span<const std::byte> panels(Index e) const {
        const auto i = static_cast<std::size_t>(e);
        const auto between = [](const auto* begin, const auto* end) {
            return std::as_bytes(std::span(begin, end));
        };
        if (is_stored(i))
            return between(stored_[i].panel(0), stored_[i].panel(stored_[i].panels()));
        return between(packed_[i].panel(0), packed_[i].panel(packed_[i].panels()));
    }
    /// Memory held, or viewed.
    Index bytes() const {
        Index sum = 0;
        for (const auto& matrix : packed_) sum += matrix.bytes();
        for (const auto& matrix : stored_) sum += matrix.bytes();
        return sum;
    }

    /// [out, in], the weights of expert e as the kernels see them; of gate and up [2 out, in], the
    /// rows of gate first, as gate_up_proj in most checkpoints.
    Matrix<S> decode(Index e) const {
        const auto i = static_cast<std::size_t>(e);
        const Matrix<S> all = is_stored(i) ? Matrix<S>(stored_[i].template decode<S>().transpose())
                                           : unpacked(packed_[i]);
        if (!is_gate_up()) return all;
        const Index rows = extents_.out;
        Matrix<S> halves(2 * rows, all.cols());
        for (Index j = 0; j < rows; ++j) {
            const Index turn = j / gate_up_run * 2 * gate_up_run + j % gate_up_run;
            halves.row(j) = all.row(turn);
            halves.row(rows + j) = all.row(turn + gate_up_run);
        }
        return halves;
    }

private:
    FrozenWeights(Index count, const FrozenExtents& extents)
        : packed_(static_cast<std::size_t>(count)), extents_(extents) {}

    static Matrix<S> unpacked(const PackedMatrix<S>& packed) {
        Matrix<S> all(packed.cols(), packed.rows());
        const Index width = packed.table()->panel_width;
        for (Index j = 0; j < all.rows(); ++j)
            for (Index p = 0; p < all.cols(); ++p)
                all(j, p) = packed.panel(j / width)[p * width + j % width];
        return all;
    }

    bool is_stored(std::size_t i) const { return i < stored_.size() && !stored_[i].empty(); }

    /// Packs the matrix of every expert.
    /// @param with_columns  calls its second argument once, with the right-hand side of an expert
    template <class F>
    void pack_all(const FreezeOptions& options, Isa chosen, const F& with_columns) {
        kernels_ = &moe::kernels<S>(chosen);
        const Index k = extents_.in, cols = extents_.columns();
        SerialExecutor serial;
        Executor& executor = options.executor == nullptr ? serial : *options.executor;
        const auto in_parts = [&](Index e, auto& matrix) {
            // Rounding takes about as long as 20 operations.
            const double cost = 20 * static_cast<double>(k) * static_cast<double>(cols);
            with_columns(e, [&](const auto& b) {
                detail::parallel_for(executor, matrix.panels(), cost,
                                     [&](Index j, int) { matrix.pack(b, j, j + 1); });
            });
        };
        for (Index e = 0; e < count(); ++e) {
            const auto i = static_cast<std::size_t>(e);
            if (options.of(e) == Storage::fp32) {
                packed_[i].resize(*kernels_, k, cols);
                in_parts(e, packed_[i]);
            } else if constexpr (std::is_same_v<S, float>) {
                stored_.resize(packed_.size());
                stored_[i].resize(options.of(e), storage_kernels(chosen), k, cols);
                in_parts(e, stored_[i]);
            }
        }
    }

    std::vector<PackedMatrix<S>> packed_;
    std::vector<StoredMatrix> stored_;
    const KernelTable<S>* kernels_ = nullptr;
    FrozenExtents extents_;
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_EXPERTS_FROZEN_WEIGHTS_HPP
