# SPDX-License-Identifier: MIT
# Toolchain for 64-bit ARM on another Linux machine: the cross compiler of Debian and Ubuntu, and the
# emulator that runs what it makes (packages g++-aarch64-linux-gnu and qemu-user-static).
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)

find_program(MOE_EMULATOR NAMES qemu-aarch64-static qemu-aarch64 REQUIRED)
set(CMAKE_CROSSCOMPILING_EMULATOR ${MOE_EMULATOR} -L /usr/aarch64-linux-gnu)
