// SPDX-License-Identifier: MIT
// Low-rank experts over a base that stays as it is: y = base x + b (a x).
// Source: Hu et al., "LoRA" (arXiv:2106.09685).

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>

#include <moe/experts/each.hpp>
#include <moe/experts/swiglu.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/layer.hpp>
#include <moe/routers/linear.hpp>
#include <moe/testing/gradient_check.hpp>

#include "seams/check.hpp"
#include "support/allocations.hpp"

namespace lora_test {
namespace {

using moe::Call;
using moe::In;
using moe::Index;
using moe::Matrix;
using moe::Out;
using moe::Parameter;
using moe::Role;
using moe::RowGradients;
using moe::Rows;
using moe::Workspace;

constexpr Index tokens = 6, dim = 5, rank = 2, experts = 3;

void fill(Parameter<double>& parameter, std::uint64_t seed) {
    parameter.view() =
        moe::testing::random_matrix<double>(parameter.rows(), parameter.cols(), seed);
}

/// An expert with a base of its own, which is saved with the layer and not trained.
struct Lora {
    Parameter<double> base{dim, dim}, a{rank, dim}, b{dim, rank};

    explicit Lora(std::uint64_t seed = 1) { fill(base, 9), fill(a, seed), fill(b, seed + 1); }

    void forward(In<double> x, Out<double> y) const {
        y = x * base.view().transpose() + x * a.view().transpose() * b.view().transpose();
    }
    void backward(In<double> x, In<double> dy, Out<double> dx, Lora& grad) const {
        const Matrix<double> dmiddle = dy * b.view();
        dx = dy * base.view() + dmiddle * a.view();
        grad.a.view() += dmiddle.transpose() * x;
        grad.b.view() += dy.transpose() * (x * a.view().transpose());
    }
    void visit_parameters(auto&& visit) {
        visit("base", base, Role::frozen);
        visit("a", a);
        visit("b", b);
    }
};

/// A group of them with one base for all.
struct LoraGroup {
    Parameter<double> base{dim, dim};  // frozen
    std::vector<Lora> deltas;          // bases unused

    LoraGroup() = default;
    explicit LoraGroup(Index count) {
        fill(base, 9);
        for (Index e = 0; e < count; ++e) {
            deltas.emplace_back(static_cast<std::uint64_t>(10 * e + 1));
            deltas.back().base = base;
        }
    }
    Index num_experts() const { return static_cast<Index>(deltas.size()); }

