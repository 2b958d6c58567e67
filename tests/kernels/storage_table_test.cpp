// SPDX-License-Identifier: MIT
// Every table for stored weights that this machine can run against the loops in
// storage_reference.hpp, bit for bit.

#include <moe/core/plan.hpp>
#include <moe/kernels/storage_table.hpp>

#include <algorithm>
#include <cfenv>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <moe/kernels/reference.hpp>
#include <moe/kernels/storage_reference.hpp>

#include "guarded.hpp"
#include "scoped_fetcher.hpp"
#include "stored_panels.hpp"

namespace {

using kernel_test::Guarded;
using kernel_test::Numbers;
using kernel_test::same;
using kernel_test::size_of;
using kernel_test::StoredPanel;
using moe::Index;
using moe::Storage;
using moe::StorageTable;

constexpr float nan = std::numeric_limits<float>::quiet_NaN();
constexpr float inf = std::numeric_limits<float>::infinity();
constexpr float tiny = std::numeric_limits<float>::min();
constexpr float denormal = std::numeric_limits<float>::denorm_min();
constexpr float huge = std::numeric_limits<float>::max();
constexpr float sentinel = -12345.5f;

constexpr Index row_counts[] = {0, 1, 2, 3, 4, 5, 6, 7, 13, 14, 15, 16, 17, 31, 32, 33, 64, 100};
constexpr Index depths[] = {1, 31, 32, 33, 63, 64, 65, 200};
constexpr Index most_rows = 100;

Index padded(Index k) { return StoredPanel::records(k) * moe::record_rows; }

/// Calls f(table) for each table, with its name in the message of a failure.
template <class F>
void each_table(const F& f) {
    const std::vector<const StorageTable*> tables = kernel_test::storage_tables();
    if (tables.empty()) GTEST_SKIP() << "this machine can run none of the tables";
    for (const StorageTable* table : tables) {
        SCOPED_TRACE(table->name);
        f(*table);
        if (::testing::Test::HasFatalFailure()) return;
    }
}

/// Rows of numbers that are as awkward as `special` asks: 0 none, 1 some NaN and infinities, 2 many
/// products and sums near the smallest normal number, 3 zeros.
std::vector<float> activations(Index rows, Index k, int special, Numbers& random) {
    std::vector<float> x(size_of(rows * k));
    random.fill(rows * k, x.data());
    if (special == 3) std::fill(x.begin(), x.end(), 0.0f);
    if (special == 2)
        for (float& a : x) {
            a = std::ldexp(a, -static_cast<int>(random.bits() % 12));
            if (random.bits() % 8 == 0) a = random.bits() % 2 == 0 ? 0.0f : -0.0f;
            if (random.bits() % 8 == 0) a = std::ldexp(a, -120);
        }
    if (special == 1)
        for (float& a : x) {
            const std::uint64_t pick = random.bits() % 1000;
            if (pick < 5) {
                const float picks[] = {nan, inf, -inf, huge, -huge};
                a = picks[pick];
            }
        }
    return x;
}

// ---- layout ----

TEST(StorageTable, PanelsHaveTheDocumentedSizes) {
    for (const Index width : {Index(16), Index(32)}) {
        EXPECT_EQ(moe::panel_layout(Storage::bf16, width).record_bytes, 64 * width);
        EXPECT_EQ(moe::panel_layout(Storage::int8, width).scale_bytes, 4 * width);
        EXPECT_EQ(moe::panel_layout(Storage::int4, width).record_bytes, 16 * width + 2 * width);
        EXPECT_EQ(moe::panel_layout(Storage::int4_zero, width).record_bytes,
                  16 * width + 3 * width);
        EXPECT_EQ(moe::panel_layout(Storage::ternary, width).record_bytes, 8 * width);
        for (const Storage storage : kernel_test::stored_forms)
            for (const Index k : {0, 1, 63, 64, 65, 1000}) {
                const moe::PanelLayout layout = moe::panel_layout(storage, width);
                EXPECT_EQ(layout.bytes(k) % 64, 0);
                EXPECT_GE(layout.bytes(k),
                          layout.scale_bytes + (k + 31) / 32 * layout.record_bytes);
            }
    }
    EXPECT_EQ(moe::PanelLayout::records(0), 0);
    EXPECT_EQ(moe::PanelLayout::records(1), 2);
    EXPECT_EQ(moe::PanelLayout::records(64), 2);
    EXPECT_EQ(moe::PanelLayout::records(65), 4);
}

TEST(StorageTable, SaysWhatItIs) {
    each_table([](const StorageTable& t) {
        EXPECT_NE(std::string(t.name), "");
        EXPECT_TRUE(t.panel_width == 16 || t.panel_width == 32) << t.panel_width;
        EXPECT_TRUE(t.bf16_bytes == 2 || t.bf16_bytes == 4) << t.bf16_bytes;
    });
}

// ---- decode ----

/// Checks one panel: decoded at once and in parts, from and to any address, between guard pages.
void check_decode(const StorageTable& t, const StoredPanel& panel, Index k) {
    const Index width = t.panel_width, records = StoredPanel::records(k);
    const moe::PanelLayout layout = moe::panel_layout(panel.storage(), width);
    std::vector<float> want(size_of(records * moe::record_rows * width));
    for (Index p = 0; p < records * moe::record_rows; ++p)
        for (Index j = 0; j < width; ++j)
            want[size_of(p * width + j)] =
                moe::exact::weight(panel.storage(), width, panel.data(), p, j);

    const Index bytes = records * layout.record_bytes, size = static_cast<Index>(want.size());
    Guarded<std::byte> panel_memory(panel.size() + 64);
    Guarded<float> to_memory(size + 64);
    Guarded<std::byte> scale_memory(4 * width + 64);
    for (const Index shift : {0, 1, 4, 36}) {  // from the end of the memory; 0 touches the guard
        std::byte* const record = panel_memory.last(bytes + shift);
        std::copy_n(panel.data() + layout.scale_bytes, bytes, record);
        std::byte* const scales = scale_memory.last(4 * width + (shift == 1 ? 4 : shift));
        std::copy_n(panel.data(), std::min(4 * width, panel.size()), scales);
        float* const to = to_memory.last(size + shift / 4);
        for (const Index part : {records, Index(1), Index(2)}) {
            std::fill(to, to + size, sentinel);
            for (Index r = 0; r < records; r += part)
                t.decode(panel.storage(), part, record + r * layout.record_bytes,
                         layout.scale_bytes > 0 ? reinterpret_cast<const float*>(scales) : nullptr,
                         to + r * moe::record_rows * width);
            ASSERT_TRUE(same(size, to, want.data()))
                << moe::name(panel.storage()) << " k " << k << " shift " << shift;
        }
    }
}

TEST(StorageTable, DecodesEveryStorage) {
    each_table([](const StorageTable& t) {
        Numbers random(1);
        for (const Storage storage : kernel_test::stored_forms)
            for (const Index k : {1, 64, 65, 200})
                for (const Index cols : {Index(1), t.panel_width - 3, t.panel_width}) {
                    check_decode(t, StoredPanel(storage, t.panel_width, k, cols, random), k);
                    if (::testing::Test::HasFatalFailure()) return;
                }
    });
}

/// Every half and every bf16, NaN and subnormals too.
TEST(StorageTable, DecodesEveryNumberOfSixteenBits) {
    each_table([](const StorageTable& t) {
        Numbers random(2);
        for (const Storage storage : {Storage::bf16, Storage::f16}) {
            const Index k = 65536 / t.panel_width;
            StoredPanel panel(storage, t.panel_width, k, t.panel_width, random);
            for (Index i = 0; i < 65536; ++i) {
                const auto bits = static_cast<std::uint16_t>(i);
                std::memcpy(panel.data() + 2 * i, &bits, 2);
            }
            check_decode(t, panel, k);
        }
    });
}

/// Whether `row` has the bits of one chain on what `decode` writes, between guard pages.
void check_row(const StorageTable& t, Storage storage, Index row_panels, Index records,
               Numbers& random) {
    const Index k = records * moe::record_rows, width = t.panel_width, cols = row_panels * width;
    const Index bytes = records * moe::panel_layout(storage, width).record_bytes;
    const Index b_panel = bytes + 12;
    Guarded<float> a_memory(k + 64), c_memory(cols + 64);
    Guarded<std::byte> b_memory(row_panels * b_panel + 64);
    float* const a = a_memory.last(k);
    std::byte* const b = b_memory.last((row_panels - 1) * b_panel + bytes);
    float* const c = c_memory.last(cols);
    random.fill(k, a);
    std::vector<float> decoded(size_of(k * width));
    for (const bool add : {false, true}) {
        if (add)
            random.fill(cols, c);
        else
            std::fill(c, c + cols, nan);
        std::vector<float> want(c, c + cols);
        for (Index j = 0; j < row_panels; ++j) {
            StoredPanel panel(storage, width, k, width, random);
            // Infinities and NaN in some columns, subnormals in any.
            const bool wide = storage == Storage::bf16;
            const int special[] = {wide ? 0x7F80 : 0x7C00, wide ? 0xFF80 : 0xFC00,
                                   wide ? 0x7F81 : 0x7C01};
            const int small[] = {0x0001, 0x8001, wide ? 0x007F : 0x03FF};
            for (std::size_t i = 0; records > 0 && i < 6; ++i) {
                const auto bits = static_cast<std::uint16_t>(i < 3 ? special[i] : small[i - 3]);
                std::memcpy(panel.data() + 2 * (random.bits() % size_of(k * width)), &bits, 2);
            }
            std::copy_n(panel.data(), bytes, b + j * b_panel);
            t.decode(storage, records, b + j * b_panel, nullptr, decoded.data());
            moe::exact::tile(1, width, k, a, k, 1, decoded.data(), width, want.data() + j * width,
                             width, add);
        }
        t.row(storage, records, a, b, b_panel, c, add);
        ASSERT_TRUE(same(cols, c, want.data()))
            << moe::name(storage) << " records " << records << " add " << add;
    }
}

TEST(StorageTable, RowsAreOneFmaChainOnWhatIsDecoded) {
    Index checked = 0;
    each_table([&](const StorageTable& t) {
        EXPECT_EQ(t.row == nullptr, t.row_panels == 1);
        if (t.row == nullptr) return;
        ++checked;
        Numbers random(6);
        for (const Storage storage : {Storage::bf16, Storage::f16})
            for (const Index records : {0, 1, 2, 7}) {
                check_row(t, storage, t.row_panels, records, random);
                if (::testing::Test::HasFatalFailure()) return;
            }
    });
    if (checked == 0) GTEST_SKIP() << "no instruction set of this machine has such a kernel";
}

TEST(StorageTable, DecodesScalesThatAreNoNormalNumbers) {
    const float scales[] = {0.0f,          -0.0f,    nan,         inf,       -inf, denormal,
                            -3 * denormal, tiny / 8, tiny * 1.5f, huge / 64, huge};
    each_table([&](const StorageTable& t) {
        Numbers random(3);
        for (const Storage storage : {Storage::int8, Storage::ternary}) {
            StoredPanel panel(storage, t.panel_width, 64, t.panel_width, random);
            std::memcpy(panel.data(), scales, sizeof scales);
            check_decode(t, panel, 64);
        }
        for (const Storage storage : {Storage::int8_block, Storage::int4, Storage::int4_zero}) {
            StoredPanel panel(storage, t.panel_width, 64, t.panel_width, random);
            const std::uint16_t halves[] = {0,      0x8000, 0x7E00, 0x7C00, 0xFC00,
                                            0x0001, 0x83FF, 0x7BFF, 0xFC01};
            std::memcpy(panel.data() + moe::panel_layout(storage, t.panel_width).record_bytes -
                            (storage == Storage::int4_zero ? 3 : 2) * t.panel_width,
                        halves, sizeof halves);
            check_decode(t, panel, 64);
        }
    });
}

// ---- bf16 ----

/// The floats that encode_bf16 wrote.
std::vector<float> decoded_bf16(const StorageTable& t, Index n, const std::byte* x) {
    std::vector<float> result(size_of(n));
    for (Index i = 0; i < n; ++i) {
        std::uint32_t bits = 0;
        std::memcpy(reinterpret_cast<std::byte*>(&bits) + (4 - t.bf16_bytes), x + i * t.bf16_bytes,
                    static_cast<std::size_t>(t.bf16_bytes));
        result[size_of(i)] = std::bit_cast<float>(bits);
    }
    return result;
}

TEST(StorageTable, RoundsToBf16) {
    Guarded<float> x_memory(2000);
    Guarded<std::byte> to_memory(10000);
    each_table([&](const StorageTable& t) {
        Numbers random(4);
        for (const Index n : {0, 1, 15, 16, 17, 63, 64, 65, 127, 500, 1000}) {
            float* const x = x_memory.last(n);
            for (Index i = 0; i < n; ++i)  // any bits; ties and NaN of every kind now and then
                x[i] = std::bit_cast<float>(
                    static_cast<std::uint32_t>(random.bits() >> 32 | (i % 5 == 0 ? 0x8000U : 0U)));
            for (Index i = 0; i < n; i += 3)
                x[i] = std::bit_cast<float>(std::bit_cast<std::uint32_t>(x[i]) & 0xFFFF8000U);
            const float special[] = {
                nan,  std::bit_cast<float>(0x7F800001U), inf,   -inf,     huge,
                -0.f, std::bit_cast<float>(0xFF80FFFFU), -huge, denormal, tiny};
            std::copy_n(special, std::min<Index>(n, 10), x);
            std::vector<float> want(size_of(padded(n)));
            for (Index i = 0; i < n; ++i) want[size_of(i)] = moe::exact::round_to_bf16(x[i]);
            std::byte* const to = to_memory.last(padded(n) * t.bf16_bytes);
            std::fill(to, to + padded(n) * t.bf16_bytes, std::byte{0xA5});
            t.encode_bf16(n, x, to);
            ASSERT_TRUE(same(padded(n), decoded_bf16(t, padded(n), to).data(), want.data())) << n;
        }
    });
}

/// A product of one panel of bf16: what the reference gives, and calls that must give the same.
class Bf16Case {
public:
    Bf16Case(const StorageTable& t, Index k, int special, Numbers& random)
        : t_(t),
          records_(StoredPanel::records(k)),
          panel_(Storage::bf16, t.panel_width, k, t.panel_width, random),
          a_row_(padded(k) * t.bf16_bytes),
          a_(size_of(most_rows * a_row_)),
          want_(size_of(most_rows * t.panel_width)) {
        if (special == 1)
            for (Index i = 0; i < 5; ++i)
                put_weight(random, static_cast<std::uint16_t>(0x7F80 + i));
        if (special == 2)
            for (Index i = 0; i < k * t.panel_width; ++i)
                put_weight(random, static_cast<std::uint16_t>((random.bits() & 0x807FU) |
                                                              random.bits() % 10 << 7));
        const std::vector<float> x = activations(most_rows, k, special, random);
        std::vector<float> rounded(size_of(most_rows * padded(k)));
        for (Index i = 0; i < most_rows; ++i) {
            t.encode_bf16(k, x.data() + i * k, a_.data() + i * a_row_);
            for (Index p = 0; p < k; ++p)
                rounded[size_of(i * padded(k) + p)] =
                    moe::exact::round_to_bf16(x[size_of(i * k + p)]);
        }
        moe::exact::product_bf16(most_rows, t.panel_width, records_, rounded.data(), padded(k),
                                 t.panel_width, panel_.data(), want_.data(), t.panel_width);
    }

