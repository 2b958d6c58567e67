// SPDX-License-Identifier: MIT
#ifndef MOE_TESTING_GRADIENT_CHECK_HPP
#define MOE_TESTING_GRADIENT_CHECK_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <moe/core/context.hpp>
#include <moe/core/parameters.hpp>
#include <moe/core/types.hpp>
#include <moe/core/workspace.hpp>
#include <moe/testing/compare.hpp>
#include <moe/testing/finite_difference.hpp>
#include <moe/testing/random.hpp>

namespace moe::inline MOE_ABI {
namespace testing {

/// What check_gradients feeds a module with, and how closely it looks.
struct ModuleOptions {
    Index rows = 5;            ///< tokens; 1 or more
    Index columns = 0;         ///< of x; required
    Index output_columns = 0;  ///< of y; 0: as many as x has
    std::uint64_t seed = 1;    ///< of x and of the weights of the loss
    double step = 0;           ///< as in GradientOptions
    double tolerance = 0;      ///< as in GradientOptions
    double scale = 0;          ///< as in GradientOptions; for gradients that are all zeros
};

namespace detail {

/// What check_gradients can drive: an expert or router, or a layer, which takes a workspace.
template <class M, class S>
concept PlainModule = requires(const M& module, In<S> x, Out<S> y, Out<S> dx, M& grad) {
    module.forward(x, y);
    module.backward(x, x, dx, grad);
};
template <class M, class S>
concept CallModule = requires(const M& module, In<S> x, Out<S> y, Out<S> dx, M& grad,
                              const Call<S>& call) {
    module.forward(x, y, call);
    module.backward(x, x, dx, grad, call);
};
template <class M, class S>
concept LayerModule = requires(const M& module, In<S> x, Out<S> y, Out<S> dx, M& grad,
                               Workspace<S>& ws) {
    module.forward(x, y, ws);
    module.backward(x, x, dx, grad, ws);
};
template <class M, class S>
concept AnyModule = PlainModule<M, S> || CallModule<M, S> || LayerModule<M, S>;

/// double if the module takes it, else float
template <class M>
using module_scalar = std::conditional_t<AnyModule<M, double>, double, float>;

template <class S>
struct NamedValues {
    std::string name;
    std::span<S> values;
    Index rows, columns;
    bool is_row_major;
    bool is_trainable;

    std::string entry(Index i) const {
        const Index row = is_row_major ? i / columns : i % rows;
        const Index column = is_row_major ? i % columns : i / rows;
        return name + "(" + digits(row) + ", " + digits(column) + ")";
    }
};

template <class S, class Module>
std::vector<NamedValues<S>> values_of(Module& module, std::string& fault) {
    std::vector<NamedValues<S>> all;
    moe::visit_parameters(module, [&](std::string_view name, auto& matrix, Role role) {
        using M = std::remove_cvref_t<decltype(matrix)>;
        if constexpr (std::is_same_v<typename M::Scalar, S>) {
            bool is_row_major = true;
            if constexpr (EigenDense<M>) is_row_major = M::IsRowMajor;
            const auto count = static_cast<std::size_t>(matrix.size());
            all.push_back({std::string(name), std::span<S>(matrix.data(), count), matrix.rows(),
                           matrix.cols(), is_row_major, role == Role::trainable});
        } else if (role == Role::trainable) {
            fault = "parameter " + std::string(name) + " is of another scalar than x";
        }
    });
    return all;
}

template <class S, class Module>
class ModuleCheck {
public:
    ModuleCheck(const Module& module, const ModuleOptions& options)
        : rows_(options.rows),
          columns_(options.columns),
          output_columns_(options.output_columns == 0 ? options.columns : options.output_columns),
          options_(options),
          module_(module),
          grad_(moe::zeros_like(module)) {}

