// SPDX-License-Identifier: MIT
#ifndef MOE_TESTS_SUPPORT_MESSAGE_HPP
#define MOE_TESTS_SUPPORT_MESSAGE_HPP

#include <stdexcept>
#include <string>
#include <typeinfo>

#include <gtest/gtest.h>

namespace support {

/// What the exception says that f throws, which must be an `Error` and not one derived from it;
/// empty if f throws nothing.
template <class Error = std::invalid_argument, class F>
std::string message(F&& f) {
    try {
        f();
    } catch (const Error& error) {
        EXPECT_TRUE(typeid(error) == typeid(Error)) << typeid(error).name() << ": " << error.what();
        return error.what();
    }
    return {};
}

}  // namespace support

#endif  // MOE_TESTS_SUPPORT_MESSAGE_HPP
