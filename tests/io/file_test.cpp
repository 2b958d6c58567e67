// SPDX-License-Identifier: MIT
#include <cstddef>
#include <filesystem>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <moe/io/file.hpp>

#include "support/message.hpp"

namespace file_test {
namespace {

using support::message;

// A folder of its own for each test, removed after it.
class File : public testing::Test {
protected:
    File()
        : folder_(std::filesystem::temp_directory_path() /
                  ("moe_file_test_" + std::to_string(reinterpret_cast<std::uintptr_t>(this)) +
                   testing::UnitTest::GetInstance()->current_test_info()->name())) {
        std::filesystem::create_directories(folder_);
    }
    ~File() override {
        std::error_code ignored;
        std::filesystem::remove_all(folder_, ignored);
    }

    std::string path(const std::string& name) const { return (folder_ / name).string(); }
    std::ptrdiff_t files() const {
        return std::distance(std::filesystem::directory_iterator(folder_), {});
    }

private:
    std::filesystem::path folder_;
};

std::vector<std::byte> pattern(std::size_t size) {
    std::vector<std::byte> bytes(size);
    for (std::size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::byte>(i * 131 >> 3);
    return bytes;
}

TEST_F(File, OfAnySizeReadsBackWhatWasWritten) {
    // Sizes around the first read and its doubling.
    for (const std::size_t size :
         {0u, 1u, 65535u, 65536u, 65537u, 131071u, 131072u, 131073u, 1000003u}) {
        const auto bytes = pattern(size);
        moe::write_file(path("a"), bytes);
        EXPECT_TRUE(moe::read_file(path("a")) == bytes) << size;
        EXPECT_EQ(files(), 1);
    }
}

TEST_F(File, ThatIsReplacedHoldsTheNewBytesOnly) {
    moe::write_file(path("a"), pattern(1000));
    moe::write_file(path("a"), pattern(10));
    EXPECT_TRUE(moe::read_file(path("a")) == pattern(10));
}

TEST_F(File, ThatIsMissingIsNamed) {
    EXPECT_EQ(message<std::runtime_error>([&] { moe::read_file(path("missing")); }),
              "moe::read_file: cannot open \"" + path("missing") + "\": No such file or directory");
}

TEST_F(File, CannotBeADirectory) {
    EXPECT_EQ(message<std::runtime_error>([&] { moe::read_file(path("")); }),
              "moe::read_file: cannot read \"" + path("") + "\": Is a directory");
}

TEST_F(File, WithoutASizeIsReadToItsEnd) {
    if (!std::filesystem::exists("/proc/self/maps")) GTEST_SKIP() << "needs /proc";
    EXPECT_GT(moe::read_file("/proc/self/maps").size(), 0u);
}

TEST_F(File, CannotBeWrittenIntoAFolderThatIsNot) {
    EXPECT_EQ(
        message<std::runtime_error>([&] { moe::write_file(path("no/a"), pattern(3)); }),
        "moe::write_file: cannot create \"" + path("no/a.part0") + "\": No such file or directory");
}

TEST_F(File, ThatCannotBeReplacedLeavesNothingBehind) {
    std::filesystem::create_directories(path("a/b"));  // a directory stands in its place
    const std::string error =
        message<std::runtime_error>([&] { moe::write_file(path("a"), pattern(3)); });
    EXPECT_EQ(error.find("moe::write_file: cannot replace \"" + path("a") + "\": "), 0u) << error;
    EXPECT_EQ(files(), 1);
}

TEST_F(File, LeftByAnotherWriterIsNotTouched) {
    moe::write_file(path("a.part0"), pattern(7));
    moe::write_file(path("a"), pattern(3));
    EXPECT_TRUE(moe::read_file(path("a.part0")) == pattern(7));
    EXPECT_TRUE(moe::read_file(path("a")) == pattern(3));
    EXPECT_EQ(files(), 2);
}

}  // namespace
}  // namespace file_test
