// SPDX-License-Identifier: MIT
#ifndef MOE_CORE_RANDOM_HPP
#define MOE_CORE_RANDOM_HPP

#include <array>
#include <cmath>
#include <cstdint>

#include <moe/core/types.hpp>

namespace moe::inline MOE_ABI {

namespace detail {

/// Philox4x32-10: a bijection of a 128-bit counter under a 64-bit key.
/// Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
inline std::array<std::uint32_t, 4> philox(std::array<std::uint32_t, 4> counter,
                                           std::uint64_t key) {
    auto key0 = static_cast<std::uint32_t>(key), key1 = static_cast<std::uint32_t>(key >> 32);
    for (int round = 0; round < 10; ++round) {
        const std::uint64_t left = std::uint64_t{0xD2511F53u} * counter[0];
        const std::uint64_t right = std::uint64_t{0xCD9E8D57u} * counter[2];
        counter = {static_cast<std::uint32_t>(right >> 32) ^ counter[1] ^ key0,
                   static_cast<std::uint32_t>(right),
                   static_cast<std::uint32_t>(left >> 32) ^ counter[3] ^ key1,
                   static_cast<std::uint32_t>(left)};
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return counter;
}

/// Spreads 64 bits over 64 bits (the finaliser of SplitMix64).
inline std::uint64_t mix(std::uint64_t bits) {
    bits += 0x9E3779B97F4A7C15u;
    bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9u;
    bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EBu;
    return bits ^ (bits >> 31);
}

/// log x for finite x > 0 to about 1e-15, in the same operations on every machine.
///
///     x = m 2^e, m in [sqrt(1/2), sqrt 2), s = (m - 1) / (m + 1), log m = 2 atanh s
inline double portable_log(double x) {
    int exponent = 0;
    double m = std::frexp(x, &exponent);
    if (m < 0.70710678118654752) m *= 2, --exponent;
    const double s = (m - 1) / (m + 1), square = s * s;
    double series = 0;
    for (int i = 21; i >= 1; i -= 2) series = std::fma(series, square, 1.0 / i);
    return std::fma(exponent, 0.69314718055994531, 2 * s * series);
}

template <std::size_t N>
double horner(const std::array<double, N>& coefficients, double x) {
    double sum = 0;
    for (std::size_t i = N; i-- > 0;) sum = std::fma(sum, x, coefficients[i]);
    return sum;
}

/// The quantile function of the standard normal distribution for u in (0, 1), to about 1e-15.
/// Source: Wichura, "The percentage points of the normal distribution", AS 241 (1988), PPND16.
inline double normal_quantile(double u) {
    static constexpr std::array<double, 8> a{3.3871328727963666080e0, 1.3314166789178437745e2,
                                             1.9715909503065514427e3, 1.3731693765509461125e4,
                                             4.5921953931549871457e4, 6.7265770927008700853e4,
                                             3.3430575583588128105e4, 2.5090809287301226727e3};
    static constexpr std::array<double, 8> b{1.0,
                                             4.2313330701600911252e1,
                                             6.8718700749205790830e2,
                                             5.3941960214247511077e3,
                                             2.1213794301586595867e4,
                                             3.9307895800092710610e4,
                                             2.8729085735721942674e4,
                                             5.2264952788528545610e3};
    static constexpr std::array<double, 8> c{1.42343711074968357734e0,  4.63033784615654529590e0,
                                             5.76949722146069140550e0,  3.64784832476320460504e0,
                                             1.27045825245236838258e0,  2.41780725177450611770e-1,
                                             2.27238449892691845833e-2, 7.74545014278341407640e-4};
    static constexpr std::array<double, 8> d{1.0,
                                             2.05319162663775882187e0,
                                             1.67638483018380384940e0,
                                             6.89767334985100004550e-1,
                                             1.48103976427480074590e-1,
                                             1.51986665636164571966e-2,
                                             5.47593808499534494600e-4,
                                             1.05075007164441684324e-9};
    static constexpr std::array<double, 8> e{6.65790464350110377720e0,  5.46378491116411436990e0,
                                             1.78482653991729133580e0,  2.96560571828504891230e-1,
                                             2.65321895265761230930e-2, 1.24266094738807843860e-3,
                                             2.71155556874348757815e-5, 2.01033439929228813265e-7};
    static constexpr std::array<double, 8> f{1.0,
                                             5.99832206555887937690e-1,
                                             1.36929880922735805310e-1,
                                             1.48753612908506148525e-2,
                                             7.86869131145613259100e-4,
                                             1.84631831751005468180e-5,
                                             1.42151175831644588870e-7,
                                             2.04426310338993978564e-15};
    const double q = u - 0.5;
    if (std::abs(q) <= 0.425) {
        const double r = std::fma(-q, q, 0.180625);
        return q * horner(a, r) / horner(b, r);
    }
    const double r = std::sqrt(-portable_log(q < 0 ? u : 1 - u));
    const double tail =
        r <= 5 ? horner(c, r - 1.6) / horner(d, r - 1.6) : horner(e, r - 5) / horner(f, r - 5);
    return q < 0 ? -tail : tail;
}

}  // namespace detail

/// Random numbers addressed by where they are used: (seed, stream, step, token, expert, draw).
///
/// There is no state to advance, so the value at an address does not depend on the number of
/// threads, on the split of a batch, or on what was drawn before. Layers and passes that must
/// differ take different streams.
class CounterRandom {
public:
    CounterRandom(std::uint64_t seed, std::uint64_t stream, std::uint64_t step)
        : key_(detail::mix(detail::mix(detail::mix(seed) ^ stream) ^ step)) {}

