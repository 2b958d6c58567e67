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
/// each with a storage of its own. Products are with the transpose.
template <class S>
class FrozenWeights {
public:
    FrozenWeights() = default;

    /// @param options  that detail::check_options() passes, for weights that
    ///                 detail::check_storable() passes
    FrozenWeights(const Weights<S>& weights, const FreezeOptions& options)
        : packed_(static_cast<std::size_t>(weights.count())) {
        const Isa chosen = isa();
        kernels_ = &moe::kernels<S>(chosen);
        SerialExecutor serial;
        Executor& executor = options.executor == nullptr ? serial : *options.executor;
        for (Index e = 0; e < weights.count(); ++e)
            pack(e, options.of(e), weights, chosen, executor);
    }

    Index count() const { return static_cast<Index>(packed_.size()); }
    /// The kernels to use: panels are read by those they were packed for.
    const KernelTable<S>& kernels() const { return *kernels_; }

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

    /// Memory held.
    Index bytes() const {
        Index sum = 0;
        for (const auto& matrix : packed_) sum += matrix.bytes();
        for (const auto& matrix : stored_) sum += matrix.bytes();
        return sum;
    }

    /// [out, in], the weights of expert e as the kernels see them.
    Matrix<S> decode(Index e) const {
        const auto i = static_cast<std::size_t>(e);
        if (is_stored(i)) return stored_[i].template decode<S>().transpose();
        const PackedMatrix<S>& packed = packed_[i];
        Matrix<S> all(packed.cols(), packed.rows());
        const Index width = packed.table()->panel_width;
        for (Index j = 0; j < all.rows(); ++j)
            for (Index p = 0; p < all.cols(); ++p)
                all(j, p) = packed.panel(j / width)[p * width + j % width];
        return all;
    }

private:
    bool is_stored(std::size_t i) const { return i < stored_.size() && !stored_[i].empty(); }

    void pack(Index e, Storage storage, const Weights<S>& weights, Isa chosen, Executor& executor) {
        const auto i = static_cast<std::size_t>(e);
        const auto in_parts = [&](auto& matrix) {
            // Rounding takes about as long as 20 operations.
            const double cost =
                20 * static_cast<double>(weights.rows()) * static_cast<double>(weights.cols());
            detail::parallel_for(executor, matrix.panels(), cost, [&](Index j, int) {
                detail::with_matrix(weights, e, chosen,
                                    [&](const auto& w) { matrix.pack(w.transpose(), j, j + 1); });
            });
        };
        if (storage == Storage::fp32) {
            packed_[i].resize(*kernels_, weights.cols(), weights.rows());
            return in_parts(packed_[i]);
        }
        if constexpr (std::is_same_v<S, float>) {
            stored_.resize(packed_.size());
            stored_[i].resize(storage, storage_kernels(chosen), weights.cols(), weights.rows());
            in_parts(stored_[i]);
        }
    }

    std::vector<PackedMatrix<S>> packed_;
    std::vector<StoredMatrix> stored_;
    const KernelTable<S>* kernels_ = nullptr;
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_EXPERTS_FROZEN_WEIGHTS_HPP
