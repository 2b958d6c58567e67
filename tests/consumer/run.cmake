# SPDX-License-Identifier: MIT
# cmake -D CASE=… -D SOURCE=… -D VERSION=… -D WORK=… -D GENERATOR=… -D COMPILER=… -D WITH_OPENMP=…
#       -D EIGEN=dir|dir -P run.cmake
# Configures, builds and runs one consumer in an empty folder, and reads its compile lines.
cmake_minimum_required(VERSION 3.21)

file(REMOVE_RECURSE ${WORK})
file(MAKE_DIRECTORY ${WORK})
string(REPLACE "|" ";" EIGEN "${EIGEN}")
string(REGEX MATCH "^([0-9]+)\\.([0-9]+)" short_version ${VERSION})
set(major ${CMAKE_MATCH_1})
set(minor ${CMAKE_MATCH_2})

# run(command...): its output is in `text`; stops if it fails.
function(run)
    execute_process(COMMAND ${ARGN} RESULT_VARIABLE status OUTPUT_VARIABLE text ERROR_VARIABLE text)
    if(NOT status EQUAL 0)
        list(JOIN ARGN " " line)
        message(FATAL_ERROR "${line}\nended with ${status}:\n${text}")
    endif()
    set(text "${text}" PARENT_SCOPE)
endfunction()

set(configure ${CMAKE_COMMAND} -G ${GENERATOR} -D CMAKE_CXX_COMPILER=${COMPILER})
set(consumer ${configure} -S ${CMAKE_CURRENT_LIST_DIR} -B ${WORK}/build
    -D CMAKE_EXPORT_COMPILE_COMMANDS=ON)

