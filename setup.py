"""Builds the native library ``sagd_kernels/_C.so`` with ninja; everything else about the package is in pyproject.toml.

The library registers torch operators when ``torch.ops.load_library`` opens it. It speaks torch's stable ABI and no
Python C API, so one file serves every Python and every torch from 2.10 on: no CPython tag in its name or its wheel's.

Environment: CXX (the compiler), CXXFLAGS and LDFLAGS (appended), MAX_JOBS (parallel compilations).
"""

import importlib.metadata
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

import ninja
from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, PlatformError

PACKAGE = "sagd_kernels"
LIBRARY = "_C.so"
RECORD = "_build.json"  # what was built, read by sagd_kernels._build
TORCH_MINIMUM = (2, 10)
TORCH_TARGET = "0x020a000000000000"  # the stable ABI of TORCH_MINIMUM, as torch/csrc/stable/version.h writes it

CXXFLAGS = (
    "-O3 -std=c++20 -fPIC -fvisibility=hidden -fvisibility-inlines-hidden "
    "-ffp-contract=fast -fno-math-errno -fno-trapping-math -Wall -Wextra -Icsrc"
)
# The version script keeps every symbol of the library to itself: operators reach torch through static registration.
LDFLAGS = "-shared -Wl,-z,defs -Wl,--version-script=csrc/exports.map"

# csrc/cpu/kernels.cpp is compiled once for each of these, from the least demanding to the most.
INSTRUCTION_SETS = {
    "portable": "",
    "avx2": "-mavx2 -mfma -mf16c",
    "avx512": "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mf16c -mprefer-vector-width=512",
}


class Compiler(NamedTuple):
    command: str
    version: str
    x86_64: bool


class Unit(NamedTuple):
    """One object file: its name, its source, and the flags that only it gets."""

    name: str
    source: Path
    flags: str


def find_compiler() -> Compiler:
    """The first C++20 compiler among $CXX, or c++, g++ and clang++ on PATH."""
    candidates = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    rejected = []
    for command in candidates:
        argv = shlex.split(command)
        if shutil.which(argv[0]) is None:
            rejected.append(f"{command}: not found")
            continue
        probe = subprocess.run([*argv, "-x", "c++", "-dM", "-E", "-"], input="", capture_output=True, text=True)
        macros = dict(re.findall(r"^#define (\w+) (\d+)$", probe.stdout, re.MULTILINE))
        clang, gcc = int(macros.get("__clang_major__", 0)), int(macros.get("__GNUC__", 0))
        if clang >= 14 or (gcc >= 12 and not clang):
            version = subprocess.run([*argv, "--version"], capture_output=True, text=True).stdout.splitlines()[0]
            return Compiler(command, version, "__x86_64__" in macros)
        found = f"Clang {clang}" if clang else f"GCC {gcc}" if gcc else "not a GCC or Clang C++ compiler"
        rejected.append(f"{command}: {found}")
    raise PlatformError(
        f"{PACKAGE} needs a C++20 compiler, g++ >= 12 or clang++ >= 14; found {'; '.join(rejected)}. "
        "Install one (on Debian or Ubuntu: apt install g++) or name it in the environment variable CXX."
    )


def find_torch() -> tuple[Path, str]:
    """Directory and version of the installed torch, which is not imported: that would take longer than most builds."""
    spec = importlib.util.find_spec("torch")
    version = importlib.metadata.version("torch") if spec else "none"
    if spec is None or tuple(int(part) for part in version.split(".")[:2]) < TORCH_MINIMUM:
        needed = ".".join(map(str, TORCH_MINIMUM))
        raise PlatformError(f"{PACKAGE} builds against torch >= {needed}; found {version}. Install it and build again.")
    return Path(spec.submodule_search_locations[0]), version


def compilation_units(instruction_sets: list[str], torch_include: Path) -> list[Unit]:
    """Every object file, in link order.

    The order is what keeps wide instructions away from processors that lack them. An inline function of the standard
    library that several objects define is taken from the first of them, so the generic objects come first, and the
    instruction sets follow from the least demanding to the most.
    """
    built = " ".join(f"-DSAGD_HAVE_{name.upper()}=1" for name in instruction_sets)
    torch = f"-DTORCH_TARGET_VERSION={TORCH_TARGET} -isystem {shlex.quote(str(torch_include))}"
    # Messages that torch's headers compile in name torch/..., not the directory of this machine.
    torch += f" -ffile-prefix-map={shlex.quote(str(torch_include))}=."
    kernels = Path("csrc/cpu/kernels.cpp")
    generic = sorted(set(Path("csrc/cpu").glob("*.cpp")) - {kernels})
    return [
        Unit("bindings", Path("csrc/bindings.cpp"), f"{built} {torch}"),
        *(Unit(f"cpu/{source.stem}", source, built) for source in generic),
        *(Unit(f"cpu/kernels.{n}", kernels, f"-DSAGD_ISA={n} {INSTRUCTION_SETS[n]}") for n in instruction_sets),
    ]


