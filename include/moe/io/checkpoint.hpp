// SPDX-License-Identifier: MIT
#ifndef MOE_IO_CHECKPOINT_HPP
#define MOE_IO_CHECKPOINT_HPP

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <deque>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <moe/core/error.hpp>
#include <moe/core/types.hpp>
#include <moe/io/file.hpp>
#include <moe/io/limits.hpp>
#include <moe/io/mapped_file.hpp>
#include <moe/io/safetensors.hpp>
#include <moe/io/shard_index.hpp>
#include <moe/io/tensor.hpp>
#include <moe/io/tensor_names.hpp>
#include <moe/io/text.hpp>

namespace moe::inline MOE_ABI {

/// The tensors of a whole model, found by name in however many safetensors files it has.
///
///     const auto checkpoint = moe::Checkpoint::open("Mixtral-8x7B-v0.1");
///     checkpoint.copy<float>("model.layers.0.block_sparse_moe.gate.weight");        // [E, D]
///
/// No tensor is copied. What open() maps lives as long as the checkpoint or any copy of it; views
/// of files in the caller's memory are valid as long as that memory. Files that change meanwhile
/// are outside every promise, see MappedFile. Copies share everything and are cheap; all functions
/// may run on several threads at once.
///
/// A model of several files has an index that says which tensor is in which:
///
///     {"metadata": anything, "weight_map": {"tensor name": "file name", ...}}
///
/// It must agree with the files: a tensor that is not in the file that the index names, or that the
/// index does not name, is an error, and so is a name in two files. Limits are CheckpointLimits.
class Checkpoint {
public:
    /// One file in the caller's memory. Not explicit: a file is a checkpoint.
    Checkpoint(SafetensorsView file)  // NOLINT(google-explicit-constructor)
        : Checkpoint(std::vector<SafetensorsView>{std::move(file)}) {}

    /// Several files in the caller's memory, in any order.
    /// @throws FormatError if two of them have a tensor of the same name
    explicit Checkpoint(std::vector<SafetensorsView> shards) {
        const auto contents = std::make_shared<Contents>();
        contents->shards = std::move(shards);
        const std::vector<Place> places = sort(contents->shards);
        for (std::size_t i = 1; i < places.size(); ++i)
            if (places[i].tensor->name == places[i - 1].tensor->name)
                fail("tensor ", detail::in_quotes(places[i].tensor->name), " is in two files, ",
                     places[i - 1].shard, " and ", places[i].shard, " of those given");
        list(places, *contents);
        contents_ = contents;
    }

    /// Files that an index names, wherever they are.
    ///
    /// @param index  the text of model.safetensors.index.json; need not live any longer
    /// @param load   SafetensorsView load(const std::string& file_name), called once for each file,
    ///               names ascending; throws if there is no such file
    /// @throws FormatError if the index is damaged or does not agree with the files, and what load
    ///         throws
    template <class Load>
    static Checkpoint from_index(std::string_view index, Load&& load) {
        const auto contents = std::make_shared<Contents>();
        read(index, *contents, [&](const std::string& file, Index, Index) { return load(file); });
        return Checkpoint(contents);
    }

