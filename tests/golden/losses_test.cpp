// SPDX-License-Identifier: MIT
// Losses and their gradients against what published code and published formulas make of the same
// logits; see generate_losses.py.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <moe/losses/device_balance.hpp>
#include <moe/losses/entropy.hpp>
#include <moe/losses/importance.hpp>
#include <moe/losses/load.hpp>
#include <moe/losses/load_balance.hpp>
#include <moe/losses/load_fraction.hpp>
#include <moe/losses/mass_balance.hpp>
#include <moe/losses/second_place.hpp>
#include <moe/losses/tsallis_entropy.hpp>
#include <moe/losses/z_loss.hpp>

#include "golden/golden.hpp"
#include "losses/example.hpp"
#include "losses/head_of_logits.hpp"

namespace losses_test {
namespace {

using moe::Context;
using moe::GateNoise;
using moe::Index;
using moe::LoadBalance;
using moe::Matrix;
using moe::Routing;
using moe::Scored;
using moe::Variance;
using Norm = LoadBalance::Norm;
using Slots = LoadBalance::Slots;

const golden::File& file() {
    static const golden::File losses("losses");
    return losses;
}

/// The tensors of one case, and the context that they make.
struct Case {
    std::string name;
    Matrix<double> logits, dlogits;
    double value;
    Index parts;
    Routing plan;
    std::vector<std::uint8_t> padding;
    std::vector<Index> sequences;
    std::vector<std::int32_t> devices;
    std::vector<double> token_weights, expert_weights, noise;

    explicit Case(std::string of) : name(std::move(of)) {
        logits = numbers("logits"), dlogits = numbers("dlogits");
        value = numbers("value")(0, 0);
        parts = static_cast<Index>(integers("parts")(0, 0));
        plan.reset(logits.rows(), has("noise") ? numbers("noise").cols() : logits.cols());
        read_routing();
        padding = list<std::uint8_t>("padding");
        sequences = list<Index>("sequence_offsets");
        devices = list<std::int32_t>("device_of_expert");
        token_weights = list<double>("token_weights");
        expert_weights = list<double>("expert_weights");
        noise = list<double>("noise");
    }

