# SPDX-License-Identifier: MIT
# Headers, package configuration and a pkg-config file. Nothing depends on the architecture, so all
# but the headers goes under share/.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(package_dir ${CMAKE_INSTALL_DATADIR}/cmake/moe)

install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/moe DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(TARGETS moe EXPORT moe-targets INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT moe-targets NAMESPACE moe:: FILE moe-targets.cmake DESTINATION ${package_dir})

# While the major version is 0, each minor version may break what the one before promised.
configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/moe-config.cmake.in
    ${PROJECT_BINARY_DIR}/package/moe-config.cmake INSTALL_DESTINATION ${package_dir}
    NO_SET_AND_CHECK_MACRO)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/package/moe-config-version.cmake
    VERSION ${PROJECT_VERSION} COMPATIBILITY SameMinorVersion ARCH_INDEPENDENT)
install(FILES ${PROJECT_BINARY_DIR}/package/moe-config.cmake
    ${PROJECT_BINARY_DIR}/package/moe-config-version.cmake DESTINATION ${package_dir})

# ${pcfiledir} is where pkg-config finds the file: a moved prefix keeps working, unless a folder is
# given as an absolute path, which stays as it is.
set(pc_prefix ${CMAKE_INSTALL_PREFIX})
if(NOT IS_ABSOLUTE "${CMAKE_INSTALL_DATADIR}")
    file(RELATIVE_PATH pc_prefix /p/${CMAKE_INSTALL_DATADIR}/pkgconfig /p)
    string(REGEX REPLACE "/$" "" pc_prefix "\${pcfiledir}/${pc_prefix}")
endif()
set(pc_includedir "\${prefix}")
cmake_path(APPEND pc_includedir "${CMAKE_INSTALL_INCLUDEDIR}")
configure_file(${CMAKE_CURRENT_LIST_DIR}/moe.pc.in ${PROJECT_BINARY_DIR}/package/moe.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/package/moe.pc DESTINATION ${CMAKE_INSTALL_DATADIR}/pkgconfig)

install(FILES ${PROJECT_SOURCE_DIR}/LICENSE DESTINATION ${CMAKE_INSTALL_DATADIR}/licenses/moe)
