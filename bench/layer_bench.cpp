// SPDX-License-Identifier: MIT
// Whole layers against the loop over experts written with Eigen, and against the machine.
//
//   forward/f32/SHAPE/T:n/threads:m    a frozen layer, routing included
//   training/f32/SHAPE/T:n/threads:m   forward and backward, all gradients
//
// Rows of one process alternate ours and theirs; figures are medians of 7, of 3 for 2048 tokens.
//   vs_naive   their time over ours          of_limit  our time over max(FLOP / peak, bytes /
//   bandwidth) overhead   share of the layer outside the router's and the two grouped products,
//   these timed
//              alone on gathered rows        max_error  against double, over the largest output
// FLOP peak and read bandwidth are measured here. Bytes are those of the experts that were used.
// Weights of `tiny` stay in the caches (hot); those of the other shapes are larger than the caches
// of most machines (cold).

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include <benchmark/benchmark.h>

#include <moe/moe.hpp>

#include "machine.hpp"
#include "naive_layer.hpp"

namespace {

using moe::Index;
using Matrix = moe::Matrix<float>;
using Layer = moe::Layer<float, moe::LinearRouter, moe::TopK, moe::Swiglu>;

struct LayerShape {
    const char* name;
    Index dim, ffn, experts, k;
};
constexpr LayerShape shapes[] = {{"tiny", 256, 512, 8, 2},
                                 {"mixtral_mini", 1024, 3584, 8, 2},
                                 {"olmoe", 2048, 1024, 64, 8},
                                 {"deepseek_lite", 2048, 1408, 64, 6},
                                 {"qwen3_30b", 2048, 768, 128, 8}};

/// The layer under test; only the last one used is kept, they are large.
struct Subject {
    explicit Subject(const LayerShape& s)
        : shape(s),
          layer(moe::Config{.model_dim = s.dim, .seed = 1}, moe::LinearRouter{},
                moe::TopK{.k = s.k}, moe::Swiglu{.count = s.experts, .ffn_dim = s.ffn}),
          frozen(moe::freeze(layer)),
          naive(s.dim, s.ffn, s.experts, s.k, pointers()) {}

    static Subject& get(const LayerShape& shape) {
        static std::unique_ptr<Subject> current;
        if (!current || current->shape.name != shape.name) {
            current.reset();
            current = std::make_unique<Subject>(shape);
        }
        return *current;
    }

    Layer& gradient() {
        if (!grad) grad = std::make_unique<Layer>(moe::zeros_like(layer));
        return *grad;
    }

    NaiveLayer::WeightPointers pointers() const {
        NaiveLayer::WeightPointers p{layer.router().weight.data(), {}, {}, {}};
        const auto& group = layer.bank().group<0>();
        for (Index e = 0; e < shape.experts; ++e) {
            p.gate.push_back(group.gate.owned(e).data());
            p.up.push_back(group.up.owned(e).data());
            p.down.push_back(group.down.owned(e).data());
        }
        return p;
    }

    LayerShape shape;
    Layer layer;
    decltype(moe::freeze(std::declval<const Layer&>())) frozen;
    NaiveLayer naive;
    std::unique_ptr<Layer> grad;
};

double median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
}

template <class F>
double timed(F&& f) {
    const double start = machine::now();
    f();
    return machine::now() - start;
}

/// One output row in double, straight from the formulas.
double max_error(const Subject& s, const moe::Routing& routing, const Matrix& x, const Matrix& y) {
    const auto& group = s.layer.bank().group<0>();
    double worst = 0, largest = 0;
    for (Index t = 0; t < x.rows(); t += std::max<Index>(1, x.rows() / 2)) {
        const Eigen::VectorXd token = x.row(t).transpose().cast<double>();
        Eigen::VectorXd out = Eigen::VectorXd::Zero(s.shape.dim);
        for (const moe::Assignment& a : routing.of(t)) {
            const auto weights = [&](const moe::Weights<float>& w) {
                return w.owned(a.expert).view().cast<double>();
            };
            const Eigen::ArrayXd g = weights(group.gate) * token, u = weights(group.up) * token;
            const Eigen::VectorXd h = g / (1 + (-g).exp()) * u;
            out += a.weight * (weights(group.down) * h);
        }
        worst = std::max(worst, (out.transpose() - y.row(t).cast<double>()).cwiseAbs().maxCoeff());
        largest = std::max(largest, out.cwiseAbs().maxCoeff());
    }
    return worst / largest;
}