    /// A model on disk, mapped: nothing is read but the files' headers.
    ///
    /// @param path      a folder as save_pretrained() writes it, with model.safetensors.index.json
    ///                  and the files that it names or else with model.safetensors; or one such
    ///                  file, an index by its ending .json
    /// @param progress  progress(Index number, Index count, std::string_view file_name), called
    ///                  before each safetensors file is opened, number from 1 to count
    /// @throws std::runtime_error if a file is missing or cannot be read; FormatError if a file is
    ///         damaged, if the index does not agree with the files, or if a folder has a
    ///         model.safetensors beside an index that does not name it
    template <class Progress>
    static Checkpoint open(const std::string& path, Progress&& progress) {
        const auto contents = std::make_shared<Contents>();
        if (path.empty()) detail::fail_file("Checkpoint", "open", path, ENOENT);
        const std::string folder = path.back() == '/' ? path : path + '/';
        const std::string index = folder + index_name, single = folder + single_name;
        if (exists(index)) {
            open_index(index, *contents, progress);
            const auto& names = contents->names;
            if (exists(single) && std::find(names.begin(), names.end(), single_name) == names.end())
                fail("folder \"", path, "\" has a ", single_name, " and a ", index_name,
                     " that does not name it; give the path of the one that is meant");
        } else if (path.ends_with(".json")) {
            open_index(path, *contents, progress);
        } else {
            const std::string& file = exists(single) ? single : path;
            if (file == path && exists(folder + '.'))
                detail::fail<std::runtime_error>("moe::Checkpoint: folder \"", path,
                                                 "\" has neither ", index_name, " nor ",
                                                 single_name);
            const std::string name = file.substr(parent(file).size());
            progress(Index{1}, Index{1}, std::string_view(name));
            contents->shards.push_back(map(file, name, *contents));
            list(sort(contents->shards), *contents);
        }
        return Checkpoint(contents);
    }
    static Checkpoint open(const std::string& path) {
        return open(path, [](Index, Index, std::string_view) {});
    }

    Checkpoint(const Checkpoint&) = default;  // and no move, which would leave a husk
    Checkpoint& operator=(const Checkpoint&) = default;
    ~Checkpoint() = default;

    /// What keeps mapped files alive: whoever holds it may keep views of tensors.
    std::shared_ptr<const void> owner() const { return contents_; }

    /// All tensors of all files, by name.
    Index size() const { return static_cast<Index>(contents_->tensors.size()); }
    const TensorView* begin() const { return contents_->tensors.data(); }
    const TensorView* end() const { return begin() + size(); }

    /// @return the tensor, or nullptr if there is none of that name
    const TensorView* find(std::string_view name) const {
        const TensorView* const found = std::lower_bound(
            begin(), end(), name,
            [](const TensorView& tensor, std::string_view wanted) { return tensor.name < wanted; });
        return found == end() || found->name != name ? nullptr : found;
    }

    /// @throws FormatError if there is none of that name; says which names come near
    TensorView at(std::string_view name) const {
        const TensorView* tensor = find(name);
        if (tensor == nullptr) detail::fail_missing("moe::Checkpoint", *this, name);
        return *tensor;
    }

    /// The tensor's memory as [rows, cols]: see TensorView::matrix.
    template <class S>
    ConstView<S> matrix(std::string_view name) const {
        return at(name).template matrix<S>();
    }

    /// The tensor's values converted to S, [rows, cols]: see TensorView::copy.
    template <class S>
    Matrix<S> copy(std::string_view name) const {
        return at(name).template copy<S>();
    }

    /// The values of an integer or boolean tensor, [rows, cols].
    Matrix<std::int64_t> integers(std::string_view name) const { return at(name).integers(); }

private:
    static constexpr const char* single_name = "model.safetensors";
    static constexpr const char* index_name = "model.safetensors.index.json";

    struct Contents {
        std::deque<MappedFile> files;  // none if the memory is the caller's; addresses stay
        std::vector<SafetensorsView> shards;
        std::vector<std::string> names;   // of shards, if an index names them
        std::vector<TensorView> tensors;  // by name
    };

    struct Place {
        const TensorView* tensor;
        std::size_t shard;
    };

    explicit Checkpoint(std::shared_ptr<const Contents> contents)
        : contents_(std::move(contents)) {}

    template <class... Parts>
    [[noreturn]] static void fail(const Parts&... parts) {
        detail::fail<FormatError>("moe::Checkpoint: ", parts...);
    }

    /// By name, of the same name by shard.
    static std::vector<Place> sort(const std::vector<SafetensorsView>& shards) {
        if (shards.size() > CheckpointLimits::files)
            fail(shards.size(), " files, the limit is ", CheckpointLimits::files);
        std::vector<Place> places;
        for (std::size_t i = 0; i < shards.size(); ++i) {
            if (static_cast<std::size_t>(shards[i].size()) >
                CheckpointLimits::tensors - places.size())
                fail("more than ", CheckpointLimits::tensors, " tensors in all files");
            for (const TensorView& tensor : shards[i]) places.push_back({&tensor, i});
        }
        std::stable_sort(places.begin(), places.end(), [](const Place& a, const Place& b) {
            return a.tensor->name < b.tensor->name;
        });
        return places;
    }

