// SPDX-License-Identifier: MIT
#ifndef MOE_BENCH_LAYER_STAGES_HPP
#define MOE_BENCH_LAYER_STAGES_HPP

#include <algorithm>
#include <type_traits>
#include <utility>
#include <vector>

#include <benchmark/benchmark.h>

#include <moe/core/executor.hpp>
#include <moe/core/routing.hpp>
#include <moe/kernels/stored_product.hpp>

#include "subject.hpp"

namespace bench {

/// What forward and backward of a float layer consist of, each by itself: the same rows, experts
/// and products, with arrays of its own for what one stage leaves to the next. Experts are cut into
/// pieces of about equal cost, eight for each thread, as layers do.
class Stages {
public:
    /// @param frozen  the same layer, packed, for forward; null if only stages of backward are run
    Stages(Subject& subject, const Frozen* frozen, const moe::Routing& routing,
           moe::Executor& executor, const Matrix& x)
        : subject_(subject),
          frozen_(frozen == nullptr ? nullptr : &frozen->bank().group<0>()),
          kernels_(moe::kernels<float>()),
          executor_(executor),
          x_(x),
          dim_(subject.shape.dim),
          ffn_(subject.shape.ffn),
          experts_(subject.shape.experts),
          tokens_(routing.num_tokens()),
          offsets_(routing.expert_offsets().begin(), routing.expert_offsets().end()) {
        for (Index e = 0; e < experts_; ++e)
            for (const auto token : routing.tokens_of(e)) token_.push_back(token);
        const auto size = [](Index rows, Index stride) {
            return static_cast<std::size_t>(rows * stride);
        };
        rows_.assign(size(std::max(num_rows(), tokens_), stride(dim_)), 0.5f);
        gate_.assign(size(num_rows(), stride(ffn_)), 0.5f);
        du_ = hidden_ = up_ = gate_;
        gate_up_.assign(size(num_rows(), stride(2 * ffn_)), 0.5f);
        out_.assign(size(num_rows(), stride(dim_)), 0.5f);
        y_.setZero(tokens_, dim_);
        logits_.assign(size(tokens_, experts_), 0);
        router_.pack(kernels_, {subject.layer.router().weight.data(), 1, dim_}, dim_, experts_);
        scratch_.assign(size(executor.concurrency(), scratch_size()), 0);
        split(ffn_, 128, ffn_pieces_);
        split(dim_, 512, dim_pieces_);
    }

    /// All products of forward: router, gate and up, down.
    void products() {
        constexpr Index step = 64;
        moe::detail::parallel_for(executor_, (tokens_ + step - 1) / step, 1e12, [&](Index i, int) {
            moe::product(kernels_, std::min(step, tokens_ - i * step), experts_, dim_,
                         {rows_.data() + i * step * stride(dim_), stride(dim_), 1}, router_.view(),
                         logits_.data() + i * step * experts_, experts_, false);
        });
        up();
        down();
    }

    // ---- forward ----

    /// Copies tokens to the rows of their experts.
    void gather() {
        each_row([&](Index row) {
            std::copy_n(x_.row(token(row)).data(), dim_, rows_.data() + row * stride(dim_));
        });
    }
    void up() {
        MOE_ASSERT(ffn_ % moe::gate_up_run == 0, "gate and up have no columns that fill up");
        each(ffn_pieces_, [&](const Piece& piece, float* scratch) {
            product({piece.expert, 2 * piece.begin, 2 * piece.end}, rows_, dim_,
                    frozen_->packed_up().transposed(piece.expert), gate_up_, 2 * ffn_, false,
                    scratch);
        });
    }
    void activate() {
        each_row([&](Index row) {
            kernels_.gate_up(moe::Activation::silu, ffn_, gate_up_.data() + row * stride(2 * ffn_),
                             hidden_.data() + row * stride(ffn_));
        });
    }
    void down() {
        each(dim_pieces_, [&](const Piece& piece, float* scratch) {
            product(piece, hidden_, ffn_, frozen_->packed_down().transposed(piece.expert), out_,
                    dim_, false, scratch);
        });
    }
    /// Adds rows to those of their tokens, some columns at a time, as nobody else writes these.
    void combine() {
        constexpr Index step = 128;
        moe::detail::parallel_for(executor_, (dim_ + step - 1) / step, 1e12, [&](Index i, int) {
            for (Index row = 0; row < num_rows(); ++row)
                kernels_.axpy(std::min(step, dim_ - i * step), 0.5f,
                              out_.data() + row * stride(dim_) + i * step,
                              y_.row(token(row)).data() + i * step);
        });
    }

    // ---- backward: out_ holds dy of every row, gate_ and up_ their gradients, rows_ is x ----