    /// @param gap  unused bytes after a row of A; those of the panel before a guard page if `shift`
    void check(Index rows, Index cols, Index gap, Index shift) const {
        const Index a_row = a_row_ + gap, c_row = cols + 3;
        const Index a_size = rows == 0 ? 0 : (rows - 1) * a_row + a_row_;
        const Index c_size = rows == 0 ? 0 : (rows - 1) * c_row + cols;
        Guarded<std::byte> a_memory(a_size + 64), panel_memory(panel_.size() + 64);
        Guarded<float> c_memory(c_size + 16);
        std::byte* const a = a_memory.last(a_size + shift);
        for (Index i = 0; i < rows; ++i) std::copy_n(a_.data() + i * a_row_, a_row_, a + i * a_row);
        std::byte* const panel = panel_memory.last(panel_.size() + shift);
        std::copy_n(panel_.data(), panel_.size(), panel);
        float* const c = c_memory.last(c_size + shift / 4);
        std::vector<float> want(size_of(c_size), sentinel);
        std::fill(c, c + c_size, sentinel);
        for (Index i = 0; i < rows; ++i)
            std::copy_n(want_.data() + i * t_.panel_width, cols, want.data() + i * c_row);
        t_.product_bf16(rows, cols, records_, a, a_row, panel, c, c_row,
                        shift == 0 ? panel : nullptr, moe::Plan{}.bf16_tile_rows);
        ASSERT_TRUE(same(c_size, c, want.data()))
            << "rows " << rows << " cols " << cols << " records " << records_ << " gap " << gap
            << " shift " << shift;
    }

private:
    void put_weight(Numbers& random, std::uint16_t bits) {
        const auto elements = static_cast<std::uint64_t>(records_ * 32 * t_.panel_width);
        std::memcpy(panel_.data() + 2 * (random.bits() % elements), &bits, 2);
    }