/// The matrix products of a forward pass alone: router, gate and up, down, on rows that are
/// gathered already, split among tasks and into blocks of columns as the layer splits them.
class ProductsAlone {
public:
    ProductsAlone(const Subject& s, const moe::Routing& routing, moe::Executor& executor)
        : s_(s),
          executor_(executor),
          table_(moe::kernels<float>()),
          x_stride_(s.shape.dim + 16),
          h_stride_(s.shape.ffn + 16) {
        const auto rows = static_cast<std::size_t>(routing.num_kept());
        x_.assign(rows * static_cast<std::size_t>(x_stride_), 0.5f);
        g_.assign(rows * static_cast<std::size_t>(h_stride_), 0.5f);
        u_ = g_;
        y_.assign(rows * static_cast<std::size_t>(x_stride_), 0);
        logits_.assign(static_cast<std::size_t>(routing.num_tokens() * s.shape.experts), 0);
        offsets_.assign(routing.expert_offsets().begin(), routing.expert_offsets().end());
        tokens_ = routing.num_tokens();
        packed_router_.pack(table_, {s.layer.router().weight.data(), 1, s.shape.dim}, s.shape.dim,
                            s.shape.experts);
        const auto& group = s.layer.bank().group<0>();
        for (Index e = 0; e < s.shape.experts; ++e) {
            gate_.emplace_back().pack(table_, {group.gate.owned(e).data(), 1, s.shape.dim},
                                      s.shape.dim, s.shape.ffn);
            up_.emplace_back().pack(table_, {group.up.owned(e).data(), 1, s.shape.dim}, s.shape.dim,
                                    s.shape.ffn);
            down_.emplace_back().pack(table_, {group.down.owned(e).data(), 1, s.shape.ffn},
                                      s.shape.ffn, s.shape.dim);
        }
    }

    void run() {
        const Index step = 64;
        moe::detail::parallel_for(executor_, (tokens_ + step - 1) / step, 1e12, [&](Index i, int) {
            const Index count = std::min(step, tokens_ - i * step);
            moe::product(table_, count, s_.shape.experts, s_.shape.dim,
                         {x_.data() + i * step * x_stride_, x_stride_, 1}, packed_router_.view(),
                         logits_.data() + i * step * s_.shape.experts, s_.shape.experts, false);
        });
        const int workers = executor_.concurrency();
        items_.clear();
        const moe::Rows<float> rows{.offsets = offsets_, .from = {}, .to = {}, .weights = {}};
        moe::detail::split_experts(rows, s_.shape.ffn, table_.panel_width, workers, items_);
        const Index step_columns = moe::detail::feed_forward_columns;
        moe::detail::parallel_for(
            executor_, static_cast<Index>(items_.size()), 1e12, [&](Index i, int) {
                const auto& [e, first_column, end] = items_[static_cast<std::size_t>(i)];
                const Index first = at(e), n = at(e + 1) - first;
                const moe::Strided<float> a{x_.data() + first * x_stride_, x_stride_, 1};
                for (Index begin = first_column; begin < end; begin += step_columns)
                    for (const auto& [b, c] : {std::pair{&up_, &u_}, std::pair{&gate_, &g_}})
                        moe::product(table_, n, std::min(step_columns, end - begin), s_.shape.dim,
                                     a, panels(*b, e, begin), c->data() + first * h_stride_ + begin,
                                     h_stride_, false);
            });
        const Index chunk = moe::detail::column_chunk(s_.shape.dim, table_.panel_width, workers, 4,
                                                      moe::detail::feed_forward_down_columns);
        moe::detail::parallel_for(
            executor_, (s_.shape.dim + chunk - 1) / chunk, 1e12, [&](Index i, int) {
                const Index begin = i * chunk, count = std::min(chunk, s_.shape.dim - begin);
                for (Index e = 0; e < s_.shape.experts; ++e) {
                    const Index first = at(e), n = at(e + 1) - first;
                    moe::product(table_, n, count, s_.shape.ffn,
                                 {g_.data() + first * h_stride_, h_stride_, 1},
                                 panels(down_, e, begin), y_.data() + first * x_stride_ + begin,
                                 x_stride_, false);
                }
            });
    }

private:
    /// From column `begin` of expert e's matrix on.
    moe::Panels<float> panels(const std::vector<moe::PackedMatrix<float>>& b, Index e,
                              Index begin) const {
        return {b[static_cast<std::size_t>(e)].panel(begin / table_.panel_width)};
    }
    Index at(Index e) const { return offsets_[static_cast<std::size_t>(e)]; }

