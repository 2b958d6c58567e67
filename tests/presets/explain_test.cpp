// SPDX-License-Identifier: MIT
#include <moe/presets/explain.hpp>

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

namespace explain_test {
namespace {

using moe::Config;
using moe::explain;
using moe::LinearRouter;
using moe::Normalize;
using moe::Swiglu;
using moe::TopK;

constexpr Config small{.model_dim = 64};
constexpr Swiglu experts{.count = 4, .ffn_dim = 12};

std::string last_line(const std::string& text) {
    EXPECT_TRUE(text.ends_with('\n')) << text;
    const std::size_t end = text.size() - 1;
    return text.substr(text.rfind('\n', end - 1) + 1, end - text.rfind('\n', end - 1) - 1);
}
bool contains(const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
}

TEST(Explain, SaysWhatAPublishedModelDoes) {
    EXPECT_EQ(explain(moe::presets::DeepseekV3{}),
              "deepseek_v3\n"
              "config  model_dim 7168\n"
              "router  LinearRouter\n"
              "gate    TopK: k 8, score sigmoid, normalize sum + 1e-20, scale 2.5, selection bias, "
              "4 of 8 groups by their top two\n"
              "experts Swiglu: count 256, ffn_dim 2048\n"
              "shared  Shared{Swiglu}: count 1, ffn_dim 2048\n");
    EXPECT_EQ(explain(moe::presets::MoePlusPlus{}),
              "moe_plus_plus\n"
              "config  input_scale 2; model_dim 1536\n"
              "router  GatingResidual{MlpRouter}: activation tanh, place later\n"
              "gate    TopK: k 2, score softmax, normalize sum\n"
              "experts Swiglu: count 16, ffn_dim 4096\n"
              "experts Constant: count 2\n"
              "experts Copy: count 1\n"
              "experts Null: count 1\n");
    const std::string gpt_oss = explain(moe::presets::GptOss{});
    EXPECT_TRUE(contains(gpt_oss, "router  LinearRouter: bias\n")) << gpt_oss;
    EXPECT_TRUE(contains(gpt_oss,
                         "experts Glu: activation quick_gelu, bias, limit 7, up_offset 1; "
                         "count 128, ffn_dim 2880\n"))
        << gpt_oss;
    const std::string switch_base = explain(moe::presets::SwitchTransformers{});
    EXPECT_TRUE(contains(switch_base,
                         "WithCapacity{TopK}: k 1, score softmax, normalize none, limit 64, scope "
                         "sequence"))
        << switch_base;
}

TEST(Explain, SaysWhatAPresetHasOfItsOwn) {
    using moe::presets::DeepseekV3;
    using moe::presets::Mixtral;
    EXPECT_EQ(last_line(explain(DeepseekV3{.k = 4, .normalize = false})),
              "differs from deepseek_v3 in: k, normalize");
    EXPECT_EQ(last_line(explain(DeepseekV3{.model_dim = 8, .scale = 1})),
              "differs from deepseek_v3 in: scale; dimensions: model_dim");
    EXPECT_EQ(last_line(explain(Mixtral{.model_dim = 6144, .ffn_dim = 16384})),
              "differs from mixtral in: dimensions: model_dim, experts.ffn_dim");
    EXPECT_TRUE(explain(moe::presets::kimi_k2).starts_with("kimi_k2\nconfig"));
    EXPECT_FALSE(contains(explain(moe::presets::kimi_k2), "differs"));
}

TEST(Explain, EveryPublishedModelIsCalledByItsName) {
    std::vector<std::string> names;
    moe::presets::for_each_published([&](const char* name, const auto& preset) {
        const std::string text = explain(preset);
        EXPECT_TRUE(text.starts_with(std::string(name) + "\n")) << text;
        EXPECT_FALSE(contains(text, "differs")) << text;
        EXPECT_FALSE(contains(text, "your")) << text;
        EXPECT_FALSE(contains(text, "?")) << text;
        for (const std::string& other : names) EXPECT_NE(other, name);
        names.push_back(name);
    });
    EXPECT_GE(names.size(), 28u);
}

TEST(Explain, FindsThePublishedModelThatRecipesAreLike) {
    const auto like = [](const auto&... parts) {
        return last_line(explain(small, LinearRouter{}, parts...));
    };
    EXPECT_EQ(like(TopK{.k = 2}, experts), "as mixtral");
    EXPECT_EQ(like(TopK{.k = 8}, experts), "as qwen3_moe");
    EXPECT_EQ(like(TopK{.k = 3, .normalize = Normalize::none}, experts),
              "differs from olmoe in: k");
    EXPECT_EQ(like(moe::TopP{.p = 0.5}, experts), "differs from dynamic_moe in: p");
    const auto shared = moe::Shared{experts};
    TopK deepseek{.k = 8,
                  .score = moe::Score::sigmoid,
                  .normalize = Normalize::add_epsilon,
                  .scale = 2.5,
                  .selection_bias = true,
                  .num_groups = 8,
                  .groups_kept = 4,
                  .group_score = moe::GroupScore::top_two_sum};
    EXPECT_EQ(like(deepseek, experts, shared), "as deepseek_v3");
    deepseek.normalize = Normalize::plain;
    EXPECT_EQ(like(deepseek, experts, shared), "differs from deepseek_v3 in: normalize");
    deepseek.normalize = Normalize::add_epsilon;
    deepseek.epsilon = 1e-6;
    EXPECT_EQ(like(deepseek, experts, shared), "differs from deepseek_v3 in: epsilon");
    EXPECT_EQ(like(moe::TopP{}, moe::Mlp{.count = 4, .ffn_dim = 12}), "like no published preset");
    EXPECT_EQ(like(TopK{.k = 2}, experts, experts), "like no published preset");
    // Of models with the same rules that which has more of the dimensions.
    EXPECT_EQ(last_line(explain(Config{.model_dim = 6144}, LinearRouter{}, TopK{.k = 2},
                                Swiglu{.count = 32, .ffn_dim = 9216})),
              "as minimax");
}

TEST(Explain, SettingsThatChangeNothingAreNoDifference) {
    EXPECT_EQ(last_line(explain(small, LinearRouter{},
                                TopK{.k = 2,
                                     .epsilon = 1,
                                     .normalize_single = false,
                                     .straight_through = false,
                                     .groups_kept = 1,
                                     .group_score = moe::GroupScore::top_sum,
                                     .group_mask = moe::GroupMask::zero},
                                experts)),
              "as mixtral");
}

TEST(Explain, ComparesWithAPresetOfYourChoice) {
    using namespace moe::presets;
    EXPECT_EQ(last_line(explain(Jamba{}, Olmoe{})),
              "differs from olmoe in: k; dimensions: model_dim, experts.count, experts.ffn_dim");
    EXPECT_EQ(last_line(explain(MiniMax{}, MiniMax{})), "as minimax");
    EXPECT_EQ(last_line(explain(kimi_k2, DeepseekV3{})),
              "differs from deepseek_v3 in: scale, num_groups, groups_kept; "
              "dimensions: experts.count");
    EXPECT_EQ(last_line(explain(DeepseekV3{.scale = 1}, kimi_k2)).substr(0, 21),
              "differs from kimi_k2 ");
    EXPECT_TRUE(contains(explain(Mixtral{}, Qwen2Moe{}), "no Shared{Swiglu}"));
    EXPECT_TRUE(contains(explain(Qwen2Moe{}, DynamicMoe{}), "TopK instead of TopP"));
}

/// Parts of a user's own: one that says what it is, and others.
struct MyGate {
    double threshold = 0.25;
};
void describe(const MyGate& gate, moe::Description& to) {
    to.name = "MyGate";
    to.rule("threshold", gate.threshold);
}
struct MyRouter {};
struct MyExperts {};

TEST(Explain, NamesPartsOfYourOwn) {
    EXPECT_EQ(explain(small, MyRouter{}, MyGate{}, MyExperts{}),
              "config  model_dim 64\n"
              "router  your router\n"
              "gate    MyGate: threshold 0.25\n"
              "experts your experts\n"
              "like no published preset\n");
    EXPECT_TRUE(contains(
        explain(small, moe::GatingResidual<MyRouter>{}, TopK{.k = 1}, moe::Shared<MyExperts>{}),
        "GatingResidual{your router}: place later"));
}

/// The names of settings in which two recipes differ.
template <class Recipe>
std::string differing(const Recipe& a, const Recipe& b) {
    moe::detail::DescribedParts left, right;
    moe::detail::add_part(left, "gate", a);
    moe::detail::add_part(right, "gate", b);
    const auto found = moe::detail::difference(left, right);
    return moe::detail::listed(found.rules) + "|" + moe::detail::listed(found.dimensions);
}
/// Changes one setting and expects just that one to be named.
template <class Recipe, class V>
void expect_named(const Recipe& recipe, V Recipe::*setting, const V& value,
                  const std::string& expected) {
    Recipe other = recipe;
    other.*setting = value;
    EXPECT_EQ(differing(recipe, other), expected);
}

TEST(Explain, NamesEverySettingOfTopKInItsPlace) {
    const TopK all{.k = 1,
                   .normalize = Normalize::clamp,
                   .ones = true,
                   .selection_bias = true,
                   .num_groups = 4};
    expect_named(all, &TopK::k, moe::Index{2}, "k|");
    expect_named(all, &TopK::score, moe::Score::relu, "score|");
    expect_named(all, &TopK::normalize, Normalize::add_epsilon, "normalize|");
    expect_named(all, &TopK::epsilon, 0.5, "epsilon|");
    expect_named(all, &TopK::norm_power, 2.0, "norm_power|");
    expect_named(all, &TopK::normalize_single, false, "normalize_single|");
    expect_named(all, &TopK::normalize_kept_only, true, "normalize_kept_only|");
    expect_named(all, &TopK::scale, 3.0, "scale|");
    expect_named(all, &TopK::straight_through, true, "straight_through|");
    expect_named(all, &TopK::placement, moe::Placement::input, "placement|");
    expect_named(all, &TopK::biases_logits, true, "biases_logits|");
    expect_named(all, &TopK::weighs_bias, true, "weighs_bias|");
    expect_named(all, &TopK::num_groups, moe::Index{2}, "num_groups|");
    expect_named(all, &TopK::groups_kept, moe::Index{2}, "groups_kept|");
    expect_named(all, &TopK::group_score, moe::GroupScore::top_sum, "group_score|");
    expect_named(all, &TopK::group_mask, moe::GroupMask::zero, "group_mask|");
    expect_named(all, &TopK::tie_break, moe::TieBreak::torch_cpu, "tie_break|");
    const TopK plain{.k = 2};
    expect_named(plain, &TopK::ones, true, "ones|");
    expect_named(plain, &TopK::selection_bias, true, "selection_bias|");
}

TEST(Explain, NamesEverySettingOfTheOtherGates) {
    using moe::TopP, moe::GShardTop2, moe::SparseMixer, moe::DynamicCapacity, moe::Index;
    const TopP top_p{.normalize = Normalize::clamp};
    expect_named(top_p, &TopP::p, 0.5, "p|");
    expect_named(top_p, &TopP::rule, TopP::Rule::below, "rule|");
    expect_named(top_p, &TopP::min_experts, Index{2}, "min_experts|");
    expect_named(top_p, &TopP::max_experts, Index{2}, "max_experts|");
    expect_named(top_p, &TopP::normalize, Normalize::add_epsilon, "normalize|");
    expect_named(top_p, &TopP::epsilon, 1.0, "epsilon|");
    expect_named(top_p, &TopP::normalize_kept_only, true, "normalize_kept_only|");
    expect_named(top_p, &TopP::scale, 2.0, "scale|");
    expect_named(top_p, &TopP::placement, moe::Placement::input, "placement|");
    const GShardTop2 top_2{.normalize = Normalize::clamp};
    using Second = GShardTop2::Second;
    expect_named(top_2, &GShardTop2::second, Second::threshold, "second|");
    expect_named(top_2, &GShardTop2::second_at_inference, Second::none, "second_at_inference|");
    expect_named(top_2, &GShardTop2::threshold, 0.25, "threshold|");
    expect_named(top_2, &GShardTop2::gumbel, true, "gumbel|");
    expect_named(top_2, &GShardTop2::score, moe::Score::softmax_of_selected, "score|");
    expect_named(top_2, &GShardTop2::normalize, Normalize::add_epsilon, "normalize|");
    expect_named(top_2, &GShardTop2::epsilon, 1.0, "epsilon|");
    expect_named(top_2, &GShardTop2::normalize_kept_only, true, "normalize_kept_only|");
    expect_named(top_2, &GShardTop2::scale, 2.0, "scale|");
    expect_named(top_2, &GShardTop2::by_importance, true, "by_importance|");
    expect_named(SparseMixer{}, &SparseMixer::k, Index{3}, "k|");
    expect_named(SparseMixer{}, &SparseMixer::epsilon, 0.5, "epsilon|");
    expect_named(SparseMixer{}, &SparseMixer::sample, false, "sample|");
    const DynamicCapacity fixed_k{.p = 0};
    expect_named(fixed_k, &DynamicCapacity::p, -1.0, "p|");
    expect_named(fixed_k, &DynamicCapacity::num_fixed, Index{2}, "|num_fixed");
    expect_named(fixed_k, &DynamicCapacity::k, Index{2}, "k|");
    expect_named(fixed_k, &DynamicCapacity::jitter, 0.5, "jitter|");
    expect_named(fixed_k, &DynamicCapacity::sample, true, "sample|");
}

TEST(Explain, NamesEverySettingOfCapacity) {
    using moe::Capacity, moe::CapacityLimit, moe::Index;
    const Capacity all{.scope = Capacity::Scope::group,
                       .group_size = 4,
                       .overflow = Capacity::Overflow::next_choice};
    expect_named(all, &Capacity::group_size, Index{2}, "group_size|");
    expect_named(all, &Capacity::priority, Capacity::Priority::random, "priority|");
    expect_named(all, &Capacity::next_choices, Index{2}, "next_choices|");
    expect_named(all, &Capacity::unlimited_last, Index{2}, "|unlimited_last");
    expect_named(all, &Capacity::experts_per_device, Index{2}, "|experts_per_device");
    expect_named(all, &Capacity::exempt_fraction, 0.5, "exempt_fraction|");
    expect_named(Capacity{}, &Capacity::scope, Capacity::Scope::sequence, "scope|");
    expect_named(Capacity{}, &Capacity::overflow, Capacity::Overflow::pass_through, "overflow|");
    const auto limited = [](auto CapacityLimit::*setting, auto value) {
        Capacity other;
        other.limit.*setting = value;
        return differing(Capacity{}, other);
    };
    EXPECT_TRUE(limited(&CapacityLimit::factor, 2.0).starts_with("limit.factor"));
    EXPECT_TRUE(limited(&CapacityLimit::k, 2.0).starts_with("limit.k"));
    EXPECT_TRUE(limited(&CapacityLimit::per_expert, false).starts_with("limit.per_expert"));
    EXPECT_TRUE(limited(&CapacityLimit::divides_last, true).starts_with("limit.divides_last"));
    EXPECT_TRUE(limited(&CapacityLimit::rounding, CapacityLimit::Rounding::floor)
                    .starts_with("limit.rounding"));
    EXPECT_TRUE(limited(&CapacityLimit::whole_share, true).starts_with("limit.whole_share"));
    EXPECT_TRUE(limited(&CapacityLimit::minimum, Index{2}).starts_with("limit.minimum"));
    EXPECT_TRUE(limited(&CapacityLimit::multiple_of, Index{2}).starts_with("limit.multiple_of"));
    EXPECT_TRUE(limited(&CapacityLimit::computing_share, 0.5).starts_with("limit.computing_share"));
    Capacity other;
    other.inference_limit = CapacityLimit::gshard(2);
    EXPECT_TRUE(contains(differing(Capacity{}, other), "inference_limit.factor"));
}

TEST(Explain, NamesEverySettingOfRoutersAndExperts) {
    using moe::Glu, moe::Mlp, moe::MlpRouter, moe::Index, moe::Activation;
    expect_named(LinearRouter{}, &LinearRouter::bias, true, "bias|");
    expect_named(MlpRouter{}, &MlpRouter::hidden_dim, Index{2}, "|hidden_dim");
    expect_named(MlpRouter{}, &MlpRouter::activation, moe::RouterActivation::gelu, "activation|");
    expect_named(MlpRouter{}, &MlpRouter::bias, true, "bias|");
    using Residual = moe::GatingResidual<MlpRouter>;
    expect_named(Residual{}, &Residual::inner, MlpRouter{.bias = true}, "bias|");
    expect_named(Residual{}, &Residual::target_std, 1.0, "target_std|");
    expect_named(Residual{}, &Residual::place, moe::ResidualPlace::first, "place|");
    expect_named(Swiglu{}, &Swiglu::count, Index{2}, "|count");
    expect_named(Swiglu{}, &Swiglu::ffn_dim, Index{2}, "|ffn_dim");
    expect_named(Glu{}, &Glu::count, Index{2}, "|count");
    expect_named(Glu{}, &Glu::ffn_dim, Index{2}, "|ffn_dim");
    expect_named(Glu{}, &Glu::activation, Activation::gelu, "activation|");
    expect_named(Glu{}, &Glu::bias, true, "bias|");
    expect_named(Glu{}, &Glu::limit, 7.0, "limit|");
    expect_named(Glu{}, &Glu::up_offset, 1.0, "up_offset|");
    expect_named(Mlp{}, &Mlp::count, Index{2}, "|count");
    expect_named(Mlp{}, &Mlp::ffn_dim, Index{2}, "|ffn_dim");
    expect_named(Mlp{}, &Mlp::activation, Activation::gelu, "activation|");
    expect_named(Mlp{}, &Mlp::bias, true, "bias|");
    using Shared = moe::Shared<Swiglu>;
    expect_named(Shared{}, &Shared::gate, moe::SharedGate::sigmoid, "gate|");
    expect_named(Shared{}, &Shared::experts, Swiglu{.ffn_dim = 1}, "|ffn_dim");
    expect_named(moe::Constant{}, &moe::Constant::count, Index{2}, "|count");
    expect_named(moe::Copy{}, &moe::Copy::count, Index{2}, "|count");
    expect_named(moe::Zero{}, &moe::Zero::count, Index{2}, "|count");
    expect_named(moe::Null{}, &moe::Null::count, Index{2}, "|count");
    expect_named(Config{}, &Config::model_dim, Index{2}, "|model_dim");
    expect_named(Config{}, &Config::output_dim, Index{2}, "|output_dim");
    expect_named(Config{}, &Config::input_scale, 2.0, "input_scale|");
    expect_named(Config{}, &Config::seed, std::uint64_t{2}, "|");
}

}  // namespace
}  // namespace explain_test
