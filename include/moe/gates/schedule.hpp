// SPDX-License-Identifier: MIT
#ifndef MOE_GATES_SCHEDULE_HPP
#define MOE_GATES_SCHEDULE_HPP

#include <cmath>
#include <cstdint>
#include <string>

#include <moe/core/error.hpp>
#include <moe/core/types.hpp>

namespace moe::inline MOE_ABI {

/// A number that falls, or rises, over the steps of training: a temperature, a factor of noise, the
/// rate of a balance controller.
///
///     linear        value(step) = from + (to - from) * step / steps
///     exponential   value(step) = from * (to / from)^(step / steps)
///
/// From `steps` on it is `to`, exactly, and at step 0 `from`. It has no state: a gate asks for the
/// value at Context::step, and a controller gets it where it is called,
///
///     update_bias(layer, load, SignUpdate{.rate = schedule.at(step)});
struct Schedule {
    enum class Kind { linear, exponential };

    double from = 1;          ///< finite; > 0 if exponential
    double to = 1;            ///< as from
    std::uint64_t steps = 0;  ///< optimiser steps until `to`; required unless it is `from`
    Kind kind = Kind::linear;

    static Schedule constant(double value) { return {.from = value, .to = value}; }

    double at(std::uint64_t step) const {
        if (step >= steps) return to;
        if (step == 0) return from;
        const double part = static_cast<double>(step) / static_cast<double>(steps);
        return kind == Kind::linear ? std::fma(to - from, part, from)
                                    : from * std::pow(to / from, part);
    }

    /// @param owner, field  whose setting this is, for the message
    /// @throws std::invalid_argument
    void check(const char* owner, const std::string& field) const {
        detail::check_choice(owner, (field + ".kind").c_str(), kind, Kind::exponential);
        check_end(owner, field + ".from", from);
        check_end(owner, field + ".to", to);
        if (steps == 0 && from != to)
            detail::fail(owner, ": ", field, " goes from ", from, " to ", to, " in 0 steps; set ",
                         field, ".steps, or take Schedule::constant(", to, ")");
    }

private:
    void check_end(const char* owner, const std::string& field, double value) const {
        if (!std::isfinite(value))
            detail::fail(owner, ": ", field, " is ", value, ", it must be finite");
        if (kind == Kind::exponential && !(value > 0))
            detail::fail(owner, ": ", field, " is ", value,
                         ", it must be > 0 where the schedule is exponential");
    }
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_GATES_SCHEDULE_HPP