    const Subject& s_;
    moe::Executor& executor_;
    const moe::KernelTable<float>& table_;
    Index x_stride_, h_stride_, tokens_ = 0;
    std::vector<float> x_, g_, u_, y_, logits_;
    std::vector<Index> offsets_;
    std::vector<moe::detail::FeedForwardItem> items_;
    moe::PackedMatrix<float> packed_router_;
    std::vector<moe::PackedMatrix<float>> gate_, up_, down_;
};

void run(benchmark::State& state, const LayerShape& shape, Index tokens, int threads,
         bool training) {
    Subject& s = Subject::get(shape);
    const Matrix x = moe::Random(2).normal<float>(tokens, shape.dim, 1),
                 dy = moe::Random(3).normal<float>(tokens, shape.dim, 1);
    Matrix y(tokens, shape.dim), naive_y(tokens, shape.dim), dx(tokens, shape.dim);
    moe::Workspace<float> ws;
    ws.threads(threads);
    NaiveLayer::set_threads(threads);
    const auto ours = [&] {
        if (!training) return s.frozen.forward(x, y, ws);
        s.layer.forward(x, y, ws);
        s.layer.backward(x, dy, dx, s.gradient(), ws);
    };
    const auto theirs = [&] {
        s.naive.forward(x.data(), naive_y.data(), tokens);
        if (training) s.naive.backward(x.data(), dy.data(), dx.data(), tokens);
    };
    ours();
    theirs();
    if (!((y - naive_y).cwiseAbs().maxCoeff() <= 1e-3f * y.cwiseAbs().maxCoeff())) {
        state.SkipWithError("the two layers disagree");
        return;
    }
    std::unique_ptr<ProductsAlone> alone;
    if (!training) alone = std::make_unique<ProductsAlone>(s, ws.routing(), ws.executor());
    std::vector<double> our_times, their_times, alone_times;
    for (auto _ : state) {
        our_times.push_back(timed(ours));
        their_times.push_back(timed(theirs));
        if (alone) alone_times.push_back(timed([&] { alone->run(); }));
        state.SetIterationTime(our_times.back());
    }
    const double time = median(our_times);
    const double rows = static_cast<double>(ws.routing().num_kept());
    const double per_row = 6.0 * static_cast<double>(shape.dim) * static_cast<double>(shape.ffn);
    const double flops =
        (training ? 3 : 1) *
        (per_row * rows + 2.0 * static_cast<double>(tokens * shape.dim * shape.experts));
    double used = 0;
    for (Index e = 0; e < shape.experts; ++e) used += ws.routing().tokens_of(e).empty() ? 0 : 1;
    // Training reads the weights twice and reads and writes their gradients.
    const double bytes =
        used * 12.0 * static_cast<double>(shape.dim * shape.ffn) * (training ? 4 : 1);
    const double limit =
        std::max(flops / machine::peak_flops(threads), bytes / machine::read_bandwidth(threads));
    state.counters["GFLOP/s"] = flops / time / 1e9;
    state.counters["tokens/s"] = static_cast<double>(tokens) / time;
    state.counters["weight_bytes"] = bytes;
    state.counters["of_limit"] = time / limit;
    state.counters["vs_naive"] = median(their_times) / time;
    state.counters["max_error"] = max_error(s, ws.routing(), x, y);
    if (alone) state.counters["overhead"] = (time - median(alone_times)) / time;
}

}  // namespace

int main(int argc, char** argv) {
    for (const LayerShape& shape : shapes)
        for (const bool training : {false, true})
            for (const Index tokens : {1, 8, 32, 128, 512, 2048})
                for (const int threads : {1, 2})
                    benchmark::RegisterBenchmark(
                        (std::string(training ? "training" : "forward") + "/f32/" + shape.name +
                         "/T:" + std::to_string(tokens) + "/threads:" + std::to_string(threads))
                            .c_str(),
                        [=](benchmark::State& state) {
                            run(state, shape, tokens, threads, training);
                        })
                        ->UseManualTime()
                        ->Unit(benchmark::kMillisecond)
                        ->Iterations(tokens > 1000 ? 3 : 7);
    benchmark::Initialize(&argc, argv);
    std::printf(
        "%s, FMA peak %.0f and %.0f GFLOP/s, read bandwidth %.1f and %.1f GB/s (1 and 2 threads)\n",
        moe::name(moe::isa()), machine::peak_flops(1) / 1e9, machine::peak_flops(2) / 1e9,
        machine::read_bandwidth(1) / 1e9, machine::read_bandwidth(2) / 1e9);
    benchmark::RunSpecifiedBenchmarks();
}