def write_ninja(path: Path, compiler: Compiler, units: list[Unit], torch_lib: Path) -> None:
    """Write the build graph; paths are relative to the root of the source tree, so no message names the machine's."""
    directory = path.parent
    objects = [str(directory / f"{unit.name}.o") for unit in units]
    environment = {name: os.environ.get(name, "").replace("$", "$$") for name in ("CXXFLAGS", "LDFLAGS")}
    with path.open("w") as file:
        graph = ninja.Writer(file)
        graph.variable("builddir", str(directory))
        graph.variable("cxx", compiler.command)
        graph.variable("cxxflags", f"{CXXFLAGS} {environment['CXXFLAGS']}")
        graph.variable("ldflags", f"{LDFLAGS} {environment['LDFLAGS']}")
        graph.variable("libs", f"-L{shlex.quote(str(torch_lib))} -ltorch_cpu".replace("$", "$$"))
        compile_command = "$cxx -MD -MF $out.d $cxxflags $flags -c $in -o $out"
        graph.rule("compile", compile_command, depfile="$out.d", deps="gcc", description="compile $out")
        graph.rule("link", "$cxx $cxxflags $ldflags $in $libs -o $out", description="link $out")
        for unit, output in zip(units, objects, strict=True):
            graph.build(output, "compile", str(unit.source), variables={"flags": unit.flags.replace("$", "$$")})
        graph.build(str(directory / LIBRARY), "link", objects, implicit="csrc/exports.map")


class BuildNative(build_ext):
    """Compile the library, then put it and its record where setuptools expects an extension module."""

    def run(self) -> None:
        if sys.platform != "linux":
            raise PlatformError(f"{PACKAGE} builds on Linux (also under WSL); this is {sys.platform}.")
        compiler, (torch, torch_version) = find_compiler(), find_torch()
        instruction_sets = list(INSTRUCTION_SETS) if compiler.x86_64 else ["portable"]
        record = {
            "version": self.distribution.get_version(),
            "instruction_sets": instruction_sets,
            "cuda": False,
            "compiler": compiler.version,
            "flags": os.environ.get("CXXFLAGS", ""),
            "torch_headers": torch_version,
            "torch_minimum": ".".join(map(str, TORCH_MINIMUM)),
        }
        directory = Path("build", sysconfig.get_platform())  # kept between builds, so that ninja redoes what changed
        directory.mkdir(parents=True, exist_ok=True)
        units = compilation_units(instruction_sets, torch / "include")
        write_ninja(directory / "build.ninja", compiler, units, torch / "lib")
        jobs = os.environ.get("MAX_JOBS") or str(len(os.sched_getaffinity(0)))
        command = [os.path.join(ninja.BIN_DIR, "ninja"), "-f", str(directory / "build.ninja"), "-j", jobs]
        if subprocess.run(command).returncode:
            raise CompileError(f"the native build of {PACKAGE} failed; the compiler's messages are above")
        (directory / RECORD).write_text(json.dumps(record, indent=2) + "\n")
        for built, in_source in self._products().items():
            target = in_source if self.inplace else built
            self.mkpath(os.path.dirname(target))
            self.copy_file(str(directory / os.path.basename(target)), target)
        print(
            f"{PACKAGE} {record['version']}: CPU ({', '.join(instruction_sets)}), CUDA no, "
            f"{compiler.version}, torch {torch_version} headers",
            flush=True,
        )

    def _products(self) -> dict[str, str]:
        """Each product's place in the build directory, and its place beside the sources (an editable install)."""
        package = self.get_finalized_command("build_py").get_package_dir(PACKAGE)
        names = (LIBRARY, RECORD)
        return {os.path.join(self.build_lib, PACKAGE, name): os.path.join(package, name) for name in names}

    def get_outputs(self) -> list[str]:
        return list(self._products())

    def get_output_mapping(self) -> dict[str, str]:
        return self._products() if self.inplace else {}


class PlatformWheel(bdist_wheel):
    """A wheel for one platform and any Python 3."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


if __name__ == "__main__":
    setup(
        ext_modules=[Extension(f"{PACKAGE}._C", sources=[])],  # tells setuptools that the wheel is platform-specific
        cmdclass={"build_ext": BuildNative, "bdist_wheel": PlatformWheel},
    )
