// SPDX-License-Identifier: MIT
#include <moe/core/function_ref.hpp>

#include <string>
#include <type_traits>

#include <gtest/gtest.h>

namespace function_ref_test {
namespace {

using moe::FunctionRef;

TEST(FunctionRef, RefersToItsCallable) {
    int count = 0;
    auto task = [count](int i, int worker) mutable { return count += i + worker; };
    const FunctionRef<int(int, int)> first(task);
    const FunctionRef<int(int, int)> second = first;  // refers to the callable, not to `first`
    EXPECT_EQ(first(1, 2), 3);
    EXPECT_EQ(second(3, 4), 10);
    EXPECT_EQ(task(0, 0), 10);
}

TEST(FunctionRef, PassesReferencesOnAndMayIgnoreTheResult) {
    std::string text;
    auto append = [](std::string& to) { return to += "x"; };
    const FunctionRef<void(std::string&)> call(append);
    call(text);
    call(text);
    EXPECT_EQ(text, "xx");
}

TEST(FunctionRef, TakesOnlyWhatCanBeCalledThatWay) {
    const auto takes_text = [](const std::string&) {};
    using Lambda = decltype(takes_text);
    static_assert(std::is_constructible_v<FunctionRef<void(const char*)>, Lambda&>);
    static_assert(!std::is_constructible_v<FunctionRef<void(double*)>, Lambda&>);
    static_assert(!std::is_constructible_v<FunctionRef<int(const char*)>, Lambda&>);
    const FunctionRef<void(const char*)> call(takes_text);
    call("text");
    SUCCEED();
}

}  // namespace
}  // namespace function_ref_test
