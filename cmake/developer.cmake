# SPDX-License-Identifier: MIT
# What our own tests, benchmarks and examples are compiled with. Nothing here touches moe::moe.

# A compiler newer than those we use every day may know new warnings; there they stay warnings.
set(warnings_are_errors OFF)
if((CMAKE_CXX_COMPILER_ID STREQUAL GNU AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
        OR (CMAKE_CXX_COMPILER_ID STREQUAL Clang AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 15))
    set(warnings_are_errors ON)
endif()
option(MOE_WERROR "Warnings in our own programs are errors" ${warnings_are_errors})
set(MOE_SANITIZE "" CACHE STRING "Sanitizers of our own programs: address,undefined or thread")

if(PROJECT_IS_TOP_LEVEL AND NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
    set(CMAKE_BUILD_TYPE Release CACHE STRING "Release, RelWithDebInfo or Debug" FORCE)
endif()

set(CMAKE_CXX_EXTENSIONS OFF)

# Flags for targets of ours, linked PRIVATE.
add_library(moe_developer INTERFACE)
target_link_libraries(moe_developer INTERFACE moe::moe)
target_compile_options(moe_developer INTERFACE
    -Wall -Wextra -Wpedantic -Wconversion -Wshadow $<$<BOOL:${MOE_WERROR}>:-Werror>)
if(MOE_SANITIZE)
    # g++ 12 takes the instrumented std::regex for uninitialised.
    target_compile_options(moe_developer INTERFACE
        -fsanitize=${MOE_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer -g1
        $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized>)
    target_link_options(moe_developer INTERFACE -fsanitize=${MOE_SANITIZE})
endif()

# What a program of ours finds in its environment when a sanitizer watches it.
set(MOE_TEST_ENVIRONMENT
    "ASAN_OPTIONS=detect_stack_use_after_return=1:strict_string_checks=1:allocator_may_return_null=1"
    "UBSAN_OPTIONS=print_stacktrace=1" "TSAN_OPTIONS=halt_on_error=1")

# moe_sources(out directory pattern): files below `directory`, found again when one is added.
function(moe_sources out directory pattern)
    file(GLOB_RECURSE found CONFIGURE_DEPENDS RELATIVE ${directory} ${directory}/${pattern})
    list(SORT found)
    set(${out} ${found} PARENT_SCOPE)
endfunction()
