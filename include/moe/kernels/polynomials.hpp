// SPDX-License-Identifier: MIT
#ifndef MOE_KERNELS_POLYNOMIALS_HPP
#define MOE_KERNELS_POLYNOMIALS_HPP

#include <moe/core/types.hpp>

namespace moe::inline MOE_ABI {

/// The constants of exp and of the normal distribution in float, shared by the kernels and by the
/// loops in reference.hpp. All fits are minimax in relative error, rounded to float one coefficient
/// at a time with the rest fitted again.
namespace detail::poly {

/// exp(x) = 2^n (1 + r + r^2 Q(r)),  n = round(x log2 e),  r = x - n ln 2 in two steps.
/// The rounded polynomial is within 3.2e-9 (relative) of exp on |r| <= 0.3473.
inline constexpr float log2_e = 0x1.715476p+0f;
inline constexpr float ln2_high = 0x1.62e430p-1f;
inline constexpr float ln2_low = -0x1.05c610p-29f;
inline constexpr float exp_q[5] = {0x1.fffffcp-2f, 0x1.555492p-3f, 0x1.5558bcp-5f, 0x1.1239c6p-7f,
                                   0x1.6a4154p-10f};
/// Below exp_low the result is 0, above exp_high it is inf; between them n stays in [-150, 128].
inline constexpr float exp_low = -104.0f;
inline constexpr float exp_high = 89.0f;
/// Adding it to |n| < 2^22 rounds n to an integer and leaves that integer in the low bits.
inline constexpr float round_shift = 0x1.8p+23f;
inline constexpr int round_shift_bits = 0x4B400000;

/// Phi(-x) = exp(-x^2 / 2) R(x) for x >= 0, the upper tail of the normal distribution;
/// R(x) = t (c1 + c2 t + ... + c9 t^8),  t = 1 / (1 + tail_scale x).
/// The rounded polynomial is within 1.5e-8 (relative) of R on [0, 14.5], where Phi(-x) leaves the
/// floats.
inline constexpr float tail_scale = 0.265625f;
inline constexpr float tail_c[9] = {0x1.b22112p-4f, 0x1.b04a0ep-4f,  0x1.a411fap-4f,
                                    0x1.faff42p-5f, 0x1.127a34p-3f,  -0x1.c41586p-4f,
                                    0x1.b206d6p-3f, -0x1.2337a4p-3f, 0x1.f61804p-6f};

}  // namespace detail::poly

/// Constants of the activations in either scalar.
namespace detail {

template <class S>
inline constexpr S inverse_sqrt_2 = S(0.70710678118654752440);  // 1 / sqrt 2
template <class S>
inline constexpr S inverse_sqrt_2_pi = S(0.39894228040143267794);  // 1 / sqrt(2 pi)
/// gelu_tanh(a) = a sigmoid(2u), 2u = a (tanh_1 + tanh_3 a^2)
template <class S>
inline constexpr S tanh_1 = S(1.5957691216057307117);  // 2 sqrt(2 / pi)
template <class S>
inline constexpr S tanh_3 = S(0.071354816272600246);  // 0.044715 * 2 sqrt(2 / pi)
/// quick_gelu(a) = a sigmoid(quick_scale a)
template <class S>
inline constexpr S quick_scale = S(1.702);

/// Beyond this |a| every activation is its own limit in float and in double: exp(-a^2 / 2) is 0.
/// Slopes are evaluated at the clamped a, so that an infinity does not meet a zero.
template <class S>
inline constexpr S far = sizeof(S) == 4 ? S(20) : S(40);

}  // namespace detail
}  // namespace moe::inline MOE_ABI

#endif  // MOE_KERNELS_POLYNOMIALS_HPP
