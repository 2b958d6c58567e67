// SPDX-License-Identifier: MIT
#ifndef MOE_BENCH_PEER_ROUTING_HPP
#define MOE_BENCH_PEER_ROUTING_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>
#include <vector>

/// Which tokens each expert gets, and with which weights.
struct PeerRouting {
    std::vector<std::vector<std::ptrdiff_t>> tokens;  // per expert
    std::vector<std::vector<float>> weights;          // per expert

    /// Softmax, the k best of each row, weights that sum to 1.
    /// @param logits  [T, E], overwritten
    void route(float* logits, std::ptrdiff_t count, std::ptrdiff_t experts, std::ptrdiff_t k) {
        tokens.resize(static_cast<std::size_t>(experts));
        weights.resize(static_cast<std::size_t>(experts));
        for (auto& list : tokens) list.clear();
        for (auto& list : weights) list.clear();
        std::vector<std::ptrdiff_t> order(static_cast<std::size_t>(experts));
        for (std::ptrdiff_t t = 0; t < count; ++t) {
            float* const row = logits + t * experts;
            const float most = *std::max_element(row, row + experts);
            for (std::ptrdiff_t e = 0; e < experts; ++e) row[e] = std::exp(row[e] - most);
            std::iota(order.begin(), order.end(), std::ptrdiff_t{0});
            std::partial_sort(order.begin(), order.begin() + k, order.end(),
                              [row](auto a, auto b) { return row[a] > row[b]; });
            float sum = 0;
            for (std::ptrdiff_t s = 0; s < k; ++s) sum += row[order[static_cast<std::size_t>(s)]];
            for (std::ptrdiff_t s = 0; s < k; ++s) {
                const std::ptrdiff_t e = order[static_cast<std::size_t>(s)];
                tokens[static_cast<std::size_t>(e)].push_back(t);
                weights[static_cast<std::size_t>(e)].push_back(row[e] / sum);
            }
        }
    }
};

#endif  // MOE_BENCH_PEER_ROUTING_HPP
