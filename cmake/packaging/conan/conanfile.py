# SPDX-License-Identifier: MIT
# conan create cmake/packaging/conan
import os
import re

from conan import ConanFile
from conan.tools.cmake import CMake, CMakeToolchain, cmake_layout
from conan.tools.files import copy, load, rmdir


class MoeConan(ConanFile):
    name = "moe"
    license = "MIT"
    description = "Mixture-of-Experts layers for C++: header-only, forward and exact backward"
    topics = ("mixture-of-experts", "eigen", "header-only")
    package_type = "header-library"
    settings = "os", "arch", "compiler", "build_type"
    options = {"openmp": [True, False]}
    default_options = {"openmp": True}
    generators = "CMakeDeps"

    @property
    def _root(self):
        return os.path.join(self.recipe_folder, "..", "..", "..")

    def set_version(self):
        text = load(self, os.path.join(self._root, "include", "moe", "config.hpp"))
        self.version = ".".join(re.findall(r"#define MOE_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)", text))

    def export_sources(self):
        for pattern in ("CMakeLists.txt", "LICENSE", "cmake/*", "include/*"):
            copy(self, pattern, src=self._root, dst=self.export_sources_folder)

    def layout(self):
        cmake_layout(self)

    def requirements(self):
        self.requires("eigen/[>=3.4.0 <4]", transitive_headers=True)

    def package_id(self):
        self.info.clear()

    def generate(self):
        toolchain = CMakeToolchain(self)
        toolchain.cache_variables.update({
            "MOE_WITH_OPENMP": bool(self.options.openmp),
            "MOE_BUILD_TESTS": False,
            "MOE_BUILD_BENCHMARKS": False,
            "MOE_BUILD_EXAMPLES": False,
        })
        toolchain.generate()

    def package(self):
        cmake = CMake(self)
        cmake.configure()
        cmake.install()
        copy(self, "LICENSE", src=self.source_folder, dst=os.path.join(self.package_folder, "licenses"))
        rmdir(self, os.path.join(self.package_folder, "share"))  # CMakeDeps writes these for users

    def package_info(self):
        self.cpp_info.bindirs = []
        self.cpp_info.libdirs = []
        self.cpp_info.set_property("cmake_file_name", "moe")
        self.cpp_info.set_property("cmake_target_name", "moe::moe")
        self.cpp_info.set_property("pkg_config_name", "moe")
        if self.settings.os in ("Linux", "FreeBSD"):
            self.cpp_info.system_libs = ["pthread"]
        if self.options.openmp:
            flag = "-openmp:experimental" if self.settings.compiler == "msvc" else "-fopenmp"
            self.cpp_info.cxxflags = [flag]
            self.cpp_info.exelinkflags = self.cpp_info.sharedlinkflags = [flag]
