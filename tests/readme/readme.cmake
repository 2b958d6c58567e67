# SPDX-License-Identifier: MIT
add_test(NAME readme COMMAND ${CMAKE_COMMAND} -D SOURCE=${PROJECT_SOURCE_DIR}
    -D VERSION=${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR}
    -P ${CMAKE_CURRENT_SOURCE_DIR}/readme/check.cmake)

# What its blocks call and no example does.
add_executable(moe_readme_calls readme/calls.cpp)
target_link_libraries(moe_readme_calls PRIVATE moe_developer)
target_compile_options(moe_readme_calls PRIVATE -O0)
add_test(NAME readme.calls COMMAND moe_readme_calls)
set_tests_properties(readme.calls PROPERTIES ENVIRONMENT "${MOE_TEST_ENVIRONMENT}")
