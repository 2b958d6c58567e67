// SPDX-License-Identifier: MIT
#ifndef FASHION_MNIST_IMAGES_HPP
#define FASHION_MNIST_IMAGES_HPP

#include <array>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include <zlib.h>

#include <Eigen/Core>

/// Images as rows of pixels in [0, 1], and their classes.
struct Images {
    static constexpr Eigen::Index side = 28, classes = 10;
    static constexpr std::array names{"T-shirt", "Trouser", "Pullover", "Dress", "Coat",
                                      "Sandal",  "Shirt",   "Sneaker",  "Bag",   "Ankle boot"};

    Eigen::Matrix<float, Eigen::Dynamic, side * side, Eigen::RowMajor> pixels;  // [N, 784]
    std::vector<std::uint8_t> labels;                                           // [N]

    Eigen::Index size() const { return pixels.rows(); }
};

/// Reads an IDX file of bytes, gzipped or plain: big-endian magic 0x00000800 + number of
/// dimensions, the extents, the bytes.
inline std::vector<std::uint8_t> read_idx(const std::string& path, std::uint32_t dimensions,
                                          std::array<std::uint32_t, 3>& extents) {
    const auto fail = [&path](const std::string& what) {
        throw std::runtime_error(path + ": " + what +
                                 "; install Debian's package dataset-fashion-mnist, or give the "
                                 "folder of the four Fashion-MNIST files: --data DIR");
    };
    const std::unique_ptr<gzFile_s, int (*)(gzFile)> file(gzopen(path.c_str(), "rb"), gzclose);
    if (!file) fail("cannot be opened");
    const auto word = [&] {
        std::array<std::uint8_t, 4> b{};
        if (gzread(file.get(), b.data(), 4) != 4) fail("ends within its header");
        return std::uint32_t{b[0]} << 24 | std::uint32_t{b[1]} << 16 | std::uint32_t{b[2]} << 8 |
               b[3];
    };
    if (word() != 0x800 + dimensions) fail("is not an IDX file of this kind");
    std::uint64_t bytes = 1;
    for (std::uint32_t d = 0; d < dimensions; ++d) bytes *= extents[d] = word();
    if (bytes > (1u << 28)) fail("claims to hold " + std::to_string(bytes) + " bytes");
    std::vector<std::uint8_t> data(bytes);
    const int read = gzread(file.get(), data.data(), static_cast<unsigned>(bytes));
    if (read < 0 || static_cast<std::uint64_t>(read) != bytes) fail("is cut short or damaged");
    return data;
}

/// Reads `<name>-images-idx3-ubyte` and `<name>-labels-idx1-ubyte`, with or without .gz.
inline Images read_images(const std::string& folder, const std::string& name) {
    const auto path = [&](const std::string& kind) {
        const std::string plain = folder + "/" + name + kind;
        std::FILE* file = std::fopen(plain.c_str(), "rb");
        if (file == nullptr) return plain + ".gz";
        std::fclose(file);
        return plain;
    };
    std::array<std::uint32_t, 3> extents{}, count{};
    const auto bytes = read_idx(path("-images-idx3-ubyte"), 3, extents);
    Images images;
    images.labels = read_idx(path("-labels-idx1-ubyte"), 1, count);
    if (extents[1] != Images::side || extents[2] != Images::side || extents[0] != count[0])
        throw std::runtime_error(
            path("-images-idx3-ubyte") + ": holds " + std::to_string(extents[0]) + " images of " +
            std::to_string(extents[1]) + " x " + std::to_string(extents[2]) + " pixels for " +
            std::to_string(count[0]) + " labels, wanted 28 x 28 and equal counts");
    for (const std::uint8_t label : images.labels)
        if (label >= Images::classes)
            throw std::runtime_error(path("-labels-idx1-ubyte") + ": a label is " +
                                     std::to_string(label) + ", labels are 0 to 9");
    images.pixels.resize(static_cast<Eigen::Index>(extents[0]), Eigen::NoChange);
    for (std::size_t i = 0; i < bytes.size(); ++i)
        images.pixels.data()[i] = static_cast<float>(bytes[i]) / 255;
    return images;
}

#endif
