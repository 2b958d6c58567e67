# SPDX-License-Identifier: MIT
# The umbrella header in four translation units of one program: twice with the same flags, where a
# missing `inline` does not link, and with two richer instruction sets, where code of one must not
# end up in the other.
include(CheckCXXCompilerFlag)

add_executable(moe_odr_test odr/main.cpp odr/again.cpp odr/baseline.cpp)
target_link_libraries(moe_odr_test PRIVATE moe_developer)

check_cxx_compiler_flag("-mavx2 -mfma" moe_has_avx2_flags)
if(moe_has_avx2_flags)
    target_sources(moe_odr_test PRIVATE odr/avx2.cpp odr/native.cpp)
    set_source_files_properties(odr/avx2.cpp PROPERTIES COMPILE_OPTIONS "-mavx2;-mfma")
    set_source_files_properties(odr/native.cpp PROPERTIES COMPILE_OPTIONS -march=native)
    target_compile_definitions(moe_odr_test PRIVATE MOE_TEST_X86)
endif()

add_test(NAME odr COMMAND moe_odr_test)
set_tests_properties(odr PROPERTIES ENVIRONMENT "${MOE_TEST_ENVIRONMENT}")
