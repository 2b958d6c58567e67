// SPDX-License-Identifier: MIT
#ifndef MOE_CORE_FINGERPRINT_HPP
#define MOE_CORE_FINGERPRINT_HPP

#include <bit>
#include <cstdint>

#include <moe/core/context.hpp>
#include <moe/core/random.hpp>
#include <moe/core/routing.hpp>
#include <moe/core/types.hpp>

namespace moe::inline MOE_ABI::detail {

/// A number that says who filled a workspace with what, so that backward can refuse a workspace
/// that belongs to another layer, batch or context. It samples at most 64 elements of x: a guard
/// against mistakes, not a proof. Never 0.
class Fingerprint {
public:
    explicit Fingerprint(const void* owner) { add(reinterpret_cast<std::uintptr_t>(owner)); }

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
        const Index count = x.size(), step = count / 64 + 1;
        for (Index i = 0; i < count; i += step) add(x(i / x.cols(), i % x.cols()));
        return *this;
    }

    Fingerprint& context(const Context& c) {
        add(c.training).add(c.step).add(c.seed).add(c.stream).add(c.first_token);
        add(c.task.value_or(-1)).add(c.dial.k.value_or(-1)).add(c.dial.p.value_or(-1.0));
        add(c.token_ids.size()).add(c.token_groups.size()).add(c.padding.size());
        add(c.sequence_offsets.size()).add(c.side_vectors.rows()).add(c.allowed.size());
        add(c.logit_offset.size()).add(c.gate_multiplier.size());
        return add(reinterpret_cast<std::uintptr_t>(c.previous));
    }

    Fingerprint& routing(const Routing& plan) {
        add(plan.num_tokens()).add(plan.num_experts()).add(plan.num_kept());
        for (const std::int32_t token : plan.expert_tokens()) hash_ = hash_ * 31 + at(token);
        return *this;
    }

    std::uint64_t value() const { return hash_ == 0 ? 1 : hash_; }

private:
    static std::uint64_t at(std::int32_t token) { return static_cast<std::uint64_t>(token); }
    std::uint64_t hash_ = 0;
};

}  // namespace moe::inline MOE_ABI::detail

#endif  // MOE_CORE_FINGERPRINT_HPP
