// SPDX-License-Identifier: MIT
#ifndef MOE_STATS_LOCALITY_HPP
#define MOE_STATS_LOCALITY_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include <moe/core/error.hpp>
#include <moe/core/types.hpp>
#include <moe/stats/token_experts.hpp>
#include <moe/stats/trace.hpp>

/// Local routing consistency: do consecutive tokens use the same experts? It says whether experts
/// that do not fit fast memory can be fetched ahead or kept.
///
/// Sequences are those of sequence_offsets, or whole batches. Padding is not in them, the tokens
/// on both sides of it are neighbours. Assignments that were dropped do not count.
/// Source: "Not All Models Suit Expert Offloading" (arXiv:2505.16056).

namespace moe::inline MOE_ABI {

/// What a segment is: so many consecutive tokens of one sequence. They overlap, one begins at every
/// token that has enough others behind it.
struct Segments {
    Index length = 16;  ///< m, >= 1; published: 4, 16, 64, 256
    /// Sequence b of a batch goes on in sequence b of the next batch of this layer: decoding.
    bool continued = false;
};

/// How often experts are active in segments: an expert is active f times if f of the segment's
/// tokens use it.
struct SegmentActivations {
    Index length = 0;        ///< m
    Index num_segments = 0;  ///< 0 if no sequence has m tokens
    /// [E, m + 1] segments in which expert e is active f times; [E, 0] if there are none
    Matrix<double> segments{};
};

/// The best prediction of the form "active all through the segment", for segments in which an
/// expert is active at least `threshold` times.
struct SegmentRouting {
    /// Its F1 score, the segment routing best performance (SRP): 1 if experts are active in all of
    /// a segment or none of it, 0 if none ever is
    double performance = 0;
    Index threshold = 0;  ///< theta, 1 to m; of equally good ones the lowest
    /// Predicted over actual activations (rho-hat): how many times the active experts one must hold
    double size_ratio = 0;
};

namespace detail {

/// The tokens of one sequence, as (record, row).
using TokenSequence = std::vector<std::pair<const TraceRecord*, Index>>;

inline std::vector<TokenSequence> token_sequences(const char* who, const Trace& trace, Index layer,
                                                  bool continued) {
    trace.num_experts(layer);  // throws if there is no such layer
    std::vector<TokenSequence> sequences;
    bool is_first = true;
    trace.for_each_of(layer, [&](const TraceRecord& record, const TraceBatch& batch) {
        auto ends = batch.sequence_offsets;
        if (ends.empty()) ends = {0, record.num_tokens()};
        const std::size_t count = ends.size() - 1;
        if (continued && !is_first && count != sequences.size())
            fail("moe::", who, ": continued is true and batch ", record.batch, " has ", count,
                 " sequences, the one before has ", sequences.size(),
                 "; record batches with the same sequences, or set continued to false");
        const std::size_t first = continued ? 0 : sequences.size();
        sequences.resize(first + count);
        is_first = false;
        for (std::size_t b = 0; b < count; ++b)
            for (Index t = static_cast<Index>(ends[b]); t < static_cast<Index>(ends[b + 1]); ++t)
                if (!batch.is_padding(t)) sequences[first + b].emplace_back(&record, t);
    });
    return sequences;
}

inline void check_segments(const char* who, Index length) {
    constexpr Index most = std::numeric_limits<std::int32_t>::max();
    if (length < 1 || length > most)
        fail("moe::", who, ": length is ", length, ", it must lie in [1, ", most, "]");
}

}  // namespace detail

/// Counts the segments of a layer. Cost: O(N + E) per sequence, whatever m is.
/// @throws std::invalid_argument if there is no such layer, length is out of range, or sequences
///         are continued and batches differ in their number
inline SegmentActivations segment_activations(const Trace& trace, Index layer,
                                              const Segments& options = {}) {
    detail::check_segments("segment_activations", options.length);
    const Index m = options.length, experts = trace.num_experts(layer);
    SegmentActivations result{.length = m};
    result.segments.setZero(experts, 0);
    std::vector<Index> active(detail::at(experts)), since(detail::at(experts)), chosen;
    for (const detail::TokenSequence& tokens :
         detail::token_sequences("segment_activations", trace, layer, options.continued)) {
        const Index count = static_cast<Index>(tokens.size()) - m + 1;  // of segments
        if (count <= 0) continue;
        if (result.num_segments == 0) result.segments.setZero(experts, m + 1);
        result.num_segments += count;
        std::fill(active.begin(), active.end(), 0);
        std::fill(since.begin(), since.end(), 0);
        // Expert e has been active active[e] times in each segment since number since[e].
        const auto change = [&](Index token, Index segment, Index by) {
            const auto& [record, row] = tokens[detail::at(token)];
            detail::kept_experts(*record, row, chosen);
            for (const Index e : chosen) {
                result.segments(e, active[detail::at(e)]) +=
                    static_cast<double>(segment - since[detail::at(e)]);
                since[detail::at(e)] = segment;
                active[detail::at(e)] += by;
            }
        };
        for (Index t = 0; t < m; ++t) change(t, 0, 1);
        for (Index s = 1; s < count; ++s) {
            change(s - 1, s, -1);
            change(s + m - 1, s, 1);
        }
        for (Index e = 0; e < experts; ++e)
            result.segments(e, active[detail::at(e)]) +=
                static_cast<double>(count - since[detail::at(e)]);
    }
    return result;
}

/// How well one predicts which of these experts a segment uses, under one threshold for all:
///
///     F1(theta) = 2 sum_{f >= theta} f / (m #{f >= theta} + sum f)
///
/// Sums are over experts and segments. No other choice of (expert, segment) pairs has a higher F1.
/// @param experts  a group whose counts are pooled; empty: all
/// @throws std::invalid_argument if there is no such expert, or the extents contradict the length
inline SegmentRouting segment_routing(const SegmentActivations& activations,
                                      std::span<const Index> experts = {}) {
    const Index m = activations.length, rows = activations.segments.rows();
    for (const Index e : experts)
        if (e < 0 || e >= rows)
            detail::fail("moe::segment_routing: expert is ", e, ", there are ", rows);
    if (activations.num_segments == 0) return {};
    if (m < 1 || activations.segments.cols() != m + 1)
        detail::fail("moe::segment_routing: segments is [", rows, ", ", activations.segments.cols(),
                     "] for segments of ", m,
                     " tokens, it must have one column more than that; take what "
                     "segment_activations() returns");
    std::vector<double> segments(detail::at(m + 1));
    const auto pool = [&](Index e) {
        for (Index f = 0; f <= m; ++f) segments[detail::at(f)] += activations.segments(e, f);
    };
    for (const Index e : experts) pool(e);
    for (Index e = 0; e < rows && experts.empty(); ++e) pool(e);

    double actual = 0, hits = 0, predicted = 0;
    for (Index f = 1; f <= m; ++f)
        actual = std::fma(static_cast<double>(f), segments[detail::at(f)], actual);
    SegmentRouting best;
    for (Index theta = m; theta >= 1 && actual > 0; --theta) {
        const double n = segments[detail::at(theta)];
        hits = std::fma(static_cast<double>(theta), n, hits);
        predicted = std::fma(static_cast<double>(m), n, predicted);
        const double f1 = 2 * hits / (predicted + actual);
        if (f1 >= best.performance)
            best = {.performance = f1, .threshold = theta, .size_ratio = predicted / actual};
    }
    return best;
}

/// How a cache of experts looks ahead.
struct SegmentCache {
    double size_ratio = 2;  ///< rho, >= 0; the cache holds round(rho k) experts
    Segments segments{};    ///< their length is how far it sees, the current token included
};

/// What such a cache does.
struct SegmentCacheHits {
    Index capacity = 0;   ///< experts it holds; k is the mean of a layer's experts per token
    double hit_rate = 0;  ///< the segment cache best hit rate (SCH); 0 without any assignment
};

/// The hit rate of a cache that knows the next m tokens and evicts the expert they use least.
///
/// A token asks for its experts at once: those that are held then are hits. The others are fetched
/// in slot order, each in the place of the expert that fewest of the m tokens use that begin with
/// this one, of equal ones the one that was used longest ago. An expert that has served the token
/// counts as used by it no more. A cache with room evicts nothing, and what fills it counts as a
/// hit, as a cache may start with what will be needed. Each sequence starts anew; hits and requests
/// are summed over them.
///
/// The rate does not fall as rho grows. m = 1 is LRU, if there is room for the experts of a token.
/// A cache of twice the active experts is the published advice.
/// @throws std::invalid_argument as segment_activations(), or if size_ratio is negative or not
///         finite
inline SegmentCacheHits segment_cache(const Trace& trace, Index layer,
                                      const SegmentCache& options = {}) {
    const Index m = options.segments.length, experts = trace.num_experts(layer);
    detail::check_segments("segment_cache", m);
    if (!(options.size_ratio >= 0) || !std::isfinite(options.size_ratio))
        detail::fail("moe::segment_cache: size_ratio is ", options.size_ratio,
                     ", it must be finite and >= 0");
    const auto sequences =
        detail::token_sequences("segment_cache", trace, layer, options.segments.continued);
    Index tokens = 0, requests = 0, hits = 0;
    std::vector<Index> chosen;
    const auto read = [&](const detail::TokenSequence& sequence, Index token) {
        const auto& [record, row] = sequence[detail::at(token)];
        detail::kept_experts(*record, row, chosen);
    };
    for (const auto& sequence : sequences)
        for (Index t = 0; t < static_cast<Index>(sequence.size()); ++t, ++tokens) {
            read(sequence, t);
            requests += static_cast<Index>(chosen.size());
        }
    if (requests == 0) return {};
    const double k = static_cast<double>(requests) / static_cast<double>(tokens);
    const Index capacity = static_cast<Index>(
        std::lround(std::min(options.size_ratio * k, static_cast<double>(experts))));

    std::vector<Index> cache, last(detail::at(experts));
    std::vector<Index> uses(detail::at(experts));  // that are seen ahead; all 0 after a sequence
    std::vector<char> is_held(detail::at(experts));
    const auto is_worse = [&](Index a, Index b) {
        const auto i = detail::at(a), j = detail::at(b);
        return uses[i] != uses[j] ? uses[i] < uses[j] : last[i] < last[j];
    };
    Index now = 0;  // counts requests
    for (const auto& sequence : sequences) {
        const auto length = static_cast<Index>(sequence.size());
        cache.clear();
        std::fill(is_held.begin(), is_held.end(), 0);
        const auto foresee = [&](Index token) {
            read(sequence, token);
            for (const Index e : chosen) ++uses[detail::at(e)];
        };
        for (Index t = 0; t < std::min(m, length); ++t) foresee(t);
        for (Index t = 0; t < length; ++t) {
            read(sequence, t);
            Index room = capacity - static_cast<Index>(cache.size());
            for (const Index e : chosen)
                if (is_held[detail::at(e)] || room-- > 0) ++hits;
            for (const Index e : chosen) {
                if (!is_held[detail::at(e)] && capacity > 0) {
                    if (static_cast<Index>(cache.size()) == capacity) {
                        const auto worst = std::min_element(cache.begin(), cache.end(), is_worse);
                        is_held[detail::at(*worst)] = 0;
                        *worst = cache.back();
                        cache.pop_back();
                    }
                    is_held[detail::at(e)] = 1;
                    cache.push_back(e);
                }
                --uses[detail::at(e)];
                last[detail::at(e)] = ++now;
            }
            if (m < length - t) foresee(t + m);
        }
    }
    return {.capacity = capacity,
            .hit_rate = static_cast<double>(hits) / static_cast<double>(requests)};
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_STATS_LOCALITY_HPP
