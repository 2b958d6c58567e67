// SPDX-License-Identifier: MIT
#ifndef MOE_IO_TENSOR_NAMES_HPP
#define MOE_IO_TENSOR_NAMES_HPP

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <moe/core/error.hpp>
#include <moe/io/tensor.hpp>
#include <moe/io/text.hpp>

namespace moe::inline MOE_ABI {
namespace detail {

/// Throws FormatError: none of these tensors is called `name`. Says which names come near: those
/// whose beginning and end agree with it over more than half its length.
/// @param tensors  a range of TensorView with size()
/// @param what     what was to be read: " for router.weight"
/// @param remedy   ends the sentence
template <class Tensors>
[[noreturn]] void fail_missing(const char* who, const Tensors& tensors, std::string_view name,
                               const std::string& what = {}, const char* remedy = "") {
    constexpr std::size_t shown = 3;
    std::vector<std::pair<std::size_t, std::string_view>> near;  // best first
    for (const TensorView& tensor : tensors) {
        const std::size_t length = std::min(name.size(), tensor.name.size());
        std::size_t head = 0, tail = 0;
        while (head < length && name[head] == tensor.name[head]) ++head;
        while (head + tail < length &&
               name[name.size() - 1 - tail] == tensor.name[tensor.name.size() - 1 - tail])
            ++tail;
        if (2 * (head + tail) <= name.size()) continue;
        const std::pair<std::size_t, std::string_view> entry(head + tail, tensor.name);
        const auto place = std::find_if(
            near.begin(), near.end(), [&](const auto& other) { return other.first < entry.first; });
        near.insert(place, entry);
        if (near.size() > shown) near.pop_back();
    }
    std::string hint = near.empty() ? "" : "; near it:";
    for (const auto& entry : near)
        hint += (hint.back() == ':' ? " " : ", ") + in_quotes(entry.second);
    fail<FormatError>(who, ": none of the ", tensors.size(), " tensors is called ", in_quotes(name),
                      what, hint, remedy);
}

}  // namespace detail
}  // namespace moe::inline MOE_ABI

#endif  // MOE_IO_TENSOR_NAMES_HPP
