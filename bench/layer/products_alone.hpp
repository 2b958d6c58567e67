// SPDX-License-Identifier: MIT
#ifndef MOE_BENCH_LAYER_PRODUCTS_ALONE_HPP
#define MOE_BENCH_LAYER_PRODUCTS_ALONE_HPP

#include <algorithm>
#include <vector>

#include <moe/core/executor.hpp>
#include <moe/core/routing.hpp>
#include <moe/kernels/product.hpp>

#include "subject.hpp"

namespace bench {

/// The matrix products of a forward pass of a frozen layer and nothing else: router, gate and up,
/// down, on rows that are gathered already. Experts are cut into pieces of columns of about equal
/// cost, eight for each thread, as layers do.
class ProductsAlone {
public:
    ProductsAlone(const Subject& subject, const Frozen& frozen, const moe::Routing& routing,
                  moe::Executor& executor)
        : group_(frozen.bank().group<0>()),
          kernels_(group_.up().kernels()),
          executor_(executor),
          dim_(subject.shape.dim),
          ffn_(subject.shape.ffn),
          experts_(subject.shape.experts),
          tokens_(routing.num_tokens()),
          offsets_(routing.expert_offsets().begin(), routing.expert_offsets().end()) {
        const auto size = [](Index rows, Index stride) {
            return static_cast<std::size_t>(rows * stride);
        };
        x_.assign(size(std::max(routing.num_kept(), tokens_), stride(dim_)), 0.5f);
        gate_.assign(size(routing.num_kept(), stride(ffn_)), 0.5f);
        up_ = gate_;
        y_.assign(size(routing.num_kept(), stride(dim_)), 0);
        logits_.assign(size(tokens_, experts_), 0);
        router_.pack(kernels_, {subject.layer.router().weight.data(), 1, dim_}, dim_, experts_);
        scratch_.assign(size(executor.concurrency(), scratch_size()), 0);
        split(ffn_, 128, hidden_pieces_);
        split(dim_, 512, output_pieces_);
    }

    void run() {
        constexpr Index step = 64;
        moe::detail::parallel_for(executor_, (tokens_ + step - 1) / step, 1e12, [&](Index i, int) {
            moe::product(kernels_, std::min(step, tokens_ - i * step), experts_, dim_,
                         {x_.data() + i * step * stride(dim_), stride(dim_), 1}, router_.view(),
                         logits_.data() + i * step * experts_, experts_, false);
        });
        each(hidden_pieces_, [&](const Piece& piece, float* scratch) {
            multiply(piece, group_.up(), x_, dim_, up_, ffn_, scratch);
            multiply(piece, group_.gate(), x_, dim_, gate_, ffn_, scratch);
        });
        each(output_pieces_, [&](const Piece& piece, float* scratch) {
            multiply(piece, group_.down(), gate_, ffn_, y_, dim_, scratch);
        });
    }

private:
    /// Columns [begin, end) of a product of expert e.
    struct Piece {
        Index expert, begin, end;
    };

    /// Elements from row to row: no power of two, rows so far apart would share sets of a cache.
    static Index stride(Index columns) { return columns + 16; }
    Index scratch_size() const { return moe::product_scratch(kernels_, std::max(dim_, ffn_)); }
    Index at(Index e) const { return offsets_[static_cast<std::size_t>(e)]; }

    void split(Index columns, Index most, std::vector<Piece>& pieces) const {
        const Index unit = kernels_.panel_width, units = (columns + unit - 1) / unit;
        const double all = static_cast<double>(at(experts_)) * static_cast<double>(units);
        for (Index e = 0; e < experts_; ++e) {
            const Index rows = at(e + 1) - at(e);
            if (rows == 0) continue;
            const auto wanted = static_cast<Index>(static_cast<double>(rows * units) /
                                                   (all / (8.0 * executor_.concurrency())));
            const Index parts =
                std::clamp(std::max(wanted, (columns + most - 1) / most), Index{1}, units);
            for (Index part = 0; part < parts; ++part)
                pieces.push_back({e, std::min(columns, units * part / parts * unit),
                                  std::min(columns, units * (part + 1) / parts * unit)});
        }
    }

    template <class F>
    void each(const std::vector<Piece>& pieces, F&& f) {
        moe::detail::parallel_for(
            executor_, static_cast<Index>(pieces.size()), 1e12, [&](Index i, int worker) {
                f(pieces[static_cast<std::size_t>(i)], scratch_.data() + worker * scratch_size());
            });
    }

    template <class Weights>
    void multiply(const Piece& piece, const Weights& weights, const std::vector<float>& in,
                  Index in_columns, std::vector<float>& out, Index out_columns, float* scratch) {
        const Index first = at(piece.expert), rows = at(piece.expert + 1) - first;
        moe::product(kernels_, rows, piece.end - piece.begin, in_columns,
                     {in.data() + first * stride(in_columns), stride(in_columns), 1},
                     weights.transposed(piece.expert).columns_from(piece.begin),
                     out.data() + first * stride(out_columns) + piece.begin, stride(out_columns),
                     false, scratch);
    }

    const std::remove_reference_t<decltype(std::declval<const Frozen&>().bank().group<0>())>&
        group_;
    const moe::KernelTable<float>& kernels_;
    moe::Executor& executor_;
    Index dim_, ffn_, experts_, tokens_;
    std::vector<Index> offsets_;
    std::vector<float> x_, gate_, up_, y_, logits_, scratch_;
    moe::PackedMatrix<float> router_;
    std::vector<Piece> hidden_pieces_, output_pieces_;
};

}  // namespace bench

#endif  // MOE_BENCH_LAYER_PRODUCTS_ALONE_HPP