    const StorageTable& t_;
    Index records_;
    StoredPanel panel_;
    Index a_row_;
    std::vector<std::byte> a_;
    std::vector<float> want_;
};

TEST(StorageTable, ProductsInBf16AreThoseOfTiles) {
    each_table([](const StorageTable& t) {
        Numbers random(5);
        for (const Index k : depths) {
            const Bf16Case product(t, k, 0, random);
            for (const Index rows : row_counts)
                for (const Index cols : {t.panel_width, t.panel_width - 3}) {
                    product.check(rows, cols, rows % 3 * 64, 0);
                    if (::testing::Test::HasFatalFailure()) return;
                }
        }
    });
}

TEST(StorageTable, ProductsInBf16TakeAnyColumnsAndAddresses) {
    each_table([](const StorageTable& t) {
        Numbers random(6);
        const Bf16Case product(t, 65, 0, random);
        for (const Index rows : {1, 7, 15})
            for (Index cols = 1; cols <= t.panel_width; ++cols)
                for (const Index shift : {0, 4, 36}) {
                    product.check(rows, cols, 4, shift);
                    if (::testing::Test::HasFatalFailure()) return;
                }
    });
}

TEST(StorageTable, ProductsInBf16PassOnNanAndFlushSubnormals) {
    each_table([](const StorageTable& t) {
        Numbers random(7);
        for (const int special : {1, 2, 3})
            for (const Index k : {1, 64, 65, 200}) {
                SCOPED_TRACE(special);
                const Bf16Case product(t, k, special, random);
                for (const Index rows : {1, 6, 15, 100}) product.check(rows, t.panel_width, 0, 0);
                if (::testing::Test::HasFatalFailure()) return;
            }
    });
}

/// Products and sums a hair below the smallest normal number: those that 24 bits round up to it
/// stay, the others become 0.
TEST(StorageTable, ProductsInBf16DecideAfterRoundingWhatIsSubnormal) {
    struct {
        float a[3], b[3];  // rows 0, 2, 4: one chain
        float want;
    } const cases[] = {
        {{0x1p-63f, 0x1p-76f, 0}, {0x1p-63f, -0x1p-76f, 0}, 0x1p-126f},  // - 2^-152
        {{0x1p-63f, 0x1p-76f, 0}, {0x1p-63f, -0x1p-75f, 0}, 0x1p-126f},  // - 2^-151, a tie
        {{0x1p-63f, 0x1p-76f, 0}, {0x1p-63f, -0x1.02p-75f, 0}, 0.0f},    // below it
        {{-0x1p-63f, 0x1p-76f, 0}, {0x1p-63f, 0x1.02p-75f, 0}, -0.0f},   // its mirror
        {{0x1p-63f, 0x1p-75f, 0}, {0x1p-63f, -0x1p-75f, 0}, 0.0f},       // - 2^-150
        {{0x1p-63f, 0x1p-64f, 0x1p-63f}, {0x1p-63f, -0x1p-63f, 0x1p-63f}, 0x1p-126f},  // 0 between
        {{0x1.fep-64f, 0, 0}, {0x1p-63f, 0, 0}, 0.0f},  // exact, subnormal
        {{-0x1p-127f, 0, 0}, {0x1p100f, 0, 0}, 0.0f},   // input
        {{0x1p100f, 0, 0}, {-0x1p-127f, 0, 0}, 0.0f},   // weight
    };
    each_table([&](const StorageTable& t) {
        for (const auto& one : cases) {
            float x[64] = {};
            std::vector<std::byte> panel(size_of(64 * t.panel_width * 2));
            for (Index i = 0; i < 3; ++i) {
                x[2 * i] = one.a[i];
                const auto bits =
                    static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(one.b[i]) >> 16);
                for (Index j = 0; j < t.panel_width; ++j)
                    std::memcpy(panel.data() + 2 * (i * t.panel_width + j) * 2, &bits, 2);
            }
            std::byte a[256];
            t.encode_bf16(64, x, a);
            float c = sentinel;
            t.product_bf16(1, 1, 2, a, 64 * t.bf16_bytes, panel.data(), &c, 1, nullptr,
                           moe::Plan{}.bf16_tile_rows);
            // C starts at +0: a chain of -0 ends as +0.
            EXPECT_TRUE(same(c, one.want == 0 ? 0.0f : one.want))
                << c << ", should be " << one.want << ", case " << &one - cases;
        }
    });
}

