// SPDX-License-Identifier: MIT
#ifndef MOE_STATS_TABLE_HPP
#define MOE_STATS_TABLE_HPP

#include <charconv>
#include <cmath>
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include <Eigen/Core>

#include <moe/core/error.hpp>
#include <moe/core/types.hpp>
#include <moe/io/json.hpp>
#include <moe/io/text.hpp>

namespace moe::inline MOE_ABI {

/// What rows and columns of a table are called.
struct TableNames {
    std::vector<std::string> rows{};     ///< one per row; empty: numbers from 0
    std::vector<std::string> columns{};  ///< one per column; empty: numbers from 0
    std::string corner{};                ///< what the rows are; above their names in CSV
};

namespace detail {

/// The shortest digits that read back as the same double, in any locale; "nan", "inf", "-inf".
inline std::string shortest(double value) {
    if (std::isnan(value)) return "nan";  // to_chars writes a sign
    return text(value);
}

/// A field of RFC 4180: in quotes if it has a comma, a quote or a line break.
inline std::string csv_field(const std::string& name) {
    if (name.find_first_of(",\"\r\n") == std::string::npos) return name;
    std::string field = "\"";
    for (const char c : name) {
        if (c == '"') field += '"';
        field += c;
    }
    return field + "\"";
}

inline std::string table_name(const std::vector<std::string>& names, Index i) {
    return names.empty() ? std::to_string(i) : names[at(i)];
}

inline void check_table(const char* who, const TableNames& names, Index rows, Index columns) {
    const auto check = [who](const char* what, std::size_t given, Index wanted) {
        if (given != 0 && static_cast<Index>(given) != wanted)
            fail("moe::", who, ": ", what, " has ", given, " entries, there are ", wanted,
                 "; give one for each, or none");
    };
    check("rows", names.rows.size(), rows);
    check("columns", names.columns.size(), columns);
}

}  // namespace detail

/// A matrix as comma-separated values, for spreadsheets and data frames.
///
///     expert,0,1
///     0,12,0.5
///     1,nan,-inf
///
/// RFC 4180: one line per row, ended by CR LF, after a line of names; a name with a comma, a quote
/// or a line break is quoted. Numbers are the shortest that read back as the same double, in any
/// locale. Names are written as they are, in whatever encoding.
///
/// @param values  [rows, columns] of any scalar that a double can hold; any storage order
/// @throws std::invalid_argument if names are not one per row or column
template <class Derived>
std::string to_csv(const Eigen::DenseBase<Derived>& values, const TableNames& names = {}) {
    const auto& given = values.derived();
    detail::check_table("to_csv", names, given.rows(), given.cols());
    std::string csv = detail::csv_field(names.corner);
    for (Index c = 0; c < given.cols(); ++c)
        csv += "," + detail::csv_field(detail::table_name(names.columns, c));
    csv += "\r\n";
    for (Index r = 0; r < given.rows(); ++r) {
        csv += detail::csv_field(detail::table_name(names.rows, r));
        for (Index c = 0; c < given.cols(); ++c)
            csv += "," + detail::shortest(static_cast<double>(given.coeff(r, c)));
        csv += "\r\n";
    }
    return csv;
}

/// A matrix as JSON: names as strings, values as arrays of rows. NaN and infinities, which JSON has
/// no word for, are null.
///
///     {"corner": "expert", "rows": ["0", "1"], "columns": ["0", "1"],
///      "values": [[12, 0.5], [null, null]]}
///
/// @param values  [rows, columns] of any scalar that a double can hold; any storage order
/// @throws std::invalid_argument if names are not one per row or column, or not UTF-8
template <class Derived>
std::string to_json(const Eigen::DenseBase<Derived>& values, const TableNames& names = {}) {
    const auto& given = values.derived();
    detail::check_table("to_json", names, given.rows(), given.cols());
    std::string json = "{\"corner\": ";
    const auto append = [&json](const std::string& name) {
        if (detail::utf8_prefix(name) != name.size())
            detail::fail("moe::to_json: the name ", detail::in_quotes(name), " is not valid UTF-8");
        detail::append_json_string(json, name);
    };
    const auto append_names = [&](const std::vector<std::string>& list, Index count) {
        for (Index i = 0; i < count; ++i) {
            json += i == 0 ? "[" : ", ";
            append(detail::table_name(list, i));
        }
        json += count == 0 ? "[]" : "]";
    };
    append(names.corner);
    json += ", \"rows\": ";
    append_names(names.rows, given.rows());
    json += ", \"columns\": ";
    append_names(names.columns, given.cols());
    json += ",\n \"values\": [";
    for (Index r = 0; r < given.rows(); ++r) {
        json += r == 0 ? "[" : ",\n            [";
        for (Index c = 0; c < given.cols(); ++c) {
            const double value = static_cast<double>(given.coeff(r, c));
            if (c != 0) json += ", ";
            json += std::isfinite(value) ? detail::shortest(value) : "null";
        }
        json += "]";
    }
    return json + "]}\n";
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_STATS_TABLE_HPP
