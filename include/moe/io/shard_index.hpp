// SPDX-License-Identifier: MIT
#ifndef MOE_IO_SHARD_INDEX_HPP
#define MOE_IO_SHARD_INDEX_HPP

#include <algorithm>
#include <cstddef>
#include <deque>
#include <functional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <moe/core/error.hpp>
#include <moe/io/json.hpp>
#include <moe/io/limits.hpp>
#include <moe/io/text.hpp>

namespace moe::inline MOE_ABI {
namespace detail {

/// Which file each tensor of a checkpoint is in, as model.safetensors.index.json says it:
///
///     {"metadata": anything, "weight_map": {"tensor name": "file name", ...}}
///
/// Checked when it is read: names are unique and within CheckpointLimits, files are named as files
/// of one folder, nothing is given twice, and there are no other members.
struct ShardIndex {
    struct Entry {
        std::string_view name;              ///< a view of the text or of `decoded`
        const std::string* file = nullptr;  ///< one of `files`
    };

    std::vector<Entry> entries;                ///< by name
    std::set<std::string, std::less<>> files;  ///< those that entries name; addresses stay
    std::deque<std::string> decoded;           ///< names that held escapes; addresses stay
};

template <class... Parts>
[[noreturn]] void fail_index(const Parts&... parts) {
    fail<FormatError>("moe::Checkpoint: index: ", parts...);
}

/// Refuses what could lead out of the folder that the index is in.
inline void check_shard_name(std::string_view file) {
    if (file.size() > CheckpointLimits::file_name_bytes)
        fail_index("file name ", in_quotes(file), " has ", file.size(), " bytes, the limit is ",
                   CheckpointLimits::file_name_bytes);
    constexpr std::string_view separators("/\\\0", 3);
    if (file.empty() || file == "." || file.find("..") != file.npos ||
        file.find_first_of(separators) != file.npos)
        fail_index(in_quotes(file), " is not the name of a file beside it");
}

inline void read_weight_map(JsonReader& json, ShardIndex& index) {
    std::string_view name;
    std::string name_scratch, file_scratch;
    json.begin_object();
    while (json.next_key(name, name_scratch)) {
        if (name.size() > SafetensorsLimits::name_bytes)
            fail_index("name ", in_quotes(name), " has ", name.size(), " bytes, the limit is ",
                       SafetensorsLimits::name_bytes);
        if (index.entries.size() == CheckpointLimits::tensors)
            fail_index("more than ", CheckpointLimits::tensors, " tensors");
        if (name.data() == name_scratch.data()) name = index.decoded.emplace_back(name);
        const std::string_view file = json.string(file_scratch);
        auto place = index.files.find(file);
        if (place == index.files.end()) {
            check_shard_name(file);
            if (index.files.size() == CheckpointLimits::files)
                fail_index("more than ", CheckpointLimits::files, " files");
            place = index.files.emplace(file).first;
        }
        index.entries.push_back({name, &*place});
    }
    std::sort(
        index.entries.begin(), index.entries.end(),
        [](const ShardIndex::Entry& a, const ShardIndex::Entry& b) { return a.name < b.name; });
    for (std::size_t i = 1; i < index.entries.size(); ++i)
        if (index.entries[i].name == index.entries[i - 1].name)
            fail_index("tensor ", in_quotes(index.entries[i].name), " is given twice");
}

/// @param text  viewed, must outlive what is returned
/// @throws FormatError if anything is wrong with it
inline ShardIndex read_shard_index(std::string_view text) {
    if (text.size() > CheckpointLimits::index_bytes)
        fail_index("it has ", text.size(), " bytes, the limit is ", CheckpointLimits::index_bytes);
    ShardIndex index;
    JsonReader json(text, "moe::Checkpoint: index", CheckpointLimits::nesting);
    bool has_metadata = false, has_map = false;
    std::string_view member;
    std::string scratch;
    json.begin_object();
    while (json.next_key(member, scratch)) {
        const bool is_map = member == "weight_map";
        if (!is_map && member != "metadata")
            fail_index("unknown member ", in_quotes(member),
                       "; an index has \"weight_map\" and \"metadata\"");
        if (std::exchange(is_map ? has_map : has_metadata, true))
            fail_index(in_quotes(member), " is given twice");
        if (is_map)
            read_weight_map(json, index);
        else
            json.skip_value();
    }
    json.finish_text();
    if (!has_map) fail_index("there is no \"weight_map\"");
    return index;
}

}  // namespace detail
}  // namespace moe::inline MOE_ABI

#endif  // MOE_IO_SHARD_INDEX_HPP
