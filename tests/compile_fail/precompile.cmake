# SPDX-License-Identifier: MIT
# cmake -D COMPILER=… -D HEADERS=file.hpp -D INCLUDE=… -D SYSTEM=dir|dir -P precompile.cmake
#
# Leaves file.hpp.gch, which g++ takes for `-include file.hpp` and clang for `-include-pch`.
cmake_minimum_required(VERSION 3.21)
string(REPLACE "|" ";" directories "${SYSTEM}")
list(TRANSFORM directories PREPEND "-isystem;" OUTPUT_VARIABLE system)
execute_process(COMMAND ${COMPILER} -std=c++20 -I${INCLUDE} ${system} -x c++-header ${HEADERS}
    -o ${HEADERS}.gch COMMAND_ERROR_IS_FATAL ANY)
