// SPDX-License-Identifier: MIT
#ifndef MOE_IO_MAPPED_FILE_HPP
#define MOE_IO_MAPPED_FILE_HPP

#include <cerrno>
#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#if __has_include(<sys/mman.h>) && __has_include(<unistd.h>)
#define MOE_HAS_MMAP 1
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

#include <moe/config.hpp>
#include <moe/io/file.hpp>

namespace moe::inline MOE_ABI {

/// A file whose bytes are memory: a read-only private map where the system has such maps, so that
/// a page is read when it is first looked at and the system may drop it again. Elsewhere, and for
/// what is no regular file or has no bytes, what read_file() gives.
///
/// A file that is changed or cut short by anybody while it is mapped is outside every promise of
/// this library: bytes that were checked may be others when they are used, and touching a page that
/// is no longer there ends the program. Replacing it, as write_file() does, is harmless.
class MappedFile {
public:
    /// @throws std::runtime_error if it cannot be opened, mapped or read; a directory cannot
    explicit MappedFile(const std::string& path) {
#ifdef MOE_HAS_MMAP
        struct stat info = {};
        if (::stat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode) && info.st_size > 0) {
            map(path);
            return;
        }
#endif
        read_ = read_file(path);
    }

    MappedFile(MappedFile&&) noexcept = default;
    MappedFile& operator=(MappedFile&&) noexcept = default;

    /// The whole file, at the same address until the object that holds it last ends. Empty if the
    /// file is, or if the object was moved from.
    std::span<const std::byte> bytes() const {
#ifdef MOE_HAS_MMAP
        if (map_) return {map_.get(), map_.get_deleter().size};
#endif
        return read_;
    }

private:
#ifdef MOE_HAS_MMAP
    struct Unmap {
        std::size_t size;
        void operator()(const std::byte* first) const {
            ::munmap(const_cast<std::byte*>(first), size);
        }
    };

    void map(const std::string& path) {
        const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
        if (file < 0) detail::fail_file("MappedFile", "open", path, errno);
        // Asked again: another file may have taken its place since.
        struct stat info = {};
        void* first = MAP_FAILED;
        int code = 0;
        if (::fstat(file, &info) != 0) {
            code = errno;
        } else if (!std::in_range<std::size_t>(info.st_size)) {
            code = EFBIG;
        } else if (info.st_size > 0) {
            first = ::mmap(nullptr, static_cast<std::size_t>(info.st_size), PROT_READ, MAP_PRIVATE,
                           file, 0);
            if (first == MAP_FAILED) code = errno;
        }
        ::close(file);  // the map stays
        if (code != 0) detail::fail_file("MappedFile", "map", path, code);
        if (first == MAP_FAILED) return;  // empty by now
        map_ = {static_cast<const std::byte*>(first),
                Unmap{static_cast<std::size_t>(info.st_size)}};
    }

    std::unique_ptr<const std::byte, Unmap> map_;
#endif
    std::vector<std::byte> read_;
};

}  // namespace moe::inline MOE_ABI

#undef MOE_HAS_MMAP

#endif  // MOE_IO_MAPPED_FILE_HPP
