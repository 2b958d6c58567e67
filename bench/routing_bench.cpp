// SPDX-License-Identifier: MIT
// Routing from logits: scores, selection, weights, and the sort by expert, of one thread.
//
//   route/...  a gate and Routing::group(), as moe::Head runs them; `tokens` per second. `of_plain`
//              is how many times as fast as the plain loop below they are, `of_sort` the same with
//              our scores in that loop, so that all else is compared; timed in turns, medians.
//              Before that, the two must agree to the bit for those scores.
//   plain/...  that loop: what one writes in an afternoon, with std::exp and std::partial_sort

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <ctime>
#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include <benchmark/benchmark.h>

#include <moe/core/workspace.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/gates/top_p.hpp>
#include <moe/testing/random.hpp>

#include "machine/timing.hpp"

namespace {

using moe::Index;

/// A published model's gate.
struct Model {
    const char* name;
    Index experts;
    moe::TopK gate;
    float p = 0;        ///< above 0: TopP of this p instead
    double spread = 3;  ///< logits lie between this and its negative; small: all experts alike
};

const Model models[] = {
    {"mixtral", 8, {.k = 2}},
    {"olmoe", 64, {.k = 8, .normalize = moe::Normalize::none}},
    {"qwen3", 128, {.k = 8}},
    {"deepseek_v3",
     256,
     {.k = 8,
      .score = moe::Score::sigmoid,
      .normalize = moe::Normalize::add_epsilon,
      .scale = 2.5,
      .selection_bias = true,
      .num_groups = 8,
      .groups_kept = 4,
      .group_score = moe::GroupScore::top_two_sum}},
    {"dynamic_moe", 16, {.normalize = moe::Normalize::none}, 0.4f},
    {"top_p_128_few", 128, {.normalize = moe::Normalize::none}, 0.4f},
    {"top_p_128_half", 128, {.normalize = moe::Normalize::none}, 0.9f},
    {"top_p_128_flat", 128, {.normalize = moe::Normalize::none}, 0.9f, 0.1},
    {"top_p_256_flat", 256, {.normalize = moe::Normalize::none}, 0.9f, 0.1},
};

/// Tokens by expert, and what they weigh there.
struct Plan {
    std::vector<Index> first;           // of each token's assignments
    std::vector<std::int32_t> experts;  // by token
    std::vector<float> weights;         // by token
    std::vector<Index> offsets;         // by expert
    std::vector<std::int32_t> tokens;   // by expert
    std::vector<float> expert_weights;  // by expert
};

/// The same plan as one writes it in an afternoon.
class PlainLoop {
public:
    PlainLoop(const Model& model, const moe::Matrix<float>& bias) : model_(model), bias_(bias) {}

    /// @param library_scores  with moe's vectorised softmax and sigmoid instead of std::exp
    void run(const moe::Matrix<float>& logits, bool library_scores, Plan& plan) {
        library_scores_ = library_scores;
        const Index tokens = logits.rows(), n = model_.experts;
        plan.first.assign(1, 0);
        plan.experts.clear();
        plan.weights.clear();
        for (Index t = 0; t < tokens; ++t) {
            choose(logits.data() + t * n);
            float sum = 0;
            for (const Pair& pair : pairs_) sum += scores_[at(pair.second)];
            const float divisor = model_.gate.normalize == moe::Normalize::none ? 1
                                  : model_.gate.normalize == moe::Normalize::add_epsilon
                                      ? sum + static_cast<float>(model_.gate.epsilon)
                                      : sum;
            for (const Pair& pair : pairs_) {
                const float share = scores_[at(pair.second)] / divisor;
                plan.experts.push_back(pair.second);
                plan.weights.push_back(static_cast<float>(model_.gate.scale) * share);
            }
            plan.first.push_back(static_cast<Index>(plan.experts.size()));
        }
        by_expert(tokens, plan);
    }

private:
    using Pair = std::pair<float, std::int32_t>;
    static std::size_t at(Index i) { return static_cast<std::size_t>(i); }
    static constexpr auto before = [](const Pair& a, const Pair& b) {
        return a.first > b.first || (a.first == b.first && a.second < b.second);
    };

