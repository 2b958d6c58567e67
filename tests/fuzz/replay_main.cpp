// SPDX-License-Identifier: MIT
// Feeds a fuzz target without a fuzzer: each file of a corpus, each of its prefixes up to a limit,
// and mutations of it that are the same in every run, fewer of a large one. A crash, a sanitizer's
// report or an exception that leaves the target is the failure; the line printed last names the
// input.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

using Bytes = std::vector<std::uint8_t>;

constexpr std::size_t prefixes_per_file = 512;
constexpr std::size_t mutations_per_file = 2000;
constexpr std::size_t mutated_bytes_per_file = 200'000;

// In a heap block of its exact size, so that a sanitizer sees a read past the end.
void run(const Bytes& input) {
    const Bytes exact(input);
    LLVMFuzzerTestOneInput(exact.data(), exact.size());
}

std::size_t below(std::mt19937_64& random, std::size_t limit) {
    return static_cast<std::size_t>(random() % limit);
}

void mutate(Bytes& bytes, std::mt19937_64& random) {
    const std::uint8_t byte = static_cast<std::uint8_t>(random());
    const auto at = [&] {
        return bytes.begin() + static_cast<std::ptrdiff_t>(below(random, bytes.size() + 1));
    };
    if (bytes.empty() || random() % 5 == 0) {
        bytes.insert(at(), byte);
        return;
    }
    // Most damage is done where lengths and headers are: half of the changes hit the first 64
    // bytes.
    const std::size_t range = random() % 2 ? std::min<std::size_t>(bytes.size(), 64) : bytes.size();
    const std::size_t i = below(random, range);
    switch (random() % 5) {
        case 0:
            bytes[i] ^= static_cast<std::uint8_t>(1u << (byte % 8));
            break;
        case 1:
            bytes[i] = byte;
            break;
        case 2:
            bytes[i] = byte % 2 ? 0xff : 0x00;
            break;
        case 3:
            bytes.erase(bytes.begin() + static_cast<std::ptrdiff_t>(i));
            break;
        default:
            bytes[i] = bytes[below(random, bytes.size())];
            break;
    }
}

Bytes read(const std::filesystem::path& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

}  // namespace

int main(int argc, char** argv) {
    std::vector<std::filesystem::path> files;
    for (int i = 1; i < argc; ++i)
        for (const auto& entry : std::filesystem::directory_iterator(argv[i]))
            if (entry.is_regular_file()) files.push_back(entry.path());
    std::sort(files.begin(), files.end());
    if (files.empty()) {
        std::fprintf(stderr, "usage: %s CORPUS... (no file found)\n", argv[0]);
        return 1;
    }

    std::size_t inputs = 0;
    run({});
    for (const auto& path : files) {
        std::printf("%s\n", path.filename().c_str());
        std::fflush(stdout);
        const Bytes whole = read(path);
        run(whole);
        const std::size_t prefixes = std::min(whole.size(), prefixes_per_file);
        for (std::size_t n = 0; n < prefixes; ++n)
            run(Bytes(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(n)));

        std::mt19937_64 random(whole.size());
        Bytes mutant;
        const std::size_t mutations = std::min(
            mutations_per_file, mutated_bytes_per_file / std::max<std::size_t>(whole.size(), 1));
        for (std::size_t i = 0; i < mutations; ++i) {
            if (i % 8 == 0) mutant = whole;  // up to eight changes pile up
            mutate(mutant, random);
            run(mutant);
        }
        inputs += 1 + prefixes + mutations;
    }
    std::printf("%zu files, %zu inputs\n", files.size(), inputs);
}
