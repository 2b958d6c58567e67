// SPDX-License-Identifier: MIT
#ifndef MOE_TESTS_CORE_MESSAGE_HPP
#define MOE_TESTS_CORE_MESSAGE_HPP

#include <stdexcept>
#include <string>
#include <typeinfo>

namespace core_test {

/// The text of the exception that f throws, which must be an `Error` and not one derived from it.
template <class Error = std::invalid_argument, class F>
std::string message(F&& f) {
    try {
        f();
    } catch (const std::exception& error) {
        if (typeid(error) == typeid(Error)) return error.what();
        return std::string("another exception: ") + error.what();
    }
    return "no exception";
}

}  // namespace core_test

#endif  // MOE_TESTS_CORE_MESSAGE_HPP
