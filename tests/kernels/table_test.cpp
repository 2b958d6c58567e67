// SPDX-License-Identifier: MIT
// Every table this machine can run against the loops in reference.hpp, bit for bit.

#include <moe/kernels/table.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <moe/kernels/dispatch.hpp>
#include <moe/kernels/reference.hpp>

#include "guarded.hpp"

namespace {

using kernel_test::Guarded;
using kernel_test::Numbers;
using kernel_test::same;
using moe::Activation;
using moe::Index;
using moe::Isa;
using moe::KernelTable;

constexpr Index lengths[] = {0,  1,  2,  3,  7,  8,  9,   15,  16,  17,  31,  32,
                             33, 47, 63, 64, 65, 97, 255, 256, 257, 271, 511, 1000};

template <class S>
class Table : public ::testing::Test {
protected:
    static constexpr S nan = std::numeric_limits<S>::quiet_NaN();
    static constexpr S inf = std::numeric_limits<S>::infinity();

    /// Calls f(table) for each instruction set, with its name in the message of a failure.
    template <class F>
    void each_isa(const F& f) {
        for (const Isa isa : moe::supported_isas()) {
            SCOPED_TRACE(moe::name(isa));
            f(moe::kernels<S>(isa));
            if (this->HasFatalFailure()) return;
        }
    }

    /// n numbers whose first or last element touches a page that must not be read.
    S* numbers(Guarded<S>& memory, Index n, Numbers& random, double low = -2, double high = 2,
               bool at_start = false) {
        S* p = at_start ? memory.first(n) : memory.last(n);
        random.fill(n, p, low, high);
        return p;
    }

    /// g and u as KernelTable::gate_up takes them, no element more; what it must not use is NaN.
    static std::vector<S> alternating(Index n, const S* g, const S* u) {
        const auto at = [](Index i) { return static_cast<std::size_t>(i / 16 * 32 + i % 16); };
        std::vector<S> result(n > 0 ? at(n - 1) + 17 : 0, nan);
        for (Index i = 0; i < n; ++i) result[at(i)] = g[i], result[at(i) + 16] = u[i];
        return result;
    }

