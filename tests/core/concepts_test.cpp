// SPDX-License-Identifier: MIT
#include <moe/core/concepts.hpp>

#include <type_traits>
#include <utility>

#include <gtest/gtest.h>

namespace {

using moe::Index;
using In = moe::In<float>;
using Out = moe::Out<float>;
using Call = moe::Call<float>;
using Rows = moe::Rows<float>;
using RowGradients = moe::RowGradients<float>;
using WeightGradients = moe::WeightGradients<float>;

// ---- recipes
// -------------------------------------------------------------------------------------

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
// ---------------------------------

struct Short {
    float factor = 2;
    void forward(In x, Out y) const { y = factor * x; }
    void backward(In, In dy, Out dx, Short& grad) const { dx = factor * dy, grad.factor += 1; }
};
struct Long {
    void forward(In x, Out y, const Call& call) const {
        y = x.array() + static_cast<float>(call.context.step);
    }
    void backward(In, In dy, Out dx, Long&, const Call& call) const {
        dx = dy.array() + static_cast<float>(call.context.step);
    }
};
struct Both : Short {
    using Short::forward;
    void forward(In x, Out y, const Call&) const { y = -x; }
};
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

TEST(Concepts, ForwardAndBackwardAreCalledInTheFormThatIsThere) {
    moe::Workspace<float> ws;
    const moe::Context context{.step = 10};
    const Call call{context, ws};
    const moe::Matrix<float> x = moe::Matrix<float>::Ones(2, 3);
    moe::Matrix<float> y(2, 3);
    moe::detail::forward<Short, float>({}, x, y, call);
    EXPECT_EQ(y(1, 2), 2.0f);
    moe::detail::forward<Long, float>({}, x, y, call);
    EXPECT_EQ(y(1, 2), 11.0f);
    moe::detail::forward<Both, float>({}, x, y, call);  // the long form if there are two
    EXPECT_EQ(y(1, 2), -1.0f);
    Short grad;
    moe::detail::backward<Short, float>({}, x, x, y, grad, call);
    EXPECT_EQ(y(0, 0), 2.0f);
    EXPECT_EQ(grad.factor, 3.0f);
    Long none;
    moe::detail::backward<Long, float>({}, x, x, y, none, call);
    EXPECT_EQ(y(0, 0), 11.0f);
}

// ---- gates
// -----------------------------------------------------------------------------------------

struct Selects {
    void select(In logits, moe::Routing& routing) const {
        for (Index t = 0; t < logits.rows(); ++t) routing.add(t, 0, 0.5);
    }
};
struct SelectsByCall {
    void select(In, moe::Routing& routing, const Call& call) const {
        routing.add(0, static_cast<Index>(call.context.step));
    }
    void weigh(In, moe::Routing& routing, const Call&) const { routing.set_weight(0, 7); }
    Index num_logits(Index experts) const { return 2 * experts; }
};
struct Trains : Selects {
    void backward(In, const moe::Routing&, const WeightGradients& dweights, Out dlogits) const {
        dlogits(0, 0) += dweights[0];
    }
    void weigh(In, moe::Routing& routing) const { routing.set_weight(0, 9); }
};
struct TrainsByCall : SelectsByCall {
    Index seen = 0;
    void backward(In, const moe::Routing&, const WeightGradients&, Out dlogits, TrainsByCall& grad,
                  const Call&) const {
        dlogits(0, 0) += 3, ++grad.seen;
    }
};
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
static_assert(moe::TrainableGate<Trains> && moe::TrainableGate<TrainsByCall>);
static_assert(!moe::TrainableGate<Selects> && !moe::TrainableGate<SelectsByCall>);
static_assert(!moe::TrainableGate<BackwardForItself> && !moe::TrainableGate<BackwardWithoutSelect>);
static_assert(!moe::TrainableGate<BackwardEditsTheRouting> && !moe::TrainableGate<Trains, double>);

TEST(Concepts, GatesAreCalledInTheFormThatIsThere) {
    moe::Workspace<float> ws;
    const moe::Context context{.step = 2};
    const Call call{context, ws};
    const moe::Matrix<float> logits = moe::Matrix<float>::Zero(1, 3);
    moe::Matrix<float> dlogits = moe::Matrix<float>::Ones(1, 3);
    const float dweight = 4;
    const WeightGradients dweights{.output = {&dweight, 1}};
    const auto routed = [&](const auto& gate) {
        using G = std::remove_cvref_t<decltype(gate)>;
        moe::Routing routing;
        routing.reset(1, 3);
        moe::detail::select<G, float>(gate, logits, routing, call);
        moe::detail::weigh<G, float>(gate, logits, routing, call);
        routing.group();
        return routing;
    };
    EXPECT_EQ(routed(Selects{}).of(0)[0].weight, 0.5);  // nothing weighs: what select gave
    EXPECT_EQ(routed(Trains{}).of(0)[0].weight, 9);
    EXPECT_EQ(routed(SelectsByCall{}).of(0)[0].expert, 2);
    EXPECT_EQ(routed(SelectsByCall{}).of(0)[0].weight, 7);

    const moe::Routing routing = routed(Trains{});
    Trains grad;
    moe::detail::gate_backward<Trains, float>({}, logits, routing, dweights, dlogits, grad, call);
    EXPECT_EQ(dlogits(0, 0), 5.0f);
    TrainsByCall grad_by_call;
    moe::detail::gate_backward<TrainsByCall, float>({}, logits, routing, dweights, dlogits,
                                                    grad_by_call, call);
    EXPECT_EQ(dlogits(0, 0), 8.0f);
    EXPECT_EQ(grad_by_call.seen, 1);

    EXPECT_EQ(moe::detail::num_logits(Selects{}, 3), 3);
    EXPECT_EQ(moe::detail::num_logits(SelectsByCall{}, 3), 6);
}

// ---- groups
// ----------------------------------------------------------------------------------------

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

// ---- views
// -----------------------------------------------------------------------------------------

const float* read(const auto& x) { return moe::detail::readable<float>(x).data(); }
template <class Y>
float* written(Y&& y) {
    return moe::detail::writable<float>(std::forward<Y>(y)).data();
}

TEST(Concepts, WhatIsReadIsNotCopied) {
    moe::Matrix<float> x = moe::Matrix<float>::Random(6, 8);
    EXPECT_EQ(read(x), x.data());
    EXPECT_EQ(read(x.middleRows(1, 2)), x.data() + 8);
    EXPECT_EQ(read(x.block(1, 2, 3, 4)), x.data() + 10);
    EXPECT_EQ(read(x.row(3)), x.data() + 24);
    EXPECT_EQ(read(Eigen::Map<const moe::Matrix<float>>(x.data() + 3, 2, 5)), x.data() + 3);
    EXPECT_EQ(read(moe::ConstView<float>(x.data(), 3, 4, Eigen::OuterStride<>(8))), x.data());
    moe::In<float> argument = x;
    EXPECT_EQ(read(argument), x.data());
    const Eigen::MatrixXf columns = Eigen::MatrixXf::Random(8, 6);
    EXPECT_EQ(read(columns.transpose()), columns.data());
    EXPECT_EQ(read(columns.middleCols(2, 3).transpose()), columns.data() + 16);
    const Eigen::RowVectorXf row = Eigen::RowVectorXf::Random(5);
    EXPECT_EQ(read(row), row.data());
    const Eigen::VectorXf column = Eigen::VectorXf::Random(5);  // [5, 1], one feature per token
    EXPECT_EQ(read(column), column.data());
    const Eigen::Matrix<float, 2, 3, Eigen::RowMajor> fixed = Eigen::Matrix<float, 2, 3>::Random();
    EXPECT_EQ(read(fixed), fixed.data());
}

TEST(Concepts, ReadViewsKeepExtentsAndStrides) {
    const moe::Matrix<float> x = moe::Matrix<float>::Random(6, 8);
    const auto block = moe::detail::readable<float>(x.block(1, 2, 3, 4));
    EXPECT_EQ(block.rows(), 3);
    EXPECT_EQ(block.cols(), 4);
    EXPECT_EQ(block.outerStride(), 8);
    EXPECT_EQ(block(2, 3), x(3, 5));
    const Eigen::VectorXf column = Eigen::VectorXf::Random(5);
    const auto view = moe::detail::readable<float>(column);
    EXPECT_EQ(view.rows(), 5);
    EXPECT_EQ(view.cols(), 1);
    EXPECT_EQ(view(4, 0), column(4));
    EXPECT_EQ(moe::detail::readable<float>(x.topRows(0)).rows(), 0);
}

TEST(Concepts, AnExpressionIsEvaluatedOnceForTheReader) {
    const moe::Matrix<float> x = moe::Matrix<float>::Ones(2, 3);
    const auto twice = moe::detail::readable<float>(2 * x);
    EXPECT_EQ(twice(1, 2), 2.0f);
    EXPECT_NE(twice.data(), x.data());
}

TEST(Concepts, WhatIsWrittenIsTheCallersMemory) {
    moe::Matrix<float> y(6, 8);
    EXPECT_EQ(written(y), y.data());
    EXPECT_EQ(written(y.middleRows(1, 2)), y.data() + 8);
    EXPECT_EQ(written(y.block(1, 2, 3, 4)), y.data() + 10);
    EXPECT_EQ(written(Eigen::Map<moe::Matrix<float>>(y.data() + 3, 2, 5)), y.data() + 3);
    moe::View<float> view(y.data(), 3, 4, Eigen::OuterStride<>(8));
    EXPECT_EQ(written(view), y.data());
    Eigen::MatrixXf columns(8, 6);
    EXPECT_EQ(written(columns.transpose()), columns.data());
    Eigen::RowVectorXf row(5);
    EXPECT_EQ(written(row), row.data());
    const auto out = moe::detail::writable<float>(y);
    EXPECT_EQ(written(out), y.data());  // what is writable already
}

}  // namespace
