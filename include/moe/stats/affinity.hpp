// SPDX-License-Identifier: MIT
#ifndef MOE_STATS_AFFINITY_HPP
#define MOE_STATS_AFFINITY_HPP

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <moe/core/error.hpp>
#include <moe/core/types.hpp>
#include <moe/stats/information.hpp>
#include <moe/stats/token_experts.hpp>
#include <moe/stats/trace.hpp>

namespace moe::inline MOE_ABI {

/// What expert_affinity() tells of expert a in one layer and b in another.
enum class Affinity {
    count,        ///< A(a, b): transitions from a to b
    conditional,  ///< P(b | a) = A(a, b) / sum_j A(a, j); a row of zeros if a has no token
};

/// Where tokens go from the experts of one layer: the inter-layer affinity of ExFlow.
///
/// A token makes a transition from each of its experts in `from` to each of its experts in `to`: a
/// token with k in both counts k^2 times, as each pair is a vector that may have to move. Batches
/// that one of the layers lacks are left out, and so are padding and dropped assignments.
///
///     svg_heat_map(expert_affinity(trace, 0, 1, Affinity::conditional))
///
/// @return [E of from, E of to]
/// @throws std::invalid_argument if the trace has no such layer
/// Source: ExFlow (arXiv:2401.08383), inter-layer expert affinity.
inline Matrix<double> expert_affinity(const Trace& trace, Index from, Index to,
                                      Affinity form = Affinity::count) {
    detail::check_choice("moe::expert_affinity", "form", form, Affinity::conditional);
    Matrix<double> counts = Matrix<double>::Zero(trace.num_experts(from), trace.num_experts(to));
    std::vector<const TraceRecord*> next(detail::at(trace.num_batches()), nullptr);
    for (const TraceRecord& record : trace.records())
        if (record.layer == to) next[detail::at(record.batch)] = &record;
    trace.for_each_of(from, [&](const TraceRecord& record, const TraceBatch& batch) {
        const TraceRecord* other = next[detail::at(record.batch)];
        if (other == nullptr) return;
        detail::for_each_token(
            record, *other, batch,
            [&](Index, std::span<const Index> here, std::span<const Index> there) {
                for (const Index a : here)
                    for (const Index b : there) counts(a, b) += 1;
            });
    });
    if (form == Affinity::count) return counts;

    for (Index a = 0; a < counts.rows(); ++a) {
        double all = 0;
        for (Index b = 0; b < counts.cols(); ++b) all += counts(a, b);
        for (Index b = 0; b < counts.cols() && all > 0; ++b) counts(a, b) /= all;
    }
    return counts;
}

/// How strong that affinity is: the normalised mutual information of the transitions.
///
/// 0 if the expert in one layer says nothing of the expert in the other, 1 if it determines it,
/// both ways. Tokens with several experts blur it: with k in each layer, and all of them
/// determined, it stays below 1, since a token pairs each of its experts with each.
/// @throws std::invalid_argument if the trace has no such layer
inline double affinity_strength(const Trace& trace, Index from, Index to) {
    return normalized_mutual_information(expert_affinity(trace, from, to));
}

/// The share of transitions that leave their device, if experts are placed like this. It is what
/// ExFlow's placement minimises.
///
/// Transitions are those of expert_affinity(), of each layer to the next higher one that its batch
/// has; 0 without any. Experts that are placed evenly on G devices at random make 1 - 1 / G of them
/// cross; so do independent layers with balanced loads, wherever the experts are.
///
/// @param device_of  device_of(layer, expert): a number for each device
/// Source: ExFlow (arXiv:2401.08383), the objective of its integer program.
template <class F>
    requires std::invocable<F&, Index, Index>
double crossing_fraction(const Trace& trace, F&& device_of) {
    double all = 0, crossing = 0;
    const auto records = trace.records();
    std::vector<const TraceRecord*> layers;  // of one batch, ascending
    for (std::size_t i = 0; i < records.size();) {
        layers.clear();
        const Index batch = records[i].batch;
        for (; i < records.size() && records[i].batch == batch; ++i) layers.push_back(&records[i]);
        std::sort(layers.begin(), layers.end(),
                  [](const auto* a, const auto* b) { return a->layer < b->layer; });
        for (std::size_t l = 1; l < layers.size(); ++l) {
            const TraceRecord &one = *layers[l - 1], &other = *layers[l];
            detail::for_each_token(
                one, other, trace.batch_of(one),
                [&](Index, std::span<const Index> here, std::span<const Index> there) {
                    for (const Index a : here)
                        for (const Index b : there) {
                            all += 1;
                            crossing +=
                                device_of(one.layer, a) != device_of(other.layer, b) ? 1 : 0;
                        }
                });
        }
    }
    return all == 0 ? 0 : crossing / all;
}

/// The same with one placement for all layers.
/// @param device_of_expert  [E] as DeviceBalance has it, or longer if layers differ in E
/// @throws std::invalid_argument if a layer has more experts than that
inline double crossing_fraction(const Trace& trace,
                                std::span<const std::int32_t> device_of_expert) {
    if (static_cast<Index>(device_of_expert.size()) < trace.num_experts())
        detail::fail("moe::crossing_fraction: device_of_expert has ", device_of_expert.size(),
                     " entries, a layer of the trace has ", trace.num_experts(),
                     " experts; give one for each");
    return crossing_fraction(
        trace, [&](Index, Index expert) { return device_of_expert[detail::at(expert)]; });
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_STATS_AFFINITY_HPP