    static void list(const std::vector<Place>& places, Contents& contents) {
        contents.tensors.reserve(places.size());
        for (const Place& place : places) contents.tensors.push_back(*place.tensor);
    }

    /// @param load  load(file name, number from 1, count) gives the file's view
    template <class Load>
    static void read(std::string_view text, Contents& contents, Load&& load) {
        const detail::ShardIndex index = detail::read_shard_index(text);
        const auto count = static_cast<Index>(index.files.size());
        for (const std::string& file : index.files) {
            contents.names.push_back(file);
            contents.shards.push_back(load(file, static_cast<Index>(contents.names.size()), count));
        }
        const std::vector<Place> places = sort(contents.shards);
        compare(index, places, contents.names);
        list(places, contents);
    }

    /// Index and files must name the same tensors in the same files; both are sorted by name.
    static void compare(const detail::ShardIndex& index, const std::vector<Place>& places,
                        const std::vector<std::string>& names) {
        const auto& entries = index.entries;
        std::size_t e = 0;
        for (const Place& place : places) {
            const std::string& file = names[place.shard];
            if (e < entries.size() && entries[e].name < place.tensor->name) fail_absent(entries[e]);
            if (e == entries.size() || entries[e].name != place.tensor->name) {
                if (e > 0 && entries[e - 1].name == place.tensor->name)
                    fail("tensor ", detail::in_quotes(place.tensor->name), " is in two files, ",
                         detail::in_quotes(*entries[e - 1].file), " and ", detail::in_quotes(file));
                fail("tensor ", detail::in_quotes(place.tensor->name), " of ",
                     detail::in_quotes(file), " is not in the index");
            }
            if (*entries[e].file != file)
                fail("the index says that tensor ", detail::in_quotes(place.tensor->name),
                     " is in ", detail::in_quotes(*entries[e].file), ", but it is in ",
                     detail::in_quotes(file));
            ++e;
        }
        if (e < entries.size()) fail_absent(entries[e]);
    }

    [[noreturn]] static void fail_absent(const detail::ShardIndex::Entry& entry) {
        fail("the index says that tensor ", detail::in_quotes(entry.name), " is in ",
             detail::in_quotes(*entry.file), ", but it is in no file");
    }

    template <class Progress>
    static void open_index(const std::string& path, Contents& contents, Progress&& progress) {
        const std::string folder = parent(path);
        const MappedFile index = open_file(path);
        const auto text = index.bytes();
        read({reinterpret_cast<const char*>(text.data()), text.size()}, contents,
             [&](const std::string& file, Index number, Index count) {
                 progress(number, count, std::string_view(file));
                 return map(folder + file, file, contents);
             });
    }

    static SafetensorsView map(const std::string& path, std::string_view name, Contents& contents) {
        return SafetensorsView(contents.files.emplace_back(open_file(path)).bytes(), name);
    }

    static MappedFile open_file(const std::string& path) {
        if (!exists(path)) detail::fail_file("Checkpoint", "open", path, ENOENT);
        return MappedFile(path);
    }

    /// The folder that a path names a file in, with its separator; empty for the current one.
    static std::string parent(const std::string& path) {
#ifdef _WIN32
        return path.substr(0, path.find_last_of("/\\:") + 1);
#else
        return path.substr(0, path.find_last_of('/') + 1);
#endif
    }

    /// @throws std::runtime_error if it is there but cannot be opened: that must not look as if it
    ///         were not
    static bool exists(const std::string& path) {
        errno = 0;
        if (std::FILE* const file = std::fopen(path.c_str(), "rb")) {
            std::fclose(file);
            return true;
        }
        if (errno != ENOENT && errno != ENOTDIR)
            detail::fail_file("Checkpoint", "open", path, errno);
        return false;
    }

    std::shared_ptr<const Contents> contents_;
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_IO_CHECKPOINT_HPP
