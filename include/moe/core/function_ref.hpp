// SPDX-License-Identifier: MIT
#ifndef MOE_CORE_FUNCTION_REF_HPP
#define MOE_CORE_FUNCTION_REF_HPP

#include <type_traits>

#include <moe/config.hpp>

namespace moe::inline MOE_ABI {

template <class>
class FunctionRef;

/// A reference to a callable, for functions that are not templates; it must outlive the call it is
/// passed to. No allocation, one indirect call.
///
///     void run(FunctionRef<void(Index)> task);    run(lambda);
template <class Result, class... Arguments>
class FunctionRef<Result(Arguments...)> {
public:
    template <class F>
        requires(!std::is_same_v<std::remove_cvref_t<F>, FunctionRef> &&
                 std::is_invocable_r_v<Result, F&, Arguments...>)
    FunctionRef(F& function)  // NOLINT(google-explicit-constructor)
        : object_(const_cast<void*>(static_cast<const void*>(&function))),
          call_([](void* object, Arguments... arguments) -> Result {
              return static_cast<Result>((*static_cast<F*>(object))(arguments...));
          }) {}
    Result operator()(Arguments... arguments) const { return call_(object_, arguments...); }

private:
    void* object_;
    Result (*call_)(void*, Arguments...);
};

}  // namespace moe::inline MOE_ABI

#endif  // MOE_CORE_FUNCTION_REF_HPP
