// SPDX-License-Identifier: MIT
#include <cstdint>
#include <cstdio>
#include <vector>

using Bits = std::vector<std::uint32_t>;

Bits bits_of_baseline();
Bits bits_of_extern();
Bits storage_bits_of_baseline();
Bits storage_bits_of_extern();
#ifdef MOE_TEST_X86
Bits bits_of_avx();
Bits bits_of_avx2();
Bits bits_of_native();
Bits storage_bits_of_native();
#endif

namespace {

int failures = 0;

void expect_same(const char* name, const Bits& got, const Bits& want) {
    std::size_t different = got.size() == want.size() ? 0 : 1;
    for (std::size_t i = 0; i < want.size() && i < got.size(); ++i) different += got[i] != want[i];
    std::printf("%-14s %zu numbers, %zu differ from baseline\n", name, got.size(), different);
    failures += different != 0;
}

/// Whether there are `count` numbers, or more, and most are not zero.
bool is_something(const Bits& bits, std::size_t count) {
    std::size_t nonzero = 0;
    for (const std::uint32_t one : bits) nonzero += one != 0;
    if (bits.size() >= count && nonzero >= bits.size() / 2) return true;
    std::printf("baseline computed nothing: %zu of %zu numbers are not zero\n", nonzero,
                bits.size());
    return false;
}

}  // namespace

int main() {
    const Bits want = bits_of_baseline(), want_storage = storage_bits_of_baseline();
    if (!is_something(want, 2 * 11 * 24) || !is_something(want_storage, 2 * 9 * 16)) return 1;
    expect_same("baseline", bits_of_baseline(), want);
    expect_same("extern", bits_of_extern(), want);
    expect_same("extern storage", storage_bits_of_extern(), want_storage);
#ifdef MOE_TEST_X86
    if (__builtin_cpu_supports("avx") && __builtin_cpu_supports("fma"))
        expect_same("avx", bits_of_avx(), want);
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        expect_same("avx2", bits_of_avx2(), want);
    expect_same("native", bits_of_native(), want);
    expect_same("native storage", storage_bits_of_native(), want_storage);
#endif
    return failures == 0 ? 0 : 1;
}