TEST(StorageTable, ProductsInBf16LeaveTheFloatingPointStateAlone) {
    each_table([](const StorageTable& t) {
        Numbers random(13);
        const Bf16Case product(t, 64, 2, random);
        volatile float smallest = tiny;
        std::feclearexcept(FE_ALL_EXCEPT);
        product.check(7, t.panel_width, 0, 0);
        if (std::string(t.name) != "scalar") {
            EXPECT_EQ(std::fetestexcept(FE_ALL_EXCEPT), 0);
        }
        EXPECT_EQ(std::fegetround(), FE_TONEAREST);
        EXPECT_NE(smallest / 2, 0.0f);  // subnormal numbers are back
    });
}

// ---- int8 ----

TEST(StorageTable, RoundsRowsToEightBits) {
    Guarded<float> x_memory(2000);
    Guarded<std::int8_t> q_memory(2000);
    Guarded<std::int32_t> sum_memory(100);
    each_table([&](const StorageTable& t) {
        Numbers random(8);
        for (const Index n : {0, 1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 500, 1000})
            for (int kind = 0; kind < 14; ++kind) {
                const Index size = padded(n), records = StoredPanel::records(n);
                float* const x = x_memory.last(n);
                random.fill(n, x);
                if (kind == 1) std::fill(x, x + n, -0.0f);
                if (kind == 2)
                    for (Index i = 0; i < n; ++i) x[i] *= 0x1p-101f;
                if (kind == 3)  // many ties: whole numbers of half steps
                    for (Index i = 0; i < n; ++i)
                        x[i] = i == 0 ? 127.0f : std::floor(x[i] * 60) + 0.5f;
                const float last[] = {nan,  inf,   -inf,    -nan, 0x1p-100f, 0x0.fffffep-100f,
                                      huge, -huge, denormal};
                if (kind >= 4 && kind < 13 && n > 0) {
                    if (kind >= 8)  // the largest
                        for (Index i = 0; i < n; ++i) x[i] *= kind < 10 ? 0x1p-110f : 1.0f;
                    if (kind == 12) std::fill(x, x + n, denormal);
                    x[(n - 1) * (kind % 2)] = last[kind - 4];
                }
                if (kind == 13) std::fill(x, x + n, 0x1.c28f5cp-3f);

                std::vector<std::int8_t> want_q(size_of(size));
                std::vector<std::int32_t> want_sums(size_of(records));
                float want_scale = 0, scale = sentinel;
                moe::exact::encode_int8(n, x, want_q.data(), &want_scale, want_sums.data());
                std::int8_t* const q = q_memory.last(size);
                std::int32_t* const sums = sum_memory.last(records);
                std::fill(q, q + size, std::int8_t{77});
                std::fill(sums, sums + records, 77);
                t.encode_int8(n, x, q, &scale, sums);
                ASSERT_TRUE(same(scale, want_scale)) << scale << " n " << n << " kind " << kind;
                ASSERT_TRUE(std::equal(q, q + size, want_q.data()))
                    << "n " << n << " kind " << kind;
                ASSERT_TRUE(std::equal(sums, sums + records, want_sums.data()))
                    << "n " << n << " kind " << kind;
            }
    });
}

