// SPDX-License-Identifier: MIT
#include <moe/core/concepts.hpp>

#include <type_traits>
#include <utility>

#include <gtest/gtest.h>

#include "core/example_parts.hpp"

namespace concepts_test {
namespace {

using namespace core_test;
using Rows = moe::Rows<float>;
using RowGradients = moe::RowGradients<float>;

// ---- recipes

struct Module {
    Index experts;
};
struct AnyScalar {
    template <class S>
    Module build(const moe::Shape& shape, moe::Random&) const {
        return {shape.num_experts};
    }
};
struct NotConst {
    template <class S>
    Module build(const moe::Shape&, moe::Random&);
};
struct WithoutRandom {
    template <class S>
    Module build(const moe::Shape&) const;
};
struct NotATemplate {
    Module build(const moe::Shape&, moe::Random&) const;
};
struct DoubleOnly {
    template <class S>
        requires std::is_same_v<S, double> Module build(const moe::Shape&, moe::Random&)
    const;
};
static_assert(moe::Recipe<AnyScalar> && moe::Recipe<AnyScalar, double>);
static_assert(!moe::Recipe<NotConst> && !moe::Recipe<WithoutRandom> && !moe::Recipe<NotATemplate>);
static_assert(moe::Recipe<DoubleOnly, double> && !moe::Recipe<DoubleOnly, float>);
static_assert(!moe::Recipe<int>);

TEST(Concepts, RecipesAreBuiltAndOtherPartsCopied) {
    moe::Random random(1);
    const moe::Shape shape{.num_experts = 6};
    EXPECT_EQ((moe::detail::built<AnyScalar, float>({}, shape, random).experts), 6);
    EXPECT_EQ((moe::detail::built<Module, float>({3}, shape, random).experts), 3);
    static_assert(std::is_same_v<moe::detail::built_t<AnyScalar, float>, Module>);
    static_assert(std::is_same_v<moe::detail::built_t<NotATemplate, float>, NotATemplate>);
}

// ---- routers and experts: the same members, for different matrices

struct OtherScalar {
    void forward(moe::In<double>, moe::Out<double>) const;
    void backward(moe::In<double>, moe::In<double>, moe::Out<double>, OtherScalar&) const;
};
struct WithoutForward {
    void backward(In, In, Out, WithoutForward&) const;
};
struct WithoutBackward {
    void forward(In, Out) const;
};
struct ForwardNotConst {
    void forward(In, Out);
    void backward(In, In, Out, ForwardNotConst&) const;
};
struct BackwardNotConst {
    void forward(In, Out) const;
    void backward(In, In, Out, BackwardNotConst&);
};
struct BackwardWithoutGradient {
    void forward(In, Out) const;
    void backward(In, In, Out) const;
};
struct MixedForms {  // forward short, backward long
    void forward(In, Out) const;
    void backward(In, In, Out, MixedForms&, const Call&) const;
};

template <class T, class S = float>
constexpr bool both = moe::Router<T, S>&& moe::Expert<T, S>;
template <class T, class S = float>
constexpr bool neither = !moe::Router<T, S> && !moe::Expert<T, S>;
static_assert(both<Short> && both<Long> && both<Both> && both<OtherScalar, double>);
static_assert(neither<OtherScalar> && neither<Short, double>);
static_assert(neither<WithoutForward> && neither<WithoutBackward>);
static_assert(neither<ForwardNotConst> && neither<BackwardNotConst>);
static_assert(neither<BackwardWithoutGradient> && neither<MixedForms>);
static_assert(neither<int>);

// ---- gates

struct WithoutSelect {
    void weigh(In, moe::Routing&) const;
};
struct SelectNotConst {
    void select(In, moe::Routing&);
};
struct SelectsForReading {
    void select(In, Out) const;
};
struct BackwardForItself : Selects {  // takes a gradient without a call
    void backward(In, const moe::Routing&, const WeightGradients&, Out, BackwardForItself&) const;
};
struct BackwardWithoutSelect {
    void backward(In, const moe::Routing&, const WeightGradients&, Out) const;
};
struct BackwardEditsTheRouting : Selects {
    void backward(In, moe::Routing&, const WeightGradients&, Out) const;
};
static_assert(moe::Gate<Selects> && moe::Gate<SelectsByCall> && moe::Gate<Trains>);
static_assert(!moe::Gate<WithoutSelect> && !moe::Gate<SelectNotConst> &&
              !moe::Gate<SelectsForReading>);
static_assert(!moe::Gate<Selects, double> && !moe::Gate<SelectsByCall, double>);
static_assert(moe::TrainableGate<Trains> && moe::TrainableGate<TrainsByCall>);
static_assert(!moe::TrainableGate<Selects> && !moe::TrainableGate<SelectsByCall>);
static_assert(!moe::TrainableGate<BackwardForItself> && !moe::TrainableGate<BackwardWithoutSelect>);
static_assert(!moe::TrainableGate<BackwardEditsTheRouting> && !moe::TrainableGate<Trains, double>);

// ---- groups

struct Group {
    int num_experts() const { return 1; }  // anything that converts to Index
    void forward(In, const Rows&, Out, const Call&) const {}
};
struct GroupToTrain : Group {
    void backward(In, const Rows&, In, Out, const RowGradients&, GroupToTrain&, const Call&) const {
    }
};
struct GroupWithoutCount {
    void forward(In, const Rows&, Out, const Call&) const;
};
struct GroupWithAVoidCount {
    void num_experts() const;
    void forward(In, const Rows&, Out, const Call&) const;
};
struct GroupWithoutForward {
    Index num_experts() const;
    void backward(In, const Rows&, In, Out, const RowGradients&, GroupWithoutForward&,
                  const Call&) const;
};
struct GroupWithoutCall {
    Index num_experts() const;
    void forward(In, const Rows&, Out) const;
};
struct GroupNotConst {
    Index num_experts() const;
    void forward(In, const Rows&, Out, const Call&);
};
struct GroupWithoutGradient : Group {
    void backward(In, const Rows&, In, Out, const RowGradients&, const Call&) const;
};
static_assert(moe::ExpertGroup<Group> && moe::ExpertGroup<GroupToTrain>);
static_assert(!moe::ExpertGroup<Group, double>);
static_assert(!moe::ExpertGroup<GroupWithoutCount> && !moe::ExpertGroup<GroupWithAVoidCount>);
static_assert(!moe::ExpertGroup<GroupWithoutForward> && !moe::ExpertGroup<GroupWithoutCall>);
static_assert(!moe::ExpertGroup<GroupNotConst> && !moe::ExpertGroup<Short>);
static_assert(moe::TrainableGroup<GroupToTrain>);
static_assert(!moe::TrainableGroup<Group> && !moe::TrainableGroup<GroupWithoutForward>);
static_assert(!moe::TrainableGroup<GroupWithoutGradient>);

}  // namespace
}  // namespace concepts_test
