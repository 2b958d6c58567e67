# SPDX-License-Identifier: MIT
# cmake -D COMPILER=… -D HEADERS=file.hpp -D SOURCE=case.cpp -D INCLUDE=… -D SYSTEM=dir|dir
#     -P check.cmake
#
# HEADERS are what precompile.cmake compiled; the case includes what it needs all the same.
#
# A case states what the first error must say, and has a twin that differs in the mistake only:
#
#     // expect: regular expression
#     #ifdef MUST_COMPILE
#         … right …
#     #else
#         … wrong …
#     #endif
#
# The twin must compile, so that the case fails for its own reason; the case must not, and the text
# after the first "error:" must match.
cmake_minimum_required(VERSION 3.21)

file(STRINGS ${SOURCE} expectation REGEX "^// expect: " LIMIT_COUNT 1)
string(REGEX REPLACE "^// expect: " "" expectation "${expectation}")
if(expectation STREQUAL "")
    message(FATAL_ERROR "${SOURCE} does not begin with '// expect: regular expression'")
endif()

string(REPLACE "|" ";" directories "${SYSTEM}")
set(command ${COMPILER} -std=c++20 -fsyntax-only -fdiagnostics-color=never -I${INCLUDE})
if(COMPILER MATCHES "clang[^/]*$")
    list(APPEND command -include-pch ${HEADERS}.gch)
else()
    list(APPEND command -include ${HEADERS})
endif()
foreach(directory IN LISTS directories)
    list(APPEND command -isystem ${directory})
endforeach()
set(ENV{LC_ALL} C)

execute_process(COMMAND ${command} -D MUST_COMPILE ${SOURCE}
    RESULT_VARIABLE status OUTPUT_VARIABLE text ERROR_VARIABLE text)
if(NOT status EQUAL 0)
    message(FATAL_ERROR "the twin with MUST_COMPILE does not compile:\n${text}")
endif()

execute_process(COMMAND ${command} ${SOURCE}
    RESULT_VARIABLE status OUTPUT_VARIABLE text ERROR_VARIABLE text)
if(status EQUAL 0)
    message(FATAL_ERROR "it compiles")
endif()
if(NOT text MATCHES "error: ([^\n]*)")
    message(FATAL_ERROR "no error in the compiler's output:\n${text}")
endif()
set(first "${CMAKE_MATCH_1}")
if(NOT first MATCHES "${expectation}")
    message(FATAL_ERROR "the first error does not match\n  ${expectation}\nit is\n  ${first}\n\n${text}")
endif()
message(STATUS "${first}")
