// SPDX-License-Identifier: MIT
#ifndef MOE_TESTS_IO_STORED_HPP
#define MOE_TESTS_IO_STORED_HPP

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <Eigen/Core>

#include <moe/core/dtype.hpp>
#include <moe/core/parameters.hpp>
#include <moe/core/types.hpp>
#include <moe/core/weights.hpp>
#include <moe/io/layout.hpp>
#include <moe/io/safetensors_writer.hpp>

/// Tensors laid out by loops over indices, and a stand-in for a layer that costs no compile time.
namespace stored {

using moe::Index;

/// [row][column]
using Rows = std::vector<std::vector<double>>;

/// Sixteenths between -2 and 2, which every dtype holds; another matrix for another seed.
inline Rows matrix(Index rows, Index cols, Index seed) {
    Rows values(static_cast<std::size_t>(rows));
    for (Index i = 0; i < rows; ++i)
        for (Index j = 0; j < cols; ++j)
            values[static_cast<std::size_t>(i)].push_back(
                static_cast<double>((31 * i + 17 * j + 7 * i * j + 41 * seed) % 61 - 30) / 16);
    return values;
}

inline Rows transposed(const Rows& a) {
    Rows t(a.empty() ? 0 : a[0].size());
    for (const auto& row : a)
        for (std::size_t j = 0; j < t.size(); ++j) t[j].push_back(row[j]);
    return t;
}

/// Rows of a and b: all of a and then all of b, or one of each in turn.
inline Rows joined(const Rows& a, const Rows& b, bool take_turns) {
    Rows all;
    if (take_turns) {
        for (std::size_t i = 0; i < a.size(); ++i) all.push_back(a[i]), all.push_back(b[i]);
    } else {
        all = a;
        all.insert(all.end(), b.begin(), b.end());
    }
    return all;
}

/// All elements in row-major order as T.
template <class T>
std::vector<T> elements(const std::vector<Rows>& matrices) {
    std::vector<T> all;
    for (const Rows& rows : matrices)
        for (const auto& row : rows)
            for (const double value : row) all.push_back(static_cast<T>(value));
    return all;
}

/// Adds matrices [rows, cols] as one tensor of that shape.
inline void add(moe::SafetensorsWriter& writer, const std::string& name, moe::Dtype dtype,
                const std::vector<Rows>& matrices, const moe::Extents& shape) {
    const auto put = [&](const auto& values) { writer.add(name, std::span(values), shape); };
    if (dtype == moe::Dtype::f64) put(elements<double>(matrices));
    if (dtype == moe::Dtype::f32) put(elements<float>(matrices));
    if (dtype == moe::Dtype::bf16) put(elements<Eigen::bfloat16>(matrices));
    if (dtype == moe::Dtype::f16) put(elements<Eigen::half>(matrices));
}

/// Adds the matrices of all experts, as they are to lie in memory, stacked or each by itself.
inline void add(moe::SafetensorsWriter& writer, const std::string& name, moe::Dtype dtype,
                const std::vector<Rows>& experts, moe::Stacking stacking) {
    const auto count = static_cast<Index>(experts.size());
    const auto rows = static_cast<Index>(experts[0].size());
    const auto cols = static_cast<Index>(experts[0][0].size());
    if (stacking == moe::Stacking::leading)
        return add(writer, name, dtype, experts, {count, rows, cols});
    if (stacking == moe::Stacking::rows)
        return add(writer, name, dtype, experts, {count * rows, cols});
    for (Index e = 0; e < count; ++e)
        add(writer, name + "." + std::to_string(e), dtype, {experts[static_cast<std::size_t>(e)]},
            {rows, cols});
}

/// A layer in so far as it has parameters, and matrices of experts that may be views or deferred.
template <class S>
struct Bag {
    using Scalar = S;
    struct Matrices {
        std::string pattern;
        moe::Weights<S> weights;
        Index first = 0;
    };
    std::vector<std::pair<std::string, moe::Parameter<S>>> parameters;
    std::vector<Matrices> matrices;

    Bag& bank() { return *this; }
    void visit_parameters(auto&& visit) {
        for (auto& [name, parameter] : parameters) visit(name, parameter);
    }
    void visit_weights(auto&& visit) {
        for (Matrices& m : matrices) visit(m.pattern, m.weights, m.first);
    }
};

/// Whether a matrix of S holds these numbers.
template <class S>
bool holds(const moe::Parameter<S>& matrix, const Rows& rows) {
    if (matrix.rows() != static_cast<Index>(rows.size())) return false;
    for (Index i = 0; i < matrix.rows(); ++i) {
        const auto& row = rows[static_cast<std::size_t>(i)];
        if (matrix.cols() != static_cast<Index>(row.size())) return false;
        for (Index j = 0; j < matrix.cols(); ++j)
            if (!(matrix(i, j) == static_cast<S>(row[static_cast<std::size_t>(j)]))) return false;
    }
    return true;
}
inline bool holds(const moe::WeightView& view, const Rows& rows) {
    moe::Parameter<double> values(view.rows, view.cols);
    const auto* const from = static_cast<const std::byte*>(view.data);
    for (Index i = 0; i < view.rows; ++i)
        for (Index j = 0; j < view.cols; ++j)
            values(i, j) = moe::read_element<double>(
                view.dtype,
                from + (i * view.row_stride + j * view.col_stride) * moe::element_size(view.dtype));
    return holds(values, rows);
}

}  // namespace stored

#endif  // MOE_TESTS_IO_STORED_HPP
