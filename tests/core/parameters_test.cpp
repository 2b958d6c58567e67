// SPDX-License-Identifier: MIT
#include <moe/core/parameters.hpp>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "support/message.hpp"

namespace parameters_test {
namespace {

using moe::Index;
using moe::Parameter;
using moe::Role;
using support::message;

using Names = std::vector<std::string>;
using Values = std::vector<float>;

TEST(Parameter, BeginsAsZerosOnACacheLine) {
    const Parameter<double> p(3, 5);
    EXPECT_EQ(p.rows(), 3);
    EXPECT_EQ(p.cols(), 5);
    EXPECT_EQ(p.size(), 15);
    EXPECT_FALSE(p.empty());
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(p.data()) % moe::cache_line, 0u);
    for (Index i = 0; i < 15; ++i) EXPECT_EQ(p.data()[i], 0);
}

TEST(Parameter, IsRowMajor) {
    Parameter<float> p(2, 3);
    p(1, 2) = 4;
    EXPECT_EQ(p.data()[5], 4.0f);
    EXPECT_EQ(p.row(1), p.data() + 3);
    EXPECT_EQ(p.view()(1, 2), 4.0f);
    p.view().setConstant(2);
    const Parameter<float>& same = p;
    EXPECT_EQ(same(0, 0), 2.0f);
    EXPECT_EQ(same.view().data(), p.data());
    EXPECT_EQ(same.view().rows(), 2);
    EXPECT_EQ(same.row(1), p.row(1));
    static_assert(std::is_same_v<decltype(same.data()), const float*>);
}

TEST(Parameter, MayBeEmpty) {
    for (const Parameter<float>& p :
         {Parameter<float>(), Parameter<float>(0, 4), Parameter<float>(4, 0)}) {
        EXPECT_TRUE(p.empty());
        EXPECT_EQ(p.size(), 0);
        EXPECT_EQ(p.view().size(), 0);
        EXPECT_TRUE(Parameter<float>(p).empty());
    }
    EXPECT_THROW(Parameter<float>(-1, 2), std::length_error);
    EXPECT_THROW(Parameter<float>(std::numeric_limits<Index>::max(), 2), std::length_error);
}

TEST(Parameter, CopiesOwnTheirMemory) {
    Parameter<float> original(1, 2);
    original(0, 1) = 3;
    Parameter<float> copy = original;
    EXPECT_NE(copy.data(), original.data());
    EXPECT_EQ(copy(0, 1), 3.0f);
    copy(0, 1) = 5;
    EXPECT_EQ(original(0, 1), 3.0f);
    original = copy;
    EXPECT_EQ(original(0, 1), 5.0f);
    EXPECT_NE(copy.data(), original.data());
    original = *&original;
    EXPECT_EQ(original(0, 1), 5.0f);
}

TEST(Parameter, MovingLeavesNothingBehind) {
    Parameter<float> original(2, 2);
    const float* const data = original.data();
    Parameter<float> moved = std::move(original);
    EXPECT_EQ(moved.data(), data);
    EXPECT_TRUE(original.empty());  // NOLINT(bugprone-use-after-move)
    original = std::move(moved);
    EXPECT_EQ(original.data(), data);
}

TEST(Parameter, LivesWhereItIsPlaced) {
    Values memory(6, 9.0f);
    {
        Parameter<float> p(1, 2);
        p(0, 0) = 1, p(0, 1) = 2;
        p.place(memory.data() + 1, nullptr);
        EXPECT_EQ(p.data(), memory.data() + 1);
        p(0, 1) = 7;
        Parameter<float> copy = p;  // has memory of its own
        copy(0, 0) = 100;
        const Parameter<float> moved = std::move(p);
        EXPECT_EQ(moved.data(), memory.data() + 1);
    }
    EXPECT_EQ(memory, (Values{9, 1, 7, 9, 9, 9}));
}

TEST(Parameter, KeepsTheOwnerOfItsMemoryAlive) {
    int alive = 1;
    {
        Parameter<float> p(1, 2);
        {
            const std::shared_ptr<float> owner(new float[2]{4, 5}, [&](float* memory) {
                delete[] memory;
                --alive;
            });
            p = Parameter<float>(1, 2, owner.get(), owner);
        }
        EXPECT_EQ(alive, 1);
        EXPECT_EQ(p(0, 1), 5.0f);
        const Parameter<float> copy = p;
        p = {};
        EXPECT_EQ(alive, 0);
        EXPECT_EQ(copy(0, 1), 5.0f);
    }
}

// A user's part with Eigen members: column-major, a vector, one of fixed extents.
struct UsersPart {
    Eigen::MatrixXf mix = Eigen::MatrixXf::Constant(2, 3, 1);
    Eigen::RowVectorXf scale = Eigen::RowVectorXf::Constant(4, 2);
    Eigen::Matrix<float, 1, 2> pair = Eigen::Matrix<float, 1, 2>::Constant(3);