/// A product of one panel of integers, as Bf16Case.
class Int8Case {
public:
    Int8Case(const StorageTable& t, Storage storage, Index k, int special, Numbers& random)
        : t_(t),
          k_(k),
          records_(StoredPanel::records(k)),
          panel_(storage, t.panel_width, k, t.panel_width, random),
          q_(size_of(most_rows * padded(k))),
          scale_(size_of(most_rows)),
          sums_(size_of(most_rows * records_)),
          want_(size_of(most_rows * t.panel_width)) {
        if (special == 4) {  // about the largest sums there can be, and more than 24 bits of them
            const moe::PanelLayout layout = moe::panel_layout(storage, t.panel_width);
            for (Index r = 0; r < records_; ++r) {
                std::byte* const record =
                    panel_.data() + layout.scale_bytes + r * layout.record_bytes;
                for (Index i = 0; i < 8 * t.panel_width; ++i)
                    record[i] = static_cast<std::byte>(storage == Storage::ternary ? 0xAA : 0xFF);
                for (Index i = 0; i < 32 * t.panel_width && storage == Storage::int8; ++i)
                    record[i] = static_cast<std::byte>(0xFC + random.bits() % 4);
            }
        }
        x_ = activations(most_rows, k, special, random);
        if (special == 4) random.fill(most_rows * k, x_.data(), -1, -0.97);
        for (Index i = 0; i < most_rows; ++i) encode(i);
    }