    void forward(In<double> x, const Rows<double>& rows, Out<double> y, const Call<double>&) const {
        for_each_row(rows, [&](const Lora& expert, Lora*, std::size_t r) {
            Matrix<double> out(1, dim);
            expert.forward(rows.input_weight(static_cast<Index>(r)) * x.row(rows.from[r]), out);
            y.row(rows.to[r]) += rows.weights[r] * out;
        });
    }
    void backward(In<double> x, const Rows<double>& rows, In<double> dy, Out<double> dx,
                  const RowGradients<double>& dweights, LoraGroup& grad,
                  const Call<double>&) const {
        for_each_row(
            rows,
            [&](const Lora& expert, Lora* delta, std::size_t r) {
                Matrix<double> out(1, dim), din(1, dim);
                const double input_weight = rows.input_weight(static_cast<Index>(r));
                expert.forward(input_weight * x.row(rows.from[r]), out);
                dweights.weights[r] = out.row(0).dot(dy.row(rows.to[r]));
                Lora unwanted;
                expert.backward(input_weight * x.row(rows.from[r]),
                                rows.weights[r] * dy.row(rows.to[r]), din,
                                delta == nullptr ? unwanted : *delta);
                dx.row(rows.from[r]) += input_weight * din;
            },
            &grad);
    }
    void visit_parameters(auto&& visit) {
        visit("base", base, Role::frozen);
        for (std::size_t e = 0; e < deltas.size(); ++e) {
            visit(std::to_string(e) + ".a", deltas[e].a);
            visit(std::to_string(e) + ".b", deltas[e].b);
        }
    }

private:
    void for_each_row(const Rows<double>& rows, auto&& f, LoraGroup* grad = nullptr) const {
        for (Index i = 0; i < rows.num_experts(); ++i) {
            const auto e = static_cast<std::size_t>(rows.first_expert + i);
            Lora* const delta =
                grad != nullptr && e < grad->deltas.size() ? &grad->deltas[e] : nullptr;
            for (Index r = rows.begin(i); r < rows.end(i); ++r)
                f(deltas[e], delta, static_cast<std::size_t>(r));
        }
    }
};
static_assert(moe::TrainableGroup<LoraGroup, double>);

template <class Group>
auto make(const Group& group) {
    return moe::make_layer<double>(moe::Config{.model_dim = dim, .seed = 4}, moe::LinearRouter{},
                                   moe::TopK{.k = 2}, moe::Swiglu{.ffn_dim = 3}, group);
}
auto make_each() { return make(moe::each(std::vector<Lora>{Lora(1), Lora(11), Lora(21)})); }

template <class Layer>
std::vector<double> frozen_values(const Layer& layer) {
    std::vector<double> values;
    moe::visit_parameters(layer, [&](std::string_view, const auto& matrix, Role role) {
        if (role == Role::frozen)
            values.insert(values.end(), matrix.data(), matrix.data() + matrix.size());
    });
    return values;
}
template <class Layer>
std::vector<std::string> names(const Layer& layer) {
    std::vector<std::string> all;
    moe::visit_parameters(
        layer, [&](std::string_view name, const auto&, Role) { all.emplace_back(name); });
    return all;
}

template <class Layer>
void expect_trains_without_the_base(Layer layer) {
    const std::vector<double> before = frozen_values(layer);
    ASSERT_FALSE(before.empty());
    Layer grad = moe::zeros_like(layer);
    EXPECT_TRUE(frozen_values(grad).empty());
    EXPECT_TRUE(
        moe::testing::check_gradients(layer, {.rows = tokens, .columns = dim, .scale = 0.01}));

    const auto x = moe::testing::random_matrix<double>(tokens, dim, 5);
    Workspace<double> ws;
    Matrix<double> y(tokens, dim), dx(tokens, dim);
    double first = 0, last = 0;
    for (int step = 0; step < 20; ++step) {  // loss: |y|^2 / 2
        layer.forward(x, y, ws);
        last = y.squaredNorm() / 2;
        if (step == 0) first = last;
        layer.backward(x, y, dx, grad, ws);
        Index trained = 0;
        moe::for_each_parameter(layer, grad, [&](auto, std::span<double> w, std::span<double> g) {
            for (std::size_t i = 0; i < w.size(); ++i) w[i] -= 0.02 * std::exchange(g[i], 0);
            ++trained;
        });
        EXPECT_EQ(trained, 1 + 3 + 2 * experts);
    }
    EXPECT_LT(last, 0.7 * first);
    EXPECT_TRUE(moe::testing::same_bits(frozen_values(layer), before));
    EXPECT_TRUE(frozen_values(grad).empty());
}

TEST(LoraExperts, TrainWithoutTheirBase) { expect_trains_without_the_base(make_each()); }

TEST(LoraExperts, TrainWithoutTheBaseOfTheirGroup) {
    expect_trains_without_the_base(make(LoraGroup(experts)));
}

TEST(LoraExperts, AGroupWithOneBaseGivesTheSameAsExpertsWithACopyEach) {
    const auto each = make_each();
    const auto group = make(LoraGroup(experts));
    const auto x = moe::testing::random_matrix<double>(tokens, dim, 5);
    EXPECT_TRUE(moe::testing::compare(each(x), group(x), 1e-14));
    EXPECT_EQ(moe::num_parameters(each) - moe::num_parameters(group), (experts - 1) * dim * dim);
}

TEST(LoraExperts, NamesSayWhoseAMatrixIs) {
    EXPECT_EQ(names(make_each()),
              (std::vector<std::string>{
                  "router.weight", "experts.0.gate", "experts.0.up", "experts.0.down",
                  "experts.1.base", "experts.1.a", "experts.1.b", "experts.2.base", "experts.2.a",
                  "experts.2.b", "experts.3.base", "experts.3.a", "experts.3.b"}));
    // What belongs to a group as a whole goes under the number of its first expert.
    EXPECT_EQ(names(make(LoraGroup(experts)))[4], "experts.1.base");
}

TEST(LoraExperts, TheSecondCallAllocatesNothing) {
    const auto layer = make_each();
    const auto x = moe::testing::random_matrix<double>(tokens, dim, 5);
    moe::SerialExecutor serial;
    Workspace<double> ws(serial);
    Matrix<double> y(tokens, dim), dx(tokens, dim);
    auto grad = moe::zeros_like(layer);
    const auto both = [&] {
        layer.forward(x, y, ws);
        layer.backward(x, y, dx, grad, ws);
        layer.backward(x, y, dx, moe::no_gradient, ws);
    };
    both();
    EXPECT_EQ(allocations::in(both), 0) << "Eigen's own temporaries are not counted";
}

}  // namespace
}  // namespace lora_test
