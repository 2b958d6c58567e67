// SPDX-License-Identifier: MIT
#include <moe/moe.hpp>

#include <cctype>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>

namespace moe_test {
namespace {

using Names = std::vector<std::string>;

std::vector<std::string> lines_of(const std::filesystem::path& file) {
    std::ifstream stream(file);
    std::vector<std::string> lines;
    for (std::string line; std::getline(stream, line);) lines.push_back(line);
    return lines;
}

std::string included_by(std::string_view line) {
    if (!line.starts_with("#include <") && !line.starts_with("#include \"")) return {};
    const std::size_t begin = 10, end = line.find_first_of(">\"", begin);
    return std::string(line.substr(begin, end - begin));
}

/// Everything that a header includes, itself included, with one place where each is included.
/// Headers of the library are opened, others are not.
std::map<std::string, std::string> included_from(const std::string& header) {
    std::map<std::string, std::string> seen{{header, "the test"}};
    Names open{header};
    while (!open.empty()) {
        const std::string file = open.back();
        open.pop_back();
        const std::vector<std::string> lines = lines_of("include/" + file);
        EXPECT_FALSE(lines.empty()) << file << " is included but cannot be read";
        for (const std::string& line : lines) {
            const std::string name = included_by(line);
            if (name.empty() || !seen.emplace(name, file).second) continue;
            if (name.starts_with("moe/")) open.push_back(name);
        }
    }
    return seen;
}

TEST(Umbrella, IncludesNothingThatUsersPayForUnasked) {
    const auto seen = included_from("moe/moe.hpp");
    ASSERT_GT(seen.size(), 40u);
    for (const char* header : {"iostream", "fstream", "sstream", "regex", "omp.h", "filesystem"})
        EXPECT_FALSE(seen.contains(header)) << header << " is included by " << seen.at(header);
    for (const auto& [name, from] : seen) {
        EXPECT_TRUE(!name.starts_with("Eigen/") || name == "Eigen/Core") << name << " in " << from;
        EXPECT_FALSE(name.starts_with("moe/testing/")) << name << " in " << from;
    }
}

/// What a program that wants it includes by name: tools for tests, reports and figures, files,
/// forward declarations.
bool is_asked_for_by_name(const std::string& header) {
    static const std::set<std::string> files{
        "moe/fwd.hpp",           "moe/stats/fwd.hpp",
        "moe/kernels/plain.hpp", "moe/kernels/reference.hpp",
        "moe/tune.hpp",          "moe/kernels/storage_reference.hpp"};
    return files.contains(header) || header.starts_with("moe/testing/") ||
           header.starts_with("moe/io/");
}

TEST(Umbrella, BringsAllTheRest) {
    auto seen = included_from("moe/moe.hpp");
    for (const char* umbrella : {"moe/routers.hpp", "moe/gates.hpp", "moe/losses.hpp",
                                 "moe/stats.hpp", "moe/compose.hpp", "moe/presets.hpp"}) {
        seen.merge(included_from(umbrella));
        seen.emplace(umbrella, "");
    }
    for (const auto& entry : std::filesystem::recursive_directory_iterator("include/moe")) {
        const std::string name = entry.path().lexically_relative("include").generic_string();
        if (!name.ends_with(".hpp") || is_asked_for_by_name(name)) continue;
        EXPECT_TRUE(seen.contains(name)) << name;
    }
}

TEST(Umbrella, EachHeaderHasItsLicenceAndItsGuard) {
    for (const auto& entry : std::filesystem::recursive_directory_iterator("include/moe")) {
        const std::string name = entry.path().lexically_relative("include").generic_string();
        if (!name.ends_with(".hpp")) continue;
        const std::vector<std::string> lines = lines_of(entry.path());
        std::string guard = name;
        for (char& c : guard) c = c == '/' || c == '.' ? '_' : static_cast<char>(std::toupper(c));
        ASSERT_GT(lines.size(), 3u) << name;
        EXPECT_EQ(lines[0], "// SPDX-License-Identifier: MIT") << name;
        EXPECT_EQ(lines[1], "#ifndef " + guard) << name;
        EXPECT_EQ(lines[2], "#define " + guard) << name;
        EXPECT_EQ(lines.back(), "#endif  // " + guard) << name;
    }
}

TEST(Umbrella, IsEnoughForALayer) {
    const moe::Layer layer{
        moe::Config{.model_dim = 16},
        moe::LinearRouter{},
        moe::TopK{.k = 2},
        moe::Swiglu{.count = 4, .ffn_dim = 8},
    };
    const moe::Matrix<float> x = moe::Matrix<float>::Random(3, 16);
    const moe::Matrix<float> y = layer(x);
    EXPECT_EQ(y.rows(), 3);
    EXPECT_EQ(y.cols(), 16);
    EXPECT_TRUE(y.allFinite());
    EXPECT_TRUE((y.array() != 0).all());
}

TEST(Reserve, RoomIsNotABatch) {
    const moe::Layer layer{moe::Config{.model_dim = 4}, moe::LinearRouter{}, moe::TopK{.k = 1},
                           moe::Copy{.count = 3}};
    moe::Workspace<float> ws;
    ws.reserve(layer, 5, 5);
    EXPECT_EQ(ws.logits().rows(), 0);
    EXPECT_EQ(ws.dlogits().rows(), 0);
    EXPECT_THROW(ws.routing().assignments(), std::logic_error);
    layer.route(moe::Matrix<float>(moe::Matrix<float>::Zero(2, 4)), ws);
    EXPECT_EQ(ws.logits().rows(), 2);
    EXPECT_EQ(ws.dlogits()(1, 2), 0.0f);
}

TEST(Umbrella, NamesOfParametersStayAsTheyAre) {
    const moe::Layer layer{moe::Config{.model_dim = 4},
                           moe::LinearRouter{},
                           moe::TopK{.k = 1},
                           moe::Swiglu{.count = 2, .ffn_dim = 3},
                           moe::Zero{},
                           moe::Constant{},
                           moe::Shared{moe::Swiglu{.count = 1, .ffn_dim = 3}}};
    Names names;
    moe::visit_parameters(
        layer, [&](std::string_view name, const auto&, moe::Role) { names.emplace_back(name); });
    EXPECT_EQ(names, (Names{"router.weight", "experts.0.gate", "experts.0.up", "experts.0.down",
                            "experts.1.gate", "experts.1.up", "experts.1.down", "experts.3.mix",
                            "experts.3.value", "shared.0.gate", "shared.0.up", "shared.0.down"}));
}

}  // namespace
}  // namespace moe_test
