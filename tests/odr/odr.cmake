# SPDX-License-Identifier: MIT
# The umbrella header in several translation units of one program: twice with the same flags, where
# a missing `inline` does not link, with kernels of another translation unit, and with richer
# instruction sets, where code of one must not end up in the other.
include(CheckCXXCompilerFlag)

add_executable(moe_odr_test odr/main.cpp odr/again.cpp odr/baseline.cpp odr/extern.cpp
    odr/extern_kernels.cpp)
target_link_libraries(moe_odr_test PRIVATE moe_developer)

check_cxx_compiler_flag("-mavx2 -mfma" moe_has_avx2_flags)
if(moe_has_avx2_flags)
    target_sources(moe_odr_test PRIVATE odr/avx.cpp odr/avx2.cpp odr/native.cpp)
    set_source_files_properties(odr/avx.cpp PROPERTIES COMPILE_OPTIONS "-mavx;-mfma")
    set_source_files_properties(odr/avx2.cpp PROPERTIES COMPILE_OPTIONS "-mavx2;-mfma")
    set_source_files_properties(odr/native.cpp PROPERTIES COMPILE_OPTIONS -march=native)
    target_compile_definitions(moe_odr_test PRIVATE MOE_TEST_X86)
endif()

# Nothing is inlined, so that the linker chooses among all copies of a function.
target_compile_options(moe_odr_test PRIVATE -O0)

add_test(NAME odr COMMAND moe_odr_test)
set_tests_properties(odr PROPERTIES ENVIRONMENT "${MOE_TEST_ENVIRONMENT}")

add_test(NAME odr.tags COMMAND ${CMAKE_COMMAND} -D COMPILER=${CMAKE_CXX_COMPILER}
    -D INCLUDE=${PROJECT_SOURCE_DIR}/include -D X86=${moe_has_avx2_flags}
    -P ${CMAKE_CURRENT_SOURCE_DIR}/odr/tags.cmake)

# What the compiler made of the kernels.
find_program(MOE_OBJDUMP NAMES ${CMAKE_OBJDUMP} objdump)
mark_as_advanced(MOE_OBJDUMP)
if(TARGET moe_test_kernels AND MOE_OBJDUMP AND moe_has_avx2_flags AND NOT MOE_SANITIZE)
    set(baseline ON)
    if("${CMAKE_CXX_FLAGS} ${CMAKE_CXX_FLAGS_DEBUG}" MATCHES "-m(arch|avx|fma)")
        set(baseline OFF)
    endif()
    add_test(NAME odr.disassembly COMMAND ${CMAKE_COMMAND} -D OBJDUMP=${MOE_OBJDUMP}
        -D OBJECT=$<TARGET_OBJECTS:moe_test_kernels> -D BASELINE=${baseline}
        -D "EXPECTED=isa_avx2;isa_avx512;storage_avx2;storage_avx512;storage_amx"
        -P ${CMAKE_CURRENT_SOURCE_DIR}/odr/disassembly.cmake)
else()
    message(STATUS "Not tested, because objdump, x86-64 or the kernels are missing: odr.disassembly")
endif()

# A program of another kind: no exceptions, no type information, errors in its own hands.
add_executable(moe_no_exceptions_test odr/no_exceptions.cpp)
target_link_libraries(moe_no_exceptions_test PRIVATE moe_developer)
target_compile_options(moe_no_exceptions_test PRIVATE -O0)
target_compile_options(moe_no_exceptions_test PRIVATE -fno-exceptions -fno-rtti)
add_test(NAME no_exceptions COMMAND moe_no_exceptions_test)
set_tests_properties(no_exceptions PROPERTIES ENVIRONMENT "${MOE_TEST_ENVIRONMENT}")
