// SPDX-License-Identifier: MIT
#ifndef MOE_PRESETS_EXPLAIN_HPP
#define MOE_PRESETS_EXPLAIN_HPP

#include <algorithm>
#include <cstddef>
#include <string>
#include <tuple>
#include <vector>

#include <moe/core/shape.hpp>
#include <moe/presets/describe.hpp>
#include <moe/presets/description.hpp>
#include <moe/presets/preset.hpp>
#include <moe/presets/published.hpp>

namespace moe::inline MOE_ABI {
namespace detail {

/// A part of a layer and what it is there for.
struct DescribedPart {
    const char* role;  ///< "config", "router", "gate", "experts" or "shared"
    Description description;
};
using DescribedParts = std::vector<DescribedPart>;

template <class Part>
constexpr bool is_shared = false;
template <class Experts>
constexpr bool is_shared<Shared<Experts>> = true;

template <class Part>
void add_part(DescribedParts& parts, const char* role, const Part& part) {
    parts.push_back({role, {}});
    describe_part(part, role, parts.back().description);
}
template <class R, class G, class... Groups>
DescribedParts described(const Config& config, const R& router, const G& gate,
                         const Groups&... groups) {
    DescribedParts parts;
    add_part(parts, "config", config);
    add_part(parts, "router", router);
    add_part(parts, "gate", gate);
    (add_part(parts, is_shared<Groups> ? "shared" : "experts", groups), ...);
    return parts;
}
template <Preset P>
DescribedParts described(const P& preset) {
    return std::apply([&](const auto&... parts) { return described(preset.config(), parts...); },
                      preset.parts());
}

/// Where two layers differ.
struct PartsDifference {
    bool same_parts = true;  ///< the same recipes in the same places
    std::vector<std::string> rules, dimensions;

