// SPDX-License-Identifier: MIT
#include <moe/gates/capacity_limit.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>

#include <gtest/gtest.h>

#include "support/message.hpp"

namespace {

using moe::CapacityLimit;
using moe::Index;
using Rounding = CapacityLimit::Rounding;

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr Index most = std::numeric_limits<std::int32_t>::max();

/// C for one class of experts and k assignments of every token.
Index of(const CapacityLimit& limit, Index tokens, Index experts, Index k = 1) {
    return limit(tokens, tokens * k, experts, 0);
}

/// f(T, E, k, factor) over a grid.
template <class F>
void for_grid(F&& f) {
    for (const Index experts : {1, 2, 3, 5, 8, 12, 60, 64, 128})
        for (Index tokens = 0; tokens < 260; ++tokens)
            for (const Index k : {1, 2, 6})
                for (const double factor : {0.5, 1.0, 1.05, 1.2, 1.25, 2.0, 2.4})
                    f(tokens, experts, k, factor);
}

/// Python's int(), math.ceil() and round() of a double, without this library's rounding.
Index python_int(double x) { return static_cast<Index>(x); }
Index python_ceil(double x) {
    const Index whole = static_cast<Index>(x);
    return static_cast<double>(whole) < x ? whole + 1 : whole;
}
Index python_round(double x) { return static_cast<Index>(std::nearbyint(x)); }  // half to even
Index up_to_multiple(Index count, Index of) { return (count + of - 1) / of * of; }

// ---- worked by hand ----

TEST(CapacityLimit, IsWhatOneWorksOutByHand) {
    EXPECT_EQ(of(CapacityLimit{}, 100, 8), 16);                    // ceil(15.625)
    EXPECT_EQ(of(CapacityLimit::gshard(), 100, 8), 15);            // floor(15.625)
    EXPECT_EQ(of(CapacityLimit::gshard(), 100, 8, 2), 15);         // no k
    EXPECT_EQ(of(CapacityLimit::gshard(2), 100, 8), 25);           // evaluation
    EXPECT_EQ(of(CapacityLimit::gshard(), 8, 8), 4);               // the minimum
    EXPECT_EQ(of(CapacityLimit::gshard(1.25, 0), 8, 8), 1);        // floor(1.25)
    EXPECT_EQ(of(CapacityLimit::gshard(1.2), 35, 3), 14);          // 42 / 3, exactly
    EXPECT_EQ(of(CapacityLimit::deepspeed(1.5), 100, 8, 2), 38);   // ceil(37.5)
    EXPECT_EQ(of(CapacityLimit::deepspeed(1, 8), 10, 8, 1), 8);    // ceil(1.25) < 8
    EXPECT_EQ(of(CapacityLimit::megatron(), 10, 4, 2), 5);         // 20 / 4
    EXPECT_EQ(of(CapacityLimit::megatron(), 11, 4, 2), 6);         // ceil(5.5)
    EXPECT_EQ(of(CapacityLimit::megatron(), 0, 4, 2), 0);          //
    EXPECT_EQ(of(CapacityLimit::flaxformer(), 20, 5, 3), 5);       // 25 / 5, no k
    EXPECT_EQ(of(CapacityLimit::flaxformer(1, 0), 5, 2), 2);       // 2.5, half to even
    EXPECT_EQ(of(CapacityLimit::flaxformer(1, 0), 7, 2), 4);       // 3.5, half to even
    EXPECT_EQ(of(CapacityLimit::flaxformer(1.05), 230, 3), 80);    // 241.5 / 3 = 80.5
    EXPECT_EQ(of(CapacityLimit::flaxformer(), 3, 5), 4);           // the minimum
    EXPECT_EQ(of(CapacityLimit::vmoe(), 196, 8, 1), 28);           // ceil(25.725) = 26
    EXPECT_EQ(of(CapacityLimit::vmoe(), 5, 3, 4), 8);              // 7 exactly, up to 8
    EXPECT_EQ(of(CapacityLimit::tutel(2), 10, 4, 2), 6);           // 2 floor(ceil(2.5))
    EXPECT_EQ(of(CapacityLimit::tutel(2, 1.25), 10, 4, 2), 6);     // 2 floor(3.75)
    EXPECT_EQ(of(CapacityLimit::tutel(2, 1.25, 4), 10, 4, 2), 8);  // up to 8
    EXPECT_EQ(of(CapacityLimit::evo_moe(1.5), 10, 4), 4);          // floor(4.5)
    EXPECT_EQ(of(CapacityLimit::nllb(), 10, 4, 2), 6);             // 2 * 3
    EXPECT_EQ(of(CapacityLimit::hunyuan(2), 10, 8, 2), 2);         // floor(2.5)
    EXPECT_EQ(of(CapacityLimit::hunyuan(4), 5, 16, 4), 4);         // floor(1.25) < 4
    EXPECT_EQ(of(CapacityLimit::openmoe(), 100, 32, 2), 8);        // floor(7.8125) = 7
    EXPECT_EQ(of(CapacityLimit::openmoe(1.2), 35, 3, 2), 28);      // 84 / 3, even
    EXPECT_EQ(of(CapacityLimit::openmoe(), 3, 32, 2), 4);          // the minimum
    EXPECT_EQ(of(CapacityLimit::of_tokens(1.2), 10, 4, 2), 12);    // not divided by E
    EXPECT_EQ(of(CapacityLimit::of_tokens(0.25), 10, 4, 2), 3);    // ceil(2.5)
    EXPECT_EQ(of(CapacityLimit::uni_moe(), 10, 3), 10);            // ceil(10)
    EXPECT_EQ(of(CapacityLimit::uni_moe(), 10, 4), 8);             // ceil(7.5)
    EXPECT_EQ(of(CapacityLimit::uni_moe(), 4, 4, 3), 8);           // the minimum
    EXPECT_EQ(of(CapacityLimit::constant(64), 10, 4, 2), 64);      //
    EXPECT_EQ(of(CapacityLimit::constant(0), 10, 4, 2), 0);        //
    EXPECT_EQ(of(CapacityLimit::none(), 10, 4, 2), most);          //
}

TEST(CapacityLimit, OfTwoClassesSharesByComputation) {
    const CapacityLimit limit = CapacityLimit::moe_plus_plus(1.25, 0.75);
    // 100 tokens with 2 experts each, 8 experts that compute and 4 that do not: 0.75 * 8 + 4 = 10
    EXPECT_EQ(limit(100, 200, 8, 4, true), 19);   // ceil(1.25 * 150 / 10)
    EXPECT_EQ(limit(100, 200, 8, 4, false), 25);  // 1.25 * 200 / 10
    CapacityLimit down = limit;
    down.rounding = Rounding::floor;
    EXPECT_EQ(down(100, 200, 8, 4, true), 18);
    EXPECT_EQ(down(100, 200, 8, 4, false), 25);
    const CapacityLimit even = CapacityLimit::moe_plus_plus(1.25, 1);
    EXPECT_EQ(even(100, 200, 8, 4, true), even(100, 200, 8, 4, false));
    EXPECT_EQ(even(100, 200, 8, 4, true), 21);  // ceil(250 / 12)
}

// ---- the published code, over a grid ----

TEST(CapacityLimit, OfGshardIsMeshTensorFlows) {
    for_grid([](Index t, Index e, Index k, double f) {
        const Index wanted = python_int(static_cast<double>(t) * f / static_cast<double>(e));
        EXPECT_EQ(of(CapacityLimit::gshard(f, 0), t, e, k), wanted) << t << " " << e << " " << f;
        EXPECT_EQ(of(CapacityLimit::gshard(f, 4), t, e, k), std::max<Index>(wanted, 4));
    });
}

TEST(CapacityLimit, OfMegatronIsItsCode) {
    for_grid([](Index t, Index e, Index k, double f) {
        const double share = static_cast<double>(t * k) / static_cast<double>(e);
        EXPECT_EQ(of(CapacityLimit::megatron(f), t, e, k), python_ceil(share * f));
        EXPECT_EQ(of(CapacityLimit::deepspeed(f, 8), t, e, k),
                  std::max<Index>(python_ceil(share * f), 8));
    });
}

TEST(CapacityLimit, OfFlaxformerIsItsCode) {
    for_grid([](Index t, Index e, Index k, double f) {
        const Index wanted = python_round(f * static_cast<double>(t) / static_cast<double>(e));
        EXPECT_EQ(of(CapacityLimit::flaxformer(f), t, e, k), std::max<Index>(wanted, 4));
        EXPECT_EQ(of(CapacityLimit::flaxformer(f, 0), t, e, k), wanted);
    });
}

TEST(CapacityLimit, OfVisionMoeIsItsCode) {
    for_grid([](Index t, Index e, Index k, double f) {
        const double exact = static_cast<double>(t * k) * f / static_cast<double>(e);
        EXPECT_EQ(of(CapacityLimit::vmoe(f), t, e, k), up_to_multiple(python_ceil(exact), 4))
            << t << " " << e << " " << k << " " << f;
    });
}

TEST(CapacityLimit, OfTutelIsItsCode) {
    for_grid([](Index t, Index e, Index k, double f) {
        const Index share = (t + e - 1) / e, once = python_int(f * static_cast<double>(share));
        EXPECT_EQ(of(CapacityLimit::tutel(static_cast<double>(k), f), t, e, k), k * once);
        EXPECT_EQ(of(CapacityLimit::tutel(static_cast<double>(k), f, 8), t, e, k),
                  up_to_multiple(k * once, 8));
        EXPECT_EQ(of(CapacityLimit::tutel(0, f), t, e, k), k * once);  // k as was made
        EXPECT_EQ(of(CapacityLimit::evo_moe(f), t, e, k), once);
        EXPECT_EQ(of(CapacityLimit::nllb(), t, e, k), 2 * share);
    });
}

TEST(CapacityLimit, OfHunyuanAndOpenMoeAreTheirCode) {
    for_grid([](Index t, Index e, Index k, double f) {
        EXPECT_EQ(of(CapacityLimit::hunyuan(k), t, e, k), std::max(k, k * t / e));
        Index open = python_int(2 * f * static_cast<double>(t) / static_cast<double>(e));
        open = std::max<Index>(open + open % 2, 4);
        EXPECT_EQ(of(CapacityLimit::openmoe(f), t, e, k), open) << t << " " << e << " " << f;
    });
}

TEST(CapacityLimit, OfTokensAndUniMoeAreTheirCode) {
    for_grid([](Index t, Index e, Index k, double f) {
        EXPECT_EQ(of(CapacityLimit::of_tokens(f), t, e, k),
                  python_ceil(f * static_cast<double>(t)));
        const double share = static_cast<double>(t) / static_cast<double>(e);
        EXPECT_EQ(of(CapacityLimit::uni_moe(f), t, e, k),
                  std::max<Index>(python_ceil(share * f), 8));
    });
}

TEST(CapacityLimit, OfTwoClassesIsThePapers) {
    for_grid([](Index t, Index e, Index k, double f) {
        const double tau = 0.25 * f, computing = static_cast<double>(e), replacing = 3;
        const double all = tau * computing + replacing, made = static_cast<double>(t * k);
        const CapacityLimit limit = CapacityLimit::moe_plus_plus(f, tau);
        EXPECT_NEAR(static_cast<double>(limit(t, t * k, e, 3, true)), f * tau * made / all + 0.5,
                    0.5 + 1e-9);
        EXPECT_NEAR(static_cast<double>(limit(t, t * k, e, 3, false)), f * made / all + 0.5,
                    0.5 + 1e-9);
    });
}

// ---- rounding, edges ----

TEST(CapacityLimit, RoundsHalfToEven) {
    const CapacityLimit limit{.factor = 1, .rounding = Rounding::nearest_even};
    const Index wanted[] = {0, 0, 1, 2, 2, 2, 3, 4, 4, 4, 5, 6, 6};  // of n / 2
    for (Index n = 0; n < 13; ++n) EXPECT_EQ(limit(n, n, 2, 0), wanted[n]) << n;
    EXPECT_EQ(limit(3, 3, 4, 0), 1);  // 0.75
    EXPECT_EQ(limit(5, 5, 4, 0), 1);  // 1.25
}

TEST(CapacityLimit, CountsTheAssignmentsThatWereMadeUnlessToldOtherwise) {
    const CapacityLimit made{.factor = 1}, told{.factor = 1, .k = 2};
    EXPECT_EQ(made(10, 33, 4, 0), 9);
    EXPECT_EQ(told(10, 33, 4, 0), 5);
    CapacityLimit part = told;
    part.k = 1.5;
    EXPECT_EQ(part(10, 33, 4, 0), 4);  // ceil(15 / 4)
}

TEST(CapacityLimit, OfNothingIsTheMinimum) {
    EXPECT_EQ(of(CapacityLimit::gshard(), 0, 8), 4);
    EXPECT_EQ(of(CapacityLimit::tutel(0), 0, 8), 0);
    EXPECT_EQ(of(CapacityLimit::tutel(2), 0, 8), 0);
    EXPECT_EQ(of(CapacityLimit::vmoe(), 0, 8), 0);
    EXPECT_EQ(of(CapacityLimit::none(), 0, 8), most);
    EXPECT_EQ(of(CapacityLimit{.factor = 0}, 100, 8), 0);
}

TEST(CapacityLimit, IsNeverMoreThanTheMostTokens) {
    constexpr Index huge = std::numeric_limits<Index>::max();
    EXPECT_EQ(of(CapacityLimit{.factor = 1e300}, 10, 4), most);
    EXPECT_EQ(of(CapacityLimit{.factor = infinity, .multiple_of = 4}, 10, 4), most);
    EXPECT_EQ(of(CapacityLimit::constant(huge), 10, 4), most);
    EXPECT_EQ(of(CapacityLimit{.factor = 1, .minimum = huge, .multiple_of = 4}, 10, 4), most);
    EXPECT_EQ(of(CapacityLimit{.factor = 1, .multiple_of = huge}, 10, 4), most);
    EXPECT_EQ(of(CapacityLimit::tutel(1e300, 1), 10, 4), most);
    EXPECT_EQ(of(CapacityLimit{.factor = 1}, most, 1), most);
    EXPECT_EQ(of(CapacityLimit{.factor = 1}, most, 2), most / 2 + 1);
    EXPECT_EQ(of(CapacityLimit{.factor = 1e-300}, most, 2), 1);
}

TEST(CapacityLimit, RisesWithTokensAndFactor) {
    for_grid([](Index t, Index e, Index k, double f) {
        for (const CapacityLimit& limit :
             {CapacityLimit::gshard(f), CapacityLimit::megatron(f), CapacityLimit::vmoe(f),
              CapacityLimit::openmoe(f), CapacityLimit::tutel(2, f),
              CapacityLimit::flaxformer(f)}) {
            EXPECT_LE(of(limit, t, e, k), of(limit, t + 1, e, k));
            CapacityLimit more = limit;
            more.factor += 0.1;
            EXPECT_LE(of(limit, t, e, k), of(more, t, e, k));
        }
    });
}

// ---- settings ----

std::string said(const CapacityLimit& limit) {
    return support::message([&] { limit.check("moe::Capacity"); });
}

TEST(CapacityLimit, ChecksItsSettingsWithASentence) {
    constexpr double nan = std::numeric_limits<double>::quiet_NaN();
    for (const CapacityLimit& limit :
         {CapacityLimit{}, CapacityLimit::none(), CapacityLimit::constant(0), CapacityLimit::vmoe(),
          CapacityLimit::tutel(2), CapacityLimit::moe_plus_plus()})
        EXPECT_EQ(said(limit), "");
    EXPECT_EQ(said({.factor = -1}),
              "moe::Capacity: factor is -1, it must be >= 0; for no limit take "
              "moe::CapacityLimit::none()");
    EXPECT_NE(said({.factor = nan}), "");
    EXPECT_EQ(said({.k = -2}), "moe::Capacity: k is -2, it must be finite and >= 0");
    EXPECT_NE(said({.k = infinity}), "");
    EXPECT_EQ(said({.computing_share = 0}),
              "moe::Capacity: computing_share is 0, it must be finite and > 0");
    EXPECT_EQ(said({.minimum = -1}),
              "moe::Capacity: minimum is -1 and multiple_of 1, they must be >= 0 and >= 1");
    EXPECT_NE(said({.multiple_of = 0}), "");
    EXPECT_EQ(said({.rounding = Rounding(3)}),
              "moe::Capacity: rounding is number 3 of its choices, they are 0 to 2");
}

}  // namespace
