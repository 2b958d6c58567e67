// SPDX-License-Identifier: MIT
#ifndef MOE_TESTING_RANDOM_HPP
#define MOE_TESTING_RANDOM_HPP

#include <cstdint>
#include <utility>

#include <moe/core/random.hpp>
#include <moe/core/types.hpp>

/// Test data that are the same on every compiler, machine and run.

namespace moe::inline MOE_ABI {
namespace testing {

/// A number in (-1, 1), never 0, that depends on (seed, index) only.
///
/// An odd multiple of 2^-22, so that float and double hold the same number. The bits are those of
/// SplitMix64 at position `index` of the stream named by `seed`.
inline double random_value(std::uint64_t seed, std::uint64_t index) {
    constexpr std::uint64_t golden = 0x9e3779b97f4a7c15u;  // which mix() adds before it mixes
    constexpr std::int64_t half = std::int64_t{1} << 22;
    const std::uint64_t stream = moe::detail::mix(seed + 1 - golden);
    const std::uint64_t bits = moe::detail::mix(stream + index * golden);
    const auto k = static_cast<std::int64_t>(bits >> 42);  // [0, 2^22)
    return static_cast<double>(2 * k + 1 - half) / static_cast<double>(half);
}

/// A matrix of random_value(seed, 0), random_value(seed, 1), ... in row-major order, times `scale`.
/// @param rows, columns  0 or more
/// @param scale          a power of two keeps float and double equal
template <class S>
Matrix<S> random_matrix(Index rows, Index columns, std::uint64_t seed, double scale = 1) {
    Matrix<S> matrix(rows, columns);
    for (Index i = 0; i < matrix.size(); ++i)
        matrix.data()[i] =
            static_cast<S>(scale * random_value(seed, static_cast<std::uint64_t>(i)));
    return matrix;
}

/// Logits without near ties: any two entries of a row differ by at least `gap`.
///
/// Each row is a random permutation of equally spaced numbers around 0, moved a little at random.
/// A gradient check of something that ranks its input needs such data: a step across a tie changes
/// the branch and no derivative describes it.
/// @param gap  above 0; rows span about 1.5 * gap * columns
template <class S>
Matrix<S> random_spaced(Index rows, Index columns, std::uint64_t seed, double gap = 0.05) {
    Matrix<S> matrix(rows, columns);
    std::uint64_t draw = 0;
    for (Index row = 0; row < rows; ++row) {
        for (Index j = 0; j < columns; ++j) {
            const double middle = static_cast<double>(j) - static_cast<double>(columns - 1) / 2;
            const double moved = 1.5 * middle + 0.25 * random_value(seed, draw++);
            matrix(row, j) = static_cast<S>(gap * moved);
        }
        for (Index j = columns - 1; j > 0; --j) {  // shuffle
            const double unit = (random_value(seed, draw++) + 1) / 2;
            const auto other = static_cast<Index>(unit * static_cast<double>(j + 1));
            std::swap(matrix(row, j), matrix(row, other));
        }
    }
    return matrix;
}

}  // namespace testing
}  // namespace moe::inline MOE_ABI

#endif  // MOE_TESTING_RANDOM_HPP
