// SPDX-License-Identifier: MIT
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <moe/io/bind.hpp>
#include <moe/io/checkpoint.hpp>
#include <moe/moe.hpp>
#include <moe/presets/mixtral.hpp>
#include <moe/testing/compare.hpp>

#if defined(__linux__)

#include <unistd.h>

namespace zero_copy_test {
namespace {

using moe::Index;

/// Bytes of this process that are in memory.
Index resident() {
    std::ifstream file("/proc/self/statm");
    Index size = 0, pages = 0;
    file >> size >> pages;
    return pages * static_cast<Index>(sysconf(_SC_PAGESIZE));
}

constexpr Index model_dim = 2048, ffn_dim = 8192, experts = 20, chosen[] = {3, 11};
constexpr Index matrix_bytes = 2 * model_dim * ffn_dim;  // bf16: 3 of an expert are 100 MB

/// 2 GB of which only the experts that are chosen are written; the file system need not hold the
/// rest.
class BigCheckpoint {
public:
    explicit BigCheckpoint(std::string path) : path_(std::move(path)) {
        const std::string prefix = "model.layers.0.block_sparse_moe.";
        std::string header = "{";
        Index end = 0;
        const auto add = [&](const std::string& name, const char* dtype, Index rows, Index cols,
                             Index bytes) {
            header += (end == 0 ? "\"" : ",\"") + prefix + name + ".weight\":{\"dtype\":\"" +
                      dtype + "\",\"shape\":[" + std::to_string(rows) + "," + std::to_string(cols) +
                      "],\"data_offsets\":[" + std::to_string(end) + "," +
                      std::to_string(end + bytes) + "]}";
            end += bytes;
        };
        add("gate", "F32", experts, model_dim, 4 * experts * model_dim);
        const Index first = end;
        for (Index e = 0; e < experts; ++e)
            for (const char* const name : {"w1", "w2", "w3"}) {
                const bool down = name[1] == '2';
                add("experts." + std::to_string(e) + "." + name, "BF16", down ? model_dim : ffn_dim,
                    down ? ffn_dim : model_dim, matrix_bytes);
            }
        header += "}";
        header.append((8 - header.size() % 8) % 8, ' ');

        std::FILE* const file = std::fopen(path_.c_str(), "wb");
        if (file == nullptr) return;
        const auto length = static_cast<std::uint64_t>(header.size());
        const auto data = static_cast<Index>(8 + header.size());
        std::fwrite(&length, 8, 1, file);
        std::fwrite(header.data(), 1, header.size(), file);
        std::vector<float> router(static_cast<std::size_t>(experts * model_dim), 0.f);
        for (const Index e : chosen) router[static_cast<std::size_t>(e * model_dim + e)] = 1;
        std::fwrite(router.data(), 4, router.size(), file);
        std::vector<std::uint16_t> matrix(static_cast<std::size_t>(matrix_bytes / 2));
        for (const Index e : chosen)
            for (Index i = 0; i < 3; ++i) {
                for (std::size_t j = 0; j < matrix.size(); ++j)  // +-0.0078 to 0.0156
                    matrix[j] = static_cast<std::uint16_t>(
                        0x3c00 + (j * 40503 + static_cast<std::size_t>(e + i)) % 128 +
                        (j * 2654435761 >> 16 & 1) * 0x8000);
                std::fseek(file, data + first + (3 * e + i) * matrix_bytes, SEEK_SET);
                std::fwrite(matrix.data(), 2, matrix.size(), file);
            }
        std::fclose(file);
        std::filesystem::resize_file(path_, static_cast<std::uintmax_t>(data + end));
    }
    BigCheckpoint(const BigCheckpoint&) = delete;
    BigCheckpoint& operator=(const BigCheckpoint&) = delete;
    ~BigCheckpoint() { std::filesystem::remove(path_); }

private:
    std::string path_;
};

/// The published layer that fits.
moe::presets::Mixtral preset(Index count) {
    return {.model_dim = model_dim, .ffn_dim = ffn_dim, .num_experts = count, .k = 2};
}

TEST(ZeroCopy, TouchesTheExpertsOfATokenAndNothingElse) {
    if (moe::isa() == moe::Isa::scalar) GTEST_SKIP() << "other kernels touch the same bytes";
    const std::string path = testing::TempDir() + "zero_copy.safetensors";
    const BigCheckpoint file(path);
    moe::Matrix<float> x = moe::Random(1).normal<float>(1, model_dim, 1);
    for (const Index e : chosen) x(0, e) = 5;
    moe::Matrix<float> y(1, model_dim);
    moe::Workspace<float> ws;

    const Index before = resident();
    const auto layer = moe::bind(moe::Checkpoint::open(path), preset(experts), 0);
    layer.forward(x, y, ws);
    const Index grown = resident() - before;

    const Index touched = 2 * 3 * matrix_bytes;
    ASSERT_GE(touched, 200'000'000);
    EXPECT_LE(grown, touched + touched / 10 + 16'000'000);
    RecordProperty("touched", std::to_string(touched));
    RecordProperty("grown", std::to_string(grown));
    EXPECT_GE(grown, touched / 2) << "it was not mapped, or not measured";
    ASSERT_EQ(ws.routing().tokens_of(chosen[0]).size() + ws.routing().tokens_of(chosen[1]).size(),
              2u);

    // The same bits as a layer of these two that owns its weights, frozen.
    auto two = moe::make_deferred(preset(2));
    auto& group = two.bank().group<0>();
    const auto& views = layer.bank().group<0>();
    const auto both = [](const moe::Weights<float>& all) {
        return moe::Weights<float>({all[chosen[0]], all[chosen[1]]});
    };
    group.gate = both(views.gate), group.up = both(views.up), group.down = both(views.down);
    two.router().weight.view().setZero();
    for (Index i = 0; i < 2; ++i) two.router().weight(i, chosen[i]) = 1;
    moe::Matrix<float> expected = moe::freeze(two)(x);
    EXPECT_TRUE(moe::testing::same_bits(y, expected));
}

}  // namespace
}  // namespace zero_copy_test

#endif
