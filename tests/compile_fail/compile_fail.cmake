# SPDX-License-Identifier: MIT
# Programs that must not compile, each for the reason it states. See check.cmake.
moe_sources(cases ${CMAKE_CURRENT_SOURCE_DIR}/compile_fail "*.cpp")
foreach(case IN LISTS cases)
    string(REGEX REPLACE "\\.cpp$" "" name ${case})
    add_test(NAME compile_fail.${name} COMMAND ${CMAKE_COMMAND}
        -D COMPILER=${CMAKE_CXX_COMPILER}
        -D SOURCE=${CMAKE_CURRENT_SOURCE_DIR}/compile_fail/${case}
        -D INCLUDE=${PROJECT_SOURCE_DIR}/include
        -D "SYSTEM=$<JOIN:$<TARGET_PROPERTY:Eigen3::Eigen,INTERFACE_INCLUDE_DIRECTORIES>,|>"
        -P ${CMAKE_CURRENT_SOURCE_DIR}/compile_fail/check.cmake)
    set_tests_properties(compile_fail.${name} PROPERTIES LABELS compile_fail)
endforeach()
