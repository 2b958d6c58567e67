// SPDX-License-Identifier: MIT
#ifndef MOE_GATES_TEMPERATURE_HPP
#define MOE_GATES_TEMPERATURE_HPP

#include <cmath>
#include <cstdint>

#include <moe/core/error.hpp>
#include <moe/core/types.hpp>

namespace moe::inline MOE_ABI {

/// A temperature that falls, or rises, over the steps of training. It has no state: a gate asks it
/// for the temperature at Context::step.
///
///     linear        tau(step) = from + (to - from) * step / steps
///     exponential   tau(step) = from * (to / from)^(step / steps)
///
/// From `steps` on it is `to`, exactly, and at step 0 `from`.
struct TemperatureSchedule {
    enum class Kind { linear, exponential };

    double from = 2;          ///< finite; > 0 if exponential
    double to = 0.3;          ///< as from
    std::uint64_t steps = 0;  ///< optimiser steps until `to`; required unless it is `from`
    Kind kind = Kind::linear;

    static TemperatureSchedule constant(double temperature) {
        return {.from = temperature, .to = temperature};
    }

    double at(std::uint64_t step) const {
        if (step >= steps) return to;
        if (step == 0) return from;
        const double part = static_cast<double>(step) / static_cast<double>(steps);
        return kind == Kind::linear ? std::fma(to - from, part, from)
                                    : from * std::pow(to / from, part);
    }

    /// @param gate  whose setting this is, for the message
    /// @throws std::invalid_argument
    void check(const char* gate) const {
        detail::check_choice(gate, "temperature.kind", kind, Kind::exponential);
        check_end(gate, "temperature.from", from);
        check_end(gate, "temperature.to", to);
        if (steps == 0 && from != to)
            detail::fail(gate, ": temperature goes from ", from, " to ", to,
                         " in 0 steps; set temperature.steps, or take "
                         "TemperatureSchedule::constant(",
                         to, ")");
    }

private:
    void check_end(const char* gate, const char* field, double value) const {
        if (!std::isfinite(value))
            detail::fail(gate, ": ", field, " is ", value, ", it must be finite");
        if (kind == Kind::exponential && !(value > 0))
            detail::fail(gate, ": ", field, " is ", value,
                         ", it must be > 0 where the schedule is exponential");
    }
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_GATES_TEMPERATURE_HPP
