# SPDX-License-Identifier: Apache-2.0
"""Builds `spectralgpt._C` with CMake and ninja. Needs no torch; flags: see CMakeLists.txt."""

import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
FLAGS = ("SPECTRALGPT_CUDA", "SPECTRALGPT_ARCHS", "SPECTRALGPT_DEBUG")


class CMakeBuild(build_ext):
    """Configures and builds csrc/, and puts the module where setuptools wants it."""

    def build_extension(self, ext: Extension) -> None:
        """Runs CMake; its messages go to the console, its failure ends the build."""
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        options = [f"-D{flag}={os.environ[flag]}" for flag in FLAGS if os.environ.get(flag)]
        configure = [
            "cmake",
            *("-S", str(ROOT), "-B", str(build), "-G", "Ninja"),
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target}",
            *options,
        ]
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(build)], check=True)


setup(ext_modules=[Extension("spectralgpt._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
