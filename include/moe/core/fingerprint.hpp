// SPDX-License-Identifier: MIT
#ifndef MOE_CORE_FINGERPRINT_HPP
#define MOE_CORE_FINGERPRINT_HPP

#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>
#include <utility>

#include <moe/core/context.hpp>
#include <moe/core/random.hpp>
#include <moe/core/routing.hpp>
#include <moe/core/types.hpp>

namespace moe::inline MOE_ABI::detail {

/// Who an object is: a number that no other object has, that moves with it, and that a copy does
/// not take over.
class Identity {
public:
    Identity() : number_(next()) {}
    Identity(const Identity&) : Identity() {}
    Identity(Identity&& other) noexcept : number_(std::exchange(other.number_, next())) {}
    /// A copy is another object: so is what it is assigned to, from now on.
    Identity& operator=(const Identity& other) {
        if (this != &other) number_ = next();
        return *this;
    }
    Identity& operator=(Identity&& other) noexcept {
        number_ = std::exchange(other.number_, next());
        return *this;
    }
    ~Identity() = default;

    std::uint64_t number() const { return number_; }

private:
    static std::uint64_t next() {
        static constinit std::atomic<std::uint64_t> last{0};
        return ++last;
    }

    std::uint64_t number_;
};

/// A number that says who filled a workspace with what, so that backward can refuse a workspace
/// that belongs to another layer, batch or context. It looks at one element of every row of x, and
/// at up to 64 of x and of each view in the context: a guard against mistakes, not a proof. Never
/// 0.
class Fingerprint {
public:
    explicit Fingerprint(const Identity& owner) { add(owner.number()); }

    template <class Number>
    Fingerprint& add(Number value) {
        if constexpr (std::is_same_v<Number, double>)
            hash_ = mix(hash_ ^ std::bit_cast<std::uint64_t>(value));
        else if constexpr (std::is_same_v<Number, float>)
            hash_ = mix(hash_ ^ std::bit_cast<std::uint32_t>(value));
        else
            hash_ = mix(hash_ ^ static_cast<std::uint64_t>(value));
        return *this;
    }

    template <class S>
    Fingerprint& batch(In<S> x) {
        add(x.rows()).add(x.cols());
        if (x.cols() == 0) return *this;
        for (Index t = 0, d = 0; t < x.rows(); ++t, d = (d + 7) % x.cols()) add(x(t, d));
        return sample(x.size(), [&](Index i) { return x(i / x.cols(), i % x.cols()); });
    }

    Fingerprint& context(const Context& c) {
        add(c.training).add(c.step).add(c.seed).add(c.stream).add(c.first_token);
        optional(c.task).optional(c.dial.k).optional(c.dial.p);
        elements(c.dial.k_per_sequence).elements(c.dial.p_per_sequence);
        add(static_cast<int>(c.dial.offset_unit)).add(static_cast<int>(c.dial.multiplier_order));
        elements(c.dial.allowed_per_sequence).elements(c.dial.forced_per_sequence);
        elements(c.dial.logit_offset_per_sequence);
        elements(c.dial.gate_multiplier_per_sequence);
        elements(c.token_ids).elements(c.token_groups).elements(c.padding);
        elements(c.sequence_offsets).elements(c.allowed).elements(c.forced);
        elements(c.logit_offset).elements(c.gate_multiplier);
        elements(c.token_importance).elements(c.noise);
        add(c.side_vectors.rows()).add(c.side_vectors.cols());
        add(c.side_vectors.holds<float>());
        const Index columns = c.side_vectors.cols();
        sample(c.side_vectors.rows() * columns,
               [&](Index i) { return c.side_vectors.at(i / columns, i % columns); });
        return add(reinterpret_cast<std::uintptr_t>(c.previous));
    }

    Fingerprint& routing(const Routing& plan) {
        add(plan.num_tokens()).add(plan.num_experts()).add(plan.num_kept());
        for (const Index offset : plan.expert_offsets()) quickly(offset);
        for (const std::int32_t token : plan.expert_tokens()) quickly(token);
        for (const Assignment& a : plan.assignments()) {
            quickly(std::bit_cast<Index>(a.weight));
            quickly(std::bit_cast<Index>(a.input_weight));
            quickly(static_cast<Index>(a.dropped));
        }
        return *this;
    }

    std::uint64_t value() const { return hash_ == 0 ? 1 : hash_; }

private:
    /// add() for long arrays of small numbers: one multiplication each.
    void quickly(Index number) {
        hash_ = (hash_ ^ static_cast<std::uint64_t>(number)) * 0x9E3779B97F4A7C15u;
    }
    template <class At>
    Fingerprint& sample(Index count, At&& element) {
        const Index step = count / 64 + 1;
        for (Index i = 0; i < count; i += step) add(element(i));
        return *this;
    }
    template <class T>
    Fingerprint& optional(const std::optional<T>& value) {
        return add(value.has_value()).add(value.value_or(T(0)));
    }
    template <class T>
    Fingerprint& elements(std::span<const T> values) {
        const auto count = static_cast<Index>(values.size());
        return add(count).sample(count,
                                 [&](Index i) { return values[static_cast<std::size_t>(i)]; });
    }

    std::uint64_t hash_ = 0;
};

}  // namespace moe::inline MOE_ABI::detail

#endif  // MOE_CORE_FINGERPRINT_HPP
