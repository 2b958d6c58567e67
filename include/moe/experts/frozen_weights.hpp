// SPDX-License-Identifier: MIT
#ifndef MOE_EXPERTS_FROZEN_WEIGHTS_HPP
#define MOE_EXPERTS_FROZEN_WEIGHTS_HPP

#include <cstddef>
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
        : FrozenWeights(weights.count(), weights.rows()) {
        const Isa chosen = isa();
        pack_all(weights.cols(), weights.rows(), options, chosen, [&](Index e, const auto& pack) {
            detail::with_matrix(weights, e, chosen, [&](const auto& w) { pack(w.transpose()); });
        });
    }
    /// Gate and up of the same extents as one matrix.
    FrozenWeights(const Weights<S>& gate, const Weights<S>& up, const FreezeOptions& options)
        : FrozenWeights(up.count(), up.rows()) {
        MOE_ASSERT(
            gate.count() == up.count() && gate.rows() == up.rows() && gate.cols() == up.cols(),
            "gate and up of the same experts");
        const Isa chosen = isa();
        is_gate_up_ = true;
        pack_all(up.cols(), gate_up_columns(up.rows()), options, chosen,
                 [&](Index e, const auto& pack) {
                     detail::with_matrix(gate, e, chosen, [&](const auto& g) {
                         detail::with_matrix(up, e, chosen, [&](const auto& u) {
                             pack(GateUp{kernels_, g.transpose(), u.transpose(), rows_});
                         });
                     });
                 });
    }

    Index count() const { return static_cast<Index>(packed_.size()); }
    /// The kernels to use: panels are read by those they were packed for.
    const KernelTable<S>& kernels() const { return *kernels_; }

    /// Whether each matrix is gate and up, GateUp.
    bool is_gate_up() const { return is_gate_up_; }

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
    /// Memory held.
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
        if (!is_gate_up_) return all;
        Matrix<S> halves(2 * rows_, all.cols());
        for (Index j = 0; j < rows_; ++j) {
            const Index turn = j / gate_up_run * 2 * gate_up_run + j % gate_up_run;
            halves.row(j) = all.row(turn);
            halves.row(rows_ + j) = all.row(turn + gate_up_run);
        }
        return halves;
    }

private:
    FrozenWeights(Index count, Index rows)
        : packed_(static_cast<std::size_t>(count)), rows_(rows) {}

    static Matrix<S> unpacked(const PackedMatrix<S>& packed) {
        Matrix<S> all(packed.cols(), packed.rows());
        const Index width = packed.table()->panel_width;
        for (Index j = 0; j < all.rows(); ++j)
            for (Index p = 0; p < all.cols(); ++p)
                all(j, p) = packed.panel(j / width)[p * width + j % width];
        return all;
    }

    bool is_stored(std::size_t i) const { return i < stored_.size() && !stored_[i].empty(); }

    /// Packs [k, cols] of every expert.
    /// @param with_columns  calls its second argument once, with the right-hand side of an expert
    template <class F>
    void pack_all(Index k, Index cols, const FreezeOptions& options, Isa chosen,
                  const F& with_columns) {
        kernels_ = &moe::kernels<S>(chosen);
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
    Index rows_ = 0;  // of each matrix, of gate alone where there are two
    bool is_gate_up_ = false;
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_EXPERTS_FROZEN_WEIGHTS_HPP
