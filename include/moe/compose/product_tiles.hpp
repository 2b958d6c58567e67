// SPDX-License-Identifier: MIT
#ifndef MOE_COMPOSE_PRODUCT_TILES_HPP
#define MOE_COMPOSE_PRODUCT_TILES_HPP

#include <algorithm>
#include <cstddef>
#include <vector>

#include <moe/core/executor.hpp>
#include <moe/core/memory.hpp>
#include <moe/core/types.hpp>
#include <moe/kernels/dispatch.hpp>
#include <moe/kernels/product.hpp>

namespace moe::inline MOE_ABI::detail {

/// C = A B, or C += A B if `add`: A is [rows, k], B [k, cols], C [rows, cols].
template <class S>
struct MatrixProduct {
    Index rows, cols, k;
    Strided<S> a, b;
    S* c;
    Index c_row;
    bool add = false;

    double flops() const {
        return 2 * static_cast<double>(rows) * static_cast<double>(cols) * static_cast<double>(k);
    }
};

/// Some products of one kind, in parallel over tiles of their results: sums over k are not split,
/// so no bit depends on who computes what. It owns the room to pack in.
template <class S>
class ProductTiles {
public:
    void reserve(Executor& executor) {
        const auto workers = static_cast<std::size_t>(executor.concurrency());
        packing_.resize(std::max(packing_.size(), workers));
        for (Buffer<S>& room : packing_)
            room.resize(product_scratch(kernels<S>(), tile_cols(kernels<S>())));
    }
    /// Bytes of that room.
    static Index bytes(int workers) {
        return workers * product_scratch(kernels<S>(), tile_cols(kernels<S>())) *
               static_cast<Index>(sizeof(S));
    }

    /// @param product_of  product_of(i), i in [0, count); their results are apart
    template <class F>
    void run(Executor& executor, Index count, F&& product_of) {
        const KernelTable<S>& kernel = kernels<S>();
        reserve(executor);
        Index across = 1, down = 1;  // tiles of the widest and of the highest result
        double flops = 0;
        for (Index i = 0; i < count; ++i) {
            const MatrixProduct<S> product = product_of(i);
            across = std::max(across, (product.cols - 1) / tile_cols(kernel) + 1);
            down = std::max(down, (product.rows - 1) / tile_rows + 1);
            flops += product.flops();
        }
        parallel_for(executor, count * down * across, flops, [&](Index task, int worker) {
            const MatrixProduct<S> of = product_of(task / (down * across));
            const Index row = task / across % down * tile_rows;
            const Index col = task % across * tile_cols(kernel);
            if (row >= of.rows || col >= of.cols) return;
            product(kernel, std::min(tile_rows, of.rows - row),
                    std::min(tile_cols(kernel), of.cols - col), of.k, of.a.from(row, 0),
                    Operand<S>(of.b.from(0, col)), of.c + row * of.c_row + col, of.c_row, of.add,
                    packing_[static_cast<std::size_t>(worker)].data());
        });
    }
    void run(Executor& executor, const MatrixProduct<S>& product) {
        run(executor, 1, [&product](Index) { return product; });
    }

private:
    static constexpr Index tile_rows = 128;
    static Index tile_cols(const KernelTable<S>& kernel) { return 4 * kernel.panel_width; }

    std::vector<Buffer<S>> packing_;  // one per worker
};

}  // namespace moe::inline MOE_ABI::detail

#endif  // MOE_COMPOSE_PRODUCT_TILES_HPP
