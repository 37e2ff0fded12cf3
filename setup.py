"""Builds the native library ``sagd_kernels/_C.so`` with ninja; everything else about the package is in pyproject.toml.

The library registers torch operators when ``torch.ops.load_library`` opens it. It speaks torch's stable ABI and no
Python C API, so one file serves every Python and every torch from 2.10 on: no CPython tag in its name or its wheel's.

Environment: CXX (the compiler), CXXFLAGS and LDFLAGS (appended), MAX_JOBS (parallel compilations); SAGD_CUDA (0: no
CUDA kernels, 1: an error without nvcc; else: with them wherever nvcc is found), TORCH_CUDA_ARCH_LIST (as in torch).
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

# A GPU is not needed to build, nor a driver to load: the runtime is linked statically.
NVCCFLAGS = "-O3 -std=c++20 --expt-relaxed-constexpr -Xcompiler -fPIC,-fvisibility=hidden -Icsrc"
CUDA_ARCHITECTURES = "8.0;8.6;8.9;9.0;10.0;12.0+PTX"


class Compiler(NamedTuple):
    command: str
    version: str
    x86_64: bool


class Unit(NamedTuple):
    """One object file: its name, its source, the flags that only it gets, and the rule that compiles it."""

    name: str
    source: Path
    flags: str
    rule: str = "compile"


class Cuda(NamedTuple):
    command: str
    version: str
    architectures: list[str]
    runtime: Path  # libcudart_static.a


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


def cuda_architectures() -> list[str]:
    """Those of TORCH_CUDA_ARCH_LIST, "8.0 9.0+PTX" or with semicolons, as numbers: 80, 90, 90+PTX."""
    wanted = re.split(r"[ ;,]+", os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip() or CUDA_ARCHITECTURES)
    for architecture in wanted:
        if not re.fullmatch(r"\d+\.\d+[af]?(\+PTX)?", architecture):
            raise PlatformError(f"TORCH_CUDA_ARCH_LIST: expected architectures like 9.0 or 9.0+PTX, got {architecture}")
    return [architecture.replace(".", "") for architecture in wanted]


def find_cuda() -> Cuda | None:
    """nvcc from $CUDA_HOME, PATH or PyPI's nvidia-cuda-nvcc, unless SAGD_CUDA=0; an error without it if SAGD_CUDA=1."""
    choice = os.environ.get("SAGD_CUDA", "")
    if choice not in ("", "0", "1"):
        raise PlatformError(f"SAGD_CUDA: expected 0, 1 or nothing, got {choice}")
    if choice == "0":
        return None
    spec = importlib.util.find_spec("nvidia")
    roots = spec.submodule_search_locations if spec else []
    wheels = [nvcc for root in roots for nvcc in Path(root).glob("*/bin/nvcc")]
    home = os.environ.get("CUDA_HOME")
    candidates = [Path(home, "bin/nvcc") if home else None, shutil.which("nvcc"), *wheels]
    command = next((str(path) for path in candidates if path and os.access(path, os.X_OK)), None)
    if command is None:
        if choice == "1":
            raise PlatformError(
                "SAGD_CUDA=1, but there is no nvcc in CUDA_HOME, on PATH or from PyPI "
                "(pip install nvidia-cuda-nvcc nvidia-cuda-runtime)."
            )
        return None
    said = subprocess.run([command, "--version"], capture_output=True, text=True).stdout
    version = re.search(r"release ([\d.]+)", said)[1]
    dry_run = subprocess.run([command, "--dryrun", "-c", "-x", "cu", os.devnull], capture_output=True, text=True).stderr
    root = Path(re.search(r"^#\$ TOP=(.*)$", dry_run, re.MULTILINE)[1].strip())
    libraries = [lib / "libcudart_static.a" for lib in (root / "lib64", root / "lib", *root.glob("targets/*/lib"))]
    runtime = next((library for library in libraries if library.is_file()), None)
    if runtime is None:
        raise PlatformError(f"{command} has no libcudart_static.a beside it (PyPI: pip install nvidia-cuda-runtime).")
    return Cuda(command, version, cuda_architectures(), runtime)


def gencode(architecture: str) -> str:
    number, ptx = architecture.removesuffix("+PTX"), architecture.endswith("+PTX")
    targets = [f"sm_{number}", *([f"compute_{number}"] if ptx else [])]
    return f"-gencode=arch=compute_{number},code=[{','.join(targets)}]"


