// SPDX-License-Identifier: MIT
#include <moe/io/names.hpp>

#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "support/message.hpp"

namespace names_test {
namespace {

using moe::Names;
using moe::Stacking;
using moe::TensorName;
using support::message;

/// Where a parameter is to be looked for: the names of tensors, with commas between.
std::string tensors(const Names& names, const std::string& parameter, std::size_t prefix = 0) {
    std::string all;
    for (const auto& place : names.places(parameter, prefix))
        all += (all.empty() ? "" : ", ") + place.tensor;
    return all;
}

TEST(Names, PutThePrefixInFrontAndTheNumberInThePlaceOfTheSign) {
    const Names names("model.layers.0.mlp.", {{"router.weight", "gate.weight"},
                                              {"experts.#.gate", "experts.#.w1.weight"},
                                              {"experts.#.up", "experts.expert_#"}});
    EXPECT_EQ(tensors(names, "router.weight"), "model.layers.0.mlp.gate.weight");
    EXPECT_EQ(tensors(names, "experts.0.gate"), "model.layers.0.mlp.experts.0.w1.weight");
    EXPECT_EQ(tensors(names, "experts.511.up"), "model.layers.0.mlp.experts.expert_511");
    EXPECT_EQ(Names::with_number("experts.#.gate", 12), "experts.12.gate");
    EXPECT_EQ(Names::with_number("router.weight", 12), "router.weight");
}

TEST(Names, SayNothingOfWhatTheyDoNotList) {
    const Names names("a.", {{"router.weight", "gate.weight"}, {"experts.#.gate", "w1.#"}});
    for (const char* const other :
         {"router", "router.weigh", "router.weight2", "experts.gate", "experts.0", "experts.0.up",
          "experts.0.gate.x", "experts.x.gate", "experts..gate", "experts.-1.gate", "0.gate", "",
          ".", "experts.0gate", "experts.12345678901.gate", "experts.99999999999999999999.gate"})
        EXPECT_EQ(tensors(names, other), "") << other;
}

TEST(Names, KnowAParameterByItsOwnNumberToo) {
    const Names names("a.", {{"router.weight", "gate.weight"},
                             {"shared.0.gate", "shared_expert.gate"},
                             {"shared.#.up", "shared.#.up"}});
    EXPECT_EQ(tensors(names, "shared.0.gate"), "a.shared_expert.gate");
    EXPECT_EQ(tensors(names, "shared.1.gate"), "");
    EXPECT_EQ(tensors(names, "shared.1.up"), "a.shared.1.up");
}

TEST(Names, KeepTheOrderOfEntriesOfOneParameter) {
    const Names names("a.", {{"experts.#.gate", "one", {.stacking = Stacking::leading}},
                             {"experts.#.gate", "two.#", {}, "two.#.scale"}});
    EXPECT_EQ(tensors(names, "experts.3.gate"), "a.one, a.two.3");
    const auto places = names.places("experts.3.gate");
    EXPECT_EQ(places[0].index, 3);
    EXPECT_EQ(places[0].scales, "");
    EXPECT_EQ(places[0].layout.stacking, Stacking::leading);
    EXPECT_EQ(places[1].scales, "a.two.3.scale");
}

TEST(Names, DivideExpertsAmongEntries) {
    const Names names(
        "a.", {{.parameter = "experts.#.gate", .tensor = "dynamic.#", .count = 4},
               {.parameter = "experts.#.gate", .tensor = "fixed.#", .first = 5, .count = 2}});
    EXPECT_EQ(tensors(names, "experts.3.gate"), "a.dynamic.3");
    EXPECT_EQ(tensors(names, "experts.4.gate"), "");  // a null expert
    EXPECT_EQ(tensors(names, "experts.5.gate"), "a.fixed.0");
    EXPECT_EQ(tensors(names, "experts.6.gate"), "a.fixed.1");
    EXPECT_EQ(tensors(names, "experts.7.gate"), "");
}

TEST(Names, LeaveTheLastPartOfThePrefixWithTwoDots) {
    const auto at = [](const std::string& prefix, const std::string& name) {
        return tensors(Names(prefix, {{"router.weight", name}}), "router.weight");
    };
    EXPECT_EQ(at("model.layers.0.moe.", "../mlp.w"), "model.layers.0.mlp.w");
    EXPECT_EQ(at("model.layers.0.moe.", "../../w"), "model.layers.w");
    EXPECT_EQ(at("moe.", "../w"), "w");
    EXPECT_EQ(at("moe.", "../../w"), "w");
    EXPECT_EQ(at("", "../w"), "w");
    EXPECT_EQ(at("moe.", "a../w"), "moe.a../w");
}

TEST(Names, KnowTensorsThatNothingReads) {
    const Names names(
        std::vector<std::string>{"a.", "b.c."},
        {{"experts.#.down", "experts.#.down"}, {"", "experts.#.up"}, {"", "map"}, {"", "../#"}});
    EXPECT_EQ(tensors(names, ""), "");
    for (const char* const unread : {"a.experts.0.up", "a.experts.511.up", "a.map", "12"})
        EXPECT_TRUE(names.is_unread(unread)) << unread;
    for (const char* const read :
         {"a.experts.0.down", "a.experts.x.up", "a.experts.0.up.x", "a.experts.0.1.up", "a.map2",
          "a.ma", "b.c.map", "experts.0.up", "a.experts.", "", "x"})
        EXPECT_FALSE(names.is_unread(read)) << read;
    EXPECT_TRUE(names.is_unread("b.c.map", 1));
    EXPECT_TRUE(names.is_unread("b.7", 1));
    EXPECT_FALSE(names.is_unread("a.map", 1));
}

TEST(Names, HaveEveryPrefixInTurn) {
    const Names names(std::vector<std::string>{"language_model.mlp.", "mlp."},
                      {{"router.weight", "gate"}, {"shared.0.up", "../up"}});
    EXPECT_EQ(tensors(names, "router.weight", 0), "language_model.mlp.gate");
    EXPECT_EQ(tensors(names, "router.weight", 1), "mlp.gate");
    EXPECT_EQ(tensors(names, "shared.0.up", 0), "language_model.up");
    EXPECT_EQ(tensors(names, "shared.0.up", 1), "up");
}

TEST(Names, RefuseATableThatMeansNothing) {
    const auto error = [](TensorName entry) {
        return message([&] { const Names names("a.", {std::move(entry)}); });
    };
    EXPECT_NE(message([] { const Names names("a.", {}); }).find("no entry"), std::string::npos);
    EXPECT_NE(message([] {
                  const Names names(std::vector<std::string>{}, {{"router.weight", "gate"}});
              }).find("no prefix"),
              std::string::npos);
    EXPECT_NE(error({"experts.#.gate", "w1"}).find("both must hold '#'"), std::string::npos);
    EXPECT_NE(error({"router.weight", "w1.#"}).find("both must hold '#'"), std::string::npos);
    EXPECT_NE(error({"router.weight", "w1", {.stacking = Stacking::leading}})
                  .find("only the first may hold '#'"),
              std::string::npos);
    EXPECT_NE(error({"experts.#.gate", "w1.#", {.stacking = Stacking::rows}})
                  .find("only the first may hold '#'"),
              std::string::npos);
    for (const TensorName& entry :
         {TensorName{.parameter = "router.weight", .tensor = "w", .layout = {.block = 0}},
          TensorName{.parameter = "experts.#.gate", .tensor = "w.#", .first = -1},
          TensorName{.parameter = "experts.#.gate", .tensor = "w.#", .count = 0}})
        EXPECT_NE(error(entry).find("must be at least 1, 0 and 1"), std::string::npos)
            << error(entry);
}

}  // namespace
}  // namespace names_test
