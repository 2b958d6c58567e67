// SPDX-License-Identifier: MIT
#include <moe/core/memory.hpp>

#if defined(MADV_HUGEPAGE) || defined(PROT_READ)
#error "<sys/mman.h> is included with the library"
#endif

#include <algorithm>
#include <cstdint>
#include <limits>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <gtest/gtest.h>

#include "support/allocations.hpp"
#include "support/message.hpp"

namespace memory_test {
namespace {

using moe::Buffer;
using moe::Index;
using support::message;

template <class T>
bool is_aligned(const T* at) {
    return reinterpret_cast<std::uintptr_t>(at) % moe::cache_line == 0;
}

template <class T>
class Buffers : public testing::Test {};
using Elements = testing::Types<float, double, std::int32_t, std::uint8_t>;
TYPED_TEST_SUITE(Buffers, Elements);

TYPED_TEST(Buffers, BeginOnACacheLine) {
    static_assert(moe::cache_line == 64);
    for (const Index count : {1, 3, 15, 16, 17, 1000}) {
        Buffer<TypeParam> buffer;
        buffer.resize(count);
        EXPECT_TRUE(is_aligned(buffer.data())) << count;
    }
}

TYPED_TEST(Buffers, HaveRoomForEveryElement) {
    Buffer<TypeParam> buffer;
    for (const Index count : {7, 1, 64, 63}) {
        const auto span = buffer.resize(count);
        EXPECT_EQ(static_cast<Index>(span.size()), count);
        EXPECT_EQ(buffer.size(), count);
        for (Index i = 0; i < count; ++i) buffer[i] = static_cast<TypeParam>(i);
        const Buffer<TypeParam>& same = buffer;
        EXPECT_EQ(same.span().data(), span.data());
        for (Index i = 0; i < count; ++i) EXPECT_EQ(same[i], static_cast<TypeParam>(i)) << count;
    }
}

TEST(Memory, LargeOnesBeginOnALargePage) {
    constexpr auto page = static_cast<std::uintptr_t>(moe::detail::huge_page);
    Buffer<double> large, small;
    large.resize(moe::detail::huge_page_from / 8);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(large.data()) % page, 0u);
    large[0] = 1, large[large.size() - 1] = 2;
    small.resize(8);
    std::swap(large, small);  // each is freed as it was obtained
    EXPECT_EQ(small[small.size() - 1], 2);
    small.resize(moe::detail::huge_page_from / 8 + 1);
    large.resize(9);
}

#if defined(__linux__)
TEST(Memory, AsksForLargePagesByTheirRightNumber) {
    EXPECT_EQ(moe::detail::advise_huge_pages, MADV_HUGEPAGE);
}
#endif

TEST(Memory, NothingIsAllocatedForNothing) {
    EXPECT_EQ(allocations::in([] {
                  Buffer<float> buffer;
                  EXPECT_EQ(buffer.resize(0).size(), 0u);
                  EXPECT_EQ(buffer.data(), nullptr);
                  EXPECT_EQ(buffer.bytes(), 0);
                  EXPECT_EQ(buffer.matrix(0, 5).size(), 0);
                  EXPECT_EQ(buffer.matrix(5, 0).size(), 0);
              }),
              0);
}

TEST(Memory, ASmallerSizeKeepsTheMemory) {
    Buffer<float> buffer;
    const float* const data = buffer.resize(100).data();
    EXPECT_EQ(buffer.bytes(), 400);
    EXPECT_EQ(allocations::in([&] {
                  for (const Index count : {99, 1, 0, 50, 100}) {
                      EXPECT_EQ(buffer.resize(count).data(), data);
                      EXPECT_EQ(buffer.size(), count);
                  }
                  buffer.assign(100, 1);
                  buffer.matrix(10, 10);
              }),
              0);
    EXPECT_EQ(buffer.bytes(), 400);
    EXPECT_EQ(allocations::in([&] { buffer.resize(101); }), allocations::are_counted ? 1 : 0);
    EXPECT_EQ(buffer.bytes(), 404);
}

TEST(Memory, AssignFillsWhatIsAskedForAndNoMore) {
    Buffer<int> buffer;
    buffer.assign(8, 1);
    const auto span = buffer.assign(5, 7);
    EXPECT_EQ(span.size(), 5u);
    EXPECT_EQ(std::count(span.begin(), span.end(), 7), 5);
    EXPECT_EQ(buffer.resize(8)[5], 1);
}

TEST(Memory, AMatrixIsRowMajorWithoutGaps) {
    Buffer<double> buffer;
    auto matrix = buffer.matrix(3, 5);
    EXPECT_EQ(matrix.data(), buffer.data());
    EXPECT_EQ(matrix.rows(), 3);
    EXPECT_EQ(matrix.cols(), 5);
    EXPECT_EQ(matrix.outerStride(), 5);
    EXPECT_EQ(&matrix(2, 4), buffer.data() + 14);
}

TEST(Memory, ByteCountsThatOverflowAreLengthErrors) {
    constexpr Index most = std::numeric_limits<Index>::max();
    Buffer<double> buffer;
    buffer.assign(3, 2.5);
    EXPECT_EQ(message<std::length_error>([&] { buffer.resize(most / 8 + 1); }),
              "moe: 1152921504606846976 x 8 elements do not fit a signed 64-bit size");
    EXPECT_THROW(buffer.matrix(most, 2), std::length_error);
    EXPECT_EQ(buffer.size(), 0);
    EXPECT_THROW(buffer.matrix(-1, 2), std::length_error);
    EXPECT_EQ(message<std::length_error>([&] { buffer.resize(-1); }),
              "moe: -1 x 8 elements do not fit a signed 64-bit size");
    EXPECT_EQ(buffer.assign(4, 1.0).size(), 4u);
}

TEST(Memory, AFailedAllocationLeavesABufferThatCanBeUsed) {
    if (!allocations::are_counted) GTEST_SKIP() << "no allocation fails under a sanitizer";
    Buffer<float> buffer;
    buffer.resize(10);
    EXPECT_TRUE(allocations::fails_at(0, [&] { buffer.resize(1000); }));
    EXPECT_EQ(buffer.size(), 0);
    EXPECT_EQ(buffer.bytes(), 0);
    EXPECT_TRUE(buffer.span().empty());
    const auto span = buffer.assign(1000, 3);
    EXPECT_EQ(std::count(span.begin(), span.end(), 3.0f), 1000);
}

TEST(Memory, MovingHandsTheMemoryOver) {
    Buffer<int> from;
    const int* const data = from.assign(6, 9).data();
    Buffer<int> to = std::move(from);
    EXPECT_EQ(to.data(), data);
    EXPECT_EQ(to.size(), 6);
    Buffer<int> last;
    last.resize(2);
    last = std::move(to);
    EXPECT_EQ(last.data(), data);
    EXPECT_EQ(last[5], 9);
}

TEST(Memory, WhatWasMovedFromMayBeUsedAgain) {
    Buffer<int> from;
    from.resize(6);
    const Buffer<int> to = std::move(from);
    EXPECT_EQ(from.size(), 0);  // NOLINT(bugprone-use-after-move)
    EXPECT_EQ(from.bytes(), 0);
    EXPECT_EQ(from.assign(6, 4)[5], 4);
    EXPECT_NE(from.data(), to.data());
}

#if !defined(NDEBUG)
TEST(MemoryDeathTest, ADebugBuildCatchesElementsThatAreNotThere) {
    Buffer<int> buffer;
    buffer.resize(8);
    buffer.assign(3, 1);  // the memory goes on, the buffer does not
    const Buffer<int>& same = buffer;
    EXPECT_DEATH(buffer[3] = 0, "an element of the buffer");
    EXPECT_DEATH(buffer[-1] = 0, "an element of the buffer");
    EXPECT_DEATH(static_cast<void>(same[3]), "an element of the buffer");
}
#endif

TEST(Memory, WorkersAreWholeCacheLinesApart) {
    const Index counts[] = {0, 1, 15, 16, 17, 32, 33}, rounded[] = {0, 16, 16, 16, 32, 32, 48};
    for (int i = 0; i < 7; ++i) EXPECT_EQ(moe::detail::round_up_16(counts[i]), rounded[i]);
}

}  // namespace
}  // namespace memory_test
