# SPDX-License-Identifier: MIT
# Programs that must not compile, each for the reason it states. See check.cmake.
#
# Their headers are compiled once, by a test that the others wait for: 0.9 s instead of 3 for each.
set(headers ${CMAKE_CURRENT_BINARY_DIR}/compile_fail/headers.hpp)
file(CONFIGURE OUTPUT ${headers} CONTENT "#include <moe/moe.hpp>\n")
set(system_includes
    "$<JOIN:$<TARGET_PROPERTY:Eigen3::Eigen,INTERFACE_INCLUDE_DIRECTORIES>,|>")
add_test(NAME compile_fail.headers COMMAND ${CMAKE_COMMAND}
    -D COMPILER=${CMAKE_CXX_COMPILER} -D HEADERS=${headers}
    -D INCLUDE=${PROJECT_SOURCE_DIR}/include -D "SYSTEM=${system_includes}"
    -P ${CMAKE_CURRENT_SOURCE_DIR}/compile_fail/precompile.cmake)
set_tests_properties(compile_fail.headers PROPERTIES
    LABELS compile_fail FIXTURES_SETUP compile_fail_headers)

moe_sources(cases ${CMAKE_CURRENT_SOURCE_DIR}/compile_fail "*.cpp")
foreach(case IN LISTS cases)
    string(REGEX REPLACE "\\.cpp$" "" name ${case})
    add_test(NAME compile_fail.${name} COMMAND ${CMAKE_COMMAND}
        -D COMPILER=${CMAKE_CXX_COMPILER} -D HEADERS=${headers}
        -D SOURCE=${CMAKE_CURRENT_SOURCE_DIR}/compile_fail/${case}
        -D INCLUDE=${PROJECT_SOURCE_DIR}/include -D "SYSTEM=${system_includes}"
        -P ${CMAKE_CURRENT_SOURCE_DIR}/compile_fail/check.cmake)
    set_tests_properties(compile_fail.${name} PROPERTIES
        LABELS compile_fail FIXTURES_REQUIRED compile_fail_headers)
endforeach()
