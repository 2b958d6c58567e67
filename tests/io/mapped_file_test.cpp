// SPDX-License-Identifier: MIT
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <moe/io/file.hpp>
#include <moe/io/mapped_file.hpp>

#include "support/message.hpp"

namespace mapped_file_test {
namespace {

using moe::MappedFile;
using support::message;

class MappedFileOnDisk : public testing::Test {
protected:
    MappedFileOnDisk()
        : folder_(std::filesystem::temp_directory_path() /
                  ("moe_mapped_file_test_" +
                   std::to_string(reinterpret_cast<std::uintptr_t>(this)) +
                   testing::UnitTest::GetInstance()->current_test_info()->name())) {
        std::filesystem::create_directories(folder_);
    }
    ~MappedFileOnDisk() override {
        std::error_code ignored;
        std::filesystem::remove_all(folder_, ignored);
    }

    std::string path(const std::string& name) const { return (folder_ / name).string(); }

private:
    std::filesystem::path folder_;
};

std::vector<std::byte> pattern(std::size_t size) {
    std::vector<std::byte> bytes(size);
    for (std::size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::byte>(i * 131 >> 3);
    return bytes;
}

std::vector<std::byte> copy_of(const MappedFile& file) {
    return {file.bytes().begin(), file.bytes().end()};
}

TEST_F(MappedFileOnDisk, OfAnySizeHasTheBytesThatWereWritten) {
    // Sizes around a page.
    for (const std::size_t size : {0u, 1u, 4095u, 4096u, 4097u, 100003u}) {
        moe::write_file(path("a"), pattern(size));
        EXPECT_TRUE(copy_of(MappedFile(path("a"))) == pattern(size)) << size;
    }
}

TEST_F(MappedFileOnDisk, KeepsItsBytesWhenTheFileIsReplacedOrRemoved) {
    moe::write_file(path("a"), pattern(5000));
    const MappedFile file(path("a"));
    moe::write_file(path("a"), pattern(3));
    EXPECT_TRUE(copy_of(file) == pattern(5000));
    std::filesystem::remove(path("a"));
    EXPECT_TRUE(copy_of(file) == pattern(5000));
}

TEST_F(MappedFileOnDisk, IsMovedWithItsAddressAndNotCopied) {
    static_assert(!std::is_copy_constructible_v<MappedFile>);
    static_assert(!std::is_copy_assignable_v<MappedFile>);
    static_assert(std::is_nothrow_move_constructible_v<MappedFile>);
    static_assert(std::is_nothrow_move_assignable_v<MappedFile>);
    moe::write_file(path("a"), pattern(5000));
    moe::write_file(path("b"), pattern(10));
    MappedFile first(path("a"));
    const std::byte* const address = first.bytes().data();
    std::optional<MappedFile> second(std::move(first));
    EXPECT_TRUE(first.bytes().empty());  // NOLINT(bugprone-use-after-move)
    EXPECT_EQ(second->bytes().data(), address);
    MappedFile third(path("b"));
    third = std::move(*second);
    second.reset();
    EXPECT_EQ(third.bytes().data(), address);
    EXPECT_TRUE(copy_of(third) == pattern(5000));
}

TEST_F(MappedFileOnDisk, ThatIsMissingIsNamed) {
    EXPECT_EQ(message<std::runtime_error>([&] { MappedFile(path("missing")); }),
              "moe::read_file: cannot open \"" + path("missing") + "\": No such file or directory");
}

TEST_F(MappedFileOnDisk, CannotBeADirectory) {
    EXPECT_EQ(message<std::runtime_error>([&] { MappedFile(path("")); }),
              "moe::read_file: cannot read \"" + path("") + "\": Is a directory");
}

TEST_F(MappedFileOnDisk, WithoutASizeIsReadToItsEnd) {
    if (!std::filesystem::exists("/proc/self/maps")) GTEST_SKIP() << "needs /proc";
    EXPECT_GT(MappedFile("/proc/self/maps").bytes().size(), 0u);
}

}  // namespace
}  // namespace mapped_file_test
