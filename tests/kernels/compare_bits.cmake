# SPDX-License-Identifier: MIT
# cmake -D FIRST=program -D SECOND=program -P compare_bits.cmake
# Both programs must succeed and print the same lines.
cmake_minimum_required(VERSION 3.21)

foreach(which FIRST SECOND)
    execute_process(COMMAND ${${which}} RESULT_VARIABLE status OUTPUT_VARIABLE ${which}_lines)
    if(NOT status EQUAL 0)
        message(FATAL_ERROR "${${which}} ended with ${status}:\n${${which}_lines}")
    endif()
    string(REGEX MATCHALL "[^\n]+" ${which}_lines "${${which}_lines}")
endforeach()

list(LENGTH FIRST_lines count)
list(LENGTH SECOND_lines second_count)
if(count LESS 2 OR NOT count EQUAL second_count)
    message(FATAL_ERROR "expected the same number of lines, two at least: ${count} and ${second_count}")
endif()

set(different "")
foreach(first second IN ZIP_LISTS FIRST_lines SECOND_lines)
    if(NOT first STREQUAL second)
        string(APPEND different "  baseline: ${first}\n  native:   ${second}\n")
    endif()
endforeach()
if(different)
    message(FATAL_ERROR "these lines differ:\n${different}")
endif()
message(STATUS "${count} equal lines")
