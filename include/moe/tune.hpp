// SPDX-License-Identifier: MIT
#ifndef MOE_TUNE_HPP
#define MOE_TUNE_HPP

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <limits>
#include <span>
#include <string_view>
#include <vector>

#include <moe/core/error.hpp>
#include <moe/core/executor.hpp>
#include <moe/core/memory.hpp>
#include <moe/core/plan.hpp>
#include <moe/core/storage.hpp>
#include <moe/core/types.hpp>
#include <moe/core/workspace.hpp>
#include <moe/experts/feed_forward_state.hpp>
#include <moe/io/plan_text.hpp>
#include <moe/kernels/dispatch.hpp>
#include <moe/kernels/product.hpp>
#include <moe/kernels/storage_dispatch.hpp>
#include <moe/kernels/stored_matrix.hpp>
#include <moe/kernels/stored_product.hpp>

namespace moe::inline MOE_ABI {

/// What tune() measures.
struct TuneOptions {
    Index model_dim = 1024;  ///< D of the layers that will run, >= 1
    Index ffn_dim = 1024;    ///< F of their experts, >= 1
    double seconds = 1;      ///< for all of it, about; >= 0. What finds no time is not changed
    /// Who will run them. Null: what a Workspace has by itself, which without OpenMP is one thread,
    /// and serial_flops is not measured then; pass &ws.executor() after ws.threads(n).
    Executor* executor = nullptr;
};

namespace detail {

/// Each step that goes another way than by default has to be quicker by this factor.
inline constexpr double tuning_gain = 1.05;
/// Rounds of measurements that a decision needs.
inline constexpr std::size_t tuning_rounds = 3;
/// Bytes of weights that take turns: more than a second-level cache holds.
inline constexpr Index tuning_bytes = Index{1} << 23;

using Clock = std::chrono::steady_clock;

inline double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

/// The step from which on the second way is to be gone: where the product of all times is least,
/// each step between it and `standard` counting as tuning_gain times slower. So neither a step that
/// was disturbed nor a small gain moves it.
/// @param before, after  seconds of each step, > 0, for either way
/// @returns [0, steps]; steps: never
inline std::size_t crossover(std::span<const double> before, std::span<const double> after,
                             std::size_t standard) {
    const std::size_t steps = before.size();
    std::vector<double> cost(steps + 1, 0.0);  // of going the second way from there on
    for (std::size_t from = 0; from <= steps; ++from) {
        for (std::size_t i = 0; i < steps; ++i)
            cost[from] += std::log(i < from ? before[i] : after[i]);
        const std::size_t moved = from < standard ? standard - from : from - standard;
        cost[from] += static_cast<double>(moved) * std::log(tuning_gain);
    }
    const auto least = std::min_element(cost.begin(), cost.end());
    return *least < cost[standard] ? static_cast<std::size_t>(least - cost.begin()) : standard;
}

/// crossover() of what before(step) and after(step) take: medians of rounds in which both are
/// called at each step, one after the other, as long as there is time.
/// @returns `standard` if that was too little
template <class Before, class After>
std::size_t timed_crossover(std::size_t steps, std::size_t standard, double seconds,
                            Before&& before, After&& after) {
    std::vector<std::vector<double>> times(2 * steps);
    const auto start = Clock::now();
    const auto timed = [](std::vector<double>& to, auto& way, std::size_t step) {
        const auto begin = Clock::now();
        way(step);
        to.push_back(std::max(seconds_since(begin), 1e-9));
    };
    std::size_t rounds = 0;
    for (std::size_t step = 0; seconds_since(start) < seconds;) {
        timed(times[2 * step], before, step);
        timed(times[2 * step + 1], after, step);
        if (++step == steps) ++rounds, step = 0;
    }
    if (rounds < tuning_rounds) return standard;
    std::vector<double> medians[2];
    for (std::size_t i = 0; i < times.size(); ++i) {
        const auto middle = times[i].begin() + static_cast<std::ptrdiff_t>(times[i].size() / 2);
        std::nth_element(times[i].begin(), middle, times[i].end());
        medians[i % 2].push_back(*middle);
    }
    return crossover(medians[0], medians[1], standard);
}

/// Numbers to multiply, no two neighbours equal.
inline Buffer<float> tuning_numbers(Index count) {
    Buffer<float> numbers;
    numbers.resize(count);
    for (Index i = 0; i < count; ++i)
        numbers.data()[i] = static_cast<float>(i * 37 % 101 - 50) * 0x1p-6f;
    return numbers;
}

/// Phases that follow each other in a call: workers wake up for the first.
inline constexpr int tuning_phases = 2;
/// The most operations of a phase that are tried.
inline constexpr double tuning_flops = 1.6e7;

/// Plan::serial_flops, at most twice tuning_flops or what one step of all workers is. Calls with
/// so little work are those of few tokens, which wait for weights: each task multiplies one row.
/// @param weights  at least 4096
inline double tuned_serial_flops(Executor& executor, const Buffer<float>& weights, double seconds) {
    const Index workers = executor.concurrency();
    if (workers <= 1) return Plan{}.serial_flops;
    constexpr Index k = 256, cols = 16, piece = k * cols;
    const KernelTable<float>& table = kernels<float>();
    const Index pieces = weights.size() / piece;
    const Buffer<float> a = tuning_numbers(k);
    const double least = static_cast<double>(workers * 2 * piece);
    const auto flops = [&](std::size_t step) { return std::ldexp(least, static_cast<int>(step)); };
    std::size_t steps = 1, standard = 0;
    while (flops(steps) <= tuning_flops) ++steps;
    while (standard < steps && flops(standard) < Plan{}.serial_flops) ++standard;

    Index first = 0;  // piece of the next phase
    const auto call = [&](Executor& by, std::size_t step) {
        const Index times = Index{1} << step;
        for (int phase = 0; phase < tuning_phases; ++phase, first += workers * times)
            parallel_for(by, workers, flops(step), [&](Index task, int) {
                alignas(apart) float c[cols];
                for (Index i = 0; i < times; ++i)
                    table.columns(1, cols, k, a.data(), k,
                                  weights.data() + (first + task * times + i) % pieces * piece, k,
                                  c, cols, false);
            });
    };
    PlannedExecutor always(executor, 0);
    SerialExecutor serial;
    const std::size_t found = timed_crossover(
        steps, standard, seconds, [&](std::size_t step) { call(serial, step); },
        [&](std::size_t step) { call(always, step); });
    return found == standard ? Plan{}.serial_flops : flops(found);
}

/// Plan::column_rows.
/// @param weights  [ffn_dim, model_dim] several times
inline Index tuned_column_rows(const TuneOptions& options, const Buffer<float>& weights,
                               double seconds) {
    const KernelTable<float>& table = kernels<float>();
    const Index k = options.model_dim, cols = options.ffn_dim;
    const Index most = std::min(table.column_rows, Plan{}.column_rows);
    const Buffer<float> a = tuning_numbers(checked_product(most, k + 16));
    Buffer<float> c = tuning_numbers(checked_product(most, cols));
    Buffer<float> scratch;
    scratch.resize(product_scratch(table, cols));
    Index at = 0;
    const auto multiply = [&](std::size_t step, Index column_rows) {
        product(table, static_cast<Index>(step) + 1, cols, k, Strided<float>{a.data(), k + 16, 1},
                Strided<float>{weights.data() + at, 1, k}, c.data(), cols, false, scratch.data(),
                column_rows);
        at = (at + cols * k) % weights.size();
    };
    const auto steps = static_cast<std::size_t>(most);
    const std::size_t found = timed_crossover(
        steps, steps, seconds, [&](std::size_t step) { multiply(step, most); },
        [&](std::size_t step) { multiply(step, 0); });
    return found == steps ? Plan{}.column_rows : static_cast<Index>(found);
}

/// Plan::tile_rows() of a storage.
/// @param weights  [ffn_dim, model_dim]
inline Index tuned_tile_rows(const TuneOptions& options, Storage storage, const float* weights,
                             double seconds) {
    static constexpr std::array<Index, 15> rows{1,  2,  3,  4,  5,  6,  8, 10,
                                                12, 14, 16, 17, 20, 24, 32};
    constexpr Index never = std::numeric_limits<Index>::max();
    const StorageTable& table = storage_kernels();
    const Index k = options.model_dim, cols = options.ffn_dim, width = table.panel_width;
    std::vector<StoredMatrix> matrices(1);
    matrices[0].pack(storage, table, Strided<float>{weights, 1, k}, k, cols);
    for (Index held = matrices[0].bytes(); held < tuning_bytes; held += matrices[0].bytes())
        matrices.push_back(StoredMatrix(matrices[0]));

    const Compute compute = storage == Storage::bf16 ? Compute::bf16 : Compute::int8;
    const auto from = [](Index least) {
        return Plan{.bf16_tile_rows = least,
                    .int8_tile_rows = least,
                    .block_tile_rows = least,
                    .ternary_tile_rows = least};
    };
    const RowEncoding vectors{&table, compute, k, from(never)};
    const RowEncoding tiles{&table, compute, k, from(1)};
    const Buffer<float> x = tuning_numbers(k + rows.back());
    Buffer<std::byte> encoded;
    Buffer<float> scales, c;
    encoded.resize(checked_product(rows.back(), tiles.stride()));
    scales.resize(rows.back());
    c.resize(rows.back() * feed_forward_width(1));
    const EncodedRows a{encoded.data(), scales.data()};
    for (Index i = 0; i < rows.back(); ++i) tiles.encode(x.data() + i, a.from(i, tiles.stride()));

    std::size_t turn = 0;
    const auto multiply = [&](const RowEncoding& encoding, std::size_t step) {
        const StoredMatrix& b = matrices[turn];
        turn = (turn + 1) % matrices.size();
        const Index together = feed_forward_width(rows[step]);
        for (Index j = 0; j < cols; j += together)
            encoding.multiply(rows[step], std::min(together, cols - j), a, b, j / width, c.data(),
                              together,
                              j + together < cols ? b.panel((j + together) / width) : nullptr);
    };
    const Index usual = Plan{}.tile_rows(storage);
    const auto standard =
        static_cast<std::size_t>(std::lower_bound(rows.begin(), rows.end(), usual) - rows.begin());
    const std::size_t found = timed_crossover(
        rows.size(), standard, seconds, [&](std::size_t step) { multiply(vectors, step); },
        [&](std::size_t step) { multiply(tiles, step); });
    return found == standard ? usual : found == rows.size() ? rows.back() + 1 : rows[found];
}

inline void check_options(const TuneOptions& options) {
    if (options.model_dim < 1)
        fail("moe::tune: model_dim is ", options.model_dim, ", it must be >= 1");
    if (options.ffn_dim < 1) fail("moe::tune: ffn_dim is ", options.ffn_dim, ", it must be >= 1");
    if (!(options.seconds >= 0 && std::isfinite(options.seconds)))
        fail("moe::tune: seconds is ", options.seconds, ", it must be >= 0 and finite");
    if (options.executor != nullptr) check_executor("moe::tune", *options.executor);
}

}  // namespace detail

/// Measures on this machine, with the instruction set in use, where the two ways that Plan speaks
/// of cross: both at rising row counts, by weights that come from behind the second-level cache.
/// What is not at least 5 % quicker stays as in Plan{}, and so does what there was no time for, or
/// what the machine does not have. Call it when nothing else runs, once per kind of machine; keep
/// the plan with to_text(). Results of a layer do not depend on it.
///
/// Takes 16 MiB, or three matrices of floats if they are larger. Asks Linux for the tiles of AMX if
/// it may, as freezing does.
/// @throws std::invalid_argument if an extent is below 1, or seconds negative or not finite
inline Plan tune(const TuneOptions& options = {}) {
    using detail::seconds_since;
    detail::check_options(options);
    const auto start = detail::Clock::now();
    int left = 6;  // measurements to do
    const auto share = [&] {
        return std::max(0.0, options.seconds - seconds_since(start)) / left--;
    };
    Plan plan;
    const Workspace<float> standard;
    Executor& executor = options.executor != nullptr ? *options.executor : standard.executor();
    const Index matrix = detail::checked_product(options.model_dim, options.ffn_dim);
    const Index turns = std::max<Index>(2, detail::tuning_bytes / 4 / matrix);
    const Buffer<float> weights = detail::tuning_numbers(detail::checked_product(matrix, turns));
    plan.serial_flops = detail::tuned_serial_flops(executor, weights, share());
    if (std::string_view(storage_kernels().name) == "amx") {
        const auto rows_of = [&](Storage storage) {
            return detail::tuned_tile_rows(options, storage, weights.data(), share());
        };
        plan.bf16_tile_rows = rows_of(Storage::bf16);
        plan.int8_tile_rows = rows_of(Storage::int8);
        plan.block_tile_rows = rows_of(Storage::int4);
        plan.ternary_tile_rows = rows_of(Storage::ternary);
    }
    left = 1;
    plan.column_rows = detail::tuned_column_rows(options, weights, share());
    return plan;
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_TUNE_HPP