    void visit_parameters(auto&& visit) {
        visit("mix", mix);  // no role: trainable
        visit("scale", scale);
        visit("pair", pair);
    }
};

// A part without parameters.
struct Silent {};

// What a layer is to the functions below.
struct Layer {
    using Scalar = float;
    Parameter<float> weight{2, 2}, table{1, 3}, bias{1, 2};
    Silent silent;

    Layer() {
        weight.view().setConstant(5), table.view().setConstant(6), bias.view().setConstant(7);
    }
    void visit_parameters(auto&& visit) {
        visit("weight", weight);
        visit("table", table, Role::frozen);
        moe::visit_parameters(silent, visit);
        visit("bias", bias, Role::state);
    }
};

struct LayerWithUsersPart {
    using Scalar = float;
    Parameter<float> weight{1, 2};
    UsersPart users;
    void visit_parameters(auto&& visit) {
        visit("weight", weight);
        moe::visit_parameters(users, [&](std::string_view name, auto& matrix, Role role) {
            visit("users." + std::string(name), matrix, role);
        });
    }
};

template <class Part>
Names names_of(Part& part) {
    Names names;
    moe::visit_parameters(part,
                          [&](std::string_view name, auto&, Role) { names.emplace_back(name); });
    return names;
}

TEST(VisitParameters, GivesNamesAndRolesInOrder) {
    Layer layer;
    Names seen;
    moe::visit_parameters(layer, [&](std::string_view name, auto& matrix, Role role) {
        const char* words[] = {"trainable", "frozen", "state"};
        seen.push_back(std::string(name) + " " + words[static_cast<int>(role)] + " " +
                       std::to_string(matrix.size()));
    });
    EXPECT_EQ(seen, (Names{"weight trainable 4", "table frozen 3", "bias state 2"}));
    LayerWithUsersPart other;
    EXPECT_EQ(names_of(other), (Names{"weight", "users.mix", "users.scale", "users.pair"}));
}

TEST(VisitParameters, APartWithoutThemHasNone) {
    Silent silent;
    EXPECT_TRUE(names_of(silent).empty());
    const Silent same;
    EXPECT_TRUE(names_of(same).empty());
}

TEST(VisitParameters, AConstLayerHandsOutConstMatrices) {
    const LayerWithUsersPart layer;
    int count = 0;
    moe::visit_parameters(layer, [&](std::string_view, auto& matrix, Role) {
        static_assert(std::is_const_v<std::remove_reference_t<decltype(matrix)>>);
        static_assert(std::is_same_v<decltype(matrix.data()), const float*>);
        ++count;
    });
    EXPECT_EQ(count, 4);
    LayerWithUsersPart mutable_layer;
    moe::visit_parameters(mutable_layer, [](std::string_view, auto& matrix, Role) {
        static_assert(std::is_same_v<decltype(matrix.data()), float*>);
    });
}

TEST(ForEachParameter, VisitsWhatIsTrainable) {
    Layer layer;
    Names names;
    moe::for_each_parameter(layer, [&](std::string_view name, std::span<float> values) {
        names.emplace_back(name);
        for (float& value : values) value = 1;
    });
    EXPECT_EQ(names, Names{"weight"});
    EXPECT_EQ(layer.weight(1, 1), 1.0f);
    EXPECT_EQ(layer.table(0, 0), 6.0f);
}

TEST(ForEachParameter, TakesAGenericFunctionThatWrites) {
    Layer layer;
    moe::for_each_parameter(layer, [](auto, auto values) { values[0] = 9; });
    EXPECT_EQ(layer.weight(0, 0), 9.0f);
}

TEST(ForEachParameter, ReadsAConstLayer) {
    const Layer layer;
    float sum = 0;
    moe::for_each_parameter(layer, [&](auto, auto values) {
        static_assert(std::is_same_v<decltype(values), std::span<const float>>);
        for (const float value : values) sum += value;
    });
    EXPECT_EQ(sum, 20.0f);
}

TEST(ForEachParameter, PairsParametersWithTheirGradients) {
    LayerWithUsersPart layer;
    LayerWithUsersPart grad = moe::zeros_like(layer);
    grad.users.scale(3) = 0.5f;
    Names names;
    moe::for_each_parameter(
        layer, grad,
        [&](std::string_view name, std::span<float> values, std::span<float> gradient) {
            names.emplace_back(name);
            ASSERT_EQ(values.size(), gradient.size());
            for (std::size_t i = 0; i < values.size(); ++i)
                values[i] -= std::exchange(gradient[i], 0.0f);
        });
    EXPECT_EQ(names, (Names{"weight", "users.mix", "users.scale", "users.pair"}));
    EXPECT_EQ(layer.users.scale(3), 1.5f);
    EXPECT_EQ(layer.users.scale(2), 2.0f);
    EXPECT_EQ(grad.users.scale(3), 0.0f);
}

TEST(ForEachParameter, SkipsEmptyGradients) {
    LayerWithUsersPart layer;
    auto grad = moe::zeros_like(layer, [](std::string_view name) { return name == "users.mix"; });
    Names names;
    moe::for_each_parameter(layer, grad, [&](std::string_view name, auto, auto gradient) {
        names.emplace_back(name);
        for (const float value : gradient) EXPECT_EQ(value, 0.0f);
    });
    EXPECT_EQ(names, (Names{"users.mix", "users.pair"}));  // what is fixed in size is zeros
}

// Parameters as many as it is told.
struct Growing {
    using Scalar = float;
    std::vector<Parameter<float>> parameters;
    void visit_parameters(auto&& visit) {
        for (Parameter<float>& p : parameters) visit("p", p);
    }
};

TEST(ForEachParameter, TheGradientMustBeLikeTheLayer) {
    Growing one{{Parameter<float>(1, 2)}}, two{{Parameter<float>(1, 2), Parameter<float>(1, 2)}};
    Growing wider{{Parameter<float>(1, 3)}};
    const auto nothing = [](auto, auto, auto) {};
    EXPECT_EQ(message([&] { moe::for_each_parameter(one, two, nothing); }),
              "moe::for_each_parameter: grad is not like layer: there is no parameter for p; make "
              "it with zeros_like(layer), and if the layer only views that matrix, without its "
              "gradient: zeros_like(layer, wanted)");
    EXPECT_EQ(message([&] { moe::for_each_parameter(one, wider, nothing); }),
              "moe::for_each_parameter: the gradient of p has 3 elements, the parameter has 2");
}

/// Visits what it has, as a type may that leaves empty matrices out.
struct Sparse {
    using Scalar = float;
    Parameter<float> a, b, c;
    void visit_parameters(auto&& visit) {
        if (!a.empty()) visit("a", a);
        if (!b.empty()) visit("b", b);
        if (!c.empty()) visit("c", c);
    }
};

TEST(ForEachParameter, MatchesByNameNotByPlace) {
    Sparse layer{Parameter<float>(1, 2), Parameter<float>(1, 2), Parameter<float>(1, 2)};
    Sparse grad = layer;
    grad.b = {};
    std::string seen;
    moe::for_each_parameter(layer, grad, [&](std::string_view name, auto values, auto gradient) {
        seen += name;
        EXPECT_EQ(values.data(), (name == "a" ? layer.a : layer.c).data());
        EXPECT_EQ(gradient.data(), (name == "a" ? grad.a : grad.c).data());
    });
    EXPECT_EQ(seen, "ac");
    Sparse nothing_wanted;
    moe::for_each_parameter(layer, nothing_wanted, [](auto, auto, auto) { FAIL(); });
}

TEST(SetZero, ClearsEveryGradient) {
    Sparse grad{Parameter<float>(1, 2), Parameter<float>(2, 2), {}};
    for (Parameter<float>* p : {&grad.a, &grad.b}) p->view().setConstant(3);
    moe::set_zero(grad);
    EXPECT_EQ(grad.a.view().norm(), 0);
    EXPECT_EQ(grad.b.view().norm(), 0);
}

TEST(ForEachState, VisitsStateOnly) {
    Layer layer;
    Names names;
    moe::for_each_state(layer, [&](std::string_view name, std::span<float> values) {
        names.emplace_back(name);
        values[1] = 8;
    });
    EXPECT_EQ(names, Names{"bias"});
    EXPECT_EQ(layer.bias(0, 1), 8.0f);
    const Layer same;
    moe::for_each_state(same, [&](std::string_view, std::span<const float> values) {
        EXPECT_EQ(values.size(), 2u);
    });
}

TEST(ZerosLike, HoldsZerosForWhatIsTrainableAndNothingElse) {
    const Layer layer;
    const Layer grad = moe::zeros_like(layer);
    EXPECT_EQ(grad.weight.rows(), 2);
    for (Index i = 0; i < 4; ++i) EXPECT_EQ(grad.weight.data()[i], 0.0f);
    EXPECT_TRUE(grad.table.empty());
    EXPECT_TRUE(grad.bias.empty());
    EXPECT_EQ(layer.weight(0, 0), 5.0f);
    EXPECT_EQ(layer.table(0, 0), 6.0f);
}

TEST(ZerosLike, ReplacesWhateverTheLayerHolds) {
    Layer layer;
    layer.weight.view().setConstant(std::numeric_limits<float>::quiet_NaN());
    EXPECT_EQ(moe::zeros_like(layer).weight(1, 1), 0.0f);
}

TEST(ZerosLike, LeavesOutWhatIsNotWanted) {
    const LayerWithUsersPart layer;
    Names asked;
    const auto grad = moe::zeros_like(layer, [&](std::string_view name) {
        asked.emplace_back(name);
        return name == "users.scale";
    });
    EXPECT_EQ(asked, (Names{"weight", "users.mix", "users.scale", "users.pair"}));
    EXPECT_TRUE(grad.weight.empty());
    EXPECT_EQ(grad.users.mix.size(), 0);
    EXPECT_EQ(grad.users.scale.size(), 4);
    EXPECT_EQ(grad.users.scale.cwiseAbs().maxCoeff(), 0.0f);
    EXPECT_TRUE((grad.users.pair.array() == 0).all());
}

// Its weights are views of other memory; what it visits is what it owns.
struct ReadOnly {
    using Scalar = float;
    Parameter<float> weight;
    void own_gradients() { weight = Parameter<float>(2, 3); }
    void visit_parameters(auto&& visit) { visit("weight", weight); }
};

TEST(ZerosLike, AsksForGradientsOfItsOwn) {
    EXPECT_EQ(moe::zeros_like(ReadOnly{}).weight.size(), 6);
}

TEST(NumParameters, CountsWhatIsTrainableOrFrozen) {
    EXPECT_EQ(moe::num_parameters(Layer{}), 7);
    EXPECT_EQ(moe::num_parameters(LayerWithUsersPart{}), 2 + 6 + 4 + 2);
    EXPECT_EQ(moe::num_parameters(moe::zeros_like(Layer{})), 4);
    EXPECT_EQ(moe::num_parameters(Silent{}), 0);
}

TEST(CopyParameters, GoesThereAndBack) {
    Layer layer;
    Values values(7);
    moe::copy_parameters(layer, values);
    EXPECT_EQ(values, (Values{5, 5, 5, 5, 6, 6, 6}));
    for (std::size_t i = 0; i < 7; ++i) values[i] = static_cast<float>(i);
    moe::copy_parameters(values, layer);
    EXPECT_EQ(layer.weight(1, 0), 2.0f);
    EXPECT_EQ(layer.table(0, 2), 6.0f);
    EXPECT_EQ(layer.bias(0, 0), 7.0f);  // state stays

    LayerWithUsersPart a, b;
    a.users.mix(1, 2) = 11;
    a.weight(0, 1) = 12;
    Values all(14);
    moe::copy_parameters(a, all);
    moe::copy_parameters(std::as_const(all), b);
    EXPECT_EQ(b.users.mix, a.users.mix);
    EXPECT_EQ(b.weight(0, 1), 12.0f);
}

TEST(CopyParameters, TheSpanHasTheSizeOfTheLayer) {
    Layer layer;
    Values six(6), eight(8);
    const auto text = "moe::copy_parameters: values has 6 elements, the layer has 7";
    EXPECT_EQ(message([&] { moe::copy_parameters(layer, six); }), text);
    EXPECT_EQ(message([&] { moe::copy_parameters(six, layer); }), text);
    EXPECT_EQ(message([&] { moe::copy_parameters(layer, eight); }),
              "moe::copy_parameters: values has 8 elements, the layer has 7");
    EXPECT_THROW(moe::copy_parameters(eight, layer), std::invalid_argument);
    EXPECT_EQ(layer.weight(0, 0), 5.0f);
    EXPECT_EQ(six[0], 0.0f);
}

TEST(Flatten, PutsAllParametersInOneSpan) {
    Layer layer;
    const std::span<float> all = moe::flatten(layer);
    EXPECT_EQ(Values(all.begin(), all.end()), (Values{5, 5, 5, 5, 6, 6, 6}));
    EXPECT_EQ(layer.weight.data(), all.data());
    EXPECT_EQ(layer.table.data(), all.data() + 4);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(all.data()) % moe::cache_line, 0u);
    all[3] = 50;
    EXPECT_EQ(layer.weight(1, 1), 50.0f);
    EXPECT_EQ(layer.bias(0, 0), 7.0f);
    layer.weight(0, 0) = -1;
    EXPECT_EQ(all[0], -1.0f);
}

