# SPDX-License-Identifier: MIT
# Projects that use moe the way others do, each configured, built and run from nothing. See run.cmake.
set(cases find_package)
if("consumers" IN_LIST MOE_TEST_PARTS)
    set(cases find_package find_package_without_openmp moved_prefix pkg_config
        pkg_config_absolute wrong_version add_subdirectory fetch_content fetch_content_twice include_path eigen_as_subproject)
endif()
foreach(case IN LISTS cases)
    add_test(NAME consumer.${case} COMMAND ${CMAKE_COMMAND}
        -D CASE=${case} -D SOURCE=${PROJECT_SOURCE_DIR} -D VERSION=${PROJECT_VERSION}
        -D WORK=${CMAKE_CURRENT_BINARY_DIR}/consumer/${case}
        -D GENERATOR=${CMAKE_GENERATOR} -D COMPILER=${CMAKE_CXX_COMPILER}
        -D WITH_OPENMP=${MOE_WITH_OPENMP}
        -D "EIGEN=$<JOIN:$<TARGET_PROPERTY:Eigen3::Eigen,INTERFACE_INCLUDE_DIRECTORIES>,|>"
        -P ${CMAKE_CURRENT_SOURCE_DIR}/consumer/run.cmake)
    set_tests_properties(consumer.${case} PROPERTIES LABELS consumer TIMEOUT 600)
endforeach()
