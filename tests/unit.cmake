# SPDX-License-Identifier: MIT
find_package(GTest QUIET)
set(gtest_sources /usr/src/googletest)
if(NOT GTest_FOUND AND CMAKE_CROSSCOMPILING AND EXISTS ${gtest_sources}/CMakeLists.txt)
    # Debian and Ubuntu have it for other processors as sources: the package googletest.
    add_subdirectory(${gtest_sources} ${CMAKE_CURRENT_BINARY_DIR}/googletest EXCLUDE_FROM_ALL)
    set(GTest_FOUND ON)
endif()
if(NOT GTest_FOUND)
    message(FATAL_ERROR "The tests need GoogleTest (Debian, Ubuntu: libgtest-dev). "
        "Install it or configure with -DMOE_BUILD_TESTS=OFF.")
endif()

add_library(moe_test_options INTERFACE)
target_link_libraries(moe_test_options INTERFACE moe_developer GTest::gtest)
target_include_directories(moe_test_options INTERFACE ${CMAKE_CURRENT_SOURCE_DIR})
target_compile_definitions(moe_test_options INTERFACE MOE_EXTERN_KERNELS)

add_library(moe_test_main OBJECT support/main.cpp)
target_link_libraries(moe_test_main PRIVATE moe_test_options)
target_precompile_headers(moe_test_main PRIVATE <gtest/gtest.h> <Eigen/Core>)

moe_sources(files ${CMAKE_CURRENT_SOURCE_DIR} "*_test.cpp")
set(folders "")
foreach(file IN LISTS files)
    if(file MATCHES "^([^/]+)/")
        set(folder ${CMAKE_MATCH_1})
    else()
        set(folder layer)
    endif()
    list(APPEND folders ${folder})
    list(APPEND files_of_${folder} ${file})
endforeach()
list(REMOVE_DUPLICATES folders)
if(MOE_TEST_FOLDERS)
    set(folders ${MOE_TEST_FOLDERS})
endif()
list(REMOVE_ITEM folders ${MOE_TEST_SKIPPED_FOLDERS})

set(arguments --gtest_brief=1)
set(environment ${MOE_TEST_ENVIRONMENT})
if(MOE_TEST_DEEP)
    list(APPEND arguments --gtest_repeat=3 --gtest_shuffle)
    list(APPEND environment MOE_TEST_DEEP=1)
endif()

# Relative paths in tests start at the top of the source tree; temporary files of two runs of one
# program lie in different folders.
function(moe_add_unit_test name program isa)
    set(temporary ${CMAKE_CURRENT_BINARY_DIR}/tmp/${name})
    file(MAKE_DIRECTORY ${temporary})
    add_test(NAME ${name} COMMAND ${program} ${arguments}
        WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
    set_tests_properties(${name} PROPERTIES LABELS unit TIMEOUT 900
        ENVIRONMENT "${environment};TMPDIR=${temporary};TEST_TMPDIR=${temporary}${isa}")
endfunction()

# Where an instruction set is missing, MOE_ISA means the best there is: that would be no other test.
set(isas ${MOE_TEST_ISAS})
if(EXISTS /proc/cpuinfo)
    file(STRINGS /proc/cpuinfo processor REGEX "^flags" LIMIT_COUNT 1)
    foreach(isa IN LISTS MOE_TEST_ISAS)
        if(NOT isa STREQUAL scalar AND NOT processor MATCHES " ${isa}")
            message(STATUS "Not tested, because this machine does not have it: ${isa}")
            list(REMOVE_ITEM isas ${isa})
        endif()
    endforeach()
endif()

# Several files of these folders are one translation unit, which halves the time that the compiler
# takes for what they all instantiate (processor time: losses 48 to 21 s, ten of layer 100 to 52 s,
# eight of seams 78 to 33 s). Everything in a test file is in a namespace of its own.
set(joined_folders balance core experts io layer losses seams stats steering testing)

foreach(folder IN LISTS folders)
    set(program moe_${folder}_tests)
    add_executable(${program} ${files_of_${folder}})
    if(folder IN_LIST joined_folders)
        set_target_properties(${program} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 8)
    endif()
    target_link_libraries(${program} PRIVATE moe_test_options moe_test_main moe_test_kernels)
    target_precompile_headers(${program} REUSE_FROM moe_test_main)

    moe_add_unit_test(${folder} ${program} "")
    foreach(isa IN LISTS isas)
        moe_add_unit_test(${folder}.${isa} ${program} ";MOE_ISA=${isa}")
    endforeach()
endforeach()