    /// Changes element p of row i of A.
    void put(Index i, Index p, float value) {
        x_[size_of(i * k_ + p)] = value;
        encode(i);
    }

    /// How many elements of row i of C must be NaN.
    Index nans(Index i) const {
        const auto row = want_.begin() + i * t_.panel_width;
        return std::count_if(row, row + t_.panel_width, [](float c) { return std::isnan(c); });
    }

    void check(Index rows, Index cols, Index gap, Index shift) const {
        const Index k = records_ * moe::record_rows;
        const Index q_row = k + gap, sums_row = records_ + gap / 32, c_row = cols + 3;
        const Index q_size = rows == 0 ? 0 : (rows - 1) * q_row + k;
        const Index sums_size = rows == 0 ? 0 : (rows - 1) * sums_row + records_;
        const Index c_size = rows == 0 ? 0 : (rows - 1) * c_row + cols;
        Guarded<std::int8_t> q_memory(q_size + 64);
        Guarded<std::int32_t> sums_memory(sums_size + 16);
        Guarded<float> scale_memory(rows + 16), c_memory(c_size + 16);
        Guarded<std::byte> panel_memory(panel_.size() + 64);
        std::int8_t* const q = q_memory.last(q_size + shift);
        std::int32_t* const sums = sums_memory.last(sums_size + shift / 4);
        float* const scale = scale_memory.last(rows + shift / 4);
        for (Index i = 0; i < rows; ++i) {
            std::copy_n(q_.data() + i * k, k, q + i * q_row);
            std::copy_n(sums_.data() + i * records_, records_, sums + i * sums_row);
            scale[i] = scale_[size_of(i)];
        }
        std::byte* const panel = panel_memory.last(panel_.size() + shift);
        std::copy_n(panel_.data(), panel_.size(), panel);
        float* const c = c_memory.last(c_size + shift / 4);
        std::vector<float> want(size_of(c_size), sentinel);
        std::fill(c, c + c_size, sentinel);
        for (Index i = 0; i < rows; ++i)
            std::copy_n(want_.data() + i * t_.panel_width, cols, want.data() + i * c_row);
        t_.product_int8(panel_.storage(), rows, cols, records_, {q, q_row, scale, sums, sums_row},
                        panel, c, c_row, shift == 0 ? panel : nullptr,
                        moe::Plan{}.tile_rows(panel_.storage()));
        ASSERT_TRUE(same(c_size, c, want.data()))
            << moe::name(panel_.storage()) << " rows " << rows << " cols " << cols << " records "
            << records_ << " gap " << gap << " shift " << shift;
    }

private:
    /// Row i of A, and of C by the reference.
    void encode(Index i) {
        const Index k = records_ * moe::record_rows, width = t_.panel_width;
        const moe::Int8Rows a{q_.data() + i * k, k, scale_.data() + i, sums_.data() + i * records_,
                              records_};
        t_.encode_int8(k_, x_.data() + i * k_, q_.data() + i * k, scale_.data() + i,
                       sums_.data() + i * records_);
        moe::exact::product_int8(panel_.storage(), 1, width, records_, a, width, panel_.data(),
                                 want_.data() + i * width, width);
    }

