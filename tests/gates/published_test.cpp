// SPDX-License-Identifier: MIT
// Gates and routers against what published code and published formulas make of the same logits,
// noise and tokens; see generate_routing.py.

#include <algorithm>
#include <cctype>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <ostream>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <moe/balance/quantile.hpp>
#include <moe/config.hpp>
#include <moe/gates/auction.hpp>
#include <moe/gates/capacity.hpp>
#include <moe/gates/dense_to_sparse.hpp>
#include <moe/gates/dynamic_capacity.hpp>
#include <moe/gates/expert_choice.hpp>
#include <moe/gates/gshard_top_2.hpp>
#include <moe/gates/hybrid_entropy.hpp>
#include <moe/gates/min_p.hpp>
#include <moe/gates/noisy.hpp>
#include <moe/gates/online_pruning.hpp>
#include <moe/gates/product_key.hpp>
#include <moe/gates/ranks.hpp>
#include <moe/gates/relu.hpp>
#include <moe/gates/sinkhorn.hpp>
#include <moe/gates/threshold.hpp>
#include <moe/gates/top_any.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/gates/top_p.hpp>
#include <moe/head.hpp>
#include <moe/routers/attention.hpp>
#include <moe/routers/cosine.hpp>
#include <moe/routers/hash.hpp>
#include <moe/routers/mlp.hpp>
#include <moe/routers/residual.hpp>
#include <moe/routers/token_table.hpp>

#include "golden/golden.hpp"

namespace {

using moe::Capacity;
using moe::CapacityLimit;
using moe::GateNoise;
using moe::Index;
using moe::Matrix;
using moe::Normalize;
using moe::Score;

const golden::File& file() {
    static const golden::File routing("routing");
    return routing;
}

/// A router whose logits are the token, so that a Head runs a gate on given logits.
template <class S>
struct Tokens {
    using Scalar = S;
    void forward(moe::In<S> x, moe::Out<S> logits) const { logits = x; }
    void backward(moe::In<S>, moe::In<S> dlogits, moe::Out<S> dx, Tokens&) const { dx = dlogits; }
};

/// The tensors of one case.
class Tensors {
public:
    explicit Tensors(std::string name) : prefix_(std::move(name) + ".") {}

    bool has(const std::string& what) const {
        return file().view().find(prefix_ + what) != nullptr;
    }
    template <class S>
    Matrix<S> read(const std::string& what) const {
        return file().read<S>(std::string_view(prefix_ + what));
    }
    Matrix<std::int64_t> integers(const std::string& what) const {
        return file().view().integers(prefix_ + what);
    }
    template <class V>
    std::vector<V> list(const std::string& what) const {
        if (!has(what)) return {};
        if constexpr (std::is_integral_v<V>)
            return converted<V>(integers(what));
        else
            return converted<V>(read<double>(what));
    }

private:
    template <class V, class M>
    static std::vector<V> converted(const M& matrix) {
        std::vector<V> values;
        for (Index i = 0; i < matrix.size(); ++i)
            values.push_back(static_cast<V>(matrix.data()[i]));
        return values;
    }

