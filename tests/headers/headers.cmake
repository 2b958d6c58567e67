# SPDX-License-Identifier: MIT
# Each header compiles alone: one source file per header that includes it, twice, and nothing else.
moe_sources(headers ${PROJECT_SOURCE_DIR}/include "*.hpp")
set(sources "")
foreach(header IN LISTS headers)
    string(REGEX REPLACE "\\.hpp$" ".cpp" source "${CMAKE_CURRENT_BINARY_DIR}/headers/${header}")
    file(CONFIGURE OUTPUT ${source} CONTENT "#include <${header}>\n#include <${header}>\n" @ONLY)
    list(APPEND sources ${source})
endforeach()

add_library(moe_headers OBJECT ${sources})
target_link_libraries(moe_headers PRIVATE moe_developer)
target_compile_options(moe_headers PRIVATE -O0)
