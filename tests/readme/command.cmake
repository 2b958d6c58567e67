# SPDX-License-Identifier: MIT
# readme_command(out readme heading): the one line in the one ```sh block of the section "## heading".
function(readme_command out readme heading)
    string(FIND "${readme}" "\n## ${heading}\n" begin)
    if(begin EQUAL -1)
        message(FATAL_ERROR "README.md has no section '## ${heading}'")
    endif()
    math(EXPR begin "${begin} + 4")
    string(SUBSTRING "${readme}" ${begin} -1 section)
    string(FIND "${section}" "\n## " end)
    string(SUBSTRING "${section}" 0 ${end} section)

    string(REGEX MATCHALL "\n```" fences "${section}")
    list(LENGTH fences count)
    if(NOT count EQUAL 2 OR NOT section MATCHES "\n```sh\n([^\n]+)\n```")
        message(FATAL_ERROR "section '${heading}' must hold one fenced sh block of one line, no other")
    endif()
    set(${out} "${CMAKE_MATCH_1}" PARENT_SCOPE)
endfunction()