TEST(Flatten, TheMemoryLivesAsLongAsOneParameter) {
    Parameter<float> last;
    {
        Layer layer;
        moe::flatten(layer);
        last = std::move(layer.table);
    }
    EXPECT_EQ(last(0, 2), 6.0f);
}

TEST(Flatten, UsesTheUsersMemory) {
    Values memory(9, -1);
    {
        Layer layer;
        const auto all = moe::flatten(layer, std::span<float>(memory).subspan(1, 7));
        EXPECT_EQ(all.data(), memory.data() + 1);
        layer.table(0, 0) = 60;
    }
    EXPECT_EQ(memory, (Values{-1, 5, 5, 5, 5, 60, 6, 6, -1}));
}

TEST(Flatten, MayBeRepeatedElsewhere) {
    Layer layer;
    moe::flatten(layer);
    Values memory(7);
    moe::flatten(layer, memory);
    EXPECT_EQ(memory, (Values{5, 5, 5, 5, 6, 6, 6}));
    const auto own = moe::flatten(layer);
    EXPECT_NE(own.data(), memory.data());
    EXPECT_EQ(own[6], 6.0f);
}

TEST(Flatten, CopiesOfTheLayerHaveMemoryOfTheirOwn) {
    Values memory(7);
    Layer layer;
    moe::flatten(layer, memory);
    Layer copy = layer;
    Layer grad = moe::zeros_like(layer);
    copy.weight(0, 0) = 99;
    grad.weight(0, 0) = 98;
    EXPECT_EQ(memory[0], 5.0f);
    EXPECT_EQ(layer.weight.data(), memory.data());
    const Layer moved = std::move(layer);
    EXPECT_EQ(moved.weight.data(), memory.data());
}

