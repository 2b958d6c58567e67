// SPDX-License-Identifier: MIT
#include <moe/presets.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <map>
#include <set>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include <gtest/gtest.h>

#include <moe/io/file.hpp>
#include <moe/io/safetensors.hpp>
#include <moe/io/safetensors_writer.hpp>
#include <moe/io/save.hpp>

#include "support/message.hpp"

namespace presets_test {
namespace {

using moe::FormatError;
using moe::Index;
using moe::ModelConfig;
using moe::Names;
using support::message;
namespace presets = moe::presets;

// What models do.

struct Published {
    const char* name;
    Index model_dim;
    const char* gate;  // without its name
    std::vector<const char*> groups;
    const char* router = "LinearRouter";
};

/// Written from the papers and released config.json files.
const std::vector<Published> table{
    {"mixtral", 4096, "k 2, score softmax, normalize sum", {"Swiglu: count 8, ffn_dim 14336"}},
    {"minimax", 6144, "k 2, score softmax, normalize sum", {"Swiglu: count 32, ffn_dim 9216"}},
    {"minimax_m2",
     3072,
     "k 8, score sigmoid, normalize sum, selection bias",
     {"Swiglu: count 256, ffn_dim 1536"}},
    {"qwen2_moe",
     2048,
     "k 4, score softmax, normalize none",
     {"Swiglu: count 60, ffn_dim 1408", "Shared{Swiglu}: gate sigmoid; count 1, ffn_dim 5632"}},
    {"qwen3_moe", 2048, "k 8, score softmax, normalize sum", {"Swiglu: count 128, ffn_dim 768"}},
    {"qwen3_next",
     2048,
     "k 10, score softmax, normalize sum",
     {"Swiglu: count 512, ffn_dim 512", "Shared{Swiglu}: gate sigmoid; count 1, ffn_dim 512"}},
    {"qwen3_vl_moe", 2048, "k 8, score softmax, normalize sum", {"Swiglu: count 128, ffn_dim 768"}},
    {"olmoe", 2048, "k 8, score softmax, normalize none", {"Swiglu: count 64, ffn_dim 1024"}},
    {"deepseek",
     2048,
     "k 6, score softmax, normalize none",
     {"Swiglu: count 64, ffn_dim 1408", "Shared{Swiglu}: count 1, ffn_dim 2816"}},
    {"deepseek_v2",
     5120,
     "k 6, score softmax, normalize none, scale 16, 3 of 8 groups by their best",
     {"Swiglu: count 160, ffn_dim 1536", "Shared{Swiglu}: count 1, ffn_dim 3072"}},
    {"deepseek_v3",
     7168,
     "k 8, score sigmoid, normalize sum + 1e-20, scale 2.5, selection bias, 4 of 8 groups by their "
     "top two",
     {"Swiglu: count 256, ffn_dim 2048", "Shared{Swiglu}: count 1, ffn_dim 2048"}},
    {"kimi_k2",
     7168,
     "k 8, score sigmoid, normalize sum + 1e-20, scale 2.827, selection bias",
     {"Swiglu: count 384, ffn_dim 2048", "Shared{Swiglu}: count 1, ffn_dim 2048"}},
    {"glm_4_5",
     5120,
     "k 8, score sigmoid, normalize sum + 1e-20, scale 2.5, selection bias",
     {"Swiglu: count 160, ffn_dim 1536", "Shared{Swiglu}: count 1, ffn_dim 1536"}},
    {"dbrx", 6144, "k 4, score softmax, normalize sum", {"Swiglu: count 16, ffn_dim 10752"}},
    {"dynamic_moe",
     4096,
     "p 0.4, rule exceed, normalize none",
     {"Swiglu: count 16, ffn_dim 11008"}},
    {"ernie4_5_moe",
     2560,
     "k 6, score softmax, normalize sum, at least 1e-12, selection bias",
     {"Swiglu: count 64, ffn_dim 1536", "Shared{Swiglu}: count 1, ffn_dim 3072"}},
    {"gpt_oss",
     2880,
     "k 4, score softmax_of_selected, normalize sum",
     {"Glu: activation quick_gelu, bias, limit 7, up_offset 1; count 128, ffn_dim 2880"},
     "LinearRouter: bias"},
    {"granitemoe",
     1536,
     "k 8, score softmax_of_selected, normalize sum",
     {"Swiglu: count 40, ffn_dim 512"}},
    {"granitemoeshared",
     1536,
     "k 8, score softmax_of_selected, normalize sum",
     {"Swiglu: count 40, ffn_dim 512", "Shared{Swiglu}: count 1, ffn_dim 1024"}},
    {"hunyuan_v1_moe",
     4096,
     "k 8, score softmax, normalize sum",
     {"Swiglu: count 64, ffn_dim 3072", "Shared{Swiglu}: count 1, ffn_dim 3072"}},
    {"jamba", 4096, "k 2, score softmax, normalize none", {"Swiglu: count 16, ffn_dim 14336"}},
    {"llama4",
     5120,
     "k 1, score sigmoid, normalize none, placement input",
     {"Swiglu: count 16, ffn_dim 8192", "Shared{Swiglu}: count 1, ffn_dim 8192"}},
    {"longcat_flash",
     6144,
     "k 12, score softmax, normalize none, scale 6, selection bias",
     {"Swiglu: count 512, ffn_dim 2048", "Copy: count 256"}},
    {"moe_plus_plus",
     1536,
     "k 2, score softmax, normalize sum",
     {"Swiglu: count 16, ffn_dim 4096", "Constant: count 2", "Copy: count 1", "Null: count 1"},
     "GatingResidual{MlpRouter}: activation tanh, place later"},
    {"nllb_moe",
     2048,
     "second all, score softmax, normalize sum, at least 1.1920928955078125e-07, scale 0.8",
     {"Mlp: activation relu, bias; count 128, ffn_dim 8192"}},
    {"phimoe", 4096, "k 2, epsilon 0.01", {"Swiglu: count 16, ffn_dim 6400"}},
    {"switch_transformers",
     768,
     "k 1, score softmax, normalize none, limit 64, scope sequence",
     {"Mlp: activation relu; count 8, ffn_dim 3072"}},
    {"uni_moe_2",
     1536,
     "p 0.7, jitter 0.01; num_fixed 2",
     {"Swiglu: count 4, ffn_dim 2240", "Zero: count 1", "Swiglu: count 2, ffn_dim 1120"}},
};

TEST(Presets, AreThePublishedModels) {
    std::size_t i = 0;
    std::map<std::string, Published> rows;
    for (const Published& row : table) rows.emplace(row.name, row);
    presets::for_each_published([&](const char* name, const auto& preset) {
        static_assert(moe::Preset<std::remove_cvref_t<decltype(preset)>>);
        ASSERT_EQ(rows.count(name), 1u) << name;
        const Published& row = rows.at(name);
        std::string text = moe::explain(preset);
        const bool doubled = text.find("input_scale 2; ") != std::string::npos;
        EXPECT_EQ(doubled, std::string(name) == "moe_plus_plus");
        const auto line = [&text](const std::string& wanted) {
            const std::size_t end = text.find('\n');
            EXPECT_EQ(text.substr(0, end), wanted);
            text.erase(0, end + 1);
        };
        line(name);
        line(std::string("config  ") + (doubled ? "input_scale 2; " : "") + "model_dim " +
             std::to_string(row.model_dim));
        line(std::string("router  ") + row.router);
        const std::size_t colon = text.find(": ");
        ASSERT_NE(colon, std::string::npos);
        text.erase(0, colon + 2);
        line(row.gate);
        for (const std::string group : row.groups)
            line((group.starts_with("Shared") ? "shared  " : "experts ") + group);
        EXPECT_EQ(text, "");
        ++i;
    });
    EXPECT_EQ(i, table.size());
}

std::string text_of(const std::filesystem::path& file) {
    const auto bytes = moe::read_file(file.string());
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

TEST(Presets, AreEverywhereThatForEachPublishedSays) {
    std::set<std::string> published, declared{"kimi_k2", "glm_4_5"};  // of another's type
    presets::for_each_published([&](const char* name, const auto&) { published.insert(name); });
    const std::string tool = text_of("examples/run_layer/architectures.cpp");
    const std::string page = text_of("examples/run_layer/README.md");
    for (const auto& entry : std::filesystem::directory_iterator("include/moe/presets")) {
        const std::string text = text_of(entry.path());
        const std::string before = "static constexpr const char* name = \"", type = "struct ";
        for (std::size_t at = text.find(before); at != text.npos; at = text.find(before, at + 1)) {
            const std::size_t begin = at + before.size(), from = text.rfind(type, at) + type.size();
            const std::string name = text.substr(begin, text.find('"', begin) - begin);
            const std::string preset = text.substr(from, text.find(' ', from) - from);
            declared.insert(name);
            EXPECT_NE(tool.find("is<presets::" + preset + ">"), tool.npos) << preset;
            EXPECT_NE(page.find("`" + preset + "`"), page.npos) << preset;
            EXPECT_TRUE(std::filesystem::is_directory("tests/golden/models/" + name)) << name;
        }
    }
    EXPECT_EQ(published, declared);
}

// What they read from a configuration.

struct Key {
    const char* name;
    ModelConfig::Value value;
    /// What stands for it where it is missing; null: it must be there.
    ModelConfig::Value otherwise = nullptr;
};

/// @param but      a key that has the value `instead`, or is not there if that is null
ModelConfig config_of(const std::vector<Key>& keys, const char* but = "",
                      const ModelConfig::Value& instead = nullptr) {
    ModelConfig config;
    for (const Key& key : keys) {
        const bool changed = std::string(key.name) == but;
        if (changed && std::holds_alternative<std::nullptr_t>(instead)) continue;
        std::visit([&](const auto& value) { config.set(key.name, value); },
                   changed ? instead : key.value);
    }
    return config;
}

/// @param keys  of a configuration that is `published`
template <class P>
void expect_read(const P& published, const std::vector<Key>& keys, Index layer = 1) {
    const auto read = [&](const ModelConfig& config) {
        return moe::detail::described(P::of(config, layer));
    };
    SCOPED_TRACE(P::name);
    const auto found =
        moe::detail::difference(read(config_of(keys)), moe::detail::described(published));
    EXPECT_TRUE(found.none()) << moe::detail::line_of(found, P::name);
    for (const Key& key : keys) {
        const std::string name = "\"" + std::string(key.name) + "\"";
        const std::string wrong =
            message<FormatError>([&] { read(config_of(keys, key.name, std::string("some"))); });
        EXPECT_TRUE(wrong.find(name.substr(name.rfind('.') + 1)) != std::string::npos ||
                    std::string(key.name) == "transformers_version")
            << name << ": " << wrong;
        if (std::holds_alternative<std::nullptr_t>(key.otherwise)) {
            const std::string missing =
                message<FormatError>([&] { read(config_of(keys, key.name)); });
            EXPECT_NE(missing.find("is missing"), std::string::npos) << name << ": " << missing;
        } else {
            EXPECT_TRUE(moe::detail::difference(read(config_of(keys, key.name)),
                                                read(config_of(keys, key.name, key.otherwise)))
                            .none())
                << name;
        }
    }
}

std::int64_t operator""_i(unsigned long long value) { return static_cast<std::int64_t>(value); }
const std::string silu = "silu";

TEST(Presets, ReadTheConfigurationsOfTransformers) {
    expect_read(presets::Mixtral{}, {{"hidden_size", 4096_i},
                                     {"intermediate_size", 14336_i},
                                     {"num_local_experts", 8_i},
                                     {"num_experts_per_tok", 2_i},
                                     {"hidden_act", silu, silu}});
    expect_read(presets::MiniMax{}, {{"hidden_size", 6144_i},
                                     {"intermediate_size", 9216_i},
                                     {"num_local_experts", 32_i},
                                     {"num_experts_per_tok", 2_i}});
    expect_read(presets::MiniMaxM2{}, {{"hidden_size", 3072_i},
                                       {"intermediate_size", 1536_i},
                                       {"num_local_experts", 256_i},
                                       {"num_experts_per_tok", 8_i}});
    expect_read(presets::Qwen2Moe{}, {{"hidden_size", 2048_i},
                                      {"moe_intermediate_size", 1408_i},
                                      {"num_experts", 60_i},
                                      {"num_experts_per_tok", 4_i},
                                      {"shared_expert_intermediate_size", 5632_i},
                                      {"norm_topk_prob", false, false},
                                      {"hidden_act", silu, silu}});
    expect_read(presets::Qwen3Moe{}, {{"hidden_size", 2048_i},
                                      {"moe_intermediate_size", 768_i},

                                      {"num_experts", 128_i},
                                      {"num_experts_per_tok", 8_i},
                                      {"norm_topk_prob", true, false}});
    expect_read(presets::Qwen3Next{}, {{"hidden_size", 2048_i},
                                       {"moe_intermediate_size", 512_i},
                                       {"num_experts", 512_i},
                                       {"num_experts_per_tok", 10_i},
                                       {"shared_expert_intermediate_size", 512_i},
                                       {"norm_topk_prob", true, true}});
    expect_read(presets::Qwen3VlMoe{},
                {{"text_config.hidden_size", 2048_i},
                 {"text_config.moe_intermediate_size", 768_i},
                 {"text_config.num_experts", 128_i},
                 {"text_config.num_experts_per_tok", 8_i},
                 {"transformers_version", std::string("4.57.0"), std::string("4.57.0")}});
    expect_read(presets::Olmoe{}, {{"hidden_size", 2048_i},
                                   {"intermediate_size", 1024_i},
                                   {"num_experts", 64_i},
                                   {"num_experts_per_tok", 8_i},
                                   {"norm_topk_prob", false, false}});
    expect_read(presets::DeepseekMoe{}, {{"hidden_size", 2048_i},
                                         {"moe_intermediate_size", 1408_i},
                                         {"n_routed_experts", 64_i},
                                         {"num_experts_per_tok", 6_i},
                                         {"n_shared_experts", 2_i},
                                         {"norm_topk_prob", false, false}});
    const std::vector<Key> deepseek_v2{
        {"hidden_size", 5120_i},
        {"moe_intermediate_size", 1536_i},
        {"n_routed_experts", 160_i},
        {"num_experts_per_tok", 6_i},
        {"n_shared_experts", 2_i},
        {"topk_method", std::string("group_limited_greedy"), std::string("greedy")},
        {"n_group", 8_i},
        {"topk_group", 3_i},
        {"routed_scaling_factor", 16.0, 1.0},
        {"norm_topk_prob", false, false}};
    expect_read(presets::DeepseekV2{}, deepseek_v2);
    expect_read(presets::DeepseekV3{}, {{"hidden_size", 7168_i},
                                        {"moe_intermediate_size", 2048_i},
                                        {"n_routed_experts", 256_i},
                                        {"num_experts_per_tok", 8_i},
                                        {"n_shared_experts", 1_i},
                                        {"n_group", 8_i},
                                        {"topk_group", 4_i},
                                        {"routed_scaling_factor", 2.5},
                                        {"norm_topk_prob", true, true}});
    expect_read(presets::Dbrx{}, {{"d_model", 6144_i},
                                  {"ffn_config.ffn_hidden_size", 10752_i},
                                  {"ffn_config.moe_num_experts", 16_i},
                                  {"ffn_config.moe_top_k", 4_i},
                                  {"ffn_config.ffn_act_fn.name", silu, silu}});
    expect_read(presets::Ernie4_5Moe{}, {{"hidden_size", 2560_i},
                                         {"moe_intermediate_size", 1536_i},
                                         {"moe_num_experts", 64_i},
                                         {"moe_k", 6_i},
                                         {"moe_num_shared_experts", 2_i},
                                         {"moe_norm_min", 1e-12, 1e-12}});
    expect_read(presets::GptOss{}, {{"hidden_size", 2880_i},
                                    {"intermediate_size", 2880_i},
                                    {"num_local_experts", 128_i},
                                    {"num_experts_per_tok", 4_i},
                                    {"swiglu_limit", 7.0, 7.0},
                                    {"swiglu_alpha", 1.702, 1.702}});
    expect_read(presets::GraniteMoe{}, {{"hidden_size", 1536_i},
                                        {"intermediate_size", 512_i},
                                        {"num_local_experts", 40_i},
                                        {"num_experts_per_tok", 8_i}});
    expect_read(presets::GraniteMoeShared{}, {{"hidden_size", 1536_i},
                                              {"intermediate_size", 512_i},
                                              {"num_local_experts", 40_i},
                                              {"num_experts_per_tok", 8_i},
                                              {"shared_intermediate_size", 1024_i}});
    using List = std::vector<std::int64_t>;
    expect_read(presets::HunyuanMoe{}, {{"hidden_size", 4096_i},
                                        {"intermediate_size", 3072_i},
                                        {"moe_intermediate_size", List{9, 3072}, 3072_i},
                                        {"num_shared_expert", List{9, 1}, 1_i},
                                        {"num_experts", 64_i},
                                        {"moe_topk", List{9, 8}}});
    expect_read(presets::Jamba{}, {{"hidden_size", 4096_i},
                                   {"intermediate_size", 14336_i},
                                   {"num_experts", 16_i},
                                   {"num_experts_per_tok", 2_i}});
    expect_read(presets::Llama4{}, {{"text_config.hidden_size", 5120_i},
                                    {"text_config.intermediate_size", 8192_i},
                                    {"text_config.num_local_experts", 16_i},
                                    {"text_config.num_experts_per_tok", 1_i, 1_i}});
    expect_read(presets::LongcatFlash{}, {{"hidden_size", 6144_i},
                                          {"expert_ffn_hidden_size", 2048_i},
                                          {"n_routed_experts", 512_i},
                                          {"zero_expert_num", 256_i, 256_i},
                                          {"moe_topk", 12_i},
                                          {"routed_scaling_factor", 6_i}});
    expect_read(presets::NllbMoe{},
                {{"d_model", 2048_i},
                 {"encoder_ffn_dim", 8192_i},
                 {"num_experts", 128_i},
                 {"moe_token_dropout", 0.2, 0.2},
                 {"encoder_layers", 24_i},
                 {"activation_function", std::string("relu"), std::string("relu")}});
    expect_read(presets::Phimoe{}, {{"hidden_size", 4096_i},
                                    {"intermediate_size", 6400_i},
                                    {"num_local_experts", 16_i},
                                    {"num_experts_per_tok", 2_i, 2_i},
                                    {"router_jitter_noise", 0.01, 0.01}});
    expect_read(presets::SwitchTransformers{}, {{"d_model", 768_i},
                                                {"d_ff", 3072_i},
                                                {"num_experts", 8_i},
                                                {"expert_capacity", 64_i},
                                                {"num_layers", 12_i},
                                                {"router_bias", false, false}});
}

TEST(Presets, ReadTheConfigurationsOfTheirAuthors) {
    expect_read(presets::DynamicMoe{}, {{"hidden_size", 4096_i},
                                        {"intermediate_size", 11008_i},
                                        {"num_experts", 16_i},
                                        {"top_p_threshold", 0.4, 0.4}});
    const std::vector<Key> moe_plus_plus{{"hidden_size", 1536_i},
                                         {"intermediate_size", 4096_i},
                                         {"num_experts", std::vector<std::int64_t>{20}},
                                         {"moe_expert_interval", 1_i, 1_i},
                                         {"moe_2layer_gate", true, true},
                                         {"moe_use_mixtral_gating", false, false},
                                         {"moe_feature_no_mul_topk", false, false}};
    expect_read(presets::MoePlusPlus{}, moe_plus_plus);
    EXPECT_TRUE(presets::MoePlusPlus::of(config_of(moe_plus_plus), 0).is_first);
    const auto third = config_of(moe_plus_plus, "moe_expert_interval", 3_i);
    EXPECT_TRUE(presets::MoePlusPlus::of(third, 2).is_first);
    EXPECT_FALSE(presets::MoePlusPlus::of(third, 5).is_first);
    EXPECT_EQ(presets::MoePlusPlus::of(config_of(moe_plus_plus, "moe_feature_no_mul_topk", true), 1)
                  .config()
                  .input_scale,
              1);
    expect_read(presets::UniMoe{}, {{"hidden_size", 1536_i},
                                    {"dynamic_intermediate_size", 2240_i},
                                    {"mlp_dynamic_expert_num", 4_i},
                                    {"mlp_dynamic_null_expert_num", 1_i},
                                    {"mlp_fixed_expert_num", 2_i},
                                    {"shared_intermediate_size", 1120_i},
                                    {"mlp_dynamic_top_p", 0.7},
                                    {"mlp_dynamic_top_k", 2_i, 2_i},
                                    {"router_jitter_noise", 0.01, 0.01}});
}

TEST(Presets, RefuseWhatTheyAreNotFor) {
    const auto error = [](const char* name, const ModelConfig::Value& value, auto preset) {
        ModelConfig config;
        std::visit([&](const auto& v) { config.set(name, v); }, value);
        return message<FormatError>([&] { preset.of(config, 0); });
    };
    EXPECT_EQ(error("hidden_act", std::string("gelu"), presets::Mixtral{}),
              "moe::ModelConfig: \"hidden_act\" is \"gelu\", which this preset is not for");
    EXPECT_EQ(error("router_bias", true, presets::SwitchTransformers{}),
              "moe::ModelConfig: \"router_bias\" is true, which this preset is not for");
    EXPECT_EQ(error("moe_2layer_gate", false, presets::MoePlusPlus{}),
              "moe::ModelConfig: \"moe_2layer_gate\" is false, which this preset is not for");
    EXPECT_EQ(error("topk_method", std::string("noaux_tc"), presets::DeepseekV2{}),
              "moe::ModelConfig: \"topk_method\" is \"noaux_tc\", which this preset is not for");
    EXPECT_EQ(error("scoring_func", std::string("softmax"), presets::DeepseekV3{}),
              "moe::ModelConfig: \"scoring_func\" is \"softmax\", which this preset is not for");
    EXPECT_EQ(error("swiglu_alpha", 2_i, presets::GptOss{}),
              "moe::ModelConfig: \"swiglu_alpha\" is 2, which this preset is not for");
}

TEST(Presets, DbrxNormalisesAsItsConfigurationSays) {
    std::vector<Key> keys{{"d_model", 6144_i},
                          {"ffn_config.ffn_hidden_size", 10752_i},
                          {"ffn_config.moe_num_experts", 16_i},
                          {"ffn_config.moe_top_k", 4_i},
                          {"ffn_config.moe_normalize_expert_weights", 2_i}};
    const auto gate = [&] { return std::get<1>(presets::Dbrx::of(config_of(keys)).parts()); };
    EXPECT_EQ(gate().norm_power, 2);
    keys.back().value = nullptr;
    EXPECT_EQ(gate().normalize, moe::Normalize::none);
    keys.pop_back();
    EXPECT_EQ(gate().normalize, moe::Normalize::plain);
    EXPECT_EQ(gate().norm_power, 1);
}

TEST(ModelConfig, TellsNullFromMissingAndTypesFromEachOther) {
    ModelConfig config;
    config.set("none", nullptr);
    config.set("count", 3);
    config.set("factor", 1.5f);
    config.set("flag", true);
    config.set("text", "word");
    config.set("list", std::vector<std::int64_t>{4, 5});
    EXPECT_TRUE(config.is_null("none"));
    EXPECT_FALSE(config.has("none"));
    EXPECT_FALSE(config.is_null("nothing"));
    EXPECT_EQ(config.first_of({"none", "nothing", "count"}), "count");
    EXPECT_EQ(config.first_of({"none", "nothing"}), "none");
    EXPECT_EQ(config.integer("none", 7), 7);
    EXPECT_EQ(config.number("count"), 3);
    EXPECT_EQ(config.number("factor", 2), 1.5);
    EXPECT_EQ(config.integer_of_layer("count", 9), 3);
    EXPECT_EQ(config.integer_of_layer("list", 1), 5);
    EXPECT_TRUE(config.flag("flag"));
    EXPECT_EQ(config.text("text"), "word");
    const auto error = [](auto&& read) { return message<FormatError>(read); };
    EXPECT_EQ(error([&] { config.integer("none"); }), "moe::ModelConfig: \"none\" is missing");
    EXPECT_EQ(error([&] { config.integer("factor"); }),
              "moe::ModelConfig: \"factor\" is no integer");
    EXPECT_EQ(error([&] { config.number("text"); }), "moe::ModelConfig: \"text\" is no number");
    EXPECT_EQ(error([&] { config.flag("count", false); }),
              "moe::ModelConfig: \"count\" is neither true nor false");
    EXPECT_EQ(error([&] { config.text("flag"); }), "moe::ModelConfig: \"flag\" is no text");
    for (const Index layer : {-1, 2})
        EXPECT_NE(error([&] { config.integer_of_layer("list", layer); }).find("no entry for layer"),
                  std::string::npos);
    for (const std::int64_t value : {std::int64_t{-1}, (std::int64_t{1} << 40) + 1}) {
        config.set("extent", value);
        EXPECT_NE(error([&] { config.integer("extent"); }).find("not a count"), std::string::npos);
    }
    config.set("extent", std::int64_t{1} << 40);
    EXPECT_EQ(config.integer("extent"), Index{1} << 40);
    config.set("infinite", std::numeric_limits<double>::infinity());
    EXPECT_NE(error([&] { config.number("infinite"); }).find("not finite"), std::string::npos);
    config.set("text_config.hidden_size", 8);
    EXPECT_EQ(config.inside("text_config").integer("hidden_size"), 8);
    EXPECT_FALSE(config.inside("text_config").has("count"));
    EXPECT_EQ(config.inside("vision_config").integer("count"), 3);
}

// Where their parameters are.

/// Everything of a layer, views included, as float.
template <class Layer>
std::map<std::string, std::vector<float>> values_of(Layer& layer) {
    std::map<std::string, std::vector<float>> all;
    moe::visit_parameters(layer, [&](std::string_view name, auto& matrix, moe::Role) {
        all[std::string(name)].assign(matrix.data(), matrix.data() + matrix.size());
    });
    layer.bank().visit_weights(
        [&](const std::string& pattern, moe::Weights<float>& weights, Index first) {
            for (Index e = 0; weights.is_bound() && e < weights.count(); ++e) {
                const moe::WeightView view = weights[e];
                auto& values = all[Names::with_number(pattern, first + e)];
                for (Index i = 0; i < view.rows; ++i)
                    for (Index j = 0; j < view.cols; ++j)
                        values.push_back(static_cast<const float*>(
                            view.data)[i * view.row_stride + j * view.col_stride]);
            }
        });
    return all;
}

/// Saves a layer under these names and reads it again. A template of the parts, not of the preset:
/// many models have the same ones.
template <class... Parts>
void expect_round_trip(const moe::Config& config, const std::tuple<Parts...>& parts,
                       const Names& names, const char* first_tensor) {
    using Layer = moe::Layer<float, Parts...>;
    Layer layer = std::apply([&](const auto&... part) { return Layer(config, part...); }, parts);
    float value = 0.5f;  // biases start at 0
    moe::visit_parameters(layer, [&](std::string_view, auto& matrix, moe::Role) {
        for (Index i = 0; i < matrix.size(); ++i) matrix.data()[i] += value, value += 0.125f;
    });
    moe::SafetensorsWriter writer;
    moe::save(layer, names, writer);
    const std::vector<std::byte> bytes = writer.bytes();
    const moe::SafetensorsView view{bytes};
    EXPECT_NE(view.find(first_tensor), nullptr) << first_tensor;
    const auto expected = values_of(layer);
    Layer bound = std::apply(
        [&](const auto&... part) { return moe::bind(view, names, config, part...); }, parts);
    bound.bank().visit_weights([&](const std::string&, moe::Weights<float>& weights, Index) {
        EXPECT_TRUE(weights.is_bound());
    });
    EXPECT_EQ(values_of(bound), expected);
    moe::visit_parameters(layer, [&](std::string_view, auto& matrix, moe::Role) {
        for (Index i = 0; i < matrix.size(); ++i) matrix.data()[i] = -1;
    });
    moe::load(view, names, layer);
    EXPECT_EQ(values_of(layer), expected);
}

/// Of layer `number` of a model.
template <class P>
void expect_round_trip(const P& preset, const char* first_tensor, Index number = 3) {
    SCOPED_TRACE(P::name);
    expect_round_trip(preset.config(), preset.parts(), preset.names(number), first_tensor);
}

TEST(Presets, SaveAndReadEveryParameterOfEveryModel) {
    using namespace presets;
    const Index model = 8, ffn = 6;
    expect_round_trip(Mixtral{model, ffn, 3, 2},
                      "model.layers.3.block_sparse_moe.experts.2.w2.weight");
    expect_round_trip(MiniMax{model, ffn, 3, 2}, "model.layers.3.block_sparse_moe.gate.weight");
    expect_round_trip(MiniMaxM2{model, ffn, 3, 2},
                      "model.layers.3.block_sparse_moe.e_score_correction_bias");
    expect_round_trip(Qwen2Moe{model, ffn, 3, 2, 5},
                      "model.layers.3.mlp.shared_expert_gate.weight");
    expect_round_trip(Qwen3Next{model, ffn, 3, 2, 5},
                      "model.layers.3.mlp.shared_expert.up_proj.weight");
    expect_round_trip(Qwen3Moe{model, ffn, 3, 2}, "model.layers.3.mlp.experts.2.down_proj.weight");
    for (const auto orientation : {moe::Orientation::in_out, moe::Orientation::out_in})
        expect_round_trip(Qwen3VlMoe{model, ffn, 3, 2, orientation},
                          "model.language_model.layers.3.mlp.experts.gate_up_proj");
    expect_round_trip(Olmoe{model, ffn, 3, 2}, "model.layers.3.mlp.gate.weight");
    expect_round_trip(DeepseekMoe{model, ffn, 3, 2, 2},
                      "model.layers.3.mlp.shared_experts.gate_proj.weight");
    expect_round_trip(DeepseekV2{model, ffn, 4, 2, 2, 2, 1},
                      "model.layers.3.mlp.experts.3.gate_proj.weight");
    expect_round_trip(DeepseekV3{model, ffn, 4, 2, 1, 2, 1},
                      "model.layers.3.mlp.gate.e_score_correction_bias");
    expect_round_trip(Dbrx{model, ffn, 3, 2}, "transformer.blocks.3.ffn.experts.mlp.w2");
    expect_round_trip(DynamicMoe{model, ffn, 3}, "model.layers.3.mlp.router.weight");
    expect_round_trip(Ernie4_5Moe{model, ffn, 3, 2, 2},
                      "model.layers.3.mlp.moe_statics.e_score_correction_bias");
    expect_round_trip(GptOss{model, ffn, 3, 2}, "model.layers.3.mlp.experts.gate_up_proj_bias");
    expect_round_trip(GraniteMoe{model, ffn, 3, 2},
                      "model.layers.3.block_sparse_moe.input_linear.weight");
    expect_round_trip(GraniteMoeShared{model, ffn, 3, 2, 5},
                      "model.layers.3.shared_mlp.output_linear.weight");
    expect_round_trip(HunyuanMoe{model, ffn, 3, 2, 5}, "model.layers.3.mlp.gate.wg.weight");
    expect_round_trip(Jamba{model, ffn, 3, 2},
                      "model.layers.3.feed_forward.experts.2.down_proj.weight");
    expect_round_trip(Llama4{model, ffn, 3},
                      "language_model.model.layers.3.feed_forward.experts.down_proj");
    expect_round_trip(LongcatFlash{model, ffn, 3, 2, 2},
                      "model.layers.3.mlp.router.e_score_correction_bias");
    for (const bool is_first : {true, false})
        expect_round_trip(MoePlusPlus{model, ffn, 3, 2, is_first},
                          "model.layers.3.mlp.moe.experts.experts.4.constant");
    expect_round_trip(NllbMoe{model, ffn, 3, 0.2, 2},
                      "model.decoder.layers.1.ffn.experts.expert_2.fc2.bias");
    expect_round_trip(Phimoe{model, ffn, 3, 2},
                      "model.layers.3.block_sparse_moe.experts.0.w1.weight");
    expect_round_trip(SwitchTransformers{model, ffn, 3, 64, 2},
                      "decoder.block.1.layer.2.mlp.experts.expert_2.wo.weight");
    expect_round_trip(UniMoe{model, ffn, 3, 1, 2, 5},
                      "model.layers.3.mlp.fixed_real_moe.1.down_proj.weight");
}

TEST(Presets, DeepseekV2GivesNoWeightToGroupsThatAreNotKept) {
    const presets::DeepseekV2 preset{
        .model_dim = 4, .ffn_dim = 3, .num_experts = 4, .k = 2, .num_groups = 2, .groups_kept = 1};
    auto layer = moe::make_layer<float>(preset);
    const float logits[] = {-1, -2, 0, -200};  // of the group that is kept one score underflows
    std::fill_n(layer.router().weight.data(), 16, 0.0f);
    for (Index e = 0; e < 4; ++e) layer.router().weight(e, 0) = logits[e];
    moe::Matrix<float> x = moe::Matrix<float>::Zero(1, 4), y(1, 4);
    x(0, 0) = 1;
    moe::Workspace<float> ws;
    layer.forward(x, y, ws);
    for (const moe::Assignment& a : ws.routing().assignments())
        EXPECT_EQ(a.weight > 0, a.expert == 2) << a.expert << " " << a.weight;
}

TEST(Presets, ReadMiniMaxM2InFp8AsItIsPublished) {
    const presets::MiniMaxM2 preset{8, 6, 2, 1};
    auto layer = moe::make_layer<float>(preset);
    for (Index e = 0; e < 2; ++e) {  // of all, codes 0x38 (1) times 0.5
        auto& group = layer.bank().group<0>();
        for (auto* const weights : {&group.gate, &group.up, &group.down})
            weights->owned(e).view().setConstant(0.5f);
    }
    moe::SafetensorsWriter plain, fp8;
    moe::save(layer, preset.names(3), plain);
    const std::vector<std::byte> bytes = plain.bytes();
    const std::vector<std::byte> codes(48, std::byte{0x38});
    const std::vector<float> scale{0.5f};
    const moe::SafetensorsView view{bytes};
    for (moe::TensorView tensor : view) {
        if (tensor.name.find("experts.") != std::string_view::npos) {
            fp8.add(std::string(tensor.name) + "_scale_inv", std::span(scale), {1, 1});
            tensor.dtype = moe::Dtype::f8_e4m3;
            tensor.bytes = codes;
        }
        fp8.add_view(tensor);
    }
    const std::vector<std::byte> published = fp8.bytes();
    auto loaded = moe::load(moe::SafetensorsView{published}, preset, 3);
    EXPECT_EQ(values_of(loaded), values_of(layer));
}

TEST(Presets, ReadTheFirstLayerOfMoePlusPlusWithTheMatrixThatItDoesNotUse) {
    const presets::MoePlusPlus later{8, 6, 2, 2}, first{8, 6, 2, 2, true};
    auto layer = moe::make_layer<float>(later);
    moe::SafetensorsWriter writer;
    moe::save(layer, later.names(0), writer);
    const std::vector<std::byte> bytes = writer.bytes();
    const moe::SafetensorsView view{bytes};
    ASSERT_NE(view.find("model.layers.0.mlp.moe.gate.gate_map.weight"), nullptr);
    auto loaded = moe::load(view, first, 0);
    auto expected = values_of(layer);
    EXPECT_EQ(expected.erase("router.residual"), 1u);
    EXPECT_EQ(values_of(loaded), expected);
    auto bound = moe::bind(view, first, 0);
    EXPECT_EQ(values_of(bound), expected);
}

}  // namespace
}  // namespace presets_test
