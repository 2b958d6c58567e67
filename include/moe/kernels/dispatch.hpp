// SPDX-License-Identifier: MIT
#ifndef MOE_KERNELS_DISPATCH_HPP
#define MOE_KERNELS_DISPATCH_HPP

#include <array>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <iterator>
#include <span>
#include <string_view>
#include <type_traits>

#include <moe/core/error.hpp>
#include <moe/kernels/table.hpp>

#if defined(__x86_64__)
#include <moe/kernels/x86/cpuid.hpp>
#endif

#if !defined(MOE_EXTERN_KERNELS) || defined(MOE_IMPLEMENT_KERNELS)
#include <moe/kernels/portable.hpp>
#if defined(__x86_64__)
#include <moe/kernels/x86/avx2.hpp>
#include <moe/kernels/x86/avx2_double.hpp>
#include <moe/kernels/x86/avx512.hpp>
#include <moe/kernels/x86/avx512_double.hpp>
#elif defined(__aarch64__)
#include <moe/kernels/arm/neon.hpp>
#include <moe/kernels/arm/neon_double.hpp>
#endif
#endif

namespace moe::inline MOE_ABI {

/// Instruction sets that kernels are written for: scalar on every processor, then avx2, avx512 and
/// amx on x86-64, each containing the ones before it, and neon on 64-bit ARM. Where one has no
/// table of its own, that of the set before it is used: only products with stored weights
/// (storage_dispatch.hpp) have amx.
enum class Isa { scalar, avx2, avx512, amx, neon };

namespace detail {

/// The tables by Isa; null for those of other processors.
template <class S>
using KernelTables = std::array<const KernelTable<S>*, 5>;
using NarrowTables = std::array<const NarrowTable*, 5>;

// Templates, so that a program compiles those it uses: most have no double and no narrow elements.
#if !defined(MOE_EXTERN_KERNELS) || defined(MOE_IMPLEMENT_KERNELS)
#if defined(__x86_64__)
template <class All>
inline constexpr KernelTables<float> float_tables_of{&portable_float::table<All>,
                                                     &isa_avx2::table<All>, &isa_avx512::table<All>,
                                                     &isa_avx512::table<All>};
template <class All>
inline constexpr KernelTables<double> double_tables_of{
    &portable_double::table<All>, &isa_avx2_double::table<All>, &isa_avx512_double::table<All>,
    &isa_avx512_double::table<All>};
template <class Int8>
inline constexpr NarrowTables narrow_tables_of{
    &portable_float::narrow_table<Int8>, &isa_avx2::narrow_table<Int8>,
    &isa_avx512::narrow_table<Int8>, &isa_avx512::narrow_table<Int8>};
#elif defined(__aarch64__)
template <class All>
inline constexpr KernelTables<float> float_tables_of{&portable_float::table<All>, nullptr, nullptr,
                                                     nullptr, &isa_neon::table<All>};
template <class All>
inline constexpr KernelTables<double> double_tables_of{
    &portable_double::table<All>, nullptr, nullptr, nullptr, &isa_neon_double::table<All>};
template <class Int8>
inline constexpr NarrowTables narrow_tables_of{&portable_float::narrow_table<Int8>, nullptr,
                                               nullptr, nullptr, &isa_neon::narrow_table<Int8>};
#else
template <class All>
inline constexpr KernelTables<float> float_tables_of{&portable_float::table<All>};
template <class All>
inline constexpr KernelTables<double> double_tables_of{&portable_double::table<All>};
template <class Int8>
inline constexpr NarrowTables narrow_tables_of{&portable_float::narrow_table<Int8>};
#endif
#endif

// With MOE_EXTERN_KERNELS only the translation unit which defines MOE_IMPLEMENT_KERNELS gives these
// a value, and they are all that the others compile of the kernels.
#if defined(MOE_EXTERN_KERNELS)
extern const KernelTables<float> float_tables;
extern const KernelTables<double> double_tables;
extern const NarrowTables narrow_tables;
#if defined(MOE_IMPLEMENT_KERNELS)
constexpr KernelTables<float> float_tables = float_tables_of<float>;
constexpr KernelTables<double> double_tables = double_tables_of<double>;
constexpr NarrowTables narrow_tables = narrow_tables_of<std::int8_t>;
#endif
#endif

/// The tables by Isa.
template <class S>
const KernelTables<S>& all_tables() {
#if defined(MOE_EXTERN_KERNELS)
    if constexpr (std::is_same_v<S, float>)
        return float_tables;
    else
        return double_tables;
#else
    if constexpr (std::is_same_v<S, float>)
        return float_tables_of<S>;
    else
        return double_tables_of<S>;
#endif
}

/// The tables for narrow elements, by Isa.
/// @tparam Int8  std::int8_t, a parameter for what narrow_tables_of says
template <class Int8>
const NarrowTables& all_narrow_tables() {
#if defined(MOE_EXTERN_KERNELS)
    return narrow_tables;
#else
    return narrow_tables_of<Int8>;
#endif
}

/// The Isa in use as an int; -1 until the first question.
inline constinit std::atomic<int> isa_in_use{-1};

}  // namespace detail

inline const char* name(Isa isa) {
    switch (isa) {
        case Isa::scalar:
            return "scalar";
        case Isa::avx2:
            return "avx2";
        case Isa::avx512:
            return "avx512";
        case Isa::amx:
            return "amx";
        case Isa::neon:
            return "neon";
    }
    return "unknown";
}

/// The best that processor and operating system support.
inline Isa best_isa() {
#if defined(__x86_64__)
    const CpuFeatures& features = detail::machine();
    if (features.amx) return Isa::amx;
    if (features.avx512) return Isa::avx512;
    if (features.avx2) return Isa::avx2;
    return Isa::scalar;
#elif defined(__aarch64__)
    return Isa::neon;  // every processor of the architecture has it
#else
    return Isa::scalar;
#endif
}

namespace detail {

/// Those of this kind of processor that are no better than `best`, worst first.
inline std::span<const Isa> isas_up_to(Isa best) {
#if defined(__aarch64__)
    static constexpr Isa all[] = {Isa::scalar, Isa::neon};
#else
    static constexpr Isa all[] = {Isa::scalar, Isa::avx2, Isa::avx512, Isa::amx};
#endif
    std::size_t count = 1;
    while (count < std::size(all) && all[count] <= best) ++count;
    return {all, count};
}

}  // namespace detail

/// Everything this machine can run, worst first.
inline std::span<const Isa> supported_isas() { return detail::isas_up_to(best_isa()); }

namespace detail {

/// What the environment variable MOE_ISA asks for, and no more than `best`.
inline Isa requested_isa(const char* word, Isa best) {
    const std::string_view text = word == nullptr ? "" : word;
    for (const Isa isa : isas_up_to(best))
        if (text == name(isa)) return isa;
    return best;  // one above, one of other processors, nothing, or a word we do not know
}

}  // namespace detail

/// The instruction set in use.
///
/// Chosen at the first call: the best one, or what the environment variable MOE_ISA says (scalar,
/// avx2, avx512, amx or neon). A word above what the machine has means the best it has; an unknown
/// word is ignored.
inline Isa isa() {
    int chosen = detail::isa_in_use.load(std::memory_order_relaxed);
    if (chosen < 0) [[unlikely]] {
        // Threads that get here together compute the same answer, unless force_isa came between.
        const int wanted =
            static_cast<int>(detail::requested_isa(std::getenv("MOE_ISA"), best_isa()));
        if (detail::isa_in_use.compare_exchange_strong(chosen, wanted, std::memory_order_relaxed))
            chosen = wanted;
    }
    return static_cast<Isa>(chosen);
}

/// Uses `wanted` from now on, in the whole program: for tests and benchmarks. Weights packed for
/// another table must be packed again.
/// @throws std::invalid_argument if this machine does not support it
inline void force_isa(Isa wanted) {
    for (const Isa isa : supported_isas())
        if (isa == wanted)
            return detail::isa_in_use.store(static_cast<int>(wanted), std::memory_order_relaxed);
    detail::fail("moe::force_isa: this machine does not support ", name(wanted), ", only ",
                 name(best_isa()), " and below");
}

/// Forces an instruction set while it lives, then puts the previous one back.
class ScopedIsa {
public:
    /// @throws std::invalid_argument if this machine does not support `wanted`
    explicit ScopedIsa(Isa wanted) : previous_(isa()) { force_isa(wanted); }
    ~ScopedIsa() {
        detail::isa_in_use.store(static_cast<int>(previous_), std::memory_order_relaxed);
    }
    ScopedIsa(const ScopedIsa&) = delete;
    ScopedIsa& operator=(const ScopedIsa&) = delete;

private:
    Isa previous_;
};

/// The table of one instruction set, which this machine must support.
template <class S>
const KernelTable<S>& kernels(Isa isa) {
    static_assert(is_scalar<S>, "moe::kernels: there are tables for float and double");
    return *detail::all_tables<S>()[static_cast<std::size_t>(isa)];
}

/// The kernels in use. One relaxed load, which loops over rows make before they begin. Packed
/// weights are read by the table they were packed for instead.
template <class S>
const KernelTable<S>& kernels() {
    return kernels<S>(isa());
}

}  // namespace moe::inline MOE_ABI

#endif  // MOE_KERNELS_DISPATCH_HPP
