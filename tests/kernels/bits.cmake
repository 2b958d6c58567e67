# SPDX-License-Identifier: MIT
# The same program built for the oldest machine and for this one, optimised hard, prints the same
# hashes: no compiler flag changes a result.
if(NOT EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/kernels/bits_main.cpp)
    return()
endif()

add_executable(moe_bits_baseline kernels/bits_main.cpp)
target_link_libraries(moe_bits_baseline PRIVATE moe_developer moe_test_kernels)
target_compile_definitions(moe_bits_baseline PRIVATE MOE_EXTERN_KERNELS)
target_include_directories(moe_bits_baseline PRIVATE ${CMAKE_CURRENT_SOURCE_DIR})

add_executable(moe_bits_native kernels/bits_main.cpp)
target_link_libraries(moe_bits_native PRIVATE moe_developer)
target_compile_options(moe_bits_native PRIVATE -O3 -march=native)
target_include_directories(moe_bits_native PRIVATE ${CMAKE_CURRENT_SOURCE_DIR})

add_test(NAME bits COMMAND ${CMAKE_COMMAND}
    -D FIRST=$<TARGET_FILE:moe_bits_baseline> -D SECOND=$<TARGET_FILE:moe_bits_native>
    -P ${CMAKE_CURRENT_SOURCE_DIR}/kernels/compare_bits.cmake)
set_tests_properties(bits PROPERTIES ENVIRONMENT "${MOE_TEST_ENVIRONMENT}" TIMEOUT 900)