TEST(Flatten, TwoSpansAreAnOptimiser) {
    Growing layer{{Parameter<float>(1, 2), Parameter<float>(2, 1)}};
    for (Parameter<float>& p : layer.parameters) p.view().setConstant(1);
    Growing grad = moe::zeros_like(layer);
    const auto w = moe::flatten(layer), g = moe::flatten(grad);
    ASSERT_EQ(w.size(), g.size());
    grad.parameters[1](1, 0) = 2;
    for (std::size_t i = 0; i < w.size(); ++i) w[i] -= g[i];
    EXPECT_EQ(layer.parameters[1](1, 0), -1.0f);
    EXPECT_EQ(layer.parameters[1](0, 0), 1.0f);
}

TEST(Flatten, OfNothingIsNothing) {
    Growing none;
    EXPECT_TRUE(moe::flatten(none).empty());
}

TEST(Flatten, TheMemoryHasTheSizeOfTheLayer) {
    Layer layer;
    Values six(6);
    EXPECT_EQ(message([&] { moe::flatten(layer, six); }),
              "moe::flatten: memory has 6 elements, the layer has 7");
    EXPECT_NE(layer.weight.data(), six.data());
    EXPECT_EQ(layer.weight(1, 1), 5.0f);
}

TEST(Flatten, EigenMatricesCannotMove) {
    LayerWithUsersPart layer;
    const float* const data = layer.weight.data();
    EXPECT_EQ(message([&] { moe::flatten(layer); }),
              "moe::flatten: users.mix is not a moe::Parameter and cannot move; make it one");
    EXPECT_EQ(layer.weight.data(), data);  // a refusal changes nothing
}

}  // namespace
}  // namespace parameters_test
