// SPDX-License-Identifier: MIT
// Any bytes: the reader of traces throws FormatError, or gives a trace that is sound, that survives
// writing and reading again, and whose records are routings.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <string_view>

#include <moe/io/trace.hpp>
#include <moe/stats/trace.hpp>

namespace {

void require(bool condition) {
    if (!condition) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const std::span<const std::byte> file(reinterpret_cast<const std::byte*>(data), size);
    try {
        const moe::Trace trace = moe::load_trace(file);
        require(moe::load_trace(moe::save_trace(trace)) == trace);
        for (const moe::TraceRecord& record : trace.records()) {
            require(record.num_tokens() == trace.batch_of(record).num_tokens);
            require(record.offsets.back() == record.num_assignments());
            if (record.num_experts > 1'000'000) continue;  // a routing has room for each expert
            const moe::Routing routing = record.routing();
            require(routing.num_assignments() == record.num_assignments());
        }
    } catch (const moe::FormatError& error) {
        require(std::string_view(error.what()).starts_with("moe::"));
        for (const char c : std::string_view(error.what())) require(c >= ' ' && c <= '~');
    }
    return 0;
}
