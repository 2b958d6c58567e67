// SPDX-License-Identifier: MIT
#ifndef MOE_IO_FROZEN_READER_HPP
#define MOE_IO_FROZEN_READER_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include <moe/core/dtype.hpp>
#include <moe/core/error.hpp>
#include <moe/core/memory.hpp>
#include <moe/core/parameters.hpp>
#include <moe/core/storage.hpp>
#include <moe/experts/frozen_weights.hpp>
#include <moe/io/bind.hpp>
#include <moe/io/frozen_text.hpp>
#include <moe/io/tensor.hpp>
#include <moe/io/tensor_names.hpp>
#include <moe/io/text.hpp>
#include <moe/kernels/dispatch.hpp>

namespace moe::inline MOE_ABI::detail {

/// Reads a frozen layer; everything is checked, nothing is believed.
/// @tparam Source  SafetensorsView or Checkpoint
template <class S, class Source>
class FrozenReader {
public:
    FrozenReader(const Source& source, std::string_view prefix)
        : source_(source), prefix_(prefix), owner_(owner_of(source)) {
        const TensorView& tensor = find(prefix_ + std::string(frozen_text_name));
        if (tensor.dtype != Dtype::u8)
            fail(in_quotes(tensor.name), " is ", in_quotes(tensor.dtype_text),
                 ", it must be U8, the text of moe::save_frozen");
        rest_ = {reinterpret_cast<const char*>(tensor.bytes.data()), tensor.bytes.size()};
    }

    /// Compares the text with a bank of groups without panels, and learns storages and computes.
    template <class Bank>
    void read_text(const Bank& bank, Index num_parameters) {
        for_each_frozen_line<S>(
            bank, num_parameters, [&](const std::string& wanted) { expect(take(), wanted); },
            [&](const std::string& wanted, const auto&, Index) { learn(take(), wanted); });
        if (!rest_.empty())
            fail("the text goes on with ", in_quotes(take()),
                 " where the recipes have no expert any more");
    }

    /// Finds what is not packed, to be copied by copy_unpacked().
    template <class Head, class Bank>
    void find_unpacked(const Head& head, const Bank& bank) {
        for_each_unpacked(head, bank, [&](std::string_view name, const auto& matrix) {
            using T = scalar_of<decltype(matrix)>;
            const TensorView& tensor = find(prefix_ + std::string(name));
            check(tensor, dtype_of<T>, shape_in_file(matrix));
            unpacked_.push_back(&tensor);
        });
    }
    template <class Head, class Bank>
    void copy_unpacked(Head& head, Bank& bank) const {
        auto next = unpacked_.begin();
        for_each_unpacked(head, bank, [&](std::string_view, auto& matrix) {
            const auto& bytes = (*next++)->bytes;
            if (!bytes.empty()) std::memcpy(matrix.data(), bytes.data(), bytes.size());
        });
    }

    /// Gives the groups of the bank their panels.
    template <class Bank>
    void bind_panels(Bank& bank) {
        auto next = stored_.begin();
        bank.visit_packed([&](const std::string& pattern, auto& group, Index first) {
            if (group.num_experts() == 0) return;
            std::vector<FrozenPanels> up, down;
            const Compute compute = next->compute;
            for (Index e = 0; e < group.num_experts(); ++e, ++next) {
                const PanelNames names(prefix_, pattern, group.shape().gated, first + e);
                if (next->compute != compute)
                    fail("compute of ", in_quotes(names.down), " is ", name(next->compute),
                         ", that of the experts before it ", name(compute),
                         "; experts of one recipe are multiplied alike");
                up.push_back(panels(names.up, next->storage, group.up_extents()));
                down.push_back(panels(names.down, next->storage, group.down_extents()));
            }
            group.bind(compute, up, down);
        });
    }

    /// A tensor that nothing asked for would be left out of the results.
    void check_left_over() const {
        for (const TensorView& tensor : source_)
            if (tensor.name.starts_with(prefix_) && !used_.contains(tensor.name))
                fail("tensor ", in_quotes(tensor.name), " ", to_string(tensor.shape),
                     " is no part of a layer of these recipes; are they those of the layer that "
                     "was frozen?");
    }

private:
    struct Stored {
        Storage storage;
        Compute compute;
    };