def compilation_units(instruction_sets: list[str], torch_include: Path, cuda: Cuda | None) -> list[Unit]:
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
    cuda_units = [
        *(Unit(name, Path(f"csrc/{name}.cpp"), torch) for name in ("bindings_cuda", "stream")),
        *(Unit(f"cuda/{source.stem}", source, "", "cuda") for source in sorted(Path("csrc/cuda").glob("*.cu"))),
    ]
    return [
        Unit("bindings", Path("csrc/bindings.cpp"), f"{built} {torch}"),
        *(cuda_units if cuda else []),
        *(Unit(f"cpu/{source.stem}", source, built) for source in generic),
        *(Unit(f"cpu/kernels.{n}", kernels, f"-DSAGD_ISA={n} {INSTRUCTION_SETS[n]}") for n in instruction_sets),
    ]


def write_ninja(path: Path, compiler: Compiler, cuda: Cuda | None, units: list[Unit], torch_lib: Path) -> None:
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
        libraries = f"-L{shlex.quote(str(torch_lib))} -ltorch_cpu"
        if cuda:
            libraries += f" {shlex.quote(str(cuda.runtime))} -ldl -lrt -lpthread"
            targets = " ".join(shlex.quote(gencode(architecture)) for architecture in cuda.architectures)
            nvcc = f"{shlex.quote(cuda.command)} -ccbin {shlex.quote(shlex.split(compiler.command)[0])}"
            compile_cuda = f"{nvcc} -MD -MF $out.d {NVCCFLAGS} {targets} $flags -c $in -o $out"
            graph.rule("cuda", compile_cuda, depfile="$out.d", deps="gcc", description="compile $out")
        graph.variable("libs", libraries.replace("$", "$$"))
        compile_command = "$cxx -MD -MF $out.d $cxxflags $flags -c $in -o $out"
        graph.rule("compile", compile_command, depfile="$out.d", deps="gcc", description="compile $out")
        graph.rule("link", "$cxx $cxxflags $ldflags $in $libs -o $out", description="link $out")
        for unit, output in zip(units, objects, strict=True):
            graph.build(output, unit.rule, str(unit.source), variables={"flags": unit.flags.replace("$", "$$")})
        graph.build(str(directory / LIBRARY), "link", objects, implicit="csrc/exports.map")


class BuildNative(build_ext):
    """Compile the library, then put it and its record where setuptools expects an extension module."""

    def run(self) -> None:
        if sys.platform != "linux":
            raise PlatformError(f"{PACKAGE} builds on Linux (also under WSL); this is {sys.platform}.")
        compiler, cuda, (torch, torch_version) = find_compiler(), find_cuda(), find_torch()
        instruction_sets = list(INSTRUCTION_SETS) if compiler.x86_64 else ["portable"]
        record = {
            "version": self.distribution.get_version(),
            "instruction_sets": instruction_sets,
            "cuda": cuda is not None,
            "cuda_architectures": cuda.architectures if cuda else [],
            "compiler": compiler.version,
            "flags": os.environ.get("CXXFLAGS", ""),
            "torch_headers": torch_version,
            "torch_minimum": ".".join(map(str, TORCH_MINIMUM)),
        }
        directory = Path("build", sysconfig.get_platform())  # kept between builds, so that ninja redoes what changed
        directory.mkdir(parents=True, exist_ok=True)
        units = compilation_units(instruction_sets, torch / "include", cuda)
        write_ninja(directory / "build.ninja", compiler, cuda, units, torch / "lib")
        jobs = os.environ.get("MAX_JOBS") or str(len(os.sched_getaffinity(0)))
        command = [os.path.join(ninja.BIN_DIR, "ninja"), "-f", str(directory / "build.ninja"), "-j", jobs]
        if subprocess.run(command).returncode:
            raise CompileError(f"the native build of {PACKAGE} failed; the compiler's messages are above")
        (directory / RECORD).write_text(json.dumps(record, indent=2) + "\n")
        for built, in_source in self._products().items():
            target = in_source if self.inplace else built
            self.mkpath(os.path.dirname(target))
            self.copy_file(str(directory / os.path.basename(target)), target)
        with_cuda = f"{cuda.version} ({', '.join(cuda.architectures)})" if cuda else "no"
        print(
            f"{PACKAGE} {record['version']}: CPU ({', '.join(instruction_sets)}), CUDA {with_cuda}, "
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
