# SPDX-License-Identifier: MIT
# cmake -D PROGRAM=… -D SOURCE=example.cpp -P run_example.cmake
# The program must succeed, print something, and print each line that the source promises:
#
#     // prints: text that stands somewhere in the output
cmake_minimum_required(VERSION 3.21)

execute_process(COMMAND ${PROGRAM} RESULT_VARIABLE status OUTPUT_VARIABLE text ERROR_VARIABLE text)
if(NOT status EQUAL 0 OR text STREQUAL "")
    message(FATAL_ERROR "${PROGRAM} ended with ${status} and printed\n${text}")
endif()
file(STRINGS ${SOURCE} promises REGEX "^// prints: ")
foreach(promise IN LISTS promises)
    string(REPLACE "// prints: " "" promise "${promise}")
    string(FIND "${text}" "${promise}" position)
    if(position EQUAL -1)
        message(FATAL_ERROR "'${promise}' is not in the output:\n${text}")
    endif()
endforeach()
message("${text}")