    GradientComparison run() {
        if (rows_ < 1 || columns_ < 1 || output_columns_ < 1)
            return {{false, "rows, columns and output_columns must be 1 or more"}};
        std::string fault;
        parameters_ = values_of<S>(module_, fault);
        gradients_ = values_of<S>(grad_, fault);
        x_ = random_matrix<S>(rows_, columns_, 2 * options_.seed);
        dy_ = random_matrix<S>(rows_, output_columns_, 2 * options_.seed + 1);
        for (const auto& p : parameters_) before_.emplace_back(p.values.begin(), p.values.end());

        if (fault.empty()) fault = check_gradient_shapes();
        if (fault.empty()) fault = check_forward();
        if (fault.empty()) fault = check_backward();
        if (fault.empty()) fault = check_no_rows();
        if (fault.empty()) fault = check_strides();
        if (fault.empty()) fault = check_parameters_unchanged();
        if (!fault.empty()) return {{false, fault}};
        return check_differences();
    }

private:
    void forward(In<S> x, Out<S> y) {
        const Module& module = module_;
        if constexpr (PlainModule<Module, S>)
            module.forward(x, y);
        else if constexpr (CallModule<Module, S>)
            module.forward(x, y, Call<S>{context_, ws_});
        else
            module.forward(x, y, ws_);
    }
    /// Follows a forward() of the same x.
    void backward(In<S> x, In<S> dy, Out<S> dx) {
        const Module& module = module_;
        if constexpr (PlainModule<Module, S>)
            module.backward(x, dy, dx, grad_);
        else if constexpr (CallModule<Module, S>)
            module.backward(x, dy, dx, grad_, Call<S>{context_, ws_});
        else
            module.backward(x, dy, dx, grad_, ws_);
    }

    /// Whether the last batch was routed as the one is that the workspace holds now.
    std::function<bool()> same_choices() const {
        const auto plan = ws_.routing().assignments();
        const std::vector<Assignment> base(plan.begin(), plan.end());
        return [this, base] {
            const auto now = ws_.routing().assignments();
            const auto same = [](const Assignment& a, const Assignment& b) {
                return a.token == b.token && a.expert == b.expert && a.dropped == b.dropped;
            };
            return std::equal(base.begin(), base.end(), now.begin(), now.end(), same);
        };
    }

    static Matrix<S> filled(Index rows, Index columns, double value) {
        return Matrix<S>::Constant(rows, columns, static_cast<S>(value));
    }
    static constexpr double nan = std::numeric_limits<double>::quiet_NaN();

    std::string check_gradient_shapes() const {
        if (gradients_.size() != parameters_.size())
            return "zeros_like(module) does not visit the same parameters as module";
        for (std::size_t i = 0; i < parameters_.size(); ++i) {
            const auto& parameter = parameters_[i];
            const auto& gradient = gradients_[i];
            if (!parameter.is_trainable || parameter.values.empty()) continue;
            if (gradient.values.size() != parameter.values.size())
                return "the gradient of " + parameter.name + " has " +
                       digits(gradient.values.size()) + " elements, the parameter has " +
                       digits(parameter.values.size());
            if (gradient.values.data() == parameter.values.data())
                return "copies of the module share the memory of " + parameter.name;
        }
        return "";
    }

    std::string check_forward() {
        Matrix<S> first = filled(rows_, output_columns_, nan);
        Matrix<S> second = filled(rows_, output_columns_, 7);
        forward(x_, first);
        forward(x_, second);
        const Comparison same = same_bits(second, first, {.allow_zeros = true});
        if (same) return "";
        return "forward leaves a part of y as it was, or is not repeatable: " + same.message;
    }

    /// Leaves the gradients to be checked in dx_ and claims_.
    std::string check_backward() {
        Matrix<S> y = filled(rows_, output_columns_, nan);
        dx_ = filled(rows_, columns_, nan);
        forward(x_, y);
        backward(x_, dy_, dx_);
        for (const auto& gradient : gradients_)
            claims_.emplace_back(gradient.values.begin(), gradient.values.end());

        std::vector<std::vector<double>> sums;
        for (std::size_t i = 0; i < claims_.size(); ++i) sums.push_back(fill_gradient(i));
        Matrix<S> again = filled(rows_, columns_, 7);
        forward(x_, y);
        backward(x_, dy_, again);
        if (const Comparison same = same_bits(again, dx_, {.allow_zeros = true}); !same)
            return "backward leaves a part of dx as it was or adds to it (activations are "
                   "written), or is not repeatable: " +
                   same.message;
        const double tolerance = std::sqrt(double{std::numeric_limits<S>::epsilon()});
        for (std::size_t i = 0; i < claims_.size(); ++i) {
            if (!parameters_[i].is_trainable) continue;
            const Comparison added =
                compare(gradients_[i].values, sums[i], tolerance, {.allow_zeros = true});
            if (!added)
                return "backward does not add to the gradient of " + parameters_[i].name + ": " +
                       added.message;
        }
        return "";
    }

