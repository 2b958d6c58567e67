// SPDX-License-Identifier: MIT
// A trace that was recorded on another machine, with what its layers returned there: it replays to
// the same bits here. With MOE_WRITE_GOLDEN=1 this program writes the two files anew.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <moe/core/random.hpp>
#include <moe/experts/constant.hpp>
#include <moe/experts/swiglu.hpp>
#include <moe/experts/zero.hpp>
#include <moe/gates/top_k.hpp>
#include <moe/gates/top_p.hpp>
#include <moe/io/file.hpp>
#include <moe/io/safetensors.hpp>
#include <moe/io/safetensors_writer.hpp>
#include <moe/io/trace.hpp>
#include <moe/layer.hpp>
#include <moe/routers/linear.hpp>
#include <moe/testing/compare.hpp>

namespace golden_trace_test {
namespace {

using moe::Index;
using moe::Matrix;

constexpr Index dim = 12, batches = 3;
const std::string trace_file = "tests/golden/trace.safetensors",
                  output_file = "tests/golden/trace_output.safetensors";

auto make_first() {
    return moe::Layer{moe::Config{.model_dim = dim, .seed = 3}, moe::LinearRouter{},
                      moe::TopK{.k = 2, .score = moe::Score::sigmoid},
                      moe::Swiglu{.count = 6, .ffn_dim = 20}, moe::Constant{}};
}
auto make_second() {
    return moe::Layer{moe::Config{.model_dim = dim, .seed = 4}, moe::LinearRouter{},
                      moe::TopP{.p = 0.6}, moe::Swiglu{.count = 5, .ffn_dim = 17}, moe::Zero{}};
}

/// A batch of `batch` + 5 tokens.
Matrix<float> input(Index batch) {
    return moe::Random(static_cast<std::uint64_t>(batch) + 1).normal<float>(batch + 5, dim, 1.5f);
}
std::string name_of(Index batch, Index layer) {
    return "batch." + std::to_string(batch) + ".layer." + std::to_string(layer);
}

void write() {
    auto first = make_first();
    auto second = make_second();
    moe::Workspace<float> ws0, ws1;
    moe::Trace trace;
    moe::SafetensorsWriter writer;
    for (Index b = 0; b < batches; ++b) {
        const Matrix<float> x = input(b);
        Matrix<float> h(x.rows(), dim), y(x.rows(), dim);
        first.forward(x, h, ws0, {.step = static_cast<std::uint64_t>(b)});
        second.forward(h, y, ws1, {.step = static_cast<std::uint64_t>(b)});
        trace.record(0, ws0);
        trace.record(1, ws1);
        writer.add(name_of(b, 0), h);
        writer.add(name_of(b, 1), y);
    }
    moe::write_file(trace_file, moe::save_trace(trace));
    moe::write_file(output_file, writer.bytes());
}

TEST(TraceOfAnotherMachine, ReplaysToTheSameBits) {
    if (std::getenv("MOE_WRITE_GOLDEN") != nullptr) write();
    const moe::Trace trace = moe::load_trace(moe::read_file(trace_file));
    const std::vector<std::byte> bytes = moe::read_file(output_file);
    const moe::SafetensorsView outputs{bytes};
    ASSERT_EQ(trace.num_batches(), batches);
    ASSERT_EQ(trace.records().size(), 2u * batches);
    auto first = make_first();
    auto second = make_second();
    moe::Workspace<float> ws;
    for (const moe::TraceRecord& record : trace.records()) {
        const auto wanted = outputs.copy<float>(name_of(record.batch, record.layer));
        const Matrix<float> x =
            record.layer == 0 ? input(record.batch) : outputs.copy<float>(name_of(record.batch, 0));
        Matrix<float> y(x.rows(), dim);
        const auto replay = [&](const auto& layer) {
            layer.bank().apply(x, record.routing(), y, ws);
            EXPECT_TRUE(moe::testing::same_bits(y, wanted)) << record.batch << " " << record.layer;
            layer.forward(x, y, ws);  // chooses and weighs the same, too
            EXPECT_TRUE(ws.routing() == record.routing()) << record.batch << " " << record.layer;
            EXPECT_TRUE(moe::testing::same_bits(y, wanted)) << record.batch << " " << record.layer;
        };
        record.layer == 0 ? replay(first) : replay(second);
        EXPECT_GT(wanted.cwiseAbs().maxCoeff(), 0.1f);
    }
}

}  // namespace
}  // namespace golden_trace_test
