// SPDX-License-Identifier: MIT
#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/mlp.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/layer.hpp>
#include <moe/routers/linear.hpp>
#include <moe/stats/activation.hpp>
#include <moe/stats/trace.hpp>
#include <moe/steering/expert_scores.hpp>
#include <moe/steering/steering.hpp>
#include <moe/testing/compare.hpp>
#include <moe/testing/random.hpp>

/// Steering by contrast, end to end: experts that carry a planted behaviour are found by how often
/// they work, and switched off.
namespace contrast_test {
namespace {

using moe::ExpertScore;
using moe::Index;
using moe::testing::same_bits;
using Matrix = moe::Matrix<float>;
using Layer = moe::Layer<float, moe::LinearRouter, moe::TopK, moe::Mlp>;

constexpr Index dim = 8, experts = 6, tokens = 64, layers = 3;

/// (layer, expert) of those that see the behaviour, which is element 0 of a token.
constexpr std::array<std::pair<Index, Index>, 3> planted{{{0, 4}, {2, 1}, {2, 3}}};

/// Three layers with a residual. Routers look at elements 1 to 7, but for the planted experts,
/// which are drawn by element 0 and repelled where it is not there.
class Model {
public:
    Model() {
        for (std::uint64_t l = 0; l < layers; ++l) {
            stack_.push_back(Layer(moe::Config{.model_dim = dim, .seed = 5 + l},
                                   moe::LinearRouter{},
                                   moe::TopK{.k = 2, .score = moe::Score::softmax_of_selected},
                                   moe::Mlp{.count = experts, .ffn_dim = 4}));
            auto& weight = stack_.back().router().weight;
            for (Index e = 0; e < experts; ++e) weight(e, 0) = 0;
            for (const auto& [layer, e] : planted)
                if (layer == static_cast<Index>(l)) weight(e, 0) = 4;
        }
    }

    /// @param steer  one per layer, or none
    Matrix run(const Matrix& x, const std::vector<moe::Steering>& steer = {}) {
        Matrix h = x, y(x.rows(), dim);
        trace.clear();
        for (std::size_t l = 0; l < stack_.size(); ++l) {
            stack_[l].forward(h, y, ws[l], steer.empty() ? moe::Context{} : steer[l].on());
            h += 0.25F * y;
            h.col(0) = x.col(0);  // what the token is about stays
            trace.record(static_cast<Index>(l), ws[l]);
        }
        return h;
    }

    bool uses_planted(Index token) const {
        for (const auto& [layer, e] : planted)
            for (const moe::Assignment& a : ws[static_cast<std::size_t>(layer)].routing().of(token))
                if (a.expert == e) return true;
        return false;
    }

    moe::Trace trace;  // of the last run
    std::array<moe::Workspace<float>, layers> ws;

private:
    std::vector<Layer> stack_;
};

/// Tokens that show the behaviour, or not.
Matrix tokens_with(float behaviour, std::uint64_t seed) {
    Matrix x = moe::testing::random_matrix<float>(tokens, dim, seed);
    x.col(0).setConstant(behaviour);
    return x;
}

struct Contrast {
    Model model;
    Matrix with = tokens_with(1, 11), without = tokens_with(-1, 12);
    std::vector<ExpertScore> found;
    moe::Matrix<double> difference;

    Contrast() {
        model.run(with);
        const moe::Trace behaviour = model.trace;
        model.run(without);
        difference = moe::activation_contrast(behaviour, model.trace);
        found = moe::top_experts(difference, static_cast<Index>(planted.size()));
    }
    std::vector<moe::Steering> turned_off() const {
        std::vector<moe::Steering> steer(layers, moe::Steering(experts));
        for (Index l = 0; l < layers; ++l) steer[static_cast<std::size_t>(l)].turn_off(found, l);
        return steer;
    }
};

TEST(SteeringByContrast, FindsExactlyThePlantedExperts) {
    const Contrast contrast;
    ASSERT_EQ(contrast.found.size(), planted.size());
    for (const auto& [layer, e] : planted) {
        bool is_found = false;
        for (const ExpertScore& score : contrast.found)
            is_found |= score.layer == layer && score.expert == e;
        EXPECT_TRUE(is_found) << layer << " " << e;
    }
    // With a clear gap to the next one: a threshold finds the same.
    EXPECT_GT(contrast.found.back().value, 0.8);
    EXPECT_LT(moe::top_experts(contrast.difference, 4).back().value, 0.3);
    EXPECT_EQ(moe::experts_above(contrast.difference, 0.5, 10), contrast.found);
}

TEST(SteeringByContrast, SwitchingThemOffChangesWhatTheyDidAndNothingElse) {
    Contrast contrast;
    const std::vector<moe::Steering> steer = contrast.turned_off();
    for (const Matrix* x : {&contrast.with, &contrast.without}) {
        const Matrix before = contrast.model.run(*x);
        std::vector<bool> used;
        for (Index t = 0; t < tokens; ++t) used.push_back(contrast.model.uses_planted(t));
        const Matrix after = contrast.model.run(*x, steer);
        Index changed = 0;
        for (Index t = 0; t < tokens; ++t) {
            EXPECT_FALSE(contrast.model.uses_planted(t));
            const bool is_same = bool(same_bits(after.row(t), before.row(t)));
            EXPECT_EQ(is_same, !used[static_cast<std::size_t>(t)]) << t;
            changed += is_same ? 0 : 1;
        }
        if (x == &contrast.with)
            EXPECT_EQ(changed, tokens);
        else
            EXPECT_LT(changed, tokens / 8);
    }
}

TEST(SteeringByContrast, ForcingThemBringsTheBehaviourToOtherTokens) {
    Contrast contrast;
    std::vector<moe::Steering> steer(layers, moe::Steering(experts, {.k = 2}));
    for (Index l = 0; l < layers; ++l) steer[static_cast<std::size_t>(l)].force(contrast.found, l);
    contrast.model.run(contrast.without, steer);
    const moe::Matrix<double> frequency = moe::activation_frequency(contrast.model.trace);
    for (const auto& [layer, e] : planted) EXPECT_EQ(frequency(layer, e), 1);
    for (std::size_t l = 0; l < layers; ++l) steer[l].reset();
    const Matrix as_before = contrast.model.run(contrast.without, steer);
    EXPECT_TRUE(same_bits(contrast.model.run(contrast.without), as_before));
}

}  // namespace
}  // namespace contrast_test