    /// Puts numbers as large as claims_[i] into gradient i; what the two add up to.
    std::vector<double> fill_gradient(std::size_t i) {
        double largest = 0;
        for (const S claim : claims_[i])
            largest = std::max(largest, std::abs(static_cast<double>(claim)));
        if (largest == 0) largest = 1;
        std::vector<double> sums;
        for (std::size_t j = 0; j < claims_[i].size(); ++j) {
            S& value = gradients_[i].values[j];
            value = static_cast<S>(largest * random_value(options_.seed + 77, j));
            sums.push_back(static_cast<double>(value) + static_cast<double>(claims_[i][j]));
        }
        return sums;
    }

    /// An expert that gets no tokens.
    std::string check_no_rows() {
        const Matrix<S> x(0, columns_);
        const Matrix<S> dy(0, output_columns_);
        Matrix<S> dx(0, columns_);
        Matrix<S> y(0, output_columns_);
        std::vector<std::vector<S>> held;
        for (const auto& gradient : gradients_)
            held.emplace_back(gradient.values.begin(), gradient.values.end());
        forward(x, y);
        backward(x, dy, dx);
        for (std::size_t i = 0; i < held.size(); ++i)
            if (const Comparison same =
                    same_bits(gradients_[i].values, held[i], {.allow_zeros = true});
                !same)
                return "backward without rows changes the gradient of " + gradients_[i].name +
                       ": " + same.message;
        return "";
    }

    /// Rows of wider matrices, as they come out of a user's buffers.
    std::string check_strides() {
        constexpr Index margin = 3;
        Matrix<S> x = filled(rows_, columns_ + margin, nan);
        Matrix<S> dy = filled(rows_, output_columns_ + margin, nan);
        Matrix<S> dx = filled(rows_, columns_ + margin, 7);
        Matrix<S> y = filled(rows_, output_columns_ + margin, 7);
        Matrix<S> dense(rows_, output_columns_);
        x.leftCols(columns_) = x_;
        dy.leftCols(output_columns_) = dy_;
        forward(x_, dense);
        forward(x.leftCols(columns_), y.leftCols(output_columns_));
        backward(x.leftCols(columns_), dy.leftCols(output_columns_), dx.leftCols(columns_));
        for (Index i = 0; i < rows_; ++i)
            for (Index j = 0; j < margin; ++j)
                if (y(i, output_columns_ + j) != S(7) || dx(i, columns_ + j) != S(7))
                    return "forward or backward writes past the end of a row";
        const double tolerance = std::sqrt(double{std::numeric_limits<S>::epsilon()});
        const CompareOptions zeros{.allow_zeros = true};
        const Comparison outputs = compare(y.leftCols(output_columns_), dense, tolerance, zeros);
        if (!outputs) return "forward gives other results in wider rows: " + outputs.message;
        const Comparison inputs = compare(dx.leftCols(columns_), dx_, tolerance, zeros);
        if (!inputs) return "backward gives other results in wider rows: " + inputs.message;
        return "";
    }

    std::string check_parameters_unchanged() const {
        for (std::size_t i = 0; i < parameters_.size(); ++i)
            if (!same_bits(parameters_[i].values, before_[i], {.allow_zeros = true}))
                return "forward or backward changes the parameter " + parameters_[i].name;
        return "";
    }

    /// sum of dy y, and as a difference of two evaluations: summed after the subtraction, so that
    /// outputs that did not change cancel exactly.
    struct WeightedSum {
        ModuleCheck& check;
        Matrix<S> y[2];
        void evaluate(int side) { check.forward(check.x_, y[side]); }
        double difference() const {
            double sum = 0;
            for (Index i = 0; i < y[0].size(); ++i)
                sum += static_cast<double>(check.dy_.data()[i]) *
                       (static_cast<double>(y[0].data()[i]) - static_cast<double>(y[1].data()[i]));
            return sum;
        }
    };