    const StorageTable& t_;
    Index k_, records_;
    StoredPanel panel_;
    std::vector<float> x_;
    std::vector<std::int8_t> q_;
    std::vector<float> scale_;
    std::vector<std::int32_t> sums_;
    std::vector<float> want_;
};

/// Panels that follow one another, between guard pages: each as alone.
TEST(StorageTable, ManyPanelsInAnyOrderAreThoseOfEach) {
    each_table([](const StorageTable& t) {
        Numbers random(21);
        for (const Storage storage : kernel_test::stored_forms)
            for (const Index k : {Index{40}, Index{700}, moe::StorageTable::row_chunk + 70}) {
                if (storage == Storage::f16) continue;
                const Index width = t.panel_width, panels = k > 1000 ? 3 : 9;
                const Index cols = panels * width - 5, records = StoredPanel::records(k);
                const Index size = moe::panel_layout(storage, width).bytes(k);
                Guarded<std::byte> all(panels * size);
                for (Index j = 0; j < panels; ++j) {
                    const StoredPanel panel(storage, width, k, width, random);
                    std::copy_n(panel.data(), size, all.last(panels * size) + j * size);
                }
                const std::byte* const b = all.last(panels * size);
                const std::vector<float> x = activations(most_rows, k, 0, random);
                const Index a_row = padded(k) * t.bf16_bytes, q_row = padded(k);
                std::vector<std::byte> a(size_of(most_rows * a_row));
                std::vector<std::int8_t> q(size_of(most_rows * q_row));
                std::vector<float> scale(size_of(most_rows));
                std::vector<std::int32_t> sums(size_of(most_rows * records));
                for (Index i = 0; i < most_rows; ++i) {
                    t.encode_bf16(k, x.data() + i * k, a.data() + i * a_row);
                    t.encode_int8(k, x.data() + i * k, q.data() + i * q_row, &scale[size_of(i)],
                                  sums.data() + i * records);
                }
                const auto product = [&](Index rows, Index columns, const std::byte* from, float* c,
                                         const std::byte* ahead) {
                    if (storage == Storage::bf16)
                        t.product_bf16(rows, columns, records, a.data(), a_row, from, c, cols,
                                       ahead, moe::Plan{}.bf16_tile_rows);
                    else
                        t.product_int8(storage, rows, columns, records,
                                       {q.data(), q_row, scale.data(), sums.data(), records}, from,
                                       c, cols, ahead, moe::Plan{}.tile_rows(storage));
                };
                for (const Index rows : {1, 2, 3, 4, 5, 6, 17, 33, 100}) {
                    if (rows > 33 && k > 100) continue;  // slow where tiles are emulated
                    std::vector<float> want(size_of(rows * cols));
                    for (Index j = 0; j < panels; ++j)
                        product(rows, std::min(width, cols - j * width), b + j * size,
                                want.data() + j * width, nullptr);
                    for (const kernel_test::Fetcher fetcher : kernel_test::fetchers) {
                        if (rows > 6 && fetcher == kernel_test::Fetcher::processor) continue;
                        const kernel_test::ScopedFetcher scoped(fetcher);
                        std::vector<float> got(want.size());
                        product(rows, cols, b, got.data(), rows == 1 ? nullptr : b);
                        ASSERT_TRUE(same(rows * cols, got.data(), want.data()))
                            << moe::name(storage) << " rows " << rows << " k " << k << " fetcher "
                            << static_cast<int>(fetcher);
                    }
                }
            }
    });
}

