# SPDX-License-Identifier: MIT
# Each header compiles alone: one source file per header that includes it, twice, and nothing else.
# Those that include Eigen, nearly all, begin with it precompiled: that takes about half the time.
# Which do is read when this is configured.

# Does this header include Eigen, itself or through other headers of ours?
function(moe_reads_eigen result header)
    get_property(reads GLOBAL PROPERTY moe_reads_eigen_${header})
    if("${reads}" STREQUAL "")
        set(reads OFF)
        file(STRINGS ${PROJECT_SOURCE_DIR}/include/${header} lines
            REGEX "^ *# *include <(Eigen|moe)/")
        foreach(line IN LISTS lines)
            string(REGEX REPLACE ".*<(.*)>.*" "\\1" included "${line}")
            if(included MATCHES "^moe/")
                moe_reads_eigen(reads ${included})
            else()
                set(reads ON)
            endif()
            if(reads)
                break()
            endif()
        endforeach()
        set_property(GLOBAL PROPERTY moe_reads_eigen_${header} ${reads})
    endif()
    set(${result} ${reads} PARENT_SCOPE)
endfunction()

moe_sources(headers ${PROJECT_SOURCE_DIR}/include "*.hpp")
set(sources "")
foreach(header IN LISTS headers)
    string(REGEX REPLACE "\\.hpp$" ".cpp" source "${CMAKE_CURRENT_BINARY_DIR}/headers/${header}")
    file(CONFIGURE OUTPUT ${source} CONTENT "#include <${header}>\n#include <${header}>\n" @ONLY)
    list(APPEND sources ${source})
    moe_reads_eigen(with_eigen ${header})
    if(NOT with_eigen)
        set_source_files_properties(${source} PROPERTIES SKIP_PRECOMPILE_HEADERS ON)
    endif()
endforeach()

add_library(moe_headers OBJECT ${sources})
target_link_libraries(moe_headers PRIVATE moe_developer)
target_compile_options(moe_headers PRIVATE -O0)
target_precompile_headers(moe_headers PRIVATE <Eigen/Core>)
