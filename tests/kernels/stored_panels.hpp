// SPDX-License-Identifier: MIT
#ifndef MOE_TESTS_KERNELS_STORED_PANELS_HPP
#define MOE_TESTS_KERNELS_STORED_PANELS_HPP

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include <moe/kernels/storage_dispatch.hpp>
#include <moe/kernels/storage_table.hpp>

#include "numbers.hpp"

namespace kernel_test {

using moe::Storage;
using moe::StorageTable;

inline constexpr Storage stored_forms[] = {Storage::bf16,       Storage::f16,  Storage::int8,
                                           Storage::int8_block, Storage::int4, Storage::int4_zero,
                                           Storage::ternary};

/// Every table that this machine can run.
inline std::vector<const StorageTable*> storage_tables() {
    std::vector<const StorageTable*> all;
    for (std::size_t i = 0; i < moe::detail::storage_kernels_count; ++i)
        if (moe::detail::supports(static_cast<moe::detail::StorageKernels>(i)))
            all.push_back(moe::detail::all_storage_tables()[i]);
    return all;
}

inline std::size_t size_of(Index n) { return static_cast<std::size_t>(n); }

/// A panel of random weights, written from the description of the layout in storage_table.hpp.
class StoredPanel {
public:
    /// @param cols  columns of B; the others, and rows from k on, are padding
    StoredPanel(Storage storage, Index panel_width, Index k, Index cols, Numbers& random)
        : storage_(storage),
          width_(panel_width),
          layout_(moe::panel_layout(storage, panel_width)),
          bytes_(size_of(layout_.bytes(k)), std::byte{0xA5}) {
        for (Index j = 0; j < width_ && layout_.scale_bytes > 0; ++j)
            write(4 * j, j < cols ? float_scale(random) : 0.0f);
        for (Index r = 0; r < records(k); ++r) {
            const Index record = layout_.scale_bytes + r * layout_.record_bytes;
            for (Index j = 0; j < width_; ++j) {
                int zero = storage == Storage::int4 ? 8 : storage == Storage::ternary ? 1 : 128;
                if (storage == Storage::int4_zero) {
                    zero = static_cast<int>(random.bits() % 16);
                    bytes_[size_of(record + 18 * width_ + j)] = static_cast<std::byte>(zero);
                }
                if (moe::has_block_scales(storage))
                    write(record + layout_.record_bytes -
                              (storage == Storage::int4_zero ? 3 : 2) * width_ + 2 * j,
                          j < cols ? half(random) : std::uint16_t{0});
                for (Index p = 0; p < moe::record_rows; ++p)
                    put(record, p, j, r * moe::record_rows + p < k && j < cols, zero, random);
            }
        }
    }

    static Index records(Index k) { return moe::PanelLayout::records(k); }
    Storage storage() const { return storage_; }
    Index width() const { return width_; }
    Index size() const { return static_cast<Index>(bytes_.size()); }
    const std::byte* data() const { return bytes_.data(); }
    std::byte* data() { return bytes_.data(); }

private:
    template <class T>
    void write(Index at, T value) {
        std::memcpy(bytes_.data() + at, &value, sizeof value);
    }

    /// The weight (p, j) of a record, or padding.
    void put(Index record, Index p, Index j, bool inside, int zero, Numbers& random) {
        switch (storage_) {
            case Storage::bf16:
                write(record + 2 * ((p / 2 * width_ + j) * 2 + p % 2),
                      inside ? brain(random) : std::uint16_t{0});
                return;
            case Storage::f16:
                write(record + 2 * (p * width_ + j), inside ? half(random) : std::uint16_t{0});
                return;
            case Storage::int8:
            case Storage::int8_block:
                put_code(record + (p / 4 * width_ + j) * 4 + p % 4, 0, 8, inside, zero,
                         1 + static_cast<int>(random.bits() % 255));
                return;
            case Storage::int4:
            case Storage::int4_zero:
                put_code(record + (p / 8 * width_ + j) * 4 + p % 4, p % 8 < 4 ? 0 : 4, 4, inside,
                         zero, static_cast<int>(random.bits() % 16));
                return;
            case Storage::ternary:
                put_code(record + (p / 16 * width_ + j) * 4 + p % 4,
                         2 * static_cast<int>(p % 16 / 4), 2, inside, zero,
                         static_cast<int>(random.bits() % 3));
                return;
            case Storage::fp32:
                return;
        }
    }
    void put_code(Index at, int shift, int bits, bool inside, int zero, int code) {
        const int mask = ((1 << bits) - 1) << shift;
        const int old = std::to_integer<int>(bytes_[size_of(at)]);
        bytes_[size_of(at)] =
            static_cast<std::byte>((old & ~mask) | (inside ? code : zero) << shift);
    }

    static float float_scale(Numbers& random) {
        return static_cast<float>(random.uniform(0.001, 0.02));
    }
    /// About 1, now and then subnormal.
    static std::uint16_t half(Numbers& random) {
        const std::uint64_t bits = random.bits();
        const std::uint64_t exponent = bits % 64 == 0 ? 0 : 12 + bits / 64 % 5;
        return static_cast<std::uint16_t>((bits >> 48 & 0x83FFU) | exponent << 10);
    }
    static std::uint16_t brain(Numbers& random) {
        const std::uint64_t bits = random.bits();
        return static_cast<std::uint16_t>((bits >> 48 & 0x807FU) | (122 + bits % 6) << 7);
    }

    Storage storage_;
    Index width_;
    moe::PanelLayout layout_;
    std::vector<std::byte> bytes_;
};

}  // namespace kernel_test

#endif  // MOE_TESTS_KERNELS_STORED_PANELS_HPP
