# SPDX-License-Identifier: MIT
# cmake -D PROGRAM=… -D SOURCE=example.cpp -P run_example.cmake
# The program must succeed, print something, and print each line that the source promises:
#
#     // prints: text that stands somewhere in the output
#
# cmake -D PROGRAM=… -D "ARGUMENTS=…" -D "ERROR=text" -P run_example.cmake
# The program must fail and say this text.
cmake_minimum_required(VERSION 3.21)

execute_process(COMMAND ${PROGRAM} ${ARGUMENTS}
    RESULT_VARIABLE status OUTPUT_VARIABLE text ERROR_VARIABLE text)
message("${text}")
if(DEFINED ERROR)
    set(promises "${ERROR}")
    if(status EQUAL 0 OR NOT status MATCHES "^[0-9]+$")
        message(FATAL_ERROR "${PROGRAM} should have failed, and ended with ${status}")
    endif()
else()
    file(STRINGS ${SOURCE} promises REGEX "^// prints: ")
    if(NOT status EQUAL 0 OR text STREQUAL "")
        message(FATAL_ERROR "${PROGRAM} ended with ${status}")
    endif()
endif()

foreach(promise IN LISTS promises)
    string(REPLACE "// prints: " "" promise "${promise}")
    string(FIND "${text}" "${promise}" position)
    if(position EQUAL -1)
        message(FATAL_ERROR "the output does not say '${promise}'")
    endif()
endforeach()
