// SPDX-License-Identifier: MIT
#ifndef MOE_STEERING_LOGIT_OFFSET_OPTIMIZER_HPP
#define MOE_STEERING_LOGIT_OFFSET_OPTIMIZER_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <moe/core/context.hpp>
#include <moe/core/error.hpp>
#include <moe/core/types.hpp>

namespace moe::inline MOE_ABI {

/// How a LogitOffsetOptimizer steps. g is the gradient, t the number of the step.
///
///     sgd     delta -= rate g
///     adam    m = beta1 m + (1 - beta1) g,   v = beta2 v + (1 - beta2) g^2
///             delta -= rate (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + epsilon)
struct LogitOffsetSettings {
    enum class Method { sgd, adam };

    Method method = Method::adam;
    double rate = 0.01;     ///< finite; with adam about how far a logit moves in a step
    double beta1 = 0.9;     ///< in [0, 1)
    double beta2 = 0.999;   ///< in [0, 1)
    double epsilon = 1e-8;  ///< > 0
};

/// A vector of offsets that is added to the logits of every token of one layer, and learned while
/// the layer is in use: the router is rewired for the text at hand, all weights stay.
///
///     z' = z + delta           delta: [L], 0 at first
///     d(loss)/d(delta) = sum of d(loss)/dz over the tokens
///
///     LogitOffsetOptimizer rewire(layer.head().num_logits(), {.rate = 0.05});
///     for (int i = 0; i < 5; ++i) {          // on what has been read so far
///         const Context steered = rewire.on(context);
///         layer.forward(x, y, ws, steered);
///         ...                                 // dy of the loss of the next token
///         layer.backward(x, dy, dx, no_gradient, ws, steered);
///         rewire.step();
///     }
///     layer.forward(x, y, ws, rewire.on(context));  // from now on
///     rewire.reset();                               // before the next text
///
/// With delta = 0 the layer does what it does without, bit for bit. Gradients of several batches
/// add up until step(). Choose layers whose routers are sure of themselves (router_stats): one
/// object for each.
///
/// The contexts of on() view this object: it must live, and stay where it is, until the last thing
/// that is done with the call's workspace, and step() comes after backward. Where their gradients
/// go to is what the last on() said.
///
/// Source: "Rewiring Experts on the Fly" (arXiv:2510.14853).
class LogitOffsetOptimizer {
public:
    using Settings = LogitOffsetSettings;

    /// @param num_logits  L of the layer: Head::num_logits()
    /// @throws std::invalid_argument if a setting is out of range
    explicit LogitOffsetOptimizer(Index num_logits, const Settings& settings = {})
        : settings_(settings) {
        if (num_logits < 0) detail::fail(name, ": num_logits is ", num_logits, ", it must be >= 0");
        detail::check_choice(name, "method", settings.method, Settings::Method::adam);
        if (!std::isfinite(settings.rate))
            detail::fail(name, ": rate is ", settings.rate, ", it must be finite");
        check_beta("beta1", settings.beta1);
        check_beta("beta2", settings.beta2);
        if (!(settings.epsilon > 0 && std::isfinite(settings.epsilon)))
            detail::fail(name, ": epsilon is ", settings.epsilon, ", it must be finite and > 0");
        for (std::vector<double>* values : {&offset_, &gradient_, &mean_, &square_})
            values->assign(static_cast<std::size_t>(num_logits), 0.0);
    }

    Index num_logits() const { return static_cast<Index>(offset_.size()); }
    const Settings& settings() const { return settings_; }
    std::span<const double> offset() const { return offset_; }      ///< [L] delta
    std::span<const double> gradient() const { return gradient_; }  ///< [L] since the last step
    std::uint64_t steps() const { return steps_; }                  ///< t of the last step

    /// The context of a call with delta, whose backward adds to the gradient here; other gradients
    /// that the context wants go where it says.
    /// @throws std::invalid_argument if the context has logit_offset or its gradient already, or
    ///         counts other offsets in standard deviations
    Context on(const Context& context = {}) & {
        if (!context.logit_offset.empty() ||
            (context.gradients != nullptr && !context.gradients->logit_offset.empty()))
            detail::fail(name,
                         "::on: the context has logit_offset, or gradients->logit_offset, of "
                         "its own; one call has one");
        if (context.dial.offset_unit != OffsetUnit::logits)
            detail::fail(name,
                         "::on: the context has dial.offset_unit = row_std, this offset is "
                         "counted in logits");
        gradients_ = context.gradients != nullptr ? *context.gradients : ContextGradients{};
        gradients_.logit_offset = gradient_;
        Context steered = context;
        steered.logit_offset = offset_;
        steered.gradients = &gradients_;
        return steered;
    }

    /// Moves delta against the gradient, which is 0 then.
    /// @throws std::invalid_argument if the gradient is not finite; nothing has moved then, go on
    ///         with clear_gradient() or reset()
    void step() {
        for (std::size_t l = 0; l < gradient_.size(); ++l)
            if (!std::isfinite(gradient_[l]))
                detail::fail(name, "::step: the gradient at logit ", l, " is ", gradient_[l],
                             ", it must be finite; leave this batch out with clear_gradient()");
        ++steps_;
        if (settings_.method == Settings::Method::sgd) {
            for (std::size_t l = 0; l < offset_.size(); ++l)
                offset_[l] = std::fma(-settings_.rate, gradient_[l], offset_[l]);
        } else {
            step_by_moments();
        }
        clear_gradient();
    }

    void clear_gradient() { std::fill(gradient_.begin(), gradient_.end(), 0.0); }

    /// As new: delta, gradient and moments are 0.
    void reset() {
        for (std::vector<double>* values : {&offset_, &gradient_, &mean_, &square_})
            std::fill(values->begin(), values->end(), 0.0);
        steps_ = 0;
    }

private:
    static constexpr const char* name = "moe::LogitOffsetOptimizer";

    static void check_beta(const char* field, double beta) {
        if (!(beta >= 0 && beta < 1))
            detail::fail(name, ": ", field, " is ", beta, ", it must be in [0, 1)");
    }

    void step_by_moments() {
        const double beta1 = settings_.beta1, beta2 = settings_.beta2;
        const double t = static_cast<double>(steps_);
        const double mean_part = 1 - std::pow(beta1, t), square_part = 1 - std::pow(beta2, t);
        for (std::size_t l = 0; l < offset_.size(); ++l) {
            const double g = gradient_[l];
            mean_[l] = std::fma(beta1, mean_[l], (1 - beta1) * g);
            square_[l] = std::fma(beta2, square_[l], (1 - beta2) * g * g);
            const double size = std::sqrt(square_[l] / square_part) + settings_.epsilon;
            offset_[l] = std::fma(-settings_.rate, mean_[l] / mean_part / size, offset_[l]);
        }
    }

    Settings settings_;
    std::vector<double> offset_, gradient_;  // [L]
    std::vector<double> mean_, square_;      // [L] of gradients, for adam
    std::uint64_t steps_ = 0;
    ContextGradients gradients_{};
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_STEERING_LOGIT_OFFSET_OPTIMIZER_HPP