    template <class... Parts>
    [[noreturn]] static void fail(const Parts&... parts) {
        detail::fail<FormatError>("moe::open_frozen: ", parts...);
    }

    const TensorView& find(const std::string& name) {
        const TensorView* const tensor = source_.find(name);
        if (tensor == nullptr)
            fail_missing("moe::open_frozen", source_, name, "",
                         "; is this a file and a prefix of moe::save_frozen, for these recipes?");
        used_.insert(tensor->name);
        return *tensor;
    }
    void check(const TensorView& tensor, Dtype dtype, const Extents& shape) const {
        if (tensor.dtype != dtype || !(tensor.shape == shape))
            fail("tensor ", in_quotes(tensor.name), " is ", to_string(tensor.shape), " of ",
                 in_quotes(tensor.dtype_text), ", a layer of these recipes has ", to_string(shape),
                 " of ", dtype_name(dtype));
    }

    /// The next line of the text.
    std::string_view take() {
        const std::size_t end = std::min(rest_.find('\n'), rest_.size());
        const std::string_view line = rest_.substr(0, end);
        rest_.remove_prefix(std::min(end + 1, rest_.size()));
        return line;
    }
    static void expect(std::string_view line, std::string_view wanted) {
        if (line != wanted) refuse(line, wanted);
    }
    [[noreturn]] static void refuse(std::string_view line, std::string_view wanted) {
        if (wanted == frozen_title)
            fail("the text begins with ", in_quotes(line), ", this library reads ",
                 in_quotes(wanted), "; freeze the layer again and save that");
        constexpr std::string_view panels = "panels ";
        if (wanted.starts_with(panels) && line.starts_with(panels))
            fail("packed for panels of ", in_quotes(line.substr(panels.size())),
                 " columns, this machine's kernels (", name(isa()), ") read ",
                 std::string(wanted.substr(panels.size())), "; freeze the layer again here");
        fail("the layer has ", in_quotes(line), ", recipes and config say ", in_quotes(wanted),
             "; they must be those of the layer that was frozen");
    }
    /// Of a line that goes on with a storage and a compute.
    void learn(std::string_view line, std::string_view wanted) {
        if (!line.starts_with(wanted)) refuse(line, wanted);
        const std::string_view stored = line.substr(wanted.size());
        for (const Storage storage : all_storages)
            for (const Compute compute : all_computes) {
                if (!fits(storage, compute)) continue;
                if (stored != std::string(" ") + name(storage) + " " + name(compute)) continue;
                if (std::is_same_v<S, double> && storage != Storage::fp32) continue;
                stored_.push_back({storage, compute});
                return;
            }
        fail("the layer has ", in_quotes(line), ", recipes say ", in_quotes(wanted),
             ", then a storage and a compute that go together");
    }

    FrozenPanels panels(const std::string& name, Storage storage, const FrozenExtents& extents) {
        const TensorView& tensor = find(name);
        const Index bytes =
            FrozenWeights<S>::panels_size(extents, storage, kernels<S>().panel_width);
        check(tensor, Dtype::u64, panels_shape(bytes));
        const auto address = reinterpret_cast<std::uintptr_t>(tensor.bytes.data());
        if (address % cache_line == 0)
            return {.storage = storage, .bytes = tensor.bytes, .owner = owner_};
        std::shared_ptr<std::byte> copy(allocate<std::byte>(bytes));
        std::copy(tensor.bytes.begin(), tensor.bytes.end(), copy.get());
        return {.storage = storage, .bytes = {copy.get(), tensor.bytes.size()}, .owner = copy};
    }

    const Source& source_;
    std::string prefix_;
    std::shared_ptr<const void> owner_;
    std::string_view rest_;  // of the text
    std::vector<Stored> stored_;
    std::vector<const TensorView*> unpacked_;
    std::set<std::string_view> used_;
};

}  // namespace moe::inline MOE_ABI::detail

#endif  // MOE_IO_FROZEN_READER_HPP