class StoredIntegers : public ::testing::TestWithParam<Storage> {};

TEST_P(StoredIntegers, ProductsAreExactSums) {
    each_table([](const StorageTable& t) {
        Numbers random(9);
        for (const Index k : depths) {
            const Int8Case product(t, GetParam(), k, 0, random);
            for (const Index rows : row_counts)
                for (const Index cols : {t.panel_width, t.panel_width - 3}) {
                    product.check(rows, cols, rows % 3 * 64, 0);
                    if (::testing::Test::HasFatalFailure()) return;
                }
        }
    });
}

TEST_P(StoredIntegers, ProductsAddChunksInFloat) {
    each_table([](const StorageTable& t) {
        Numbers random(10);
        for (const Index k : {2048, 2049, 4500})
            for (const int special : {0, 4}) {
                const Int8Case product(t, GetParam(), k, special, random);
                for (const Index rows : {1, 6, 15, 100}) {
                    product.check(rows, t.panel_width, 0, 0);
                    if (::testing::Test::HasFatalFailure()) return;
                }
            }
    });
}

TEST_P(StoredIntegers, ProductsTakeAnyColumnsAndAddresses) {
    each_table([](const StorageTable& t) {
        Numbers random(11);
        const Int8Case product(t, GetParam(), 65, 0, random);
        for (const Index rows : {1, 7, 15})
            for (Index cols = 1; cols <= t.panel_width; ++cols)
                for (const Index shift : {0, 4, 36}) {
                    product.check(rows, cols, 64, shift);
                    if (::testing::Test::HasFatalFailure()) return;
                }
    });
}

TEST_P(StoredIntegers, ProductsTakeAwkwardRows) {
    each_table([](const StorageTable& t) {
        Numbers random(12);
        for (const int special : {1, 2, 3})
            for (const Index k : {1, 64, 200}) {
                SCOPED_TRACE(special);
                const Int8Case product(t, GetParam(), k, special, random);
                for (const Index rows : {1, 6, 15, 100}) product.check(rows, t.panel_width, 0, 0);
                if (::testing::Test::HasFatalFailure()) return;
            }
    });
}

TEST_P(StoredIntegers, ProductsOfRowsWithNanAreNan) {
    each_table([](const StorageTable& t) {
        Numbers random(14);
        for (const Index k : {1, 64, 200}) {
            Int8Case product(t, GetParam(), k, 0, random);
            for (const float bad : {nan, inf, -inf})
                for (const Index row : {0, 5, 14, 99}) {
                    const Index p = row % 2 * (k - 1);
                    product.put(row, p, bad);
                    for (Index i = 0; i < most_rows; ++i)
                        ASSERT_EQ(product.nans(i), i == row ? t.panel_width : 0) << i;
                    for (const Index rows : {1, 6, 15, 100}) {
                        product.check(rows, t.panel_width, 0, 0);
                        if (::testing::Test::HasFatalFailure()) return;
                    }
                    product.put(row, p, 1.0f);
                }
        }
    });
}

INSTANTIATE_TEST_SUITE_P(StorageTable, StoredIntegers,
                         ::testing::Values(Storage::int8, Storage::int8_block, Storage::int4,
                                           Storage::int4_zero, Storage::ternary),
                         [](const auto& one) { return std::string(moe::name(one.param)); });

}  // namespace
