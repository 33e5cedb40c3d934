"""Build the Cython kernels; everything else is declared in pyproject.toml."""

import os
import pathlib

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup

# ONLY=combine,cosmic builds some of the kernels.
only = {name for name in os.environ.get("ONLY", "").split(",") if name}


def arch_flags():
    """AVX2 where this machine has it. Contraction stays off, so results do not depend on the choice."""
    try:
        flags = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return []
    return ["-march=x86-64-v3"] if all(f" {f} " in flags for f in ("avx2", "fma", "bmi2")) else []


extensions = [
    Extension(
        f"zsds_hpc.kernels.{path.stem}",
        [str(path)],
        include_dirs=[numpy.get_include()],
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION")],
        extra_compile_args=["-O3", "-ffp-contract=off", "-fno-math-errno", "-g0", *arch_flags()],
    )
    for path in sorted(pathlib.Path("zsds_hpc/kernels").glob("*.pyx"))
    if not only or path.stem in only
]

setup(
    ext_modules=cythonize(
        extensions,
        compiler_directives={
            "language_level": 3,
            "boundscheck": False,
            "wraparound": False,
            "cdivision": True,
            "initializedcheck": False,
        },
    )
)