    /// Uniform in (0, 1), never an end point: (bits + 1/2) / 2^52 of 52 random bits.
    double uniform(std::int64_t token, Index expert, std::uint32_t draw = 0) const {
        const auto address = static_cast<std::uint64_t>(token);
        const auto bits = detail::philox(
            {static_cast<std::uint32_t>(address), static_cast<std::uint32_t>(address >> 32),
             static_cast<std::uint32_t>(expert), draw},
            key_);
        const std::uint64_t wide = (std::uint64_t{bits[0]} << 20) | (bits[1] >> 12);
        return (static_cast<double>(wide) + 0.5) * 0x1p-52;
    }

    /// Standard normal.
    double normal(std::int64_t token, Index expert, std::uint32_t draw = 0) const {
        return detail::normal_quantile(uniform(token, expert, draw));
    }

    /// Standard Gumbel: -log(-log u).
    double gumbel(std::int64_t token, Index expert, std::uint32_t draw = 0) const {
        return -detail::portable_log(-detail::portable_log(uniform(token, expert, draw)));
    }

private:
    std::uint64_t key_;
};

/// A sequence of random numbers for filling parameters: the same on every compiler and machine.
class Random {
public:
    explicit Random(std::uint64_t seed, std::uint64_t stream = 0)
        : seed_(seed), stream_(stream), source_(seed, stream, 0) {}

    /// An independent sequence. Parts of a layer take one each, so that adding a part leaves the
    /// numbers of the others as they were.
    Random child(std::uint64_t index) const {
        return Random(seed_, detail::mix(detail::mix(stream_) ^ index));
    }

    double uniform() { return source_.uniform(position_++, 0); }
    double uniform(double low, double high) { return std::fma(uniform(), high - low, low); }
    double normal() { return detail::normal_quantile(uniform()); }

    /// [rows, cols] of independent normal numbers with mean 0.
    template <class S>
    Matrix<S> normal(Index rows, Index cols, double stddev) {
        Matrix<S> values(rows, cols);
        fill_normal(values, stddev);
        return values;
    }

    /// Fills anything with data() and size() in storage order.
    void fill_normal(auto& values, double stddev) {
        using S = std::remove_cvref_t<decltype(*values.data())>;
        for (Index i = 0; i < values.size(); ++i)
            values.data()[i] = static_cast<S>(stddev * normal());
    }

private:
    std::uint64_t seed_, stream_;
    CounterRandom source_;
    std::int64_t position_ = 0;
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_CORE_RANDOM_HPP
