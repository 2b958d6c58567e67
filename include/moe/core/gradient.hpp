// SPDX-License-Identifier: MIT
#ifndef MOE_CORE_GRADIENT_HPP
#define MOE_CORE_GRADIENT_HPP

#include <algorithm>
#include <cstddef>
#include <functional>
#include <optional>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <moe/core/parameters.hpp>
#include <moe/core/types.hpp>
#include <moe/core/workspace.hpp>

namespace moe::inline MOE_ABI::detail {

/// Lends a part of a layer a gradient that has all its matrices, so that backward of a user's
/// router, gate or expert need not ask whether one is wanted. Lives in a workspace: from the second
/// time on nothing is allocated.
///
/// A part with `static constexpr bool skips_empty_gradients = true` asks for itself, computes
/// nothing for matrices that are not wanted, and gets its gradient as it is.
template <class Part>
class WholeGradient {
public:
    /// f(gradient) with `given` or, if it misses a matrix or is null, with a scratch object to and
    /// from which those that are there are copied.
    template <class F>
    void lend(const Part& part, Part* given, F&& f) {
        if constexpr (requires { requires Part::skips_empty_gradients; }) {
            if (given != nullptr) return f(*given);
        }
        list(part, all_);
        wanted_.clear();
        if (given != nullptr) list(*given, wanted_);
        if (given != nullptr && fits(wanted_)) return f(*given);
        scratch_values_.clear();
        if (scratch_) list(*scratch_, scratch_values_);
        if (!scratch_ || !fits(scratch_values_)) {
            scratch_.emplace(part);
            if constexpr (requires { scratch_->own_gradients(); }) scratch_->own_gradients();
            list(*scratch_, scratch_values_);
        }
        exchange([](auto* mine, auto* theirs, Index size) {
            if (theirs != nullptr)
                std::copy_n(theirs, size, mine);
            else
                std::fill_n(mine, size, std::remove_reference_t<decltype(*mine)>(0));
        });
        f(*scratch_);
        exchange([](auto* mine, auto* theirs, Index size) {
            if (theirs != nullptr) std::copy_n(mine, size, theirs);
        });
    }

private:
    struct Values {
        std::size_t name;  // its hash: a part need not visit a matrix that is empty
        const void* data;
        Index size;
    };

    static void list(const Part& part, std::vector<Values>& values) {
        values.clear();
        moe::visit_parameters(part, [&](std::string_view name, const auto& matrix, Role) {
            values.push_back({std::hash<std::string_view>{}(name), matrix.data(), matrix.size()});
        });
    }
    static const Values* find(const std::vector<Values>& values, std::size_t name) {
        for (const Values& candidate : values)
            if (candidate.name == name) return &candidate;
        return nullptr;
    }
    /// Whether every matrix is there.
    bool fits(const std::vector<Values>& values) const {
        for (const Values& wanted : all_) {
            const Values* const present = find(values, wanted.name);
            if (present == nullptr || present->size != wanted.size) return false;
        }
        return true;
    }
    /// copy(values in scratch_, the same in the gradient that was given or null, size)
    void exchange(auto&& copy) {
        moe::visit_parameters(*scratch_, [&](std::string_view name, auto& matrix, Role) {
            using Value = std::remove_cvref_t<decltype(*matrix.data())>;
            if (matrix.size() == 0) return;
            const Values* const present = find(wanted_, std::hash<std::string_view>{}(name));
            Value* theirs = nullptr;
            if (present != nullptr && present->size == matrix.size())
                theirs = static_cast<Value*>(const_cast<void*>(present->data));
            copy(matrix.data(), theirs, matrix.size());
        });
    }

    std::vector<Values> all_, wanted_, scratch_values_;
    std::optional<Part> scratch_;
};

/// f(gradient) with a gradient that `part` can take; see WholeGradient, which lives in `ws`.
template <class Part, class S, class F>
void lend_gradient(const Part& part, Part& given, Workspace<S>& ws, F&& f) {
    if constexpr (requires { requires Part::skips_empty_gradients; })
        f(given);
    else
        ws.template state<WholeGradient<Part>>().lend(part, &given, f);
}

}  // namespace moe::inline MOE_ABI::detail

#endif  // MOE_CORE_GRADIENT_HPP