    /// Leaves the scores, and the chosen experts in pairs_.
    void choose(const float* z) {
        const Index n = model_.experts;
        const moe::TopK& gate = model_.gate;
        scores_.resize(at(n));
        if (library_scores_ && gate.score == moe::Score::sigmoid)
            moe::kernels<float>().sigmoid(n, z, scores_.data());
        else if (library_scores_)
            moe::kernels<float>().softmax(n, z, scores_.data());
        else
            score(z);
        keys_.assign(z, z + n);
        if (gate.selection_bias)
            for (Index e = 0; e < n; ++e) keys_[at(e)] = scores_[at(e)] + bias_(0, e);
        if (gate.groups_kept < gate.num_groups) mask_groups();
        pairs_.clear();
        for (Index e = 0; e < n; ++e) pairs_.emplace_back(keys_[at(e)], e);
        if (model_.p == 0) {
            std::partial_sort(pairs_.begin(), pairs_.begin() + gate.k, pairs_.end(), before);
            pairs_.resize(at(gate.k));
        } else {
            std::sort(pairs_.begin(), pairs_.end(), before);
            double sum = 0;
            std::size_t count = 0;
            do sum += static_cast<double>(scores_[at(pairs_[count++].second)]);
            while (static_cast<float>(sum) <= model_.p && count < pairs_.size());
            pairs_.resize(count);
        }
    }

    void score(const float* z) {
        const Index n = model_.experts;
        if (model_.gate.score == moe::Score::sigmoid) {
            for (Index e = 0; e < n; ++e) scores_[at(e)] = 1 / (1 + std::exp(-z[e]));
            return;
        }
        const float most = *std::max_element(z, z + n);
        float sum = 0;
        for (Index e = 0; e < n; ++e) sum += scores_[at(e)] = std::exp(z[e] - most);
        for (Index e = 0; e < n; ++e) scores_[at(e)] /= sum;
    }

    /// Keeps the groups whose two best keys have the largest sums.
    void mask_groups() {
        const Index groups = model_.gate.num_groups, size = model_.experts / groups;
        groups_.clear();
        for (Index g = 0; g < groups; ++g) {
            group_.assign(keys_.begin() + g * size, keys_.begin() + (g + 1) * size);
            std::partial_sort(group_.begin(), group_.begin() + 2, group_.end(), std::greater<>{});
            groups_.emplace_back(group_[0] + group_[1], g);
        }
        const auto kept = groups_.begin() + model_.gate.groups_kept;
        std::partial_sort(groups_.begin(), kept, groups_.end(), before);
        for (auto out = kept; out != groups_.end(); ++out)
            std::fill_n(keys_.begin() + out->second * size, size,
                        -std::numeric_limits<float>::infinity());
    }

    void by_expert(Index tokens, Plan& plan) {
        plan.offsets.assign(at(model_.experts + 1), 0);
        for (const std::int32_t e : plan.experts) ++plan.offsets[at(e + 1)];
        for (Index e = 0; e < model_.experts; ++e) plan.offsets[at(e + 1)] += plan.offsets[at(e)];
        next_.assign(plan.offsets.begin(), plan.offsets.end());
        plan.tokens.resize(plan.experts.size());
        plan.expert_weights.resize(plan.experts.size());
        for (Index t = 0; t < tokens; ++t)
            for (Index a = plan.first[at(t)]; a < plan.first[at(t + 1)]; ++a) {
                const Index place = next_[at(plan.experts[at(a)])]++;
                plan.tokens[at(place)] = static_cast<std::int32_t>(t);
                plan.expert_weights[at(place)] = plan.weights[at(a)];
            }
    }

