// SPDX-License-Identifier: MIT
#ifndef MOE_ROUTERS_K_MEANS_HPP
#define MOE_ROUTERS_K_MEANS_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include <moe/core/error.hpp>
#include <moe/core/least_squares.hpp>
#include <moe/core/random.hpp>
#include <moe/core/types.hpp>
#include <moe/core/views.hpp>
#include <moe/kernels/dispatch.hpp>
#include <moe/routers/linear.hpp>

namespace moe::inline MOE_ABI {

/// Settings of k-means.
struct KMeans {
    Index max_iterations = 20;
    double tolerance = 1e-4;  ///< it ends when no centre moved further than this
    std::uint64_t seed = 0;   ///< of the centres it starts from, where none are given
};

/// What fit_by_k_means() found.
struct KMeansFit {
    bool updated = false;  ///< false: a cluster is empty, and the router is as it was
    Index iterations = 0;
    std::vector<Index> clusters;  ///< [M] cluster of each environment
    std::vector<Index> experts;   ///< [E] expert of each cluster; empty if not updated
    Matrix<double> centers;       ///< [E, C], where the next fit may start
};

namespace detail {

/// |x - y|^2
inline double squared_distance(const Matrix<double>& points, Index x, const Matrix<double>& centers,
                               Index y, Matrix<double>& difference) {
    for (Index i = 0; i < points.cols(); ++i) difference(0, i) = points(x, i) - centers(y, i);
    return kernels<double>().dot(points.cols(), difference.data(), difference.data());
}

/// k-means++: each centre is the best of four points, drawn in proportion to their squared distance
/// from the centres before. (With one draw, one start in some hundred misses a cluster.)
/// Source: Arthur, Vassilvitskii, "k-means++: the advantages of careful seeding" (SODA 2007).
inline Matrix<double> spread_centers(const Matrix<double>& points, Index count,
                                     std::uint64_t seed) {
    constexpr int draws = 4;
    const Index num_points = points.rows();
    const CounterRandom random(seed, 0, 0);
    Matrix<double> centers = Matrix<double>::Zero(count, points.cols());
    Matrix<double> difference(1, points.cols());
    // Squared distances from the nearest centre: so far, with the point drawn, with the best one.
    std::vector<double> distances(static_cast<std::size_t>(num_points), 1), drawn, best;
    for (Index e = 0; e < count && num_points > 0; ++e) {
        double total = 0, least = std::numeric_limits<double>::infinity();
        for (const double distance : distances) total += distance;
        for (int draw = 0; draw < (e == 0 ? 1 : draws); ++draw) {
            const double target = random.uniform(draw, e) * total;
            std::size_t chosen = 0;  // also where all points are centres already
            double sum = 0, left = 0;
            for (std::size_t m = 0; m < distances.size() && sum <= target; ++m) {
                if (distances[m] > 0) chosen = m;
                sum += distances[m];
            }
            drawn = distances;
            for (Index m = 0; m < num_points; ++m) {
                double& nearest = drawn[static_cast<std::size_t>(m)];
                const double distance =
                    squared_distance(points, m, points, static_cast<Index>(chosen), difference);
                nearest = e == 0 ? distance : std::min(nearest, distance);
                left += nearest;
            }
            if (draw > 0 && !(left < least)) continue;
            least = left;
            best.swap(drawn);
            std::copy_n(row_data(points, static_cast<Index>(chosen)), points.cols(),
                        row_data(centers, e));
        }
        distances.swap(best);
    }
    return centers;
}

/// Puts every point into the cluster whose centre is nearest, the lower one of two.
/// @returns  points per cluster
inline std::vector<Index> assign_clusters(const Matrix<double>& points,
                                          const Matrix<double>& centers,
                                          std::vector<Index>& clusters) {
    std::vector<Index> sizes(static_cast<std::size_t>(centers.rows()), 0);
    Matrix<double> difference(1, points.cols());
    for (Index m = 0; m < points.rows(); ++m) {
        Index nearest = 0;
        double least = std::numeric_limits<double>::infinity();
        for (Index e = 0; e < centers.rows(); ++e) {
            const double distance = squared_distance(points, m, centers, e, difference);
            if (distance < least) least = distance, nearest = e;
        }
        clusters[static_cast<std::size_t>(m)] = nearest;
        ++sizes[static_cast<std::size_t>(nearest)];
    }
    return sizes;
}

/// Lloyd's iterations from fit.centers; an empty cluster keeps its centre.
/// @returns  whether every cluster has a point in the end
inline bool find_clusters(const Matrix<double>& points, const KMeans& settings, KMeansFit& fit) {
    const Index count = fit.centers.rows(), dim = points.cols();
    fit.clusters.resize(static_cast<std::size_t>(points.rows()));
    Matrix<double> difference(1, dim);
    for (bool moves = true; moves && fit.iterations < settings.max_iterations; ++fit.iterations) {
        const std::vector<Index> sizes = assign_clusters(points, fit.centers, fit.clusters);
        Matrix<double> means = Matrix<double>::Zero(count, dim);
        for (Index m = 0; m < points.rows(); ++m) {
            const Index e = fit.clusters[static_cast<std::size_t>(m)];
            for (Index i = 0; i < dim; ++i) means(e, i) += points(m, i);
        }
        moves = false;
        for (Index e = 0; e < count; ++e) {
            const Index size = sizes[static_cast<std::size_t>(e)];
            if (size == 0) continue;
            for (Index i = 0; i < dim; ++i) means(e, i) /= static_cast<double>(size);
            const double moved = squared_distance(means, e, fit.centers, e, difference);
            moves |= std::sqrt(moved) > settings.tolerance;
            std::copy_n(row_data(means, e), dim, row_data(fit.centers, e));
        }
    }
    const std::vector<Index> sizes = assign_clusters(points, fit.centers, fit.clusters);
    return std::find(sizes.begin(), sizes.end(), 0) == sizes.end();
}

/// The middle value, or the mean of the two in the middle. NaN counts as the largest.
inline double median(std::vector<double>& values) {
    constexpr double infinity = std::numeric_limits<double>::infinity();
    for (double& value : values)
        if (std::isnan(value)) value = infinity;
    std::sort(values.begin(), values.end());
    const std::size_t half = values.size() / 2;
    if (values.size() % 2 != 0 || values[half - 1] == values[half]) return values[half];
    return (values[half - 1] + values[half]) / 2;
}

/// Clusters ascending, each takes the expert with the least median loss that is left, the lower one
/// of two.
inline std::vector<Index> assign_experts(const Matrix<double>& losses,
                                         const std::vector<Index>& clusters) {
    const Index count = losses.cols();
    std::vector<Index> experts;
    std::vector<double> values;
    for (Index cluster = 0; cluster < count; ++cluster) {
        Index best = -1;
        double least = 0;
        for (Index e = 0; e < count; ++e) {
            if (std::find(experts.begin(), experts.end(), e) != experts.end()) continue;
            values.clear();
            for (Index m = 0; m < losses.rows(); ++m)
                if (clusters[static_cast<std::size_t>(m)] == cluster)
                    values.push_back(losses(m, e));
            const double loss = median(values);
            if (best < 0 || loss < least) best = e, least = loss;
        }
        experts.push_back(best);
    }
    return experts;
}

template <class S>
void check_fit(const LinearRouterModule<S>& router, In<S> contexts, In<S> losses,
               const KMeans& settings, In<double> centers) {
    const char* const who = "moe::fit_by_k_means: ";
    const Index experts = router.weight.rows(), dim = router.weight.cols();
    if (router.bias.empty() || experts == 0)
        fail(who, "the router has no bias; build it with LinearRouter{.bias = true}");
    if (router.bytes() != 0) fail(who, "the router is frozen; fit the one it was made of");
    if (contexts.cols() != dim)
        fail(who, "contexts has ", contexts.cols(), " columns, the router reads ", dim);
    if (losses.rows() != contexts.rows() || losses.cols() != experts)
        fail(who, "losses is [", losses.rows(), ", ", losses.cols(), "], it must be [",
             contexts.rows(), ", ", experts, "]: rows of contexts, logits of the router");
    if (centers.size() != 0 && (centers.rows() != experts || centers.cols() != dim))
        fail(who, "centers is [", centers.rows(), ", ", centers.cols(), "], it must be [", experts,
             ", ", dim, "], or empty");
    if (settings.max_iterations < 1)
        fail("moe::KMeans: max_iterations is ", settings.max_iterations, ", it must be >= 1");
    if (!(settings.tolerance >= 0))
        fail("moe::KMeans: tolerance is ", settings.tolerance, ", it must be >= 0");
    const auto check_finite = [&](const char* name, const auto& matrix) {
        for (Index m = 0; m < matrix.rows(); ++m)
            for (Index i = 0; i < matrix.cols(); ++i)
                if (!std::isfinite(matrix(m, i)))
                    fail(who, name, "(", m, ", ", i, ") is ", matrix(m, i), ", it must be finite");
    };
    check_finite("contexts", contexts);
    check_finite("centers", centers);
}

}  // namespace detail

/// Fits a router of contexts, one vector per environment, to the experts' losses, without a
/// gradient:
///
///     clusters of the contexts, as many as experts, by k-means
///     cluster -> the expert with the least median loss in it, each expert once
///     [W, b] = minimum-norm least squares solution of [c, 1] [W, b]^T = one-hot of c's expert
///
/// The router is a LinearRouter{.bias = true} whose tokens are contexts. Call it every so many
/// steps, between steps, and leave its gradients out: zeros_like(layer, wanted). Where a cluster is
/// empty, be it that there are fewer different contexts than experts, nothing is changed. The
/// result depends on the arguments only.
///
/// Source: MixER (arXiv:2502.05335), released code, which starts from small random centres.
///
/// @param contexts  [M, C], finite   @param losses  [M, E] of every expert in every environment;
///                  NaN counts as the largest
/// @param centers   [E, C] that k-means starts from, KMeansFit::centers of the last fit for
///                  example; empty: k-means++
/// @throws std::invalid_argument if extents do not fit, a context is not finite, a setting is out
///         of range, or the router has no bias or is frozen
template <class S, class Contexts, class Losses>
KMeansFit fit_by_k_means(LinearRouterModule<S>& router, const Contexts& contexts,
                         const Losses& losses, const KMeans& settings = {},
                         const Matrix<double>& centers = {}) {
    const auto c = detail::readable<S>(contexts);
    const auto loss = detail::readable<S>(losses);
    detail::check_fit<S>(router, c, loss, settings, centers);
    const Index rows = c.rows(), dim = c.cols(), experts = router.weight.rows();
    const Matrix<double> points = c.template cast<double>();
    KMeansFit fit;
    fit.centers =
        centers.size() != 0 ? centers : detail::spread_centers(points, experts, settings.seed);
    if (!detail::find_clusters(points, settings, fit)) return fit;
    fit.experts = detail::assign_experts(loss.template cast<double>(), fit.clusters);

    Matrix<double> extended(rows, dim + 1);
    Matrix<double> targets = Matrix<double>::Zero(rows, experts);
    for (Index m = 0; m < rows; ++m) {
        std::copy_n(row_data(points, m), dim, row_data(extended, m));
        extended(m, dim) = 1;
        const Index cluster = fit.clusters[static_cast<std::size_t>(m)];
        targets(m, fit.experts[static_cast<std::size_t>(cluster)]) = 1;
    }
    const Matrix<double> solution = detail::least_squares(extended, targets);  // [C + 1, E]
    for (Index e = 0; e < experts; ++e) {
        for (Index i = 0; i < dim; ++i) router.weight(e, i) = static_cast<S>(solution(i, e));
        router.bias(0, e) = static_cast<S>(solution(dim, e));
    }
    fit.updated = true;
    return fit;
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_ROUTERS_K_MEANS_HPP