    /// Copies dy to the rows of the experts, times their weights.
    void combine_backward() {
        each_row([&](Index row) {
            kernels_.scale(dim_, 0.5f, x_.row(token(row)).data(), out_.data() + row * stride(dim_));
        });
    }
    /// dh = dy down and d(down) += dy^T h
    void down_backward() {
        const auto& down = std::as_const(subject_.layer).bank().group<0>().down;
        each(ffn_pieces_, [&](const Piece& piece, float* scratch) {
            product(piece, out_, dim_, operand(down[piece.expert]), hidden_, ffn_, false, scratch);
        });
        each(dim_pieces_, [&](const Piece& piece, float* scratch) {
            gradient(piece, out_, dim_, hidden_, ffn_, subject_.gradient().bank().group<0>().down,
                     scratch);
        });
    }
    /// h again, <dh, h>, dg and du
    void activate_backward() {
        each_row([&](Index row) {
            const Index at = row * stride(ffn_);
            float *const g = gate_.data() + at, *const u = up_.data() + at,
                         *const h = hidden_.data() + at;
            kernels_.gate(moe::Activation::silu, ffn_, g, u, h);
            benchmark::DoNotOptimize(kernels_.dot(ffn_, u, h));
            kernels_.scale(ffn_, 0.5f, h, h);
            kernels_.gate_backward(moe::Activation::silu, ffn_, g, u, h, h, du_.data() + at);
        });
    }
    /// dx = dg gate + du up, d(gate) += dg^T x and d(up) += du^T x
    void up_backward() {
        const auto& group = std::as_const(subject_.layer).bank().group<0>();
        each(dim_pieces_, [&](const Piece& piece, float* scratch) {
            product(piece, gate_, ffn_, operand(group.gate[piece.expert]), out_, dim_, false,
                    scratch);
            product(piece, up_, ffn_, operand(group.up[piece.expert]), out_, dim_, true, scratch);
        });
        auto& grad = subject_.gradient().bank().group<0>();
        each(ffn_pieces_, [&](const Piece& piece, float* scratch) {
            gradient(piece, gate_, ffn_, rows_, dim_, grad.gate, scratch);
            gradient(piece, up_, ffn_, rows_, dim_, grad.up, scratch);
        });
    }
    /// Adds rows of dx to those of their tokens.
    void gather_backward() { combine(); }

private:
    /// Columns of a product of expert e, or rows of the gradient of a matrix.
    struct Piece {
        Index expert, begin, end;
    };

    /// Elements from row to row: no power of two, rows so far apart would share sets of a cache.
    static Index stride(Index columns) { return columns + 16; }
    Index scratch_size() const { return moe::product_scratch(kernels_, std::max(dim_, ffn_)); }
    Index at(Index e) const { return offsets_[static_cast<std::size_t>(e)]; }
    Index num_rows() const { return at(experts_); }
    Index token(Index row) const { return token_[static_cast<std::size_t>(row)]; }

    void split(Index columns, Index most, std::vector<Piece>& pieces) const {
        const Index unit = kernels_.panel_width, units = (columns + unit - 1) / unit;
        const double all = static_cast<double>(num_rows()) * static_cast<double>(units);
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
    template <class F>
    void each_row(F&& f) {
        constexpr Index step = 16;
        moe::detail::parallel_for(
            executor_, (num_rows() + step - 1) / step, 1e12, [&](Index i, int) {
                for (Index row = i * step; row < std::min(num_rows(), (i + 1) * step); ++row)
                    f(row);
            });
    }

    static moe::WeightOperand<float> operand(const moe::WeightView& w) {
        return moe::WeightOperand<float>(moe::detail::strided<float>(w));
    }

    /// Columns of in times the expert's matrix.
    void product(const Piece& piece, const std::vector<float>& in, Index in_columns,
                 const moe::WeightOperand<float>& weights, std::vector<float>& out,
                 Index out_columns, bool add, float* scratch) {
        const Index first = at(piece.expert), rows = at(piece.expert + 1) - first;
        moe::product(kernels_, rows, piece.end - piece.begin, in_columns,
                     {in.data() + first * stride(in_columns), stride(in_columns), 1},
                     weights.columns_from(piece.begin),
                     out.data() + first * stride(out_columns) + piece.begin, stride(out_columns),
                     add, scratch);
    }

    /// Rows of the gradient at the expert's matrix: += d^T in.
    void gradient(const Piece& piece, const std::vector<float>& d, Index d_columns,
                  const std::vector<float>& in, Index in_columns, moe::Weights<float>& to,
                  float* scratch) {
        const Index first = at(piece.expert), rows = at(piece.expert + 1) - first;
        moe::product(
            kernels_, piece.end - piece.begin, in_columns, rows,
            {d.data() + first * stride(d_columns) + piece.begin, 1, stride(d_columns)},
            moe::Strided<float>{in.data() + first * stride(in_columns), stride(in_columns), 1},
            to.gradient(piece.expert) + piece.begin * in_columns, in_columns, true, scratch);
    }

    Subject& subject_;
    const std::remove_reference_t<decltype(std::declval<const Frozen&>().bank().group<0>())>*
        frozen_;
    const moe::KernelTable<float>& kernels_;
    moe::Executor& executor_;
    const Matrix& x_;
    Index dim_, ffn_, experts_, tokens_;
    std::vector<Index> offsets_, token_;
    std::vector<float> rows_, gate_up_, gate_, up_, hidden_, du_, out_, logits_, scratch_;
    Matrix y_;
    moe::PackedMatrix<float> router_;
    std::vector<Piece> ffn_pieces_, dim_pieces_;
};

}  // namespace bench

#endif  // MOE_BENCH_LAYER_STAGES_HPP
