# SPDX-License-Identifier: MIT
# NAME_fuzz.cpp defines LLVMFuzzerTestOneInput; tests/fuzz/NAME/ holds its corpus. Every compiler
# replays the corpus and mutations of it; clang can also search for MOE_FUZZ_SECONDS.
if(MOE_FUZZ_SECONDS GREATER 0 AND NOT CMAKE_CXX_COMPILER_ID MATCHES "Clang")
    message(FATAL_ERROR "MOE_FUZZ_SECONDS: only clang can search, not ${CMAKE_CXX_COMPILER_ID}: "
        "configure with -D CMAKE_CXX_COMPILER=clang++")
endif()
moe_sources(targets ${CMAKE_CURRENT_SOURCE_DIR}/fuzz "*_fuzz.cpp")
foreach(source IN LISTS targets)
    string(REGEX REPLACE "_fuzz\\.cpp$" "" name ${source})
    set(corpus ${CMAKE_CURRENT_SOURCE_DIR}/fuzz/${name})

    add_executable(moe_${name}_replay fuzz/${source} fuzz/replay_main.cpp)
    target_link_libraries(moe_${name}_replay PRIVATE moe_developer moe_test_kernels)
    target_compile_definitions(moe_${name}_replay PRIVATE MOE_EXTERN_KERNELS)
    target_include_directories(moe_${name}_replay PRIVATE ${CMAKE_CURRENT_SOURCE_DIR})
    add_test(NAME fuzz.${name} COMMAND moe_${name}_replay ${corpus})
    set_tests_properties(fuzz.${name} PROPERTIES
        LABELS fuzz TIMEOUT 600 ENVIRONMENT "${MOE_TEST_ENVIRONMENT}")

    if(MOE_FUZZ_SECONDS GREATER 0)
        add_executable(moe_${name}_search fuzz/${source})
        target_link_libraries(moe_${name}_search PRIVATE moe_developer moe_test_kernels)
        target_compile_definitions(moe_${name}_search PRIVATE MOE_EXTERN_KERNELS)
        target_include_directories(moe_${name}_search PRIVATE ${CMAKE_CURRENT_SOURCE_DIR})
        target_compile_options(moe_${name}_search PRIVATE -fsanitize=fuzzer)
        target_link_options(moe_${name}_search PRIVATE -fsanitize=fuzzer)
        set(found ${CMAKE_CURRENT_BINARY_DIR}/fuzz/${name}/)  # inputs that reach new code, and crashes
        file(MAKE_DIRECTORY ${found})
        add_test(NAME fuzz.${name}.search COMMAND moe_${name}_search
            -max_total_time=${MOE_FUZZ_SECONDS} -timeout=20 -rss_limit_mb=4096
            -artifact_prefix=${found} ${found} ${corpus})
        math(EXPR timeout "${MOE_FUZZ_SECONDS} + 300")
        set_tests_properties(fuzz.${name}.search PROPERTIES
            LABELS fuzz TIMEOUT ${timeout} ENVIRONMENT "${MOE_TEST_ENVIRONMENT}")
    endif()
endforeach()