    std::string prefix_;
};

template <class S>
constexpr double tolerance = std::is_same_v<S, double> ? 1e-12 : 1e-5;

template <class Part>
void load(const Tensors& tensors, Part& part) {
    moe::visit_parameters(part, [&](std::string_view name, auto& matrix, moe::Role) {
        using S = std::remove_cvref_t<decltype(*matrix.data())>;
        if (!tensors.has(std::string(name))) return;
        const Matrix<S> values = tensors.read<S>(std::string(name));
        ASSERT_EQ(values.rows(), matrix.rows()) << name;
        ASSERT_EQ(values.cols(), matrix.cols()) << name;
        std::copy_n(values.data(), values.size(), matrix.data());
    });
}

/// Gradients of trainable parameters, where the file has them.
/// @return  how many it has
template <class Part>
int compare_gradients(const Tensors& tensors, const Part& grad) {
    int compared = 0;
    moe::visit_parameters(grad, [&](std::string_view name, const auto& matrix, moe::Role role) {
        using S = std::remove_cvref_t<decltype(*matrix.data())>;
        const std::string what = "grad." + std::string(name);
        if (role != moe::Role::trainable || !tensors.has(what)) return;
        const Eigen::Map<const Matrix<S>> found(matrix.data(), matrix.rows(), matrix.cols());
        EXPECT_TRUE(moe::testing::compare(found, tensors.read<double>(what), tolerance<S>)) << name;
        ++compared;
    });
    return compared;
}

struct Options {
    bool training = false;
    bool is_set = false;     ///< the file has experts in ascending order
    Index experts = 0;       ///< E; 0: as many as logits
    bool restricts = false;  ///< the table of the case says which experts a token may have
    int trainable = 0;       ///< parameters of the gate with a gradient
};

/// What a routing holds for the tokens' experts, as the file does.
struct Plan {
    Matrix<std::int64_t> ids;
    Matrix<double> weights;
};

/// @param slots  of the file; one more is read, so that a token with more is found out
Plan plan_of(const moe::Routing& routing, Index slots, bool is_set) {
    Plan plan{Matrix<std::int64_t>::Constant(routing.num_tokens(), slots + 1, -1),
              Matrix<double>::Zero(routing.num_tokens(), slots + 1)};
    for (Index t = 0; t < routing.num_tokens(); ++t) {
        std::vector<moe::Assignment> own(routing.of(t).begin(), routing.of(t).end());
        const auto works = [](const moe::Assignment& a) {
            return a.dropped == moe::Dropped::no || a.dropped == moe::Dropped::pass_through;
        };
        if (is_set) {
            std::erase_if(own, [&](const moe::Assignment& a) { return !works(a); });
            std::sort(own.begin(), own.end(),
                      [](const auto& a, const auto& b) { return a.expert < b.expert; });
        }
        for (std::size_t i = 0; i < own.size(); ++i) {
            const auto slot = static_cast<Index>(i);
            if (!works(own[i]) || slot > slots) continue;
            plan.ids(t, slot) = own[i].dropped == moe::Dropped::no ? own[i].expert : -2;
            plan.weights(t, slot) = own[i].weight * own[i].input_weight;
        }
    }
    return plan;
}

template <class M>
M with_column(const M& matrix, typename M::Scalar value) {
    M wide = M::Constant(matrix.rows(), matrix.cols() + 1, value);
    wide.leftCols(matrix.cols()) = matrix;
    return wide;
}

/// d(loss)/d(weight) by assignment number, from the file's by token and slot.
template <class S>
std::vector<S> dweights_of(const moe::Routing& routing, const Tensors& tensors, bool is_set) {
    const Matrix<S> given = tensors.read<S>("dweights");
    const Matrix<std::int64_t> ids = tensors.integers("expert_ids");
    std::vector<S> dweights(static_cast<std::size_t>(routing.num_assignments()));
    for (std::size_t a = 0; a < dweights.size(); ++a) {
        const moe::Assignment& own = routing.assignments()[a];
        for (Index k = 0; k < ids.cols(); ++k)
            if (is_set ? ids(own.token, k) == own.expert : k == own.slot)
                dweights[a] = given(own.token, k);
    }
    return dweights;
}

/// Routes the case's logits through a gate and comes back.
template <class S, class Gate>
void check_gate(const Tensors& tensors, const Gate& gate, const Options& options) {
    const Matrix<S> logits = tensors.read<S>("logits");
    const Index experts = options.experts > 0 ? options.experts : logits.cols();
    moe::Head<S, Tokens<S>, Gate> head(
        {.model_dim = logits.cols()}, {}, gate,
        std::vector<moe::ExpertFacts>(static_cast<std::size_t>(experts)));
    load(tensors, head);

    const auto noise = tensors.list<double>("noise");
    const auto importance = tensors.list<double>("token_importance");
    const auto offset = tensors.list<double>("logit_offset");
    const auto offsets = tensors.list<Index>("sequence_offsets");
    const auto token_ids = tensors.list<std::int64_t>("token_ids");
    moe::Context context{.training = options.training,
                         .token_ids = token_ids,
                         .sequence_offsets = offsets,
                         .token_importance = importance,
                         .noise = noise,
                         .logit_offset = offset};
    std::vector<std::uint8_t> allowed(static_cast<std::size_t>(logits.rows() * experts));
    if (options.restricts) {
        moe::TokenTable{tensors.list<std::int32_t>("table"), tensors.integers("table").cols()}
            .allow(context, experts, allowed);
        context.allowed = allowed;
    }

    moe::Workspace<S> ws;
    head.route(logits, ws, context);
    const Matrix<std::int64_t> ids = tensors.integers("expert_ids");
    const Plan plan = plan_of(ws.routing(), ids.cols(), options.is_set);
    ASSERT_TRUE(moe::testing::same_bits(plan.ids, with_column(ids, -1)));
    EXPECT_TRUE(moe::testing::compare(
        plan.weights, with_column(tensors.read<double>("weights"), 0.0), tolerance<S>));

    const auto dweights = dweights_of<S>(ws.routing(), tensors, options.is_set);
    const std::vector<S> none(dweights.size());
    const bool on_input = head.weighs_input();
    auto grad = moe::zeros_like(head);
    Matrix<S> dlogits = Matrix<S>::Zero(logits.rows(), logits.cols());
    head.route_backward(logits,
                        {on_input ? std::span(none) : std::span(dweights),
                         on_input ? std::span(dweights) : std::span<const S>()},
                        dlogits, grad, ws, context);
    EXPECT_TRUE(moe::testing::compare(dlogits, tensors.read<double>("dlogits"), tolerance<S>));
    EXPECT_EQ(compare_gradients(tensors, grad), options.trainable);
}

/// Runs a router that needs token ids only, and compares whom it chooses.
template <class S, class Router>
void check_table(const Tensors& tensors, const Router& router) {
    const Matrix<std::int64_t> ids = tensors.integers("expert_ids");
    moe::Head<S, Router, moe::TopK> head({.model_dim = 1}, router, {.k = ids.cols(), .ones = true},
                                         std::vector<moe::ExpertFacts>(9));
    const auto token_ids = tensors.list<std::int64_t>("token_ids");
    moe::Workspace<S> ws;
    head.route(Matrix<S>::Ones(ids.rows(), 1), ws, {.token_ids = token_ids});
    const Plan plan = plan_of(ws.routing(), ids.cols(), true);
    EXPECT_TRUE(moe::testing::same_bits(plan.ids, with_column(ids, -1)));
}

/// One router, from the tokens of a case to logits and back.
template <class S, class Router>
class RouterRun {
public:
    RouterRun(const Tensors& tensors, const Router& router, moe::WorkspaceBase* previous = nullptr)
        : tensors_(tensors),
          x_(tensors.read<S>("x")),
          result_(tensors.read<double>("result")),
          head_({.model_dim = x_.cols()}, router, {.k = 2},
                std::vector<moe::ExpertFacts>(static_cast<std::size_t>(result_.cols()))),
          context_{.previous = previous} {
        load(tensors, head_);
        head_.route(x_, workspace, context_);
        EXPECT_TRUE(moe::testing::compare(workspace.logits(), result_, tolerance<S>));
    }

