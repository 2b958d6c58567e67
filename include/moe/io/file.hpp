// SPDX-License-Identifier: MIT
#ifndef MOE_IO_FILE_HPP
#define MOE_IO_FILE_HPP

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include <moe/core/error.hpp>

namespace moe::inline MOE_ABI {
namespace detail {

/// Throws std::runtime_error: who, which path, and what the system said.
[[noreturn]] inline void fail_file(const char* who, const char* what, const std::string& path,
                                   int code) {
    fail<std::runtime_error>("moe::", who, ": cannot ", what, " \"", path,
                             "\": ", std::generic_category().message(code));
}

/// Creates a file that was not there, beside `path`, and says in `name` how it is called. Never
/// opens another's file, nor follows a link.
inline std::FILE* create_beside(const std::string& path, std::string& name) {
    for (int i = 0;; ++i) {
        name = path + ".part" + std::to_string(i);
        errno = 0;
        if (std::FILE* const file = std::fopen(name.c_str(), "wbx")) return file;
        if (errno != EEXIST || i == 99) fail_file("write_file", "create", name, errno);
    }
}

}  // namespace detail

/// The bytes of a file, all of them. Files are touched here, in moe/io/mapped_file.hpp and in
/// moe/io/checkpoint.hpp, nowhere else.
/// @throws std::runtime_error if it cannot be opened or read; a directory cannot
inline std::vector<std::byte> read_file(const std::string& path) {
    struct Close {
        void operator()(std::FILE* file) const { std::fclose(file); }
    };
    errno = 0;
    const std::unique_ptr<std::FILE, Close> file(std::fopen(path.c_str(), "rb"));
    if (!file) detail::fail_file("read_file", "open", path, errno);

    // The first read tells files from directories, whose size would be nonsense. Only then the
    // size is asked for, and only as a hint: a pipe has none and a file may be growing.
    std::vector<std::byte> bytes(std::size_t{1} << 16);
    std::size_t filled = 0;
    for (bool asked = false;;) {
        filled += std::fread(bytes.data() + filled, 1, bytes.size() - filled, file.get());
        if (std::ferror(file.get())) detail::fail_file("read_file", "read", path, errno);
        if (filled < bytes.size()) break;
        std::size_t wanted = 2 * bytes.size();
        if (!std::exchange(asked, true)) {
            const long here = std::ftell(file.get());
            if (here >= 0 && std::fseek(file.get(), 0, SEEK_END) == 0) {
                const long size = std::ftell(file.get());
                if (size >= here) wanted = static_cast<std::size_t>(size) + 1;  // + 1 meets the end
                if (std::fseek(file.get(), here, SEEK_SET) != 0)
                    detail::fail_file("read_file", "read", path, errno);
            }
        }
        bytes.resize(std::max(wanted, bytes.size() + 1));
    }
    bytes.resize(filled);
    return bytes;
}

/// Writes a file in one step: the bytes go to a new file beside it, "<path>.part0" or the next
/// number that is free, which then takes its place. A file that was there before is whole until
/// that moment and gone after it. The bytes are handed to the system, not forced to the disk.
/// @throws std::runtime_error if anything fails; `path` is then as it was and the new file removed
inline void write_file(const std::string& path, std::span<const std::byte> bytes) {
    std::string part;
    std::FILE* const file = detail::create_beside(path, part);
    errno = 0;
    const char* failed = nullptr;
    if (!bytes.empty() && std::fwrite(bytes.data(), 1, bytes.size(), file) != bytes.size())
        failed = "write";
    int code = errno;
    if (std::fclose(file) != 0 && failed == nullptr) {
        failed = "write";
        code = errno;
    }
    if (failed == nullptr && std::rename(part.c_str(), path.c_str()) != 0) {
        failed = "replace";
        code = errno;
    }
    if (failed != nullptr) {
        std::remove(part.c_str());
        detail::fail_file("write_file", failed, path, code);
    }
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_IO_FILE_HPP