    const Model& model_;
    const moe::Matrix<float>& bias_;
    bool library_scores_ = false;
    std::vector<float> scores_, keys_, group_;
    std::vector<Pair> pairs_, groups_;
    std::vector<Index> next_;
};

/// One model's gate and the loop, for the same logits.
class Subject {
public:
    Subject(const Model& model, Index tokens)
        : model_(model),
          logits_(moe::testing::random_matrix<float>(tokens, model.experts, 1, model.spread)),
          bias_(moe::testing::random_matrix<float>(1, model.experts, 2, 0.1)),
          plain_(model, bias_) {
        ws_.threads(1);
        moe::Random random(1, 1);
        const moe::Shape shape{.model_dim = 1, .num_experts = model.experts};
        if (model.p > 0)
            top_p_ = moe::TopP{.p = model.p}.build<float>(shape, random);
        else
            top_k_ = model.gate.build<float>(shape, random);
        if (model.gate.selection_bias)
            for (Index e = 0; e < model.experts; ++e) top_k_.bias().data()[e] = bias_(0, e);
    }

    /// As Head::route does after the router's product.
    void route() {
        routing_.reset(logits_.rows(), model_.experts);
        if (model_.p > 0)
            route(top_p_);
        else
            route(top_k_);
    }
    void run_plain(bool library_scores) { plain_.run(logits_, library_scores, plan_); }

    /// Whether both have made the same plan.
    bool agree() const {
        if (routing_.num_assignments() != static_cast<Index>(plan_.experts.size())) return false;
        for (std::size_t a = 0; a < plan_.experts.size(); ++a) {
            const moe::Assignment& ours = routing_.assignments()[a];
            if (ours.expert != plan_.experts[a] ||
                ours.weight != static_cast<double>(plan_.weights[a]))
                return false;
        }
        for (std::size_t row = 0; row < plan_.tokens.size(); ++row) {
            const Index a = routing_.expert_assignments()[row];
            if (routing_.expert_tokens()[row] != plan_.tokens[row] ||
                routing_.weight<float>(a) != plan_.expert_weights[row])
                return false;
        }
        return std::equal(plan_.offsets.begin(), plan_.offsets.end(),
                          routing_.expert_offsets().begin(), routing_.expert_offsets().end());
    }

private:
    template <class Gate>
    void route(const Gate& gate) {
        const moe::Call<float> call{context_, ws_};
        gate.select(logits_, routing_, call);
        routing_.group();
        gate.weigh(logits_, routing_, call);
        routing_.group();
    }

    const Model& model_;
    moe::Matrix<float> logits_, bias_;
    moe::TopKModule<float> top_k_;
    moe::TopPModule<float> top_p_;
    moe::Workspace<float> ws_;
    moe::Context context_;
    moe::Routing routing_;
    PlainLoop plain_;
    Plan plan_;
};

void set_rate(benchmark::State& state) {
    state.counters["tokens"] = benchmark::Counter(static_cast<double>(state.range(0)),
                                                  benchmark::Counter::kIsIterationInvariantRate);
}

/// Clock ticks that f() computes for, many times over; whatever else runs is not counted.
template <class F>
double processor_time(F&& f) {
    const std::clock_t start = std::clock();
    f();
    return static_cast<double>(std::clock() - start);
}

void route(benchmark::State& state, const Model& model) {
    Subject subject(model, state.range(0));
    subject.route();
    subject.run_plain(true);
    if (!subject.agree()) return state.SkipWithError("another plan than that of the plain loop");
    std::vector<double> ours, plain, sort;
    for (int turn = 0; turn < 41; ++turn) {
        ours.push_back(processor_time([&] { subject.route(); }));
        plain.push_back(processor_time([&] { subject.run_plain(false); }));
        sort.push_back(processor_time([&] { subject.run_plain(true); }));
    }
    for (auto _ : state) subject.route();
    set_rate(state);
    state.counters["of_plain"] = machine::median(plain) / machine::median(ours);
    state.counters["of_sort"] = machine::median(sort) / machine::median(ours);
}

void plain(benchmark::State& state, const Model& model) {
    Subject subject(model, state.range(0));
    for (auto _ : state) subject.run_plain(false);
    set_rate(state);
}

const int registered = [] {
    for (const bool ours : {true, false})
        for (const Model& model : models)
            benchmark::RegisterBenchmark(
                (std::string(ours ? "route" : "plain") + "/f32/" + model.name).c_str(),
                ours ? route : plain, model)
                ->ArgName("T")
                ->Arg(64)
                ->Arg(4096)
                ->Threads(1)
                ->Unit(benchmark::kMicrosecond);
    return 0;
}();

}  // namespace