    /// @param weights  how many of the router's have a gradient
    void go_back(int weights) {
        const std::vector<S> none(static_cast<std::size_t>(workspace.routing().num_assignments()));
        workspace.dlogits() += tensors_.template read<S>("grad.result");
        auto grad = moe::zeros_like(head_);
        Matrix<S> dx = Matrix<S>::Zero(x_.rows(), x_.cols());
        head_.route_backward(x_, {none}, dx, grad, workspace, context_);
        EXPECT_TRUE(
            moe::testing::compare(dx, tensors_.template read<double>("grad.x"), tolerance<S>));
        EXPECT_EQ(compare_gradients(tensors_, grad), weights);
    }

    moe::Workspace<S> workspace;

private:
    Tensors tensors_;
    Matrix<S> x_;
    Matrix<double> result_;
    moe::Head<S, Router, moe::TopK> head_;
    moe::Context context_;
};

struct Case {
    std::string name;    // of its tensors
    std::string source;  // as the file says
    std::function<void(const Tensors&)> in_double, in_float;

    friend void PrintTo(const Case& c, std::ostream* out) { *out << c.name << ": " << c.source; }
};

/// The table of cases. A source is given in two parts, what is common and what is not.
class Table {
public:
    template <class Gate>
    void gate(const char* name, const char* by, const char* what, const Gate& recipe,
              const Options& options = {}) {
        add(
            name, by, what, [=](const Tensors& t) { check_gate<double>(t, recipe, options); },
            [=](const Tensors& t) { check_gate<float>(t, recipe, options); });
    }
    /// @param weights  how many of the router's have a gradient
    template <class Router>
    void router(const char* name, const char* by, const char* what, const Router& recipe,
                int weights) {
        add(
            name, by, what,
            [=](const Tensors& t) { RouterRun<double, Router>(t, recipe).go_back(weights); },
            [=](const Tensors& t) { RouterRun<float, Router>(t, recipe).go_back(weights); });
    }
    void add(const char* name, const char* by, const char* what,
             std::function<void(const Tensors&)> in_double,
             std::function<void(const Tensors&)> in_float) {
        cases.push_back({name, std::string(by) + what, std::move(in_double), std::move(in_float)});
    }