    Context context() const {
        Context context;
        context.training = true;
        context.padding = padding;
        context.sequence_offsets = sequences;
        context.noise = noise;
        return context;
    }

private:
    std::string full(const std::string& what) const { return name + "." + what; }
    bool has(const std::string& what) const { return file().view().find(full(what)) != nullptr; }
    Matrix<double> numbers(const std::string& what) const {
        return file().read<double>(std::string_view(full(what)));
    }
    Matrix<std::int64_t> integers(const std::string& what) const {
        return file().view().integers(full(what));
    }
    template <class V>
    std::vector<V> list(const std::string& what) const {
        std::vector<V> values;
        const auto add = [&](const auto& matrix) {
            for (Index i = 0; i < matrix.size(); ++i)
                values.push_back(static_cast<V>(matrix.data()[i]));
        };
        if (!has(what)) return values;
        if constexpr (std::is_integral_v<V>)
            add(integers(what));
        else
            add(numbers(what));
        return values;
    }
    void read_routing() {
        const Matrix<std::int64_t> none(0, 0);
        const auto ids = has("expert_ids") ? integers("expert_ids") : none;
        const auto dropped = has("dropped") ? integers("dropped") : none;
        std::vector<Index> lost;
        for (Index t = 0; t < ids.rows(); ++t)
            for (Index k = 0; k < ids.cols(); ++k) {
                if (ids(t, k) < 0) continue;
                if (dropped.size() != 0 && dropped(t, k) != 0)
                    lost.push_back(plan.num_assignments());
                plan.add(t, static_cast<Index>(ids(t, k)));
            }
        plan.group();
        for (const Index a : lost) plan.set_dropped(a, moe::Dropped::capacity);
        plan.group();
    }
};

/// What we make of a case: the value, and the gradient [T, L], which is added to.
using Ours = std::function<double(const Case&, Matrix<double>&)>;

/// f(logits, routing, context, weight, dlogits)
template <class F>
Ours plain(F f) {
    return [f](const Case& c, Matrix<double>& dlogits) -> double {
        return f(c.logits, c.plan, c.context(), 1.0, dlogits);
    };
}

Ours balance(LoadBalance options = {}) {
    return [options](const Case& c, Matrix<double>& dlogits) -> double {
        LoadBalance all = options;
        all.token_weights = c.token_weights;
        all.expert_weights = c.expert_weights;
        return moe::load_balance_loss(c.logits, c.plan, c.context(), 1.0, dlogits, all);
    };
}

/// The batches of layers or ranks with their common fraction.
Ours joint(LoadBalance options = {}) {
    return [options](const Case& c, Matrix<double>& dlogits) {
        const Index rows = c.logits.rows() / c.parts;
        std::vector<moe::Workspace<double>> parts(static_cast<std::size_t>(c.parts));
        moe::LoadFraction load(c.logits.cols());
        for (std::size_t i = 0; i < parts.size(); ++i) {
            const Index first = static_cast<Index>(i) * rows;
            std::vector<std::vector<Index>> chosen;
            for (Index t = first; t < first + rows; ++t) {
                chosen.emplace_back();
                for (const moe::Assignment& a : c.plan.of(t)) chosen.back().push_back(a.expert);
            }
            Context context;
            if (!c.padding.empty())
                context.padding = std::span(c.padding).subspan(i * static_cast<std::size_t>(rows),
                                                               static_cast<std::size_t>(rows));
            example::fill(parts[i], c.logits.middleRows(first, rows).eval(),
                          example::routing(c.logits.cols(), chosen), context);
            load.add(parts[i], options);
        }
        LoadBalance all = options;
        all.fraction = load.fraction(options.norm);
        const double share = 1 / static_cast<double>(c.parts);
        double value = 0;
        for (std::size_t i = 0; i < parts.size(); ++i) {
            value += share * moe::load_balance_loss(parts[i], share, all);
            dlogits.middleRows(static_cast<Index>(i) * rows, rows) += parts[i].dlogits();
        }
        return value;
    };
}

using Head = example::HeadOfLogits<double, moe::Noisy<moe::TopK>>;

/// f(head, case) adds to head.ws.dlogits().
template <class F>
Ours noisy(GateNoise::Kind kind, Index k, F f) {
    return [=](const Case& c, Matrix<double>& dlogits) {
        Head head(moe::Noisy{moe::TopK{.k = k}, GateNoise{.kind = kind}}, c.logits.rows(),
                  c.plan.num_experts(), c.logits.cols());
        head.logits = c.logits;
        head.route(c.context());
        EXPECT_EQ(golden::expert_ids(head.ws.routing(), k), golden::expert_ids(c.plan, k));
        const double value = f(head, c);
        dlogits += head.ws.dlogits();
        return value;
    };
}

const Ours z = plain([](auto&&... a) { return moe::z_loss(a...); });
constexpr auto learned = GateNoise::Kind::learned;
constexpr auto sample = Variance::sample;

const std::vector<std::pair<std::string, Ours>> cases{
    {"mixtral_2", balance()},
    {"mixtral_4", balance()},
    {"mixtral_masked", balance()},
    {"mixtral_layers", joint()},
    {"mixtral_layers_masked", joint()},
    {"nllb_layers_masked", joint()},
    {"switch_sequences", balance({.norm = Norm::gshard, .per_sequence = true})},
    {"switch_union", balance({.norm = Norm::gshard, .per_sequence = true})},
    {"switch_z", z},
    {"megatron_softmax", balance({.norm = Norm::per_assignment})},
    {"megatron_sigmoid", balance({.norm = Norm::per_assignment, .score = moe::Score::sigmoid})},
    {"megatron_masked", balance({.norm = Norm::per_assignment})},
    {"megatron_sequences", balance({.norm = Norm::per_assignment, .per_sequence = true})},
    {"megatron_ranks", joint({.norm = Norm::per_assignment})},
    {"megatron_z", z},
    {"deepspeed_1", balance({.slots = Slots::first})},
    {"deepspeed_2", balance({.norm = Norm::gshard, .slots = Slots::first})},
    {"deepspeed_k", balance({.norm = Norm::per_assignment})},
    {"st_moe_balance", balance({.norm = Norm::gshard, .slots = Slots::first})},
    {"st_moe_dropped",
     balance({.norm = Norm::gshard, .slots = Slots::first, .count_dropped = false})},
    {"st_moe_z", z},
    {"deepseek_sequences", balance({.norm = Norm::per_assignment, .per_sequence = true})},
    {"deepseek_v3_sequences",
     balance({.norm = Norm::per_assignment, .score = moe::Score::sigmoid, .per_sequence = true})},
    {"deepseek_devices",
     [](const Case& c, Matrix<double>& dlogits) -> double {
         return moe::device_balance_loss(c.logits, c.plan, {}, 1.0, dlogits,
                                         {.num_devices = 3, .device_of_expert = c.devices});
     }},
    {"deepseek_communication",
     [](const Case& c, Matrix<double>& dlogits) -> double {
         return moe::communication_balance_loss(
             c.logits, c.plan, {}, 1.0, dlogits,
             {.num_devices = 3, .device_of_expert = c.devices, .devices_per_token = 2});
     }},
    {"moe_plus_plus", balance({.norm = Norm::unscaled})},
    {"uni_moe", balance({.scored = Scored::selected})},
    {"fastmoe_balance", balance({.norm = Norm::all_per_assignment, .count_dropped = false})},
    {"dyn_mole", plain([](auto&&... a) { return moe::mass_balance_loss(a...); })},
    {"mesh_second_place", plain([](auto&&... a) { return moe::second_place_loss(a...); })},
    {"dynamic_moe_entropy", plain([](auto&&... a) { return moe::entropy_loss(a...); })},
    {"dyn_mole_entropy", plain([](auto&&... a) { return moe::tsallis_entropy_loss(a...); })},
    {"v_moe_importance", plain([](auto&&... a) { return moe::importance_loss(a...); })},
    {"tutel_importance",
     plain([](auto&&... a) { return moe::importance_loss(a..., {.variance = sample}); })},
    {"fastmoe_noisy",
     noisy(learned, 2,
           [](Head& head, const Case&) {
               return moe::importance_loss(head.gate(), head.ws, 1.0,
                                           {.variance = sample, .scored = Scored::selected}) +
                      moe::load_loss(head.gate(), head.ws, 1.0, {.variance = sample});
           })},
    {"shazeer_load", noisy(learned, 7,
                           [](Head& head, const Case&) {
                               return moe::load_loss(head.gate(), head.ws, 1.0).value;
                           })},
    {"v_moe_noisy", noisy(GateNoise::Kind::fixed_over_experts, 3,
                          [](Head& head, const Case&) {
                              const auto kth = moe::SmoothLoad::Threshold::kth;
                              return 0.5 * moe::importance_loss(head.ws, 0.5) +
                                     0.5 * moe::load_loss(head.gate(), head.ws, 0.5,
                                                          {.threshold = kth});
                          })},
    {"shift_add_vit",
     noisy(learned, 1,
           [](Head& head, const Case& c) {
               return moe::importance_loss(head.gate(), head.ws, 1.0,
                                           {.variance = sample, .expert_costs = c.expert_weights}) +
                      moe::load_loss(head.gate(), head.ws, 1.0,
                                     {.variance = sample, .expert_costs = c.expert_weights});
           })},
};

TEST(PublishedLosses, AreOursInValueAndGradient) {
    for (const auto& [name, ours] : cases) {
        SCOPED_TRACE(name);
        const Case c(name);
        Matrix<double> dlogits = Matrix<double>::Zero(c.logits.rows(), c.logits.cols());
        EXPECT_NEAR(ours(c, dlogits) / c.value, 1, 1e-12);
        EXPECT_TRUE(moe::testing::compare(dlogits, c.dlogits, 1e-11, {.allow_zeros = true}));
    }
}

TEST(PublishedLosses, OfTheFileAreAllHere) {
    std::set<std::string> of_file, here;
    for (const moe::TensorView& tensor : file().view())
        of_file.emplace(tensor.name.substr(0, tensor.name.find('.')));
    for (const auto& [name, ours] : cases) here.insert(name);
    EXPECT_EQ(here, of_file);
}

}  // namespace
}  // namespace losses_test