    GradientComparison check_differences() {
        GradientOptions options = with_defaults<S>(
            {.step = options_.step, .tolerance = options_.tolerance, .scale = options_.scale});
        Matrix<S> y = filled(rows_, output_columns_, nan);
        WeightedSum loss{*this, {y, y}};
        if constexpr (LayerModule<Module, S>) {
            forward(x_, y);
            if (ws_.template find<Routed<S>>() != nullptr) options.same_branch = same_choices();
        }
        const NamedValues<S> inputs{
            "dx", std::span(x_.data(), static_cast<std::size_t>(x_.size())), rows_, columns_, true,
            true};
        GradientComparison total =
            check_values(inputs, {dx_.data(), static_cast<std::size_t>(dx_.size())}, loss, options);
        for (std::size_t i = 0; i < parameters_.size() && total.passed; ++i) {
            if (!parameters_[i].is_trainable || parameters_[i].values.empty()) continue;
            const GradientComparison next = check_values(parameters_[i], claims_[i], loss, options);
            total.passed = next.passed;
            total.message = next.passed ? total.message + "\n" + next.message : next.message;
            total.checked += next.checked;
            total.skipped += next.skipped;
        }
        return total;
    }

    static GradientComparison check_values(const NamedValues<S>& moved, std::span<const S> claims,
                                           WeightedSum& loss, const GradientOptions& options) {
        const std::vector<double> claimed(claims.begin(), claims.end());
        GradientComparison result = check_entries(
            [&moved](Index i) -> S& { return moved.values[static_cast<std::size_t>(i)]; }, claimed,
            [&moved](Index i) { return moved.entry(i); }, loss, options);
        result.message = moved.name + ": " + result.message;
        return result;
    }

    Index rows_, columns_, output_columns_;
    ModuleOptions options_;
    Module module_;
    Module grad_;
    Context context_;
    Workspace<S> ws_;
    Matrix<S> x_, dy_, dx_;  // [rows, columns], [rows, output_columns], [rows, columns]
    std::vector<NamedValues<S>> parameters_, gradients_;
    std::vector<std::vector<S>> before_, claims_;
};

}  // namespace detail

/// Checks forward and backward of an expert, a router or a layer.
///
///     EXPECT_TRUE(moe::testing::check_gradients(my_expert, {.rows = 5, .columns = 64}));
///
/// The loss is a sum of the outputs with random weights. Checked are, by central differences, dx
/// and the gradient of every trainable parameter (what visit_parameters names); and besides that
///   - forward and backward are const, repeatable, and leave the parameters alone;
///   - y and dx are written, whatever they held before; parameter gradients are added to;
///   - a batch of no rows works and adds nothing;
///   - rows that are part of a wider matrix work, and nothing is written beside them.
/// For a layer that routes, differences are taken where the routing does not change.
///
/// The module is copied, and the copy's parameters are moved. Its gradient is zeros_like(module).
///
/// @tparam S      the scalar to check in; by default double if the module takes it, else float.
///                A float is a coarse check: the loss is summed in double, but what the module
///                rounds away limits it to errors above 0.5 % of the largest derivative.
/// @param module  has forward(x, y) and backward(x, dy, dx, grad), both const; or the same with a
///                last argument const Call<S>& or Workspace<S>&
template <class S = void, class Module>
GradientComparison check_gradients(const Module& module, const ModuleOptions& options) {
    using Scalar = std::conditional_t<std::is_void_v<S>, detail::module_scalar<Module>, S>;
    static_assert(detail::AnyModule<Module, Scalar>,
                  "moe: check_gradients needs forward(x, y) const and backward(x, dy, dx, grad) "
                  "const with x, dy: moe::In<S>, y, dx: moe::Out<S>, grad: Module&; or both with a "
                  "last argument const moe::Call<S>& or moe::Workspace<S>&");
    return detail::ModuleCheck<Scalar, Module>(module, options).run();
}

}  // namespace testing
}  // namespace moe::inline MOE_ABI

#endif  // MOE_TESTING_GRADIENT_CHECK_HPP
