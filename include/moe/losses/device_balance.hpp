// SPDX-License-Identifier: MIT
#ifndef MOE_LOSSES_DEVICE_BALANCE_HPP
#define MOE_LOSSES_DEVICE_BALANCE_HPP

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#include <moe/core/error.hpp>
#include <moe/gates/score.hpp>
#include <moe/losses/load_balance.hpp>
#include <moe/losses/loss.hpp>

namespace moe::inline MOE_ABI {

/// Where experts live, for the losses about devices.
struct DeviceBalance {
    Index num_devices = 0;  ///< D; required
    /// [E] the device of each expert, below D. Empty: consecutive experts, equally many on each,
    /// which TopK::num_groups = D goes with; D divides E then.
    std::span<const std::int32_t> device_of_expert{};
    /// For communication_balance_loss: M, the devices that a token may be sent to, as its gate
    /// limits them (TopK::groups_kept). 0: the number that tokens are sent to on average.
    Index devices_per_token = 0;
    Score score = Score::softmax;  ///< as LoadBalance::score
    bool count_dropped = true;     ///< count what was selected; false: only what reaches its expert

    Index device_of(Index expert, Index num_experts) const {
        return device_of_expert.empty() ? expert / (num_experts / num_devices)
                                        : device_of_expert[static_cast<std::size_t>(expert)];
    }
};

namespace detail {

inline void check_devices(const DeviceBalance& options, Index experts) {
    const char* const who = "moe::DeviceBalance: ";
    if (options.num_devices < 1)
        fail(who, "num_devices is ", options.num_devices,
             ", it must be >= 1; set it: {.num_devices = 8}");
    if (options.device_of_expert.empty() && experts % options.num_devices != 0)
        fail(who, "num_devices is ", options.num_devices, ", it must divide the ", experts,
             " experts; or say where each is with device_of_expert");
    if (!options.device_of_expert.empty() &&
        static_cast<Index>(options.device_of_expert.size()) != experts)
        fail(who, "device_of_expert has ", options.device_of_expert.size(), " entries, there are ",
             experts, " experts");
    for (const std::int32_t device : options.device_of_expert)
        if (device < 0 || device >= options.num_devices)
            fail(who, "an entry of device_of_expert is ", device, ", it must be in [0, ",
                 options.num_devices, "), the devices there are");
    if (options.devices_per_token < 0 || options.devices_per_token > options.num_devices)
        fail(who, "devices_per_token is ", options.devices_per_token, ", it must be in [0, ",
             options.num_devices, "]; 0: as many as tokens are sent to on average");
    check_choice("moe::DeviceBalance", "score", options.score, Score::sqrt_softplus);
    if (options.score == Score::raw)
        fail(who, "score is raw, it must be softmax, sigmoid or sqrt_softplus");
}

/// f'(d) = mean of f(e) over the experts of device d, f = E n / N.
/// @param f        [E] f' of the expert's device
/// @param devices  [2 D] scratch
template <class S>
void fill_device_load(const LossInput<S>& in, const DeviceBalance& options, double* f,
                      double* devices) {
    const Index experts = in.routing.num_experts(), d = options.num_devices;
    const LoadBalance counting{.count_dropped = options.count_dropped};
    count_load(
        in.routing, counting, 0, in.logits.rows(), [&](Index t) { return in.counts(t); }, f);
    double *load = devices, *size = devices + d, all = 0;
    for (Index e = 0; e < experts; ++e) {
        load[options.device_of(e, experts)] += f[e];
        size[options.device_of(e, experts)] += 1;
        all += f[e];
    }
    const double scale = all == 0 ? 0 : static_cast<double>(experts) / all;
    for (Index e = 0; e < experts; ++e) {
        const Index device = options.device_of(e, experts);
        f[e] = scale * load[device] / size[device];
    }
}

/// f''(d) = D / (M T) * tokens that are sent to device d.
template <class S>
void fill_device_traffic(const LossInput<S>& in, const DeviceBalance& options, double tokens,
                         double* f, double* devices) {
    const Index experts = in.routing.num_experts(), d = options.num_devices;
    double *sent = devices, *last = devices + d, all = 0;  // last token sent there, from 1
    for (Index t = 0; t < in.logits.rows(); ++t) {
        if (!in.counts(t)) continue;
        for (const Assignment& a : in.routing.of(t)) {
            const Index device = options.device_of(a.expert, experts);
            const auto number = static_cast<double>(t + 1);
            if ((a.dropped != Dropped::no && !options.count_dropped) || last[device] == number)
                continue;
            last[device] = number;
            sent[device] += 1;
            all += 1;
        }
    }
    if (options.devices_per_token != 0)
        all = static_cast<double>(options.devices_per_token) * tokens;
    const double scale = all == 0 ? 0 : static_cast<double>(d) / all;
    for (Index e = 0; e < experts; ++e) f[e] = scale * sent[options.device_of(e, experts)];
}

/// sum_d f(d) P(d) = sum_e f(d(e)) P(e): load_balance with an f of its own.
template <class S>
Loss device_loss(const char* name, const LossInput<S>& in, LossScratch<S>& scratch,
                 const DeviceBalance& options, bool is_traffic) {
    const Index experts = in.routing.num_experts(), rows = in.logits.rows();
    in.check(is_traffic ? "communication_balance_loss" : "device_balance_loss");
    in.check_experts(is_traffic ? "communication_balance_loss" : "device_balance_loss");
    check_devices(options, experts);
    const Index tokens = in.count(0, rows);
    if (tokens == 0) return {name, 0};
    const auto fraction = scratch.given.assign(experts + 2 * options.num_devices, 0.0);
    double *f = fraction.data(), *devices = f + experts;
    if (is_traffic)
        fill_device_traffic(in, options, static_cast<double>(tokens), f, devices);
    else
        fill_device_load(in, options, f, devices);
    const LoadBalance balance{.norm = LoadBalance::Norm::unscaled,
                              .score = options.score,
                              .fraction = fraction.first(static_cast<std::size_t>(experts))};
    return {name, load_balance(in, scratch, balance, 0, rows, 1, 0)};
}

template <class S>
Loss device_balance_loss(const LossInput<S>& in, LossScratch<S>& scratch,
                         const DeviceBalance& options) {
    return device_loss("device_balance", in, scratch, options, false);
}
template <class S>
Loss communication_balance_loss(const LossInput<S>& in, LossScratch<S>& scratch,
                                const DeviceBalance& options) {
    return device_loss("communication_balance", in, scratch, options, true);
}

}  // namespace detail

/// Pulls the router towards equal work for devices that hold several experts each, whatever the
/// loads of the experts on one of them.
///
///     value = sum_d f'(d) P'(d)
///     f'(d) = mean over the experts of device d of E n(e) / N
///     P'(d) = sum over the experts of device d of the mean score P(e)
///     dz(e) = weight / T * s(e) (f'(d(e)) - sum_j s(j) f'(d(j))) * slope(e)
///
/// n(e) counts the assignments of expert e, N all of them; s and slope are those of
/// load_balance_loss. The value is 1 at perfect balance, and for one device always; D if all goes
/// to one of D equal devices. Padding does not count; dropped assignments do unless
/// DeviceBalance::count_dropped is false. f' is a count and constant in the gradient.
///
///     device_balance_loss(ws, 0.05, {.num_devices = 8});
///
/// @param logits   [T, E] clean logits: no noise, no selection bias
/// @param routing  of the same tokens
/// @param weight   published: 0.05 (DeepSeek-V2)
/// @param dlogits  [T, E], **added** to
/// @return the value without `weight`; see Loss
/// Source: DeepSeekMoE (arXiv:2401.06066), section 3.3; DeepSeek-V2 (arXiv:2405.04434), 2.2.3.
template <class X, class Y>
Loss device_balance_loss(const Eigen::DenseBase<X>& logits, const Routing& routing,
                         const Context& context, double weight, Y&& dlogits,
                         const DeviceBalance& options) {
    using S = typename X::Scalar;
    const auto loss = [&](const detail::LossInput<S>& in, detail::LossScratch<S>& scratch) {
        return detail::device_balance_loss(in, scratch, options);
    };
    return detail::call_loss(loss, logits, routing, context, weight, std::forward<Y>(dlogits));
}

/// device_balance_loss of the batch that `ws` holds.
template <class S>
Loss device_balance_loss(Workspace<S>& ws, double weight, const DeviceBalance& options) {
    const auto loss = [&](const detail::LossInput<S>& in, detail::LossScratch<S>& scratch) {
        return detail::device_balance_loss(in, scratch, options);
    };
    return detail::call_loss(loss, ws, weight);
}

/// Pulls the router towards devices that receive equally many tokens. A token with several experts
/// on one device is sent there once.
///
///     value  = sum_d f''(d) P'(d)
///     f''(d) = D / (M T) * tokens with an expert on device d
///
/// M, P', the gradient and what counts are as above and in DeviceBalance. With M = 0 the value is 1
/// at perfect balance. With the M of a gate that limits devices it is 1 there if every token goes
/// to all of its M devices, and less if to fewer.
///
///     communication_balance_loss(ws, 0.02, {.num_devices = 8, .devices_per_token = 3});
///
/// @param weight  published: 0.02 (DeepSeek-V2)
/// @return the value without `weight`; see Loss
/// Source: DeepSeek-V2 (arXiv:2405.04434), section 2.2.3.
template <class X, class Y>
Loss communication_balance_loss(const Eigen::DenseBase<X>& logits, const Routing& routing,
                                const Context& context, double weight, Y&& dlogits,
                                const DeviceBalance& options) {
    using S = typename X::Scalar;
    const auto loss = [&](const detail::LossInput<S>& in, detail::LossScratch<S>& scratch) {
        return detail::communication_balance_loss(in, scratch, options);
    };
    return detail::call_loss(loss, logits, routing, context, weight, std::forward<Y>(dlogits));
}

/// communication_balance_loss of the batch that `ws` holds.
template <class S>
Loss communication_balance_loss(Workspace<S>& ws, double weight, const DeviceBalance& options) {
    const auto loss = [&](const detail::LossInput<S>& in, detail::LossScratch<S>& scratch) {
        return detail::communication_balance_loss(in, scratch, options);
    };
    return detail::call_loss(loss, ws, weight);
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_LOSSES_DEVICE_BALANCE_HPP
