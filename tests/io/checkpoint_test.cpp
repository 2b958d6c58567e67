// SPDX-License-Identifier: MIT
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <moe/io/checkpoint.hpp>
#include <moe/io/file.hpp>
#include <moe/io/safetensors_writer.hpp>

#include "fuzz/checkpoint_parts.hpp"
#include "raw_file.hpp"
#include "support/message.hpp"

namespace checkpoint_test {
namespace {

using moe::Checkpoint;
using moe::FormatError;
using moe::Index;
using moe::SafetensorsView;
using moe_test::raw_file;
using support::message;

using Bytes = std::vector<std::byte>;
using Files = std::map<std::string, Bytes>;

// A file of tensors [1, 2] that hold (i, -i), i being the number of the name in `names` + `first`.
Bytes file_of(const std::vector<std::string>& names, int first = 0) {
    moe::SafetensorsWriter writer;
    for (const std::string& name : names) {
        moe::Matrix<float> values(1, 2);
        values << static_cast<float>(first), static_cast<float>(-first);
        writer.add(name, values);
        ++first;
    }
    return writer.bytes();
}

// Two files and the index that agrees with them.
Files sound_files() {
    return {{"one.safetensors", file_of({"c", "a"})}, {"two.safetensors", file_of({"b", "d"}, 2)}};
}
const std::string sound_index =
    R"({"metadata":{"total_size":32},"weight_map":{"a":"one.safetensors","b":"two.safetensors",)"
    R"("c":"one.safetensors","d":"two.safetensors"}})";

Checkpoint from(std::string_view index, const Files& files) {
    return Checkpoint::from_index(index, [&](const std::string& name) {
        const auto found = files.find(name);
        if (found == files.end()) throw FormatError("no file " + moe::detail::in_quotes(name));
        return SafetensorsView(found->second, name);
    });
}

std::string error_of(std::string_view index, const Files& files = sound_files()) {
    return message<FormatError>([&] { from(index, files); });
}

std::string map_of(const std::string& members) { return "{\"weight_map\":{" + members + "}}"; }

testing::AssertionResult says(const std::string& error, const std::string& part) {
    if (error.find(part) != std::string::npos) return testing::AssertionSuccess();
    return testing::AssertionFailure() << "expected \"" << part << "\" in \"" << error << "\"";
}

std::string names_of(const Checkpoint& checkpoint) {
    std::string names;
    for (const moe::TensorView& tensor : checkpoint) names += std::string(tensor.name) + " ";
    return names;
}

// ---- Files in memory

TEST(Checkpoint, FindsTheTensorsOfAllFilesByName) {
    const Bytes one = file_of({"c", "a"}), two = file_of({"b", "d"}, 2), three = file_of({});
    const Checkpoint checkpoint(std::vector<SafetensorsView>{
        SafetensorsView(two), SafetensorsView(three), SafetensorsView(one)});
    ASSERT_EQ(checkpoint.size(), 4);
    EXPECT_EQ(names_of(checkpoint), "a b c d ");
    const std::vector<std::pair<const char*, float>> values = {
        {"c", 0}, {"a", 1}, {"b", 2}, {"d", 3}};
    for (const auto& [name, value] : values) {
        EXPECT_EQ(checkpoint.find(name)->name, name);
        EXPECT_EQ(checkpoint.at(name).shape, (moe::Extents{1, 2}));
        EXPECT_EQ(checkpoint.matrix<float>(name)(0, 0), value);
        EXPECT_EQ(checkpoint.copy<double>(name)(0, 1), -static_cast<double>(value));
    }
    EXPECT_EQ(checkpoint.find("aa"), nullptr);
    EXPECT_EQ(checkpoint.find(""), nullptr);
    EXPECT_EQ(checkpoint.find("e"), nullptr);
    EXPECT_THROW(checkpoint.integers("a"), FormatError);
}

TEST(Checkpoint, OfOneFileIsThatFile) {
    const Bytes file = file_of({"b", "a"});
    const SafetensorsView view(file);
    const Checkpoint checkpoint = view;
    ASSERT_EQ(checkpoint.size(), view.size());
    for (const moe::TensorView& tensor : view)
        EXPECT_EQ(checkpoint.at(tensor.name).bytes.data(), tensor.bytes.data());
}

TEST(Checkpoint, OfNoFilesHasNoTensors) {
    const Checkpoint checkpoint{std::vector<SafetensorsView>{}};
    EXPECT_EQ(checkpoint.size(), 0);
    EXPECT_TRUE(checkpoint.begin() == checkpoint.end());
    EXPECT_EQ(message<FormatError>([&] { checkpoint.at("a"); }),
              "moe::Checkpoint: none of the 0 tensors is called \"a\"");
}

TEST(Checkpoint, RefusesANameInTwoFiles) {
    const Bytes one = file_of({"a", "b"}), two = file_of({"c"}), three = file_of({"b"});
    EXPECT_EQ(message<FormatError>([&] {
                  Checkpoint(std::vector<SafetensorsView>{
                      SafetensorsView(one), SafetensorsView(two), SafetensorsView(three)});
              }),
              "moe::Checkpoint: tensor \"b\" is in two files, 0 and 2 of those given");
}

TEST(Checkpoint, MissingNamesAreAnsweredWithNearOnes) {
    const Bytes one = file_of({"experts.3.w1"}), two = file_of({"experts.3.w3", "router"});
    const Checkpoint checkpoint(
        std::vector<SafetensorsView>{SafetensorsView(one), SafetensorsView(two)});
    EXPECT_EQ(message<FormatError>([&] { checkpoint.copy<float>("experts.3.w2"); }),
              "moe::Checkpoint: none of the 3 tensors is called \"experts.3.w2\"; near it: "
              "\"experts.3.w1\", \"experts.3.w3\"");
}

TEST(Checkpoint, CopiesShareTheTensorsAndOutliveTheFirst) {
    const Bytes file =
        raw_file(R"({"caf\u00e9":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1);
    std::optional<Checkpoint> first(SafetensorsView{file});
    const Checkpoint copy = *first;
    const Checkpoint moved = std::move(*first);
    EXPECT_EQ(first->size(), 1);  // moving copies: there is no empty husk
    EXPECT_EQ(copy.begin(), first->begin());
    first.reset();
    EXPECT_EQ(moved.at("caf\xc3\xa9").name, "caf\xc3\xa9");
    EXPECT_EQ(copy.find("caf\xc3\xa9"), moved.find("caf\xc3\xa9"));
}

// ---- The index

TEST(CheckpointIndex, GivesTheTensorsOfItsFiles) {
    const Files files = sound_files();
    const Checkpoint checkpoint = from(sound_index, files);
    EXPECT_EQ(names_of(checkpoint), "a b c d ");
    EXPECT_EQ(checkpoint.matrix<float>("d")(0, 0), 3.0f);
}

TEST(CheckpointIndex, MayHaveAnyMetadataOrNoneAndEndWithANewLine) {
    const std::string map = sound_index.substr(sound_index.find("\"weight_map\""));
    for (const char* metadata :
         {"", R"("metadata":null,)",
          R"( "metadata" : {"total_size": 1.5e+3, "x": [true, {"y": "z"}]},)",
          R"("metadata":{"twice":1,"twice":2},)", R"("metadata":-0.5,)"})
        EXPECT_EQ(error_of("{" + std::string(metadata) + map + "\r\n\t "), "") << metadata;
    EXPECT_EQ(error_of("{" + map.substr(0, map.size() - 1) + ",\"metadata\":[]}\n"), "");
}

TEST(CheckpointIndex, MayNameNothing) {
    EXPECT_EQ(error_of(map_of("")), "");
    EXPECT_EQ(error_of(map_of(R"("a":"e")"), {{"e", file_of({"a"})}}), "");
}

TEST(CheckpointIndex, LoadsEachFileOnceInOrderOfNames) {
    const Files files = sound_files();
    std::string order;
    Checkpoint::from_index(sound_index, [&](const std::string& name) {
        order += name + " ";
        return SafetensorsView(files.at(name));
    });
    EXPECT_EQ(order, "one.safetensors two.safetensors ");
}

TEST(CheckpointIndex, IsNeitherKeptNorItsMemory) {
    const Files files = {{"e", file_of({"caf\xc3\xa9"})}};
    auto index = std::make_unique<std::string>(map_of(R"("caf\u00e9":"\u0065")"));
    const Checkpoint checkpoint = from(*index, files);
    index.reset();
    EXPECT_EQ(checkpoint.at("caf\xc3\xa9").name, "caf\xc3\xa9");
}

TEST(CheckpointIndex, WithATensorThatIsInNoFileIsRefused) {
    for (const char* name : {"0", "bb", "e"}) {
        std::string index = sound_index;
        index.insert(index.size() - 2, std::string(",\"") + name + R"(":"one.safetensors")");
        EXPECT_EQ(error_of(index), std::string("moe::Checkpoint: the index says that tensor \"") +
                                       name + "\" is in \"one.safetensors\", but it is in no file");
    }
}

TEST(CheckpointIndex, WithATensorInAnotherFileIsRefused) {
    EXPECT_EQ(error_of(map_of(R"("a":"one.safetensors","b":"one.safetensors",)"
                              R"("c":"one.safetensors","d":"two.safetensors")")),
              "moe::Checkpoint: the index says that tensor \"b\" is in \"one.safetensors\", but it "
              "is in \"two.safetensors\"");
}

TEST(CheckpointIndex, WithoutATensorOfItsFilesIsRefused) {
    EXPECT_EQ(error_of(map_of(R"("a":"one.safetensors","b":"two.safetensors",)"
                              R"("d":"two.safetensors")")),
              "moe::Checkpoint: tensor \"c\" of \"one.safetensors\" is not in the index");
    EXPECT_EQ(error_of(map_of(R"("a":"one.safetensors","b":"two.safetensors",)"
                              R"("c":"one.safetensors")")),
              "moe::Checkpoint: tensor \"d\" of \"two.safetensors\" is not in the index");
}

TEST(CheckpointIndex, WithATensorThatTwoFilesHaveIsRefused) {
    Files files = sound_files();
    files["two.safetensors"] = file_of({"a", "b", "d"});
    EXPECT_EQ(error_of(sound_index, files),
              "moe::Checkpoint: tensor \"a\" is in two files, \"one.safetensors\" and "
              "\"two.safetensors\"");
}

TEST(CheckpointIndex, WithAFileThatIsDamagedIsRefusedByItsName) {
    Files files = sound_files();
    files["two.safetensors"].pop_back();
    EXPECT_TRUE(says(error_of(sound_index, files),
                     "moe::SafetensorsView: \"two.safetensors\": "
                     "tensor \"d\" ends at byte 16"));
    files["two.safetensors"] = raw_file("{]");
    EXPECT_EQ(error_of(sound_index, files),
              "moe::SafetensorsView: \"two.safetensors\": header byte 1: expected a string, found "
              "']'");
}

TEST(CheckpointIndex, WithAnythingGivenTwiceIsRefused) {
    EXPECT_EQ(error_of(map_of(R"("a":"one.safetensors","a":"one.safetensors")")),
              "moe::Checkpoint: index: tensor \"a\" is given twice");
    EXPECT_EQ(error_of(map_of(R"("a":"one.safetensors","\u0061":"two.safetensors")")),
              "moe::Checkpoint: index: tensor \"a\" is given twice");
    EXPECT_EQ(error_of(R"({"weight_map":{},"weight_map":{}})"),
              "moe::Checkpoint: index: \"weight_map\" is given twice");
    EXPECT_EQ(error_of(R"({"metadata":{},"metadata":{},"weight_map":{}})"),
              "moe::Checkpoint: index: \"metadata\" is given twice");
}

TEST(CheckpointIndex, ThatSaysSomethingElseIsRefused) {
    EXPECT_EQ(error_of("{}"), "moe::Checkpoint: index: there is no \"weight_map\"");
    EXPECT_EQ(error_of(R"({"weight_map":{},"x":1})"),
              "moe::Checkpoint: index: unknown member \"x\"; an index has \"weight_map\" and "
              "\"metadata\"");
    for (const char* text :
         {"", "[]", "null", R"({"weight_map":[]})", R"({"weight_map":{"a":1}})",
          R"({"weight_map":{"a":["one.safetensors"]}})", R"({"weight_map":{}}{})",
          R"({"weight_map":{}}x)", R"({"weight_map":{},})", "\xef\xbb\xbf{\"weight_map\":{}}",
          R"({"metadata":NaN,"weight_map":{}})", "{\"weight_map\":{\"\xff\":\"one.safetensors\"}}"})
        EXPECT_TRUE(says(error_of(text), "moe::Checkpoint: index byte ")) << text;
}

TEST(CheckpointIndex, ThatLeadsOutOfItsFolderIsRefused) {
    for (const char* file :
         {"", ".", "..", "../one.safetensors", "/etc/passwd", "sub/one.safetensors",
          "one.safetensors/", "..\\\\one.safetensors", "C:\\\\one.safetensors",
          "one.safetensors\\u0000", "\\u0000", "\\u002e.", "a..b", "\\u002f"})
        EXPECT_TRUE(says(error_of(map_of("\"a\":\"" + std::string(file) + '"')),
                         "is not the name of a file beside it"))
            << file;
    EXPECT_EQ(error_of(map_of(R"("a":"../x\u001b")")),
              "moe::Checkpoint: index: \"../x?\" is not the name of a file beside it");
}

TEST(CheckpointIndex, CutShortAnywhereIsRefused) {
    for (std::size_t n = 0; n < sound_index.size(); ++n)
        ASSERT_NE(error_of(sound_index.substr(0, n)), "") << n;
}

// What is accepted must be what the files hold: no byte of an index can move or rename a tensor.
TEST(CheckpointIndex, WithAnyByteChangedIsRefusedOrMeansTheSame) {
    const Files files = sound_files();
    std::size_t accepted = 0;
    for (std::size_t i = 0; i < sound_index.size(); ++i)
        for (int value = 0; value < 256; ++value) {
            std::string index = sound_index;
            index[i] = static_cast<char>(value);
            try {
                const Checkpoint checkpoint = from(index, files);
                ASSERT_EQ(names_of(checkpoint), "a b c d ");
                ASSERT_EQ(checkpoint.matrix<float>("d")(0, 1), -3.0f);
                ++accepted;
            } catch (const FormatError& error) {
                for (const char c : std::string_view(error.what()))
                    ASSERT_TRUE(c >= ' ' && c <= '~');
            }
        }
    // 256 of each byte: what metadata says is free, and the unchanged value is accepted everywhere.
    EXPECT_GT(accepted, sound_index.size());
    EXPECT_LT(accepted, 20 * sound_index.size());
}

TEST(CheckpointIndex, OfTheHostileCorpusIsRefused) {
    std::size_t hostile = 0, sound = 0;
    for (const auto& entry : std::filesystem::directory_iterator("tests/fuzz/checkpoint")) {
        const std::string name = entry.path().filename().string();
        const moe_test::CheckpointParts parts(moe::read_file(entry.path().string()));
        const std::string error = message<FormatError>([&] { parts.open(); });
        EXPECT_EQ(error.empty(), name.starts_with("sound_")) << name << ": " << error;
        ++(error.empty() ? sound : hostile);
    }
    EXPECT_GE(hostile, 30u);
    EXPECT_GE(sound, 5u);
}

// ---- On disk

class CheckpointFolder : public testing::Test {
protected:
    CheckpointFolder()
        : folder_(std::filesystem::temp_directory_path() /
                  ("moe_checkpoint_test_" + std::to_string(reinterpret_cast<std::uintptr_t>(this)) +
                   testing::UnitTest::GetInstance()->current_test_info()->name())) {
        std::filesystem::create_directories(folder_);
    }
    ~CheckpointFolder() override {
        std::error_code ignored;
        std::filesystem::remove_all(folder_, ignored);
    }

    std::string path(const std::string& name = "") const { return (folder_ / name).string(); }
    void write(const std::string& name, std::span<const std::byte> bytes) const {
        moe::write_file(path(name), bytes);
    }
    void write_index(const std::string& text) const {
        write("model.safetensors.index.json", std::as_bytes(std::span<const char>(text)));
    }
    void write_sound() const {
        for (const auto& [name, bytes] : sound_files()) write(name, bytes);
        write_index(sound_index);
    }

private:
    std::filesystem::path folder_;
};

TEST_F(CheckpointFolder, OfSeveralFilesIsOpenedAndKeptByItsCopies) {
    write_sound();
    std::string seen;
    std::optional<Checkpoint> first(
        Checkpoint::open(path(), [&](Index number, Index count, std::string_view file) {
            seen += std::to_string(number) + "/" + std::to_string(count) + " " + std::string(file) +
                    " ";
        }));
    EXPECT_EQ(seen, "1/2 one.safetensors 2/2 two.safetensors ");
    const Checkpoint copy = *first;
    first.reset();
    EXPECT_EQ(names_of(copy), "a b c d ");
    EXPECT_EQ(copy.matrix<float>("d")(0, 1), -3.0f);
    EXPECT_EQ(Checkpoint::open(path() + "/").size(), 4);
    EXPECT_EQ(Checkpoint::open(path("model.safetensors.index.json")).size(), 4);
    EXPECT_EQ(Checkpoint::open(path("one.safetensors")).size(), 2);
}

TEST_F(CheckpointFolder, OfOneFileIsOpened) {
    write("model.safetensors", file_of({"a"}, 7));
    std::string seen;
    const Checkpoint checkpoint =
        Checkpoint::open(path(), [&](Index number, Index count, std::string_view file) {
            seen += std::to_string(number) + "/" + std::to_string(count) + " " + std::string(file);
        });
    EXPECT_EQ(seen, "1/1 model.safetensors");
    EXPECT_EQ(checkpoint.matrix<float>("a")(0, 0), 7.0f);
}

TEST_F(CheckpointFolder, MayHaveAnIndexOfTheOneFile) {
    write("model.safetensors", file_of({"a"}));
    write_index(map_of(R"("a":"model.safetensors")"));
    EXPECT_EQ(Checkpoint::open(path()).size(), 1);
}

TEST_F(CheckpointFolder, WithAFileThatTheIndexDoesNotNameIsRefused) {
    write_sound();
    write("model.safetensors", file_of({"a"}));
    const std::string folder = path("x").substr(0, path("x").size() - 2);
    EXPECT_EQ(
        message<FormatError>([&] { Checkpoint::open(folder); }),
        "moe::Checkpoint: folder \"" + folder +
            "\" has a model.safetensors and a model.safetensors.index.json that does not name "
            "it; give the path of the one that is meant");
    EXPECT_EQ(Checkpoint::open(path("model.safetensors")).size(), 1);
    EXPECT_EQ(Checkpoint::open(path("model.safetensors.index.json")).size(), 4);
}

TEST_F(CheckpointFolder, WithoutAFileThatTheIndexNamesIsRefused) {
    write_sound();
    std::filesystem::remove(path("two.safetensors"));
    EXPECT_EQ(message<std::runtime_error>([&] { Checkpoint::open(path()); }),
              "moe::Checkpoint: cannot open \"" + path("two.safetensors") +
                  "\": No such file or directory");
}

TEST_F(CheckpointFolder, WithoutAModelIsRefused) {
    const std::string folder = path("x").substr(0, path("x").size() - 2);
    EXPECT_EQ(message<std::runtime_error>([&] { Checkpoint::open(folder); }),
              "moe::Checkpoint: folder \"" + folder +
                  "\" has neither model.safetensors.index.json nor model.safetensors");
    EXPECT_EQ(
        message<std::runtime_error>([&] { Checkpoint::open(path("missing")); }),
        "moe::Checkpoint: cannot open \"" + path("missing") + "\": No such file or directory");
    EXPECT_EQ(
        message<std::runtime_error>([&] { Checkpoint::open(path("missing.json")); }),
        "moe::Checkpoint: cannot open \"" + path("missing.json") + "\": No such file or directory");
    EXPECT_TRUE(says(message<std::runtime_error>([&] { Checkpoint::open(""); }),
                     "moe::Checkpoint: cannot open \"\""));
}

TEST_F(CheckpointFolder, WithAnIndexThatCannotBeOpenedIsRefusedEvenIfThereIsAModel) {
    write("model.safetensors", file_of({"a"}));
    const std::filesystem::path index = path("model.safetensors.index.json");
    std::error_code error;
    std::filesystem::create_symlink(index, index, error);  // a link to itself
    if (error) GTEST_SKIP() << "needs links";
    const std::string text = message<std::runtime_error>([&] { Checkpoint::open(path()); });
    EXPECT_EQ(text.find("moe::Checkpoint: cannot open \"" + index.string() + "\": "), 0u) << text;
}

TEST_F(CheckpointFolder, WithAnEmptyFileIsRefused) {
    write("model.safetensors", {});
    EXPECT_EQ(message<FormatError>([&] { Checkpoint::open(path()); }),
              "moe::SafetensorsView: \"model.safetensors\": a safetensors file has at least 8 "
              "bytes, this one has 0");
    write_index("");
    EXPECT_EQ(message<FormatError>([&] { Checkpoint::open(path()); }),
              "moe::Checkpoint: index byte 0: expected an object, found the end");
}

}  // namespace
}  // namespace checkpoint_test
