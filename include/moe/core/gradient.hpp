// SPDX-License-Identifier: MIT
#ifndef MOE_CORE_GRADIENT_HPP
#define MOE_CORE_GRADIENT_HPP

#include <algorithm>
#include <cstddef>
#include <optional>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <moe/core/parameters.hpp>
#include <moe/core/types.hpp>
#include <moe/core/workspace.hpp>

namespace moe::inline MOE_ABI::detail {

/// Name, place and extent of every matrix of a part.
struct MatrixList {
    struct Entry {
        std::size_t name;  // its hash
        const void* data;
        Index size;
    };
    std::vector<Entry> entries;

    template <class Part>
    void list(const Part& part) {
        entries.clear();
        moe::visit_parameters(part, [&](std::string_view name, const auto& matrix, Role) {
            entries.push_back({std::hash<std::string_view>{}(name), matrix.data(), matrix.size()});
        });
    }
    /// The matrix of that name or null: a part need not visit a matrix that is empty.
    const Entry* find(std::size_t name) const {
        for (const Entry& entry : entries)
            if (entry.name == name) return &entry;
        return nullptr;
    }
    /// The same where the `place`-th matrix is usually the one.
    const Entry* find(std::size_t name, std::size_t place) const {
        if (place < entries.size() && entries[place].name == name) return &entries[place];
        return find(name);
    }
    bool holds_all_of(const MatrixList& other) const {
        for (std::size_t i = 0; i < other.entries.size(); ++i) {
            const Entry* const present = find(other.entries[i].name, i);
            if (present == nullptr || present->size != other.entries[i].size) return false;
        }
        return true;
    }
};

/// @param matrices  of the part that `grad` is to be the gradient of
/// @throws std::invalid_argument if a matrix of grad has another extent than the part's. An empty
///         one is not wanted, it may be missing. One that the part lacks is the gradient of weights
///         that are views of memory.
template <class Part>
void check_gradient(const MatrixList& matrices, const Part& grad) {
    std::size_t place = 0;
    moe::visit_parameters(grad, [&](std::string_view name, const auto& matrix, Role) {
        const auto* const ours = matrices.find(std::hash<std::string_view>{}(name), place++);
        if (matrix.size() != 0 && ours != nullptr && ours->size != matrix.size())
            fail("moe::Layer::backward: grad is of another layer: its ", std::string(name), " has ",
                 matrix.size(), " elements, the layer's has ", ours->size,
                 "; make it with zeros_like(layer)");
    });
}

/// Lends a part of a layer a gradient that has all its matrices, so that backward of a user's
/// router, gate, expert or group need not ask whether one is wanted. Lives in a workspace: from the
/// second time on nothing is allocated.
///
/// A part with `static constexpr bool skips_empty_gradients = true` asks for itself, computes
/// nothing for matrices that are not wanted, and gets its gradient as it is. Its
/// `check_gradient(grad) const`, if it has one, takes the place of the check by names.
template <class Part>
class WholeGradient {
public:
    /// Room for the lists that lend() makes; a scratch object is made when it is needed.
    void reserve(const Part& part) {
        for (MatrixList* list : {&all_, &wanted_}) list->entries.reserve(num_matrices(part));
    }
    /// Bytes of that room.
    static Index bytes(const Part& part) {
        return static_cast<Index>(2 * num_matrices(part) * sizeof(MatrixList::Entry));
    }

    /// f(gradient) with `given` or, if it misses a matrix or is null, with a scratch object to and
    /// from which those that are there are copied.
    /// @throws std::invalid_argument if `given` is not like `part`
    template <class F>
    void lend(const Part& part, Part* given, F&& f) {
        if constexpr (requires { part.check_gradient(part); }) {
            if (given != nullptr) part.check_gradient(*given);
        } else {
            all_.list(part);
            if (given != nullptr) check_gradient(all_, *given);
        }
        if constexpr (requires { requires Part::skips_empty_gradients; }) {
            if (given != nullptr) return f(*given);
        }
        wanted_.entries.clear();
        if (given != nullptr) wanted_.list(*given);
        if (given != nullptr && wanted_.holds_all_of(all_)) return f(*given);
        scratch_values_.entries.clear();
        if (scratch_) scratch_values_.list(*scratch_);
        if (!scratch_ || !scratch_values_.holds_all_of(all_)) {
            scratch_.emplace(part);
            if constexpr (requires { scratch_->own_gradients(); }) scratch_->own_gradients();
            scratch_values_.list(*scratch_);
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
    static std::size_t num_matrices(const Part& part) {
        std::size_t count = 0;
        moe::visit_parameters(part, [&](std::string_view, const auto&, Role) { ++count; });
        return count;
    }

    /// copy(values in scratch_, the same in the gradient that was given or null, size)
    void exchange(auto&& copy) {
        moe::visit_parameters(*scratch_, [&](std::string_view name, auto& matrix, Role) {
            using Value = std::remove_cvref_t<decltype(*matrix.data())>;
            if (matrix.size() == 0) return;
            const auto* const present = wanted_.find(std::hash<std::string_view>{}(name));
            Value* theirs = nullptr;
            if (present != nullptr && present->size == matrix.size())
                theirs = static_cast<Value*>(const_cast<void*>(present->data));
            copy(matrix.data(), theirs, matrix.size());
        });
    }

    MatrixList all_, wanted_, scratch_values_;
    std::optional<Part> scratch_;
};

/// Room for lend_gradient().
template <class Part, class S>
void reserve_gradient(const Part& part, Workspace<S>& ws) {
    if constexpr (!requires { part.check_gradient(part); })
        ws.template state<WholeGradient<Part>>().reserve(part);
    else
        ws.template state<WholeGradient<Part>>();
}

/// Bytes of that room.
template <class Part>
Index gradient_bytes(const Part& part) {
    if constexpr (requires { part.check_gradient(part); })
        return 0;
    else
        return WholeGradient<Part>::bytes(part);
}

/// f(gradient) with a gradient that `part` can take; see WholeGradient, which lives in `ws`.
template <class Part, class S, class F>
void lend_gradient(const Part& part, Part& given, Workspace<S>& ws, F&& f) {
    ws.template state<WholeGradient<Part>>().lend(part, &given, f);
}

}  // namespace moe::inline MOE_ABI::detail

#endif  // MOE_CORE_GRADIENT_HPP
