# SPDX-License-Identifier: MIT
# cmake -D COMPILER=… -D INCLUDE=… -D X86=ON|OFF -P tags.cmake
# The name of the inline namespace differs for any two of these sets of flags.
cmake_minimum_required(VERSION 3.21)

set(flag_sets "-DNOTHING" "-ffast-math" "-fopenmp" "-DNDEBUG" "-fno-exceptions" "-DMOE_EXTERN_KERNELS")
if(X86)
    list(APPEND flag_sets "-msse4.2" "-mavx" "-mavx -mfma" "-mavx2" "-mavx2 -mfma" "-mavx512f")
endif()

set(seen "")
foreach(flags IN LISTS flag_sets)
    separate_arguments(words UNIX_COMMAND "${flags}")
    execute_process(COMMAND ${COMPILER} -std=c++20 ${words} -I ${INCLUDE} -E -P
        ${CMAKE_CURRENT_LIST_DIR}/tag.cpp
        RESULT_VARIABLE status OUTPUT_VARIABLE text ERROR_VARIABLE error)
    if(NOT status EQUAL 0 OR NOT text MATCHES "namespace_of_moe = ([A-Za-z0-9_]+);")
        message(FATAL_ERROR "${flags}: no tag (${status})\n${error}")
    endif()
    set(tag ${CMAKE_MATCH_1})
    message(STATUS "${flags}: ${tag}")
    if(tag IN_LIST seen)
        message(FATAL_ERROR "other flags have this tag too")
    endif()
    list(APPEND seen ${tag})
endforeach()
