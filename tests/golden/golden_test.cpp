// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/constant.hpp>
#include <moe/experts/copy.hpp>
#include <moe/experts/null.hpp>
#include <moe/experts/shared.hpp>
#include <moe/experts/swiglu.hpp>
#include <moe/experts/zero.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/gates/top_p.hpp>
#include <moe/layer.hpp>
#include <moe/routers/linear.hpp>
#include "golden.hpp"

namespace {

// A published layer: its file, its names, and the same layer made of this library's parts.

struct Mixtral {
    static constexpr const char* file = "mixtral";
    static golden::Names names() {
        return {.prefix = "model.layers.0.block_sparse_moe.",
                .gate = "w1.weight",
                .up = "w3.weight",
                .down = "w2.weight"};
    }
    template <class S>
    static auto layer() {
        return moe::make_layer<S>(moe::Config{.model_dim = 16}, moe::LinearRouter{},
                                  moe::TopK{.k = 2}, moe::Swiglu{.count = 8, .ffn_dim = 22});
    }
};

template <bool normalized>
struct Qwen2Moe {
    static constexpr const char* file = normalized ? "qwen2_moe_norm" : "qwen2_moe";
    static golden::Names names() { return {.prefix = "model.layers.0.mlp."}; }
    template <class S>
    static auto layer() {
        const auto normalize = normalized ? moe::Normalize::plain : moe::Normalize::none;
        return moe::make_layer<S>(
            moe::Config{.model_dim = 12}, moe::LinearRouter{},
            moe::TopK{.k = 3, .normalize = normalize}, moe::Swiglu{.count = 8, .ffn_dim = 10},
            moe::Shared{moe::Swiglu{.ffn_dim = 18}, moe::SharedGate::sigmoid});
    }
};

struct DeepSeekV3 {
    static constexpr const char* file = "deepseek_v3";
    static golden::Names names() {
        return {.prefix = "model.layers.3.mlp.", .shared = "shared_experts."};
    }
    template <class S>
    static auto layer() {
        return moe::make_layer<S>(moe::Config{.model_dim = 12}, moe::LinearRouter{},
                                  moe::TopK{.k = 4,
                                            .score = moe::Score::sigmoid,
                                            .normalize = moe::Normalize::add_epsilon,
                                            .scale = 2.5,
                                            .selection_bias = true,
                                            .num_groups = 4,
                                            .groups_kept = 2,
                                            .group_score = moe::GroupScore::top_two_sum,
                                            .tie_break = moe::TieBreak::torch_cpu_unsorted},
                                  moe::Swiglu{.count = 16, .ffn_dim = 8},
                                  moe::Shared{moe::Swiglu{.ffn_dim = 8}});
    }
};

// Its zero expert is Null here: it is left out of normalisation.
struct MoePlusPlus {
    static constexpr const char* file = "moe_plus_plus";
    static golden::Names names() {
        return {.prefix = "model.layers.0.mlp.moe.",
                .router = "gate.wg.weight",
                .experts = "experts.experts.",
                .up_holds_gate = true};
    }
    template <class S>
    static auto layer() {
        return moe::make_layer<S>(moe::Config{.model_dim = 12, .input_scale = 2},
                                  moe::LinearRouter{}, moe::TopK{.k = 2},
                                  moe::Swiglu{.count = 4, .ffn_dim = 10}, moe::Constant{.count = 2},
                                  moe::Copy{}, moe::Null{});
    }
};

struct MoePlusPlusMixtralGating : MoePlusPlus {
    static constexpr const char* file = "moe_plus_plus_mixtral_gating";
    template <class S>
    static auto layer() {
        return moe::make_layer<S>(moe::Config{.model_dim = 12}, moe::LinearRouter{},
                                  moe::TopK{.k = 2, .score = moe::Score::softmax_of_selected},
                                  moe::Swiglu{.count = 4, .ffn_dim = 10}, moe::Constant{.count = 2},
                                  moe::Copy{}, moe::Zero{});
    }
};

struct DynamicMoe {
    static constexpr const char* file = "dynamic_moe";
    static golden::Names names() {
        return {.prefix = "model.layers.0.mlp.", .router = "router.weight"};
    }
    template <class S>
    static auto layer() {
        return moe::make_layer<S>(moe::Config{.model_dim = 12}, moe::LinearRouter{},
                                  moe::TopP{.p = 0.4}, moe::Swiglu{.count = 8, .ffn_dim = 14});
    }
};

template <class S>
constexpr double tolerance = std::is_same_v<S, double> ? 1e-12 : 1e-5;

template <class S, class Model>
auto loaded(const golden::File& file) {
    auto layer = Model::template layer<S>();
    golden::load(file, Model::names(), layer);
    return layer;
}

template <class S, class Model>
void expect_agreement() {
    const golden::File file(Model::file);
    const auto layer = loaded<S, Model>(file);
    const auto findings = golden::compare(file, Model::names(), layer, tolerance<S>);
    for (const moe::TensorView& tensor : file.view()) {  // nothing was left out
        if (!tensor.name.starts_with("grad.") || tensor.name.ends_with(".f64")) continue;
        EXPECT_TRUE(std::any_of(
            findings.begin(), findings.end(),
            [&](const golden::Finding& finding) { return finding.name.starts_with(tensor.name); }))
            << tensor.name;
    }
    for (const auto& [name, comparison] : findings)
        EXPECT_TRUE(comparison) << Model::file << ": " << name;
}

template <class Model>
class Golden : public testing::Test {};
using Models = testing::Types<Mixtral, Qwen2Moe<false>, Qwen2Moe<true>, DeepSeekV3, MoePlusPlus,
                              MoePlusPlusMixtralGating, DynamicMoe>;
TYPED_TEST_SUITE(Golden, Models, );

TYPED_TEST(Golden, LayerOfFloatsAgreesWithThePublishedOne) { expect_agreement<float, TypeParam>(); }

TYPED_TEST(Golden, LayerOfDoublesAgreesWithThePublishedOne) {
    expect_agreement<double, TypeParam>();
}

TYPED_TEST(Golden, TokensOneByOneGiveThePublishedOutput) {
    const golden::File file(TypeParam::file);
    const auto layer = loaded<float, TypeParam>(file);
    const auto x = file.read<float>("input");
    moe::Matrix<float> y(x.rows(), x.cols());
    for (moe::Index t = 0; t < x.rows(); ++t) y.row(t) = layer(x.row(t));
    EXPECT_TRUE(moe::testing::compare(y, file.expected<float>({"output"}), tolerance<float>));
}

// The proof that the tests above can fail: the sign of the largest weight of any one tensor.
TYPED_TEST(Golden, OneFlippedWeightIsFound) {
    const golden::File file(TypeParam::file);
    auto layer = loaded<float, TypeParam>(file);
    std::vector<float*> largest;
    moe::visit_parameters(layer, [&](std::string_view, auto& matrix, moe::Role) {
        float* at = matrix.data();
        for (moe::Index i = 1; i < matrix.size(); ++i)
            if (std::abs(matrix.data()[i]) > std::abs(*at)) at = matrix.data() + i;
        largest.push_back(at);
    });
    ASSERT_FALSE(largest.empty());
    for (std::size_t i = 0; i < largest.size(); ++i) {
        *largest[i] = -*largest[i];
        bool found = false;
        for (const auto& [name, comparison] :
             golden::compare(file, TypeParam::names(), layer, tolerance<float>))
            found |= name == "output" && !comparison;
        EXPECT_TRUE(found) << "in parameter " << i;
        *largest[i] = -*largest[i];
    }
}

TEST(GoldenFile, WeightsWithoutAPlaceInTheLayerAreRefused) {
    const golden::File file("qwen2_moe");
    auto layer = moe::make_layer<float>(moe::Config{.model_dim = 12}, moe::LinearRouter{},
                                        moe::TopK{.k = 3}, moe::Swiglu{.count = 8, .ffn_dim = 10});
    EXPECT_THROW(golden::load(file, Qwen2Moe<false>::names(), layer), std::invalid_argument);
}

// Layers that choose the same experts and weigh them in another way must not pass for each other.
TEST(GoldenFile, NormalisedWeightsAreToldFromRawOnes) {
    const golden::File file("qwen2_moe");
    const auto layer = loaded<double, Qwen2Moe<true>>(file);
    for (const auto& [name, comparison] :
         golden::compare(file, Qwen2Moe<true>::names(), layer, tolerance<double>)) {
        const bool knows_no_weight = name == "expert_ids" || name == "router_logits" ||
                                     name.find("shared_expert") != std::string::npos;
        EXPECT_EQ(bool(comparison), knows_no_weight) << name << ": " << comparison;
    }
}

}  // namespace
