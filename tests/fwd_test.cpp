// SPDX-License-Identifier: MIT
#include <moe/fwd.hpp>

#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <string>
#include <vector>

#include <gtest/gtest.h>

// After the forward declarations, so that this file does not compile where they contradict; and all
// that is public together, so that it does not where two headers define one name.
#include <moe/compose.hpp>
#include <moe/gates.hpp>
#include <moe/io/frozen.hpp>
#include <moe/io/plan_text.hpp>
#include <moe/io/routing.hpp>
#include <moe/io/safetensors_writer.hpp>
#include <moe/io/trace.hpp>
#include <moe/losses.hpp>
#include <moe/moe.hpp>
#include <moe/presets.hpp>
#include <moe/routers.hpp>
#include <moe/stats.hpp>
#include <moe/testing/gradient_check.hpp>
#include <moe/tune.hpp>

namespace fwd_test {
namespace {

/// "testing::Comparison" to "struct", for what a header declares or defines in namespace moe or
/// moe::testing itself. Deeper namespaces (detail, those of the kernels) are not public.
using Kinds = std::map<std::string, std::string>;

Kinds kinds_in(const std::filesystem::path& file) {
    static const std::regex opens(R"(^namespace ([\w: ]+) \{$)");
    static const std::regex closes(R"(^\}  // namespace .*)");
    static const std::regex declares(R"(^(struct|class|enum class) (\w+)( *[;:{]| final).*)");
    std::ifstream stream(file);
    Kinds kinds;
    std::vector<std::string> open;
    std::smatch match;
    for (std::string line; std::getline(stream, line);) {
        if (std::regex_match(line, match, opens)) {
            open.push_back(match[1]);
        } else if (std::regex_match(line, closes)) {
            EXPECT_FALSE(open.empty()) << file;
            if (!open.empty()) open.pop_back();
        } else if (std::regex_match(line, match, declares)) {
            const bool is_public = !open.empty() && open[0] == "moe::inline MOE_ABI" &&
                                   (open.size() == 1 || (open.size() == 2 && open[1] == "testing"));
            if (is_public) kinds[(open.size() == 2 ? "testing::" : "") + match[2].str()] = match[1];
        }
    }
    return kinds;
}

TEST(Fwd, DeclaresEveryPublicTypeByItsKindAndNoOther) {
    Kinds declared = kinds_in("include/moe/fwd.hpp");
    declared.merge(kinds_in("include/moe/io/fwd.hpp"));
    declared.merge(kinds_in("include/moe/stats/fwd.hpp"));
    ASSERT_GT(declared.size(), 90u);
    Kinds defined;
    for (const auto& entry : std::filesystem::recursive_directory_iterator("include/moe")) {
        if (entry.path().extension() != ".hpp" || entry.path().filename() == "fwd.hpp") continue;
        const auto folder = entry.path().parent_path().filename();
        if (folder == "x86" || folder == "arm") continue;
        for (const auto& [name, kind] : kinds_in(entry.path())) {
            const auto place = declared.find(name);
            const std::string found = place == declared.end() ? "nothing" : place->second;
            EXPECT_EQ(found, kind) << name << " of " << entry.path();
            defined.emplace(name, kind);
        }
    }
    for (const auto& [name, kind] : declared) EXPECT_TRUE(defined.contains(name)) << name;
}

}  // namespace
}  // namespace fwd_test