    /// Numbers that reach every branch of an elementwise function.
    static std::vector<S> awkward() {
        std::vector<S> x;
        const S tiny = std::numeric_limits<S>::min();
        const S denormal = std::numeric_limits<S>::denorm_min();
        const S huge = std::numeric_limits<S>::max();
        for (const S a : {S(0),    denormal, S(3) * denormal, tiny,    S(1e-20),
                          S(1e-7), S(0.1),   S(0.5),          S(1),    S(2),
                          S(5),    S(10),    S(13.5),         S(14.4), S(16),
                          S(19.9), S(20),    S(21),           S(40),   S(50),
                          S(87),   S(88.7),  S(89),           S(90),   S(103.9),
                          S(104),  S(105),   S(150),          S(700),  S(745),
                          S(800),  S(1e10),  S(1e20),         S(1e30), huge,
                          inf}) {
            x.push_back(a);
            x.push_back(-a);
        }
        x.push_back(nan);
        x.push_back(-nan);
        Numbers random(5);
        for (int i = 0; i < 2000; ++i) x.push_back(static_cast<S>(random.uniform(-30, 30)));
        for (int i = 0; i < 1000; ++i) x.push_back(static_cast<S>(random.uniform(-110, 110)));
        for (int i = 0; i < 500; ++i) x.push_back(static_cast<S>(random.uniform(-0.01, 0.01)));
        return x;
    }
};

using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(Table, Scalars);

TYPED_TEST(Table, SaysWhatItIs) {
    this->each_isa([](const KernelTable<TypeParam>& t) {
        EXPECT_GE(t.panel_width, 1);
        EXPECT_GE(t.tile_rows, 1);
        EXPECT_GE(t.column_rows, 1);
        EXPECT_LE(t.column_rows, t.tile_rows);
        EXPECT_GE(t.row_panels, 1);
        EXPECT_EQ(t.row == nullptr, t.row_panels == 1);
        EXPECT_NE(std::string(t.name), "");
    });
    EXPECT_STREQ(moe::kernels<TypeParam>(Isa::scalar).name, "scalar");
}

/// A(i, p) by rows, by columns and with gaps; gaps in A and C and unused columns of B hold NaN.
TYPED_TEST(Table, TilesAreOneFmaChainPerElement) {
    using S = TypeParam;
    Guarded<S> a_memory(200000), b_memory(40000), c_memory(2000);
    this->each_isa([&](const KernelTable<S>& t) {
        Numbers random(1);
        for (const Index k : {0, 1, 2, 3, 15, 16, 17, 64, 255, 256, 257})
            for (Index rows = 1; rows <= t.tile_rows; ++rows)
                for (const Index cols : {1, 15, 16, 17, 31, 32}) {
                    if (cols > t.panel_width) continue;
                    const int layout = static_cast<int>((k + rows + cols) % 3);
                    const Index a_row = layout == 0 ? k + 3 : layout == 1 ? 1 : 3 * k + 2;
                    const Index a_col = layout == 0 ? 1 : layout == 1 ? rows + 2 : 3;
                    const Index b_row = t.panel_width + (rows % 2 == 0 ? 0 : 5);
                    const Index c_row = cols + 3;
                    const Index a_size = k == 0 ? 0 : (rows - 1) * a_row + (k - 1) * a_col + 1;
                    const Index b_size = k == 0 ? 0 : (k - 1) * b_row + t.panel_width;
                    const Index c_size = (rows - 1) * c_row + cols;

                    S* a = a_memory.last(a_size);
                    S* b = b_memory.last(b_size);
                    S* c = c_memory.last(c_size);
                    std::fill(a, a + a_size, this->nan);
                    std::fill(b, b + b_size, this->nan);
                    for (Index p = 0; p < k; ++p) {
                        for (Index i = 0; i < rows; ++i) random.fill(1, a + i * a_row + p * a_col);
                        random.fill(cols, b + p * b_row);
                    }
                    for (const bool add : {false, true}) {
                        std::fill(c, c + c_size, this->nan);  // what is not added to is not read
                        if (add)
                            for (Index i = 0; i < rows; ++i) random.fill(cols, c + i * c_row);
                        std::vector<S> want(c, c + c_size);
                        moe::exact::tile(rows, cols, k, a, a_row, a_col, b, b_row, want.data(),
                                         c_row, add);
                        t.tile(rows, cols, k, a, a_row, a_col, b, b_row, c, c_row, add, {});
                        ASSERT_TRUE(same(c_size, c, want.data()))
                            << "rows " << rows << " cols " << cols << " k " << k << " a_row "
                            << a_row << " a_col " << a_col << " add " << add;
                    }
                }
    });
}

/// Panels with gaps of NaN between them, one row as it lies or with gaps.
TYPED_TEST(Table, RowsOfPanelsAreOneFmaChainPerElement) {
    using S = TypeParam;
    Guarded<S> a_memory(2000), b_memory(80000), c_memory(200);
    Index checked = 0;
    this->each_isa([&](const KernelTable<S>& t) {
        if (t.row == nullptr) return;
        ++checked;
        Numbers random(2);
        const Index width = t.panel_width, cols = t.row_panels * width;
        for (const Index k : {0, 1, 2, 3, 17, 64, 257})
            for (const Index a_col : {1, 3}) {
                const Index a_size = k == 0 ? 0 : (k - 1) * a_col + 1, b_panel = k * width + 5;
                const Index b_size = b_panel * (t.row_panels - 1) + k * width;
                S* a = a_memory.last(a_size);
                S* b = b_memory.last(b_size);
                S* c = a_col == 1 ? c_memory.last(cols) : c_memory.first(cols);
                std::fill(a, a + a_size, this->nan);
                std::fill(b, b + b_size, this->nan);
                for (Index p = 0; p < k; ++p) random.fill(1, a + p * a_col);
                for (Index j = 0; j < t.row_panels; ++j) random.fill(k * width, b + j * b_panel);
                for (const bool add : {false, true}) {
                    if (add)
                        random.fill(cols, c);
                    else
                        std::fill(c, c + cols, this->nan);
                    std::vector<S> want(c, c + cols);
                    for (Index j = 0; j < t.row_panels; ++j)
                        moe::exact::tile(1, width, k, a, 0, a_col, b + j * b_panel, width,
                                         want.data() + j * width, width, add);
                    t.row(k, a, a_col, b, b_panel, c, add);
                    ASSERT_TRUE(same(cols, c, want.data()))
                        << "k " << k << " a_col " << a_col << " add " << add;
                }
            }
    });
    if (checked == 0) GTEST_SKIP() << "no instruction set of this machine has such a kernel";
}

TYPED_TEST(Table, TilesDoNotTouchWhatIsBesideThem) {
    using S = TypeParam;
    this->each_isa([&](const KernelTable<S>& t) {
        const S sentinel = S(-12345.5);
        for (const Index cols : {1, 7, 8, 15, 16, 17, 31, 32}) {
            if (cols > t.panel_width) continue;
            const Index rows = t.tile_rows, c_row = t.panel_width + 7;
            std::vector<S> a(static_cast<std::size_t>(rows * 4), S(1));
            std::vector<S> b(static_cast<std::size_t>(t.panel_width * 4), S(1));
            std::vector<S> c(static_cast<std::size_t>((rows + 2) * c_row), sentinel);
            t.tile(rows, cols, 4, a.data(), 4, 1, b.data(), t.panel_width, c.data() + c_row, c_row,
                   false, {});
            for (Index i = 0; i < rows + 2; ++i)
                for (Index j = 0; j < c_row; ++j) {
                    const bool inside = i >= 1 && i <= rows && j < cols;
                    ASSERT_EQ(c[static_cast<std::size_t>(i * c_row + j)], inside ? S(4) : sentinel)
                        << "row " << i << " column " << j << " cols " << cols;
                }
        }
    });
}

TYPED_TEST(Table, TilesAreAsGoodAsTheirChain) {
    using S = TypeParam;
    const Index k = 257;
    this->each_isa([&](const KernelTable<S>& t) {
        Numbers random(2);
        const Index rows = t.tile_rows, cols = t.panel_width;
        std::vector<S> a(static_cast<std::size_t>(rows * k));
        std::vector<S> b(static_cast<std::size_t>(k * cols));
        std::vector<S> c(static_cast<std::size_t>(rows * cols));
        std::vector<double> want(c.size());
        random.fill(rows * k, a.data());
        random.fill(k * cols, b.data());
        t.tile(rows, cols, k, a.data(), k, 1, b.data(), cols, c.data(), cols, false, {});
        moe::plain::tile(rows, cols, k, a.data(), k, 1, b.data(), cols, want.data(), cols, false);
        // |error| <= k eps sum |a b| for one chain of k roundings; |a|, |b| <= 2.
        const double tolerance =
            static_cast<double>(k) * std::numeric_limits<S>::epsilon() * 4 * static_cast<double>(k);
        for (std::size_t i = 0; i < c.size(); ++i)
            ASSERT_TRUE(std::fabs(double(c[i]) - want[i]) <= tolerance) << i;
    });
}

/// Columns one after the other and with gaps, at either end of what may be read; k of more than one
/// prefetched piece. Gaps in A and B hold NaN, those in C keep it.
TYPED_TEST(Table, ReadsColumnsWhereTheyLie) {
    using S = TypeParam;
    Guarded<S> a_memory(40000), b_memory(300000), c_memory(2000);
    this->each_isa([&](const KernelTable<S>& t) {
        Numbers random(9);
        for (const Index k : {0, 1, 2, 3, 4, 5, 7, 8, 16, 19, 64, 100, 257, 2051, 4100})
            for (Index rows = 1; rows <= t.column_rows; ++rows)
                for (const Index cols : {0, 1, 15, 16, 17, 31, 32, 33, 48, 65}) {
                    if (k > 1000 && cols % 16 > 1) continue;
                    const Index a_row = k + rows % 3, b_col = k + (k + cols) % 4 * 3,
                                c_row = cols + 2;
                    const Index a_size = (rows - 1) * a_row + k;
                    const Index b_size = cols == 0 ? 0 : (cols - 1) * b_col + k;
                    const Index c_size = (rows - 1) * c_row + cols;
                    S* a = a_memory.last(a_size);
                    S* b = rows % 2 == 0 ? b_memory.last(b_size) : b_memory.first(b_size);
                    S* c = c_memory.last(c_size);
                    std::fill(a, a + a_size, this->nan);
                    std::fill(b, b + b_size, this->nan);
                    for (Index i = 0; i < rows; ++i) random.fill(k, a + i * a_row);
                    for (Index j = 0; j < cols; ++j) random.fill(k, b + j * b_col);
                    for (const bool add : {false, true}) {
                        std::fill(c, c + c_size, this->nan);  // what is not added to is not read
                        if (add)
                            for (Index i = 0; i < rows; ++i) random.fill(cols, c + i * c_row);
                        std::vector<S> want(c, c + c_size);
                        moe::exact::columns(rows, cols, k, a, a_row, b, b_col, want.data(), c_row,
                                            add);
                        t.columns(rows, cols, k, a, a_row, b, b_col, c, c_row, add);
                        ASSERT_TRUE(same(c_size, c, want.data()))
                            << "rows " << rows << " cols " << cols << " k " << k << " b_col "
                            << b_col << " add " << add;
                    }
                }
    });
}

TYPED_TEST(Table, ColumnsAreAsGoodAsTheirChain) {
    using S = TypeParam;
    const Index k = 257, cols = 37;
    this->each_isa([&](const KernelTable<S>& t) {
        Numbers random(10);
        const Index rows = t.column_rows;
        std::vector<S> a(static_cast<std::size_t>(rows * k)), b(static_cast<std::size_t>(cols * k));
        std::vector<S> c(static_cast<std::size_t>(rows * cols));
        std::vector<double> want(c.size());
        random.fill(rows * k, a.data());
        random.fill(cols * k, b.data());
        t.columns(rows, cols, k, a.data(), k, b.data(), k, c.data(), cols, false);
        moe::plain::columns(rows, cols, k, a.data(), k, b.data(), k, want.data(), cols, false);
        const double tolerance =  // as for tiles
            static_cast<double>(k) * std::numeric_limits<S>::epsilon() * 4 * static_cast<double>(k);
        for (std::size_t i = 0; i < c.size(); ++i)
            ASSERT_TRUE(std::fabs(double(c[i]) - want[i]) <= tolerance) << i;
    });
}

TYPED_TEST(Table, PacksAnyStridesAndPadsWithZeros) {
    using S = TypeParam;
    Guarded<S> b_memory(200000), panel_memory(20000);
    this->each_isa([&](const KernelTable<S>& t) {
        Numbers random(3);
        const Index width = t.panel_width;
        for (const Index k : {0, 1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 100, 257})
            for (Index cols = 1; cols <= width; ++cols)
                for (int layout = 0; layout < 5; ++layout) {
                    const Index b_row = layout == 0   ? cols + 2  // contiguous rows
                                        : layout == 1 ? 1         // contiguous columns
                                        : layout == 2 ? 1
                                        : layout == 3 ? 3 * cols + 1
                                                      : cols;
                    const Index b_col = layout == 0   ? 1
                                        : layout == 1 ? k + 5
                                        : layout == 2 ? (k > 0 ? k : 1)
                                        : layout == 3 ? 3
                                                      : 1;
                    const Index size = k == 0 ? 0 : (k - 1) * b_row + (cols - 1) * b_col + 1;
                    S* b = b_memory.last(size);
                    std::fill(b, b + size, this->nan);
                    for (Index p = 0; p < k; ++p)
                        for (Index j = 0; j < cols; ++j) random.fill(1, b + p * b_row + j * b_col);
                    S* panel = panel_memory.last(k * width);
                    std::fill(panel, panel + k * width, this->nan);
                    std::vector<S> want(static_cast<std::size_t>(k * width));
                    moe::exact::pack(k, cols, width, b, b_row, b_col, want.data());
                    t.pack(k, cols, b, b_row, b_col, panel);
                    ASSERT_TRUE(same(k * width, panel, want.data()))
                        << "k " << k << " cols " << cols << " b_row " << b_row << " b_col "
                        << b_col;
                }
    });
}

TYPED_TEST(Table, SumsHaveSixteenPartials) {
    using S = TypeParam;
    Guarded<S> x_memory(2000), y_memory(2000);
    this->each_isa([&](const KernelTable<S>& t) {
        Numbers random(4);
        for (const Index n : lengths)
            for (const bool at_start : {false, true}) {
                const S* x = this->numbers(x_memory, n, random, -2, 2, at_start);
                const S* y = this->numbers(y_memory, n, random, -2, 2, at_start);
                ASSERT_TRUE(same(t.dot(n, x, y), moe::exact::dot(n, x, y))) << n;
                ASSERT_TRUE(same(t.sum(n, x), moe::exact::sum(n, x))) << n;
                const double tolerance =
                    8.0 * std::numeric_limits<S>::epsilon() * static_cast<double>(n);
                ASSERT_TRUE(std::fabs(double(t.dot(n, x, y)) - moe::plain::dot(n, x, y)) <=
                            tolerance);
                ASSERT_TRUE(std::fabs(double(t.sum(n, x)) - moe::plain::sum(n, x)) <= tolerance);
            }
    });
}

TYPED_TEST(Table, SumsKeepTheSignOfWhatUnderflows) {
    using S = TypeParam;
    this->each_isa([&](const KernelTable<S>& t) {
        const std::vector<S> tiny(40, std::numeric_limits<S>::min());
        const std::vector<S> minus(40, -std::numeric_limits<S>::min());
        for (const Index n : {15, 16, 17, 31, 33, 40})
            ASSERT_TRUE(same(t.dot(n, tiny.data(), minus.data()),
                             moe::exact::dot(n, tiny.data(), minus.data())))
                << n;
        const std::vector<S> zeros(40, -S(0));
        ASSERT_TRUE(same(t.sum(33, zeros.data()), S(0)));
    });
}

TYPED_TEST(Table, AxpyAndScaleWriteTheirRangeOnly) {
    using S = TypeParam;
    Guarded<S> x_memory(2000), y_memory(2000);
    this->each_isa([&](const KernelTable<S>& t) {
        Numbers random(6);
        for (const Index n : lengths)
            for (const bool at_start : {false, true}) {
                const S* x = this->numbers(x_memory, n, random, -2, 2, at_start);
                S* y = this->numbers(y_memory, n, random, -2, 2, at_start);
                std::vector<S> want(y, y + n);
                moe::exact::axpy(n, S(0.3), x, want.data());
                t.axpy(n, S(0.3), x, y);
                ASSERT_TRUE(same(n, y, want.data())) << n;
                moe::exact::scale(n, S(-1.7), x, want.data());
                t.scale(n, S(-1.7), x, y);
                ASSERT_TRUE(same(n, y, want.data())) << n;
                t.scale(n, S(-1.7), y, y);  // in place
                moe::exact::scale(n, S(-1.7), want.data(), want.data());
                ASSERT_TRUE(same(n, y, want.data())) << n;
            }
    });
}

TYPED_TEST(Table, SoftmaxSumsToOne) {
    using S = TypeParam;
    Guarded<S> x_memory(2000), y_memory(2000);
    this->each_isa([&](const KernelTable<S>& t) {
        Numbers random(7);
        for (const Index n : lengths)
            for (const double width : {1.0, 20.0, 300.0}) {
                S* x = this->numbers(x_memory, n, random, -width, width);
                S* y = y_memory.last(n);
                std::vector<S> want(static_cast<std::size_t>(n));
                std::vector<double> plain(static_cast<std::size_t>(n));
                moe::exact::softmax(n, x, want.data());
                moe::plain::softmax(n, x, plain.data());
                t.softmax(n, x, y);
                ASSERT_TRUE(same(n, y, want.data())) << n;
                double sum = 0;
                for (Index i = 0; i < n; ++i) {
                    sum += double(y[i]);
                    // x - max is rounded to S, so the error grows with the width.
                    const double tolerance = (4 * width + 8) * std::numeric_limits<S>::epsilon();
                    ASSERT_TRUE(std::fabs(double(y[i]) - plain[static_cast<std::size_t>(i)]) <=
                                tolerance * plain[static_cast<std::size_t>(i)] +
                                    std::numeric_limits<S>::min())
                        << i;
                }
                if (n > 0) {
                    ASSERT_TRUE(std::fabs(sum - 1) <=
                                static_cast<double>(n + 16) * std::numeric_limits<S>::epsilon());
                }
                ASSERT_TRUE(same(t.log_sum_exp(n, x), moe::exact::log_sum_exp(n, x))) << n;
                if (n > 0) {
                    const double lse = moe::plain::log_sum_exp(n, x);
                    ASSERT_TRUE(std::fabs(double(t.log_sum_exp(n, x)) - lse) <=
                                8 * std::numeric_limits<S>::epsilon() * (1 + std::fabs(lse)));
                }
                t.softmax(n, x, x);  // in place
                ASSERT_TRUE(same(n, x, want.data())) << n;
            }
    });
}

TYPED_TEST(Table, SoftmaxOfAwkwardRowsIsDefined) {
    using S = TypeParam;
    const S most = this->inf, none = this->nan;
    this->each_isa([&](const KernelTable<S>& t) {
        for (const Index n : {1, 2, 15, 16, 17, 33, 300}) {
            const auto row = [n](S value) {
                return std::vector<S>(static_cast<std::size_t>(n), value);
            };
            std::vector<S> y = row(S(7));

            t.softmax(n, row(-most).data(), y.data());
            for (const S e : y) ASSERT_TRUE(same(e, S(0)));
            ASSERT_EQ(t.log_sum_exp(n, row(-most).data()), -most);

            t.softmax(n, row(S(3)).data(), y.data());
            for (const S e : y) ASSERT_EQ(e, S(1) / static_cast<S>(n));

            for (Index at = 0; at < n; at += 1 + at) {  // a NaN, wherever it is
                for (const S rest : {S(1), -most, most}) {
                    std::vector<S> x = row(rest);
                    x[static_cast<std::size_t>(at)] = none;
                    t.softmax(n, x.data(), y.data());
                    for (const S e : y) ASSERT_NE(e, e) << n << " " << at << " " << rest;
                    const S lse = t.log_sum_exp(n, x.data());
                    ASSERT_NE(lse, lse);
                }
                std::vector<S> x = row(S(1));
                x[static_cast<std::size_t>(at)] = most;
                t.softmax(n, x.data(), y.data());
                for (const S e : y) ASSERT_NE(e, e);
                ASSERT_EQ(t.log_sum_exp(n, x.data()), most);

                x = row(-most);  // one that is not masked
                x[static_cast<std::size_t>(at)] = S(-5);
                t.softmax(n, x.data(), y.data());
                for (Index i = 0; i < n; ++i)
                    ASSERT_EQ(y[static_cast<std::size_t>(i)], i == at ? S(1) : S(0));
                ASSERT_EQ(t.log_sum_exp(n, x.data()), S(-5));
            }
        }
        EXPECT_EQ(t.log_sum_exp(0, nullptr), -most);
        t.softmax(0, nullptr, nullptr);
    });
}

TYPED_TEST(Table, ElementwiseFunctionsEqualTheirReferenceOnAwkwardNumbers) {
    using S = TypeParam;
    const std::vector<S> x = this->awkward();
    const auto n = static_cast<Index>(x.size());
    Numbers random(8);
    std::vector<S> u(x.size()), d(x.size()), y(x.size()), z(x.size()), want(x.size()),
        want_too(x.size());
    random.fill(n, u.data());
    random.fill(n, d.data());
    this->each_isa([&](const KernelTable<S>& t) {
        t.sigmoid(n, x.data(), y.data());
        for (std::size_t i = 0; i < x.size(); ++i)
            ASSERT_TRUE(same(y[i], moe::exact::sigmoid(x[i]))) << x[i];
        for (const Activation act : moe::all_activations) {
            SCOPED_TRACE(static_cast<int>(act));
            t.activate(act, n, x.data(), y.data());
            moe::exact::activate(act, n, x.data(), want.data());
            for (std::size_t i = 0; i < x.size(); ++i)
                ASSERT_TRUE(same(y[i], want[i])) << x[i] << ": " << y[i] << ", not " << want[i];
            t.activate_backward(act, n, x.data(), d.data(), y.data());
            moe::exact::activate_backward(act, n, x.data(), d.data(), want.data());
            for (std::size_t i = 0; i < x.size(); ++i)
                ASSERT_TRUE(same(y[i], want[i])) << x[i] << ": " << y[i] << ", not " << want[i];
            t.gate(act, n, x.data(), u.data(), y.data());
            moe::exact::gate(act, n, x.data(), u.data(), want.data());
            ASSERT_TRUE(same(n, y.data(), want.data()));
            const auto gu = this->alternating(n, x.data(), u.data());
            std::fill(y.begin(), y.end(), S(-1));
            t.gate_up(act, n, gu.data(), y.data());
            ASSERT_TRUE(same(n, y.data(), want.data()));
            moe::exact::gate_up(act, n, gu.data(), z.data());
            ASSERT_TRUE(same(n, z.data(), want.data()));
            t.gate_backward(act, n, x.data(), u.data(), d.data(), y.data(), z.data());
            moe::exact::gate_backward(act, n, x.data(), u.data(), d.data(), want.data(),
                                      want_too.data());
            ASSERT_TRUE(same(n, y.data(), want.data()));
            ASSERT_TRUE(same(n, z.data(), want_too.data()));
        }
    });
}

TYPED_TEST(Table, ElementwiseFunctionsStayInTheirArrays) {
    using S = TypeParam;
    Guarded<S> g_memory(2000), u_memory(2000), d_memory(2000), y_memory(2000), z_memory(2000),
        gu_memory(4064);
    this->each_isa([&](const KernelTable<S>& t) {
        Numbers random(9);
        for (const Index n : lengths)
            for (const bool at_start : {false, true})
                for (const Activation act : moe::all_activations) {
                    const S* g = this->numbers(g_memory, n, random, -4, 4, at_start);
                    const S* u = this->numbers(u_memory, n, random, -4, 4, at_start);
                    const S* d = this->numbers(d_memory, n, random, -4, 4, at_start);
                    S* y = this->numbers(y_memory, n, random, -4, 4, at_start);
                    S* z = this->numbers(z_memory, n, random, -4, 4, at_start);
                    std::vector<S> want(static_cast<std::size_t>(n)), want_too(want);
                    t.sigmoid(n, g, y);
                    for (Index i = 0; i < n; ++i)
                        ASSERT_TRUE(same(y[i], moe::exact::sigmoid(g[i])));
                    t.activate(act, n, g, y);
                    moe::exact::activate(act, n, g, want.data());
                    ASSERT_TRUE(same(n, y, want.data())) << n;
                    t.activate_backward(act, n, g, d, y);
                    moe::exact::activate_backward(act, n, g, d, want.data());
                    ASSERT_TRUE(same(n, y, want.data())) << n;
                    t.gate(act, n, g, u, y);
                    moe::exact::gate(act, n, g, u, want.data());
                    ASSERT_TRUE(same(n, y, want.data())) << n;
                    const auto both = this->alternating(n, g, u);
                    const auto size = static_cast<Index>(both.size());
                    S* gu = at_start ? gu_memory.first(size) : gu_memory.last(size);
                    std::copy(both.begin(), both.end(), gu);
                    this->numbers(y_memory, n, random, -4, 4, at_start);
                    t.gate_up(act, n, gu, y);
                    ASSERT_TRUE(same(n, y, want.data())) << n;
                    t.gate_backward(act, n, g, u, d, y, z);
                    moe::exact::gate_backward(act, n, g, u, d, want.data(), want_too.data());
                    ASSERT_TRUE(same(n, y, want.data())) << n;
                    ASSERT_TRUE(same(n, z, want_too.data())) << n;
                }
    });
}

TYPED_TEST(Table, ElementwiseFunctionsWorkInPlaceWhereTheySaySo) {
    using S = TypeParam;
    this->each_isa([&](const KernelTable<S>& t) {
        Numbers random(10);
        for (const Index n : {5, 16, 300, 600})
            for (const Activation act : moe::all_activations) {
                std::vector<S> g(static_cast<std::size_t>(n)), u(g), d(g), y(g), z(g);
                random.fill(n, g.data());
                random.fill(n, u.data());
                random.fill(n, d.data());

                std::vector<S> in = g;
                t.activate(act, n, g.data(), y.data());
                t.activate(act, n, in.data(), in.data());
                ASSERT_TRUE(same(n, in.data(), y.data()));
                in = d;
                t.activate_backward(act, n, g.data(), d.data(), y.data());
                t.activate_backward(act, n, g.data(), in.data(), in.data());
                ASSERT_TRUE(same(n, in.data(), y.data()));
                in = g;
                t.sigmoid(n, g.data(), y.data());
                t.sigmoid(n, in.data(), in.data());
                ASSERT_TRUE(same(n, in.data(), y.data()));

                t.gate_backward(act, n, g.data(), u.data(), d.data(), y.data(), z.data());
                in = g;
                std::vector<S> up = u;
                t.gate_backward(act, n, in.data(), up.data(), d.data(), in.data(), up.data());
                ASSERT_TRUE(same(n, in.data(), y.data()));
                ASSERT_TRUE(same(n, up.data(), z.data()));
                in = d;
                t.gate_backward(act, n, g.data(), u.data(), in.data(), in.data(), up.data());
                ASSERT_TRUE(same(n, in.data(), y.data()));
            }
    });
}

TYPED_TEST(Table, ActivationsHaveTheirLimits) {
    using S = TypeParam;
    const S most = this->inf;
    this->each_isa([&](const KernelTable<S>& t) {
        const S one = S(1);
        for (const Activation act : moe::all_activations) {
            SCOPED_TRACE(static_cast<int>(act));
            const auto value = [&](S a) {
                S h;
                t.activate(act, 1, &a, &h);
                return h;
            };
            const auto slope = [&](S a) {
                S da;
                t.activate_backward(act, 1, &a, &one, &da);
                return da;
            };
            EXPECT_EQ(value(most), most);
            EXPECT_EQ(value(-most), S(0));
            EXPECT_EQ(slope(-most), S(0));
            EXPECT_EQ(slope(most), act == Activation::relu_squared ? most : S(1));
            EXPECT_EQ(value(S(0)), S(0));
            EXPECT_TRUE(std::isnan(value(this->nan)));
            if (act != Activation::relu) {
                EXPECT_TRUE(std::isnan(slope(this->nan)));
            } else {
                EXPECT_EQ(slope(S(0)), S(0));
                EXPECT_EQ(slope(this->nan), S(1));
            }
            // Denormals are not lost: act(a) is a / 2 there, a for relu.
            const S small = std::numeric_limits<S>::min() / 16;
            const S factor = act == Activation::relu           ? S(1)
                             : act == Activation::relu_squared ? S(0)
                                                               : S(0.5);
            EXPECT_EQ(value(small), factor * small);
        }
        const S ends[2] = {-most, most};
        S s[2];
        t.sigmoid(2, ends, s);
        EXPECT_EQ(s[0], S(0));
        EXPECT_EQ(s[1], S(1));
    });
}

/// Rows to choose from, by kind: no ties, few values, zeros of both signs, holes of -inf, NaN and
/// infinities among them, all equal, rising, falling, and large keys in one column of 16 only.
template <class S>
void fill_keys(int kind, Index n, S* keys, Numbers& random) {
    constexpr S inf = std::numeric_limits<S>::infinity();
    constexpr S nan = std::numeric_limits<S>::quiet_NaN();
    for (Index i = 0; i < n; ++i) {
        const auto value = static_cast<S>(random.uniform(-3, 3));
        const double dice = random.uniform(0, 1);
        const auto place = static_cast<S>(i);
        keys[i] = kind == 0    ? value
                  : kind == 1  ? std::round(value)
                  : kind == 2  ? (dice < 0.4   ? S(0)
                                  : dice < 0.8 ? -S(0)
                                               : value)
                  : kind == 3  ? (dice < 0.7 ? -inf : value)
                  : kind == 4  ? (dice < 0.3   ? nan
                                  : dice < 0.5 ? -inf
                                  : dice < 0.6 ? inf
                                               : value)
                  : kind == 5  ? (dice < 0.9    ? nan
                                  : dice < 0.95 ? -inf
                                                : std::round(value))
                  : kind == 6  ? S(-7)
                  : kind == 7  ? place
                  : kind == 8  ? -place
                  : kind == 9  ? (i % 16 == 5 ? 100 + value : value)
                  : dice < 0.5 ? std::numeric_limits<S>::lowest()
                               : (dice < 0.8 ? -inf : nan);
    }
}
constexpr int key_kinds = 11;

TYPED_TEST(Table, TopKIsTheHeadOfTheOrder) {
    using S = TypeParam;
    Guarded<S> memory(2000);
    Guarded<std::int32_t> best_memory(2000);
    this->each_isa([&](const KernelTable<S>& t) {
        Numbers random(12);
        for (const Index n : lengths)
            for (int kind = 0; kind < key_kinds; ++kind)
                for (const Index k : {0, 1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 300}) {
                    if (n > 300 && k > 17) continue;  // the reference takes its time
                    S* keys = k % 2 == 0 ? memory.last(n) : memory.first(n);
                    fill_keys(kind, n, keys, random);
                    const Index room = std::min(n, k);
                    std::vector<std::int32_t> want(static_cast<std::size_t>(room));
                    const Index count = moe::exact::top_k(n, keys, k, want.data());
                    std::int32_t* best = best_memory.last(room);
                    std::fill(best, best + room, -1);
                    ASSERT_EQ(t.top_k(n, keys, k, best), count)
                        << "n " << n << " k " << k << " kind " << kind;
                    for (Index i = 0; i < count; ++i)
                        ASSERT_EQ(best[i], want[static_cast<std::size_t>(i)])
                            << "place " << i << " n " << n << " k " << k << " kind " << kind;
                }
    });
}

TYPED_TEST(Table, TopTwoAreThoseOfEachRun) {
    using S = TypeParam;
    Guarded<S> memory(2000), first_memory(200), second_memory(200);
    this->each_isa([&](const KernelTable<S>& t) {
        Numbers random(13);
        for (const Index runs : {0, 1, 2, 3, 7, 8, 16, 17, 32})
            for (const Index size : {0, 1, 2, 4, 8, 12, 15, 16, 17, 20, 32, 48, 53})
                for (int kind = 0; kind < key_kinds; ++kind) {
                    const Index n = runs * size;
                    S* keys = kind % 2 == 0 ? memory.last(n) : memory.first(n);
                    fill_keys(kind, n, keys, random);
                    std::vector<S> want(static_cast<std::size_t>(2 * runs));
                    moe::exact::top_two(runs, size, keys, want.data(), want.data() + runs);
                    S* first = first_memory.last(runs);
                    S* second = second_memory.last(runs);
                    t.top_two(runs, size, keys, first, second);
                    for (Index r = 0; r < runs; ++r) {  // as numbers: 0 and -0 may stand for each
                        ASSERT_EQ(first[r], want[static_cast<std::size_t>(r)])
                            << "run " << r << " of " << runs << " x " << size << " kind " << kind;
                        ASSERT_EQ(second[r], want[static_cast<std::size_t>(runs + r)])
                            << "run " << r << " of " << runs << " x " << size << " kind " << kind;
                    }
                }
    });
}

TYPED_TEST(Table, OneElementThatIsNotFiniteIsFoundAnywhere) {
    using S = TypeParam;
    Guarded<S> memory(2000);
    this->each_isa([&](const KernelTable<S>& t) {
        for (const Index n : lengths) {
            S* x = memory.last(n);
            std::fill(x, x + n, std::numeric_limits<S>::max());
            ASSERT_TRUE(t.is_finite(n, x)) << n;
            for (Index at = 0; at < n; ++at)
                for (const S bad : {this->nan, this->inf, -this->inf}) {
                    const S good = std::exchange(x[at], bad);
                    ASSERT_FALSE(t.is_finite(n, x)) << at << " of " << n;
                    ASSERT_EQ(t.is_finite(n, x), moe::exact::is_finite(n, x));
                    x[at] = good;
                }
        }
    });
}

/// One float binary gives one answer: all tables agree with each other on everything above, since
/// each equals the reference; this says it once without the reference in between.
TEST(FloatTables, AgreeOnAProductWhateverTheirTile) {
    Numbers random(11);
    const Index k = 300;
    std::vector<float> a(static_cast<std::size_t>(k)), b(static_cast<std::size_t>(k * 32));
    random.fill(k, a.data());
    random.fill(k * 32, b.data());
    for (const Isa isa : moe::supported_isas()) {
        float c[32], first[32];
        moe::kernels<float>(Isa::scalar)
            .tile(1, 16, k, a.data(), 1, 1, b.data(), 32, first, 32, false, {});
        moe::kernels<float>(isa).tile(1, 16, k, a.data(), 1, 1, b.data(), 32, c, 32, false, {});
        EXPECT_TRUE(same<float>(16, c, first)) << moe::name(isa);
    }
}

}  // namespace