    bool none() const { return same_parts && rules.empty() && dimensions.empty(); }
    /// @return whether `other` is of the same parts with fewer rules, then dimensions, that differ
    bool farther_than(const PartsDifference& other) const {
        if (!other.same_parts) return false;
        if (!same_parts || rules.size() != other.rules.size())
            return !same_parts || rules.size() > other.rules.size();
        return dimensions.size() > other.dimensions.size();
    }
};

inline PartsDifference difference(const DescribedParts& mine, const DescribedParts& other) {
    PartsDifference found;
    const auto other_rule = [&found](const std::string& rule) {
        found.same_parts = false;
        found.rules.push_back(rule);
    };
    for (std::size_t p = 0; p < std::max(mine.size(), other.size()); ++p) {
        if (p >= mine.size() || p >= other.size()) {
            const DescribedPart& part = p < mine.size() ? mine[p] : other[p];
            other_rule((p < mine.size() ? "" : "no ") + part.description.name);
            continue;
        }
        const Description &a = mine[p].description, &b = other[p].description;
        if (a.name != b.name) {
            other_rule(a.name + " instead of " + b.name);
            continue;
        }
        // Of a gate by its name, "normalize"; of others with what they are of, "experts.bias".
        const std::string role = mine[p].role;
        const std::string of = role == "gate" || role == "config" ? "" : role + ".";
        for (std::size_t i = 0; i < a.settings.size() && i < b.settings.size(); ++i) {
            const Description::Setting &s = a.settings[i], &t = b.settings[i];
            if (s.value != t.value && (s.matters || t.matters))
                (s.is_rule ? found.rules : found.dimensions).push_back(of + s.name);
        }
    }
    return found;
}

inline std::string listed(const std::vector<std::string>& names) {
    std::string all;
    for (const std::string& name : names) all += (all.empty() ? "" : ", ") + name;
    return all;
}

/// "gate    TopK: k 2, score softmax, normalize sum": rules, then dimensions behind a semicolon.
inline std::string lines_of(const DescribedParts& parts) {
    std::string lines;
    for (const DescribedPart& part : parts) {
        std::vector<std::string> rules, dimensions;
        for (const Description::Setting& setting : part.description.settings)
            if (!setting.phrase.empty())
                (setting.is_rule ? rules : dimensions).push_back(setting.phrase);
        std::string line = part.role;
        line.resize(8, ' ');
        const std::string& name = part.description.name;
        line += name;
        if (!rules.empty()) line += (name.empty() ? "" : ": ") + listed(rules);
        if (!dimensions.empty())
            line += (!rules.empty() ? "; " : name.empty() ? "" : ": ") + listed(dimensions);
        lines += line + "\n";
    }
    return lines;
}

/// "differs from mixtral in: normalize; dimensions: model_dim"
inline std::string line_of(const PartsDifference& found, const std::string& name) {
    if (found.none()) return "as " + name + "\n";
    std::string line = "differs from " + name + " in: " + listed(found.rules);
    if (!found.dimensions.empty())
        line +=
            (found.rules.empty() ? "dimensions: " : "; dimensions: ") + listed(found.dimensions);
    return line + "\n";
}

struct PublishedParts {
    std::string name;
    DescribedParts parts;
};
inline std::vector<PublishedParts> published_parts() {
    std::vector<PublishedParts> all;
    presets::for_each_published([&all](const char* name, const auto& preset) {
        all.push_back({name, described(preset)});
    });
    return all;
}

/// The name of a published model that is just so; empty if there is none.
/// @param own  is preferred where several are alike
inline std::string published_name(const DescribedParts& parts, const std::string& own) {
    std::string name;
    for (const PublishedParts& published : published_parts())
        if ((name.empty() || published.name == own) && difference(parts, published.parts).none())
            name = published.name;
    return name;
}

template <Preset P>
std::string own_name() {
    if constexpr (requires { P::name; })
        return P::name;
    else
        return "the preset";
}

}  // namespace detail

/// What a preset does, in words: a line for each part, with every setting that is not as usual.
///
///     deepseek_v3
///     config  model_dim 7168
///     router  LinearRouter
///     gate    TopK: k 8, score sigmoid, normalize sum + 1e-20, scale 2.5, selection bias, 4 of 8
///             groups by their top two                      (one line)
///     experts Swiglu: count 256, ffn_dim 2048
///     shared  Shared{Swiglu}: count 1, ffn_dim 2048
///
/// If it is not as published, a last line says what is not: "differs from deepseek_v3 in:
/// normalize, k; dimensions: model_dim". Settings are called as the recipes call them.
template <Preset P>
std::string explain(const P& preset) {
    const detail::DescribedParts parts = detail::described(preset);
    const std::string own = detail::own_name<P>(), known = detail::published_name(parts, own);
    std::string text = (known.empty() ? own : known) + "\n" + detail::lines_of(parts);
    if constexpr (requires { P{}; })
        if (known.empty())
            text += detail::line_of(detail::difference(parts, detail::described(P{})), own);
    return text;
}

/// The same with a last line that compares it with one preset: "as mixtral", "differs from
/// mixtral in: normalize".
template <Preset P, Preset Q>
std::string explain(const P& mine, const Q& published) {
    const detail::DescribedParts parts = detail::described(mine),
                                 other = detail::described(published);
    const std::string own = detail::own_name<Q>(), known = detail::published_name(other, own);
    return detail::lines_of(parts) +
           detail::line_of(detail::difference(parts, other), known.empty() ? own : known);
}

/// The same for recipes, published or your own, with a last line that names the published model
/// which they are like: that of the same parts with the fewest rules that differ. Extents and
/// counts do not count.
///
///     moe::explain(moe::Config{.model_dim = 64}, moe::LinearRouter{}, moe::TopK{.k = 2},
///                  moe::Swiglu{.count = 4, .ffn_dim = 128});              // "... as mixtral"
///
/// A recipe without a describe(), see Description, is called "your gate".
template <class R, class G, class... Groups>
std::string explain(const Config& config, const R& router, const G& gate, const Groups&... groups) {
    const detail::DescribedParts parts = detail::described(config, router, gate, groups...);
    detail::PartsDifference nearest{.same_parts = false, .rules = {}, .dimensions = {}};
    std::string name;
    for (const detail::PublishedParts& published : detail::published_parts()) {
        const auto found = detail::difference(parts, published.parts);
        if (!nearest.farther_than(found)) continue;
        nearest = found;
        name = published.name;
    }
    nearest.dimensions.clear();
    return detail::lines_of(parts) +
           (name.empty() ? "like no published preset\n" : detail::line_of(nearest, name));
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_PRESETS_EXPLAIN_HPP