    std::vector<Case> cases;
};

/// Both layers of MoE++: the second's backward adds to what the first's starts from.
template <class S>
void check_residual(const std::string& name) {
    const moe::MlpRouter mlp{.hidden_dim = 12};
    const moe::GatingResidual<moe::MlpRouter> residual{mlp, 0.75};
    RouterRun<S, moe::MlpRouter> first(Tensors(name + ".0"), mlp);
    RouterRun<S, moe::GatingResidual<moe::MlpRouter>> second(Tensors(name + ".1"), residual,
                                                             &first.workspace);
    second.go_back(3);
    first.go_back(2);
}

template <class S>
void check_token_table(const Tensors& t) {
    check_table<S>(t, moe::TokenTable{t.list<std::int32_t>("table"), t.integers("table").cols()});
}

std::vector<Case> cases() {
    using moe::GroupScore;
    using moe::TieBreak;
    using moe::TopK;
    using moe::WithCapacity;
    using Kind = GateNoise::Kind;
    using Priority = Capacity::Priority;
    using Scope = Capacity::Scope;
    using Second = moe::GShardTop2::Second;
    const Options training{.training = true}, set{.is_set = true};
    const Options training_set{.training = true, .is_set = true};
    constexpr const char* hf = "published: transformers 5.24.0 ";
    constexpr const char* megatron = "published: megatron-core 0.16.1 ";
    constexpr const char* topk =
        "published: megatron-core 0.16.1 topk_routing_with_score_function, ";
    constexpr const char* deepspeed = "published: deepspeed 0.19.8 ";
    constexpr const char* formula = "formula: torch, ";
    const TopK raw_2{.k = 2, .normalize = Normalize::none};
    const TopK raw_1{.k = 1, .normalize = Normalize::none};
    const TopK selected_2{.k = 2, .score = Score::softmax_of_selected};

    // Torch's unsorted top-k has an order of slots of its own, which TieBreak reproduces.
    const TopK deepseek_v3{.k = 3,
                           .score = Score::sigmoid,
                           .normalize = Normalize::add_epsilon,
                           .scale = 2.5,
                           .selection_bias = true,
                           .num_groups = 4,
                           .groups_kept = 2,
                           .group_score = GroupScore::top_two_sum,
                           .tie_break = TieBreak::torch_cpu_unsorted};
    TopK titan = deepseek_v3;
    titan.scale = 1.25;
    const TopK deepseek_v4{.k = 3,
                           .score = Score::sqrt_softplus,
                           .normalize = Normalize::add_epsilon,
                           .scale = 1.5,
                           .selection_bias = true,
                           .tie_break = TieBreak::torch_cpu_unsorted};
    TopK sqrt_softplus = deepseek_v4;
    sqrt_softplus.selection_bias = false;
    sqrt_softplus.tie_break = TieBreak::lower_index;
    const auto ernie = [](double epsilon) {
        return TopK{
            .k = 3, .normalize = Normalize::clamp, .epsilon = epsilon, .selection_bias = true};
    };
    const auto llama4 = [](Index k) {
        return TopK{.k = k,
                    .score = Score::sigmoid,
                    .normalize = Normalize::none,
                    .placement = moe::Placement::input};
    };
    const auto sigmoid = [](Index k) {
        return TopK{.k = k,
                    .score = Score::sigmoid,
                    .normalize = Normalize::add_epsilon,
                    .normalize_single = false};
    };

    const auto switched = [&](Capacity::Overflow overflow) {
        return WithCapacity{raw_1, Capacity{.limit = CapacityLimit::constant(2),
                                            .scope = Scope::sequence,
                                            .overflow = overflow}};
    };
    const auto nllb = [](Second second, bool gumbel, bool after, Priority priority) {
        return WithCapacity{moe::GShardTop2{.second = second,
                                            .gumbel = gumbel,
                                            .normalize = Normalize::clamp,
                                            .epsilon = 1.2e-7,
                                            .normalize_kept_only = after},
                            Capacity{.limit = CapacityLimit::nllb(), .priority = priority}};
    };
    const auto first_come = Priority::k_major;
    const auto r_sample = [&](Priority priority) {
        return WithCapacity{
            moe::Noisy{raw_1, GateNoise{.kind = Kind::gumbel, .weighs = false}},
            Capacity{.limit = CapacityLimit::deepspeed(0.9, 1), .priority = priority}};
    };
    const auto deepspeed_top_k = [](Priority priority) {
        return WithCapacity{
            TopK{.k = 3,
                 .normalize = Normalize::clamp,
                 .epsilon = 1.2e-7,
                 .normalize_kept_only = true},
            Capacity{.limit = CapacityLimit::deepspeed(0.7, 1), .priority = priority}};
    };
    const auto dense_to_sparse = [](double temperature, bool is_hard, bool noisy) {
        return moe::DenseToSparse{
            .temperature = moe::Schedule::constant(temperature),
            .hard_from = is_hard ? 0 : std::numeric_limits<std::uint64_t>::max(),
            .noisy_weights = noisy};
    };
    const moe::DynamicCapacity uni_moe{.p = 0.7, .num_fixed = 2, .jitter = 0.05};
    using Scores = moe::ExpertChoice::Scores;

    Table table;
    table.gate("mixtral", hf, "mixtral", TopK{.k = 2});
    table.gate("qwen3_raw", hf, "qwen3_moe, norm_topk_prob false",
               TopK{.k = 4, .normalize = Normalize::none});
    table.gate("qwen3_normalized", hf, "qwen3_moe, norm_topk_prob true", TopK{.k = 4});
    table.gate("deepseek_v2", hf, "deepseek_v2, group_limited_greedy",
               TopK{.k = 3,
                    .normalize = Normalize::none,
                    .scale = 16,
                    .num_groups = 4,
                    .groups_kept = 2,
                    .group_mask = moe::GroupMask::zero,
                    .tie_break = TieBreak::torch_cpu_unsorted});
    table.gate("deepseek_v3", hf, "deepseek_v3", deepseek_v3);
    table.gate("afmoe", hf, "afmoe",
               TopK{.k = 3,
                    .score = Score::sigmoid,
                    .normalize = Normalize::add_epsilon,
                    .scale = 1.75,
                    .selection_bias = true});
    table.gate("longcat", hf, "longcat_flash",
               TopK{.k = 4,
                    .normalize = Normalize::none,
                    .scale = 6,
                    .selection_bias = true,
                    .tie_break = TieBreak::torch_cpu_unsorted});
    table.gate("ernie4_5", hf, "ernie4_5_moe", ernie(1e-12));
    table.gate("ernie4_5_clamped", hf, "ernie4_5_moe, moe_norm_min 0.75", ernie(0.75));
    table.gate("gpt_oss", hf, "gpt_oss", TopK{.k = 4, .score = Score::softmax_of_selected});
    table.gate("granite", hf, "granitemoe", TopK{.k = 3, .score = Score::softmax_of_selected});
    table.gate("llama4", hf, "llama4", llama4(1), set);
    table.gate("llama4_top_2", hf, "llama4, two experts", llama4(2), set);
    table.gate("dbrx_1", hf, "dbrx, p = 1", TopK{.k = 4, .norm_power = 1});
    table.gate("dbrx_2", hf, "dbrx, p = 2", TopK{.k = 4, .norm_power = 2});
    table.gate("lfm2", hf, "lfm2_moe",
               TopK{.k = 3,
                    .score = Score::sigmoid,
                    .normalize = Normalize::add_epsilon,
                    .epsilon = 1e-6,
                    .scale = 1.5,
                    .selection_bias = true});
    table.gate("deepseek_v4", hf, "deepseek_v4", deepseek_v4);
    table.gate("deepseek_v4_hash", hf, "deepseek_v4, hash layer", sqrt_softplus,
               {.is_set = true, .restricts = true});
    table.gate("switch", hf, "switch_transformers: who comes too late is dropped",
               switched(Capacity::Overflow::drop));
    table.gate("switch_pass_through", formula,
               "switch_transformers 4.x: who comes too late passes with its weight",
               switched(Capacity::Overflow::pass_through));
    table.gate("nllb_all", hf, "nllb_moe, all, normalised after dropping",
               nllb(Second::all, false, true, first_come), training_set);
    table.gate("nllb_before", hf, "nllb_moe, all, normalised before dropping",
               nllb(Second::all, false, false, first_come), training_set);
    table.gate("nllb_prioritized", hf, "nllb_moe, all, batch-prioritised",
               nllb(Second::all, false, true, Priority::batch_prioritized), training_set);
    table.gate("nllb_sampling", hf, "nllb_moe, sampling", nllb(Second::all, true, true, first_come),
               training_set);
    table.gate("nllb_random", hf, "nllb_moe, random",
               nllb(Second::random_raw, false, true, first_come), training_set);

    table.gate("megatron_softmax", topk, "softmax",
               TopK{.k = 3, .score = Score::softmax_of_selected}, set);
    table.gate("megatron_pre_softmax", topk, "softmax before top-k, scaled",
               TopK{.k = 3, .normalize = Normalize::none, .scale = 2.5}, set);
    table.gate("megatron_sigmoid", topk, "sigmoid", sigmoid(3), set);
    table.gate("megatron_sigmoid_1", topk, "sigmoid, one expert", sigmoid(1), set);
    table.gate("megatron_groups", topk, "sigmoid, bias, groups, scaled",
               TopK{.k = 4,
                    .score = Score::sigmoid,
                    .normalize = Normalize::add_epsilon,
                    .scale = 2.5,
                    .selection_bias = true,
                    .num_groups = 4,
                    .groups_kept = 2,
                    .group_score = GroupScore::top_sum},
               set);
    table.gate("megatron_softmax_groups", topk, "softmax, groups by the sum of 3",
               TopK{.k = 3,
                    .normalize = Normalize::none,
                    .num_groups = 3,
                    .groups_kept = 1,
                    .group_score = GroupScore::top_sum},
               set);
    table.gate("megatron_drop_probs", megatron, "apply_router_token_dropping, probs",
               WithCapacity{selected_2, Capacity{.limit = CapacityLimit::megatron(0.7),
                                                 .priority = Priority::probability}},
               set);
    table.gate("megatron_drop_position", "formula: numpy, ",
               "Megatron-LM's drop by position (whose own order is that of ties)",
               WithCapacity{selected_2, Capacity{.limit = CapacityLimit::megatron(0.7),
                                                 .priority = Priority::token_major}});
    table.gate("sinkhorn_1", megatron, "sinkhorn, one expert", moe::Sinkhorn{.k = 1}, training);
    table.gate("sinkhorn_2", megatron, "sinkhorn, two experts", moe::Sinkhorn{.k = 2}, training);
    table.gate("torchtitan", "published: torchtitan 0.3.0 ", "TokenChoiceTopKRouter, groups",
               titan);
    table.gate("deepspeed_top_1", deepspeed, "top1gating, RSample, draws that fall with position",
               r_sample(first_come), training);
    table.gate("deepspeed_top_1_probabilities", deepspeed,
               "top1gating, RSample, draws equal to probabilities", r_sample(Priority::probability),
               training);
    table.gate("deepspeed_top_2", deepspeed, "top2gating",
               WithCapacity{moe::GShardTop2{.second = Second::all,
                                            .gumbel = true,
                                            .normalize = Normalize::clamp,
                                            .epsilon = 1.2e-7,
                                            .normalize_kept_only = true},
                            Capacity{.limit = CapacityLimit::deepspeed(0.8, 1)}},
               training);
    table.gate("deepspeed_top_k_probabilities", deepspeed, "topkgating, probs",
               deepspeed_top_k(Priority::score), training);
    table.gate("deepspeed_top_k_position", deepspeed, "topkgating, position",
               deepspeed_top_k(Priority::token_major), training);
    table.gate(
        "st_moe", "published: st-moe-pytorch 0.1.8 ", "TopNGating",
        WithCapacity{moe::GShardTop2{
                         .second = Second::random, .threshold = 0.4, .normalize = Normalize::clamp},
                     Capacity{.limit = CapacityLimit::gshard(1.25, 4)}},
        training_set);

    table.gate("megatron_sqrt_softplus", formula, "Megatron-LM's sqrtsoftplus", sqrt_softplus);
    table.gate(
        "deepseek_v2_normalized", formula, "DeepSeek-V2 with norm_topk_prob",
        TopK{.k = 3, .normalize = Normalize::add_epsilon, .num_groups = 4, .groups_kept = 2});
    table.gate("shazeer", formula, "Shazeer's noisy top-k",
               moe::Noisy{TopK{.k = 3}, GateNoise{.epsilon = 0}}, {.training = true, .experts = 9});
    table.gate("fastmoe_noisy", formula, "fastmoe's noisy gate", moe::Noisy{TopK{.k = 3}},
               {.training = true, .experts = 9});
    table.gate("v_moe", formula, "V-MoE: noise over experts, raw weights, batch-prioritised",
               moe::Noisy{WithCapacity{raw_2, Capacity{.limit = CapacityLimit::vmoe(),
                                                       .priority = Priority::batch_prioritized}},
                          GateNoise{.kind = Kind::fixed_over_experts}},
               training);
    table.gate("flaxformer", formula, "flaxformer: raw weights, batch-prioritised",
               WithCapacity{raw_2, Capacity{.limit = CapacityLimit::flaxformer(),
                                            .priority = Priority::batch_prioritized}});
    table.gate("tutel", formula, "Tutel: noise over experts, normalised, its capacity",
               WithCapacity{moe::Noisy{TopK{.k = 2, .normalize = Normalize::clamp},
                                       GateNoise{.kind = Kind::fixed_over_experts}},
                            Capacity{.limit = CapacityLimit::tutel(2)}},
               training);
    table.gate("openmoe", formula, "OpenMoE: two experts, raw weights, its capacity",
               WithCapacity{moe::GShardTop2{.second = Second::all, .normalize = Normalize::none},
                            Capacity{.limit = CapacityLimit::openmoe()}});
    table.gate("fastmoe_gshard", formula, "fastmoe's GShard gate",
               moe::GShardTop2{.score = Score::softmax_of_selected}, training);
    table.gate("switch_max", formula, "mesh-TF's switch-max",
               WithCapacity{raw_1, Capacity{.limit = CapacityLimit::gshard(1.25, 2),
                                            .priority = Priority::probability}});
    table.gate("no_token_left_behind", formula, "mesh-TF's no token left behind",
               WithCapacity{raw_1, Capacity{.limit = CapacityLimit::constant(2),
                                            .overflow = Capacity::Overflow::next_choice}},
               set);

    table.gate("top_p_exceed", formula, "Dynamic_MoE's top-p: up to the expert that passes p",
               moe::TopP{.p = 0.55, .rule = moe::MassRule::exceed});
    table.gate("top_p_reach", formula, "Uni-MoE's top-p: up to the expert that reaches p",
               moe::TopP{.p = 0.7, .rule = moe::MassRule::reach});
    table.gate("top_p_below", formula,
               "DynMoLE's top-p: before the expert that passes p, two at least",
               moe::TopP{.p = 0.75, .rule = moe::MassRule::below, .min_experts = 2});
    table.gate("uni_moe_dynamic", formula, "Uni-MoE 2.0's dynamic capacity", uni_moe, set);
    table.gate("uni_moe_dropping", formula,
               "Uni-MoE 2.0's dynamic capacity, tokens dropped by logits",
               WithCapacity{uni_moe, Capacity{.limit = CapacityLimit::uni_moe(1),
                                              .priority = Priority::logit,
                                              .unlimited_last = 2}},
               set);
    table.gate("dyn_mole", formula, "DynMoLE", moe::HybridEntropy{});
    table.gate("dyn_moe_training", formula, "DynMoE's top-any in training",
               moe::TopAny{.scale = 1.25}, {.training = true, .is_set = true, .trainable = 1});
    table.gate("dyn_moe_inference", formula, "DynMoE's top-any at inference",
               moe::TopAny{.scale = 1.25}, {.is_set = true, .trainable = 1});
    table.gate("evo_moe_soft", formula, "EvoMoE, soft phase", dense_to_sparse(0.8, false, true),
               training);
    table.gate("evo_moe_clean", formula, "EvoMoE, soft phase, weights without noise",
               dense_to_sparse(0.8, false, false), training);
    table.gate("evo_moe_hard", formula, "EvoMoE, hard phase", dense_to_sparse(0.8, true, true),
               training);
    table.gate("evo_moe_dense", formula, "EvoMoE, dense phase", dense_to_sparse(0, false, true),
               training);
    table.gate("evo_moe_inference", formula, "EvoMoE, inference",
               dense_to_sparse(0.8, false, true));
    table.gate("threshold", formula, "MoMa's threshold at inference",
               moe::Threshold{.threshold = 0.6});
    table.gate("relu", formula, "ReMoE", moe::Relu{});
    table.gate("min_p", formula, "min-p, normalised", moe::MinP{.min_p = 0.2});
    table.gate("ranks", formula, "the second and third expert, normalised",
               moe::Ranks{.ranks = {1, 2}});

    table.gate("expert_choice_softmax", formula, "expert choice, softmax over experts",
               moe::ExpertChoice{}, training_set);
    table.gate("expert_choice_v_moe", formula, "V-MoE's expert choice with noise",
               moe::ExpertChoice{.rounding = moe::ExpertChoice::Rounding::up,
                                 .multiple_of = 4,
                                 .noise = moe::ExpertChoice::Noise::normal},
               training_set);
    table.gate(
        "expert_choice_moma", formula, "MoMa's expert choice, sigmoid and Gumbel noise",
        moe::ExpertChoice{.scores = Scores::sigmoid, .noise = moe::ExpertChoice::Noise::gumbel},
        training_set);
    table.gate("expert_choice_mesh", formula, "mesh-TF's expert choice, softmax over tokens",
               moe::ExpertChoice{.scores = Scores::softmax_over_tokens}, training_set);
    table.gate("base", "formula: ", "scipy's linear_sum_assignment, BASE",
               moe::Auction{.resolution = 1e6}, training);
    table.gate("quantile", formula, "Megatron-LM's quantile balancing",
               TopK{.k = 3,
                    .score = Score::softmax_of_selected,
                    .selection_bias = true,
                    .biases_logits = true});
    table.gate("product_keys", formula, "product keys: two heads, the best sums",
               moe::ProductKeyTopK{.k = 3, .heads = 2}, {.is_set = true, .experts = 16});
    table.gate("monet", formula,
               "Monet: two heads, half-keys above a quantile, products of softmaxes",
               moe::ProductKeyTopK{.k = 2,
                                   .heads = 2,
                                   .combine = moe::ProductKeyTopK::Combine::axis_softmax,
                                   .by_quantile = true},
               {.is_set = true, .experts = 16});
    table.gate("mc_moe", formula, "MC-MoE's online pruning",
               moe::OnlinePruning{TopK{.k = 2, .normalize_kept_only = true}, 0.5, 0.2});

    table.add("hash_table", "formula: python, ", "hash layers: a table of experts by vocabulary id",
              check_token_table<double>, check_token_table<float>);
    table.add(
        "hash_function", "formula: python, ",
        "hash layers without a table: splitmix64 of the vocabulary id",
        [](const Tensors& t) { check_table<double>(t, moe::HashRouter{.k = 3, .seed = 5}); },
        [](const Tensors& t) { check_table<float>(t, moe::HashRouter{.k = 3, .seed = 5}); });
    table.add(
        "moe_plus_plus_routers", formula,
        "MoE++: two layers of tanh routers, the second hears the first, scaled logits",
        [](const Tensors&) { check_residual<double>("moe_plus_plus_routers"); },
        [](const Tensors&) { check_residual<float>("moe_plus_plus_routers"); });
    table.router("tutel_cosine", formula, "Tutel's cosine router",
                 moe::CosineRouter{.projection_dim = 6, .bias = true}, 4);
    table.router("xmoe", formula, "XMoE's router as released",
                 moe::CosineRouter{.projection_dim = 8,
                                   .temperature = 1,
                                   .learn_temperature = false,
                                   .normalize_tokens = false,
                                   .epsilon = 1e-4},
                 2);
    table.router("dyn_moe_cosine", formula, "DynMoE's cosine router, its temperature learned",
                 moe::CosineRouter{.projection_dim = 0}, 2);
    table.router("yuan", formula, "Yuan 2.0-M32's attention router", moe::AttentionRouter{}, 1);
    return table.cases;
}

class RoutingGolden : public testing::TestWithParam<Case> {};

TEST_P(RoutingGolden, AgreesInDouble) { GetParam().in_double(Tensors(GetParam().name)); }
TEST_P(RoutingGolden, AgreesInFloat) { GetParam().in_float(Tensors(GetParam().name)); }

/// Test names are of letters, digits and underscores.
std::string name_of(const testing::TestParamInfo<Case>& of) {
    std::string name = of.param.name + "_by_" + of.param.source;
    std::replace_if(
        name.begin(), name.end(),
        [](char c) { return !std::isalnum(static_cast<unsigned char>(c)); }, '_');
    return name;
}
INSTANTIATE_TEST_SUITE_P(Rule, RoutingGolden, testing::ValuesIn(cases()), name_of);

TEST(RoutingGoldenFile, HasTheCasesOfTheTableAndTheirSources) {
    std::string about;
    for (const auto& [key, value] : file().view().metadata())
        if (key == "golden") about = value;
    std::set<std::string> ours, theirs;
    for (const Case& c : cases()) {
        ours.insert(c.name);
        EXPECT_NE(about.find("\"" + c.name + "\": \"" + c.source + "\""), std::string::npos)
            << c.name << ": " << c.source;
    }
    for (const moe::TensorView& tensor : file().view()) {
        const std::string name(tensor.name);
        theirs.insert(name.substr(0, name.find('.')));
    }
    EXPECT_EQ(ours, theirs);
}

template <class S>
class RoutingGoldenUpdate : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(RoutingGoldenUpdate, Scalars);

TYPED_TEST(RoutingGoldenUpdate, QuantileBalancingMovesTheBiasAsTheFormulaDoes) {
    using S = TypeParam;
    const Tensors tensors("quantile");
    const Matrix<S> logits = tensors.read<S>("logits");
    auto bias = tensors.list<S>("gate.bias");
    moe::QuantileUpdate update{.ema = 0.25};
    update.add<S>(logits, std::span<const S>(bias), 3);
    update.update(std::span<S>(bias));
    EXPECT_TRUE(moe::testing::compare(bias, tensors.list<double>("new_bias"), tolerance<S>));
}

/// With fairseq's coarse bids the assignment may be another, but hardly a worse one.
TYPED_TEST(RoutingGoldenUpdate, AnAuctionInCoarseStepsIsBalancedAndNearlyTheBest) {
    using S = TypeParam;
    const Tensors tensors("base");
    const Matrix<S> logits = tensors.read<S>("logits");
    const Matrix<std::int64_t> best = tensors.integers("expert_ids");
    const Index experts = logits.cols(), share = logits.rows() / experts;
    moe::Head<S, Tokens<S>, moe::Auction> head(
        {.model_dim = experts}, {}, {},
        std::vector<moe::ExpertFacts>(static_cast<std::size_t>(experts)));
    moe::Workspace<S> ws;
    head.route(logits, ws, {.training = true});
    double sum = 0, most = 0;
    std::vector<Index> load(static_cast<std::size_t>(experts));
    for (const moe::Assignment& a : ws.routing().assignments()) {
        sum += static_cast<double>(logits(a.token, a.expert));
        most += static_cast<double>(logits(a.token, best(a.token, 0)));
        ++load[static_cast<std::size_t>(a.expert)];
    }
    EXPECT_EQ(load, std::vector<Index>(static_cast<std::size_t>(experts), share));
    const double step = static_cast<double>(logits.maxCoeff() - logits.minCoeff()) / 50;
    EXPECT_GE(sum, most - static_cast<double>(logits.rows()) * step);
    EXPECT_LE(sum, most + 1e-6);
}

}  // namespace