# install_moe(prefix option...): the package alone, as a distribution would make it.
function(install_moe prefix)
    run(${configure} -S ${SOURCE} -B ${WORK}/package -D MOE_BUILD_TESTS=OFF
        -D MOE_BUILD_BENCHMARKS=OFF -D MOE_BUILD_EXAMPLES=OFF -D MOE_WITH_OPENMP=${WITH_OPENMP} ${ARGN})
    run(${CMAKE_COMMAND} --install ${WORK}/package --prefix ${prefix})

    # Every file of include/, the package files, the licence; nothing else, and no architecture's folder.
    file(GLOB_RECURSE installed RELATIVE ${prefix} ${prefix}/*)
    file(GLOB_RECURSE expected RELATIVE ${SOURCE} ${SOURCE}/include/moe/*)
    list(APPEND expected share/cmake/moe/moe-config.cmake share/cmake/moe/moe-config-version.cmake
        share/cmake/moe/moe-targets.cmake share/licenses/moe/LICENSE share/pkgconfig/moe.pc)
    list(SORT installed)
    list(SORT expected)
    if(NOT installed STREQUAL expected)
        message(FATAL_ERROR "installed:\n${installed}\nexpected:\n${expected}")
    endif()
endfunction()

# Compile lines hold what any C++20 program has, include folders, and OpenMP's own flag.
function(check_compile_lines with_openmp)
    file(READ ${WORK}/build/compile_commands.json commands)
    string(JSON count LENGTH "${commands}")
    math(EXPR last "${count} - 1")
    foreach(i RANGE ${last})
        string(JSON line GET "${commands}" ${i} command)
        separate_arguments(words UNIX_COMMAND "${line}")
        list(POP_FRONT words)
        set(openmp_seen OFF)
        set(skip OFF)
        set(leaked "")
        foreach(word IN LISTS words)
            if(skip)
                set(skip OFF)
            elseif(word MATCHES "^(-o|-c|-isystem)$")
                set(skip ON)
            elseif(word MATCHES "^-fopenmp")
                set(openmp_seen ON)
            elseif(NOT word MATCHES "^(-I.*|-std=(gnu|c)\\+\\+20)$")
                list(APPEND leaked ${word})
            endif()
        endforeach()
        message(STATUS "${line}")
        if(leaked)
            message(FATAL_ERROR "flags of ours on a consumer's compile line: ${leaked}")
        endif()
        if(NOT openmp_seen STREQUAL with_openmp)
            message(FATAL_ERROR "OpenMP on the compile line: ${openmp_seen}, expected: ${with_openmp}")
        endif()
    endforeach()
endfunction()

function(build_and_run with_openmp)
    run(${CMAKE_COMMAND} --build ${WORK}/build)
    check_compile_lines(${with_openmp})
    run(${WORK}/build/consumer)
    message(STATUS "${text}")
    set(threads std)
    if(with_openmp)
        set(threads OpenMP)
    endif()
    if(NOT text MATCHES "consumer: 3 x 8, threads from ${threads}\n")
        message(FATAL_ERROR "expected 3 x 8 and threads from ${threads}: ${text}")
    endif()
endfunction()

if(WITH_OPENMP)
    set(WITH_OPENMP ON)
else()
    set(WITH_OPENMP OFF)
endif()

if(CASE STREQUAL find_package)
    install_moe(${WORK}/prefix)
    run(${consumer} -D HOW=find_package -D WANTED=${short_version} -D CMAKE_PREFIX_PATH=${WORK}/prefix)
    build_and_run(${WITH_OPENMP})

elseif(CASE STREQUAL find_package_without_openmp)
    set(WITH_OPENMP OFF)
    install_moe(${WORK}/prefix -D CMAKE_DISABLE_FIND_PACKAGE_OpenMP=ON)
    run(${consumer} -D HOW=find_package -D WANTED=${short_version} -D CMAKE_PREFIX_PATH=${WORK}/prefix
        -D CMAKE_DISABLE_FIND_PACKAGE_OpenMP=ON)
    build_and_run(OFF)

elseif(CASE STREQUAL moved_prefix)
    install_moe(${WORK}/prefix)
    file(RENAME ${WORK}/prefix ${WORK}/moved)
    file(REMOVE_RECURSE ${WORK}/package)
    run(${consumer} -D HOW=find_package -D WANTED=${short_version} -D CMAKE_PREFIX_PATH=${WORK}/moved)
    build_and_run(${WITH_OPENMP})

elseif(CASE MATCHES "^pkg_config")
    find_program(pkg_config NAMES pkg-config pkgconf REQUIRED)
    if(CASE STREQUAL "pkg_config")
        install_moe(${WORK}/prefix)
        file(RENAME ${WORK}/prefix ${WORK}/moved)
        set(ENV{PKG_CONFIG_PATH} ${WORK}/moved/share/pkgconfig)
    else()
        # Each folder by an absolute path, as some distributions give them.
        install_moe(${WORK}/all -D CMAKE_INSTALL_INCLUDEDIR=${WORK}/all/include
            -D CMAKE_INSTALL_DATADIR=${WORK}/all/share)
        set(ENV{PKG_CONFIG_PATH} ${WORK}/all/share/pkgconfig)
        run(${pkg_config} --variable=includedir moe)
        if(NOT text STREQUAL "${WORK}/all/include\n")
            message(FATAL_ERROR "pkg-config says that headers are in ${text}")
        endif()
    endif()
    run(${pkg_config} --modversion moe)
    if(NOT text STREQUAL "${VERSION}\n")
        message(FATAL_ERROR "pkg-config says version ${text}")
    endif()
    run(${pkg_config} --cflags --libs moe)
    separate_arguments(flags UNIX_COMMAND "${text}")
    message(STATUS "pkg-config: ${flags}")
    run(${COMPILER} -std=c++20 ${CMAKE_CURRENT_LIST_DIR}/main.cpp -o ${WORK}/consumer ${flags})
    run(${WORK}/consumer)

elseif(CASE STREQUAL wrong_version)
    install_moe(${WORK}/prefix)
    math(EXPR next_minor "${minor} + 1")
    math(EXPR next_major "${major} + 1")
    foreach(wanted ${major}.${next_minor} ${next_major}.0 ${short_version}.99)
        file(REMOVE_RECURSE ${WORK}/build)
        execute_process(COMMAND ${consumer} -D HOW=find_package -D WANTED=${wanted}
            -D CMAKE_PREFIX_PATH=${WORK}/prefix RESULT_VARIABLE status ERROR_VARIABLE text OUTPUT_QUIET)
        if(status EQUAL 0 OR NOT text MATCHES "compatible[ \n]+with[ \n]+requested[ \n]+version[ \n]+\"${wanted}\"")
            message(FATAL_ERROR "version ${wanted} was not refused (${status}):\n${text}")
        endif()
        message(STATUS "version ${wanted} refused")
    endforeach()

elseif(CASE MATCHES "^(add_subdirectory|include_path|eigen_as_subproject)$")
    run(${consumer} -D HOW=${CASE} -D MOE_SOURCE=${SOURCE} -D MOE_WITH_OPENMP=${WITH_OPENMP}
        "-DEIGEN=${EIGEN}")
    if(CASE STREQUAL include_path)
        set(WITH_OPENMP OFF)
    endif()
    build_and_run(${WITH_OPENMP})

elseif(CASE MATCHES "^fetch_content")
    # No network: the declared repositories do not exist, the source folder is given.
    run(${consumer} -D HOW=${CASE} -D FETCHCONTENT_SOURCE_DIR_MOE=${SOURCE}
        -D FETCHCONTENT_FULLY_DISCONNECTED=ON -D MOE_WITH_OPENMP=${WITH_OPENMP})
    build_and_run(${WITH_OPENMP})

else()
    message(FATAL_ERROR "CASE=${CASE}")
endif()
