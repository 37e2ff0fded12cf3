"""What was built is what is said to be built, and nothing of it can harm a process or a processor."""

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

import sagd_kernels
from sagd_kernels import _build

ROOT = Path(__file__).parents[1]


def run(*command: object) -> str:
    return subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout


def needs(tool: str):
    return pytest.mark.skipif(shutil.which(tool) is None, reason=f"{tool} (GNU binutils) is not on PATH")


@pytest.fixture
def setup_module():
    """setup.py as a module: importing it builds nothing."""
    spec = importlib.util.spec_from_file_location("sagd_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_build_info_says_what_was_built():
    info = sagd_kernels.build_info()
    x86_64 = platform.machine() in ("x86_64", "AMD64")
    assert info["instruction_sets"] == (["portable", "avx2", "avx512"] if x86_64 else ["portable"])
    assert info["version"] == sagd_kernels.__version__ == importlib.metadata.version("sagd-kernels")
    assert info["cuda"] is hasattr(torch.ops.sagd, "_cuda_plan") is bool(info["cuda_architectures"])
    assert re.search(r"\d+\.\d+", info["compiler"])
    assert tuple(map(int, info["torch_headers"].split(".")[:2])) >= (2, 10)


def test_a_missing_library_is_an_error_that_says_how_to_build_it(monkeypatch, tmp_path):
    monkeypatch.setattr(_build, "_PACKAGE", tmp_path)
    for function in (_build.library_path, _build.build_info):
        with pytest.raises(ImportError, match=r"no native library.*make build"):
            function()


@needs("nm")
def test_the_library_exports_nothing():
    assert run("nm", "-D", "--defined-only", _build.library_path()) == ""
    assert "aoti_torch_" in run("nm", "-D", "--undefined-only", _build.library_path())


@needs("readelf")
def test_the_library_depends_on_no_python_and_on_no_path_of_the_machine_that_built_it():
    dynamic = run("readelf", "-d", _build.library_path())
    assert re.search(r"NEEDED.*libtorch_cpu\.so", dynamic)
    assert not re.search(r"RPATH|RUNPATH|python", dynamic)
    assert str(Path.home()).encode() not in _build.library_path().read_bytes()
    assert str(ROOT).encode() not in _build.library_path().read_bytes()


@needs("objdump")
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="only x86-64 has several instruction sets")
def test_wide_instructions_stay_in_the_functions_of_their_instruction_set():
    # AVX in a function that every processor runs (say, an inline function of the standard library that the linker took
    # from an AVX object) is an illegal instruction on a processor without it. All AVX mnemonics start with v.
    wide, strays, function = set(), set(), ""
    for line in run("objdump", "-d", "--no-show-raw-insn", _build.library_path()).splitlines():
        if line.endswith(">:"):
            function = line[line.index("<") + 1 : -2]
        elif "\tv" in line:
            tags = ("6avx512",) if "%zmm" in line else ("4avx2", "6avx512")  # a namespace as it stands in mangled names
            tag = next((tag for tag in tags if tag in function), None)
            wide.add(tag) if tag else strays.add(function)
    assert wide == {"4avx2", "6avx512"}
    assert not strays


def test_only_the_bindings_include_torch():
    including = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "csrc").rglob("*")
        if path.suffix in {".cpp", ".h", ".cu", ".cuh"}
        and re.search(r"#include\s*[<\"](torch|ATen|c10)/", path.read_text())
    }
    assert including == {"csrc/arguments.h", "csrc/stream.cpp"}


@pytest.mark.parametrize(
    ("macros", "accepted"),
    [
        (["__GNUC__ 10"], False),
        (["__GNUC__ 12"], True),
        (["__GNUC__ 4", "__clang_major__ 13"], False),
        (["__GNUC__ 4", "__clang_major__ 14"], True),
        ([], False),
    ],
)
def test_a_compiler_without_cpp20_is_refused_with_what_is_needed(setup_module, monkeypatch, tmp_path, macros, accepted):
    compiler = tmp_path / "cxx"
    lines = "".join(f"echo '#define {macro}'\n" for macro in macros)
    compiler.write_text(f'#!/bin/sh\n[ "$1" = --version ] && {{ echo "cxx 1.0"; exit; }}\n{lines}')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    if accepted:
        assert setup_module.find_compiler().version == "cxx 1.0"
    else:
        with pytest.raises(
            setup_module.PlatformError, match=r"needs a C\+\+20 compiler, g\+\+ >= 12 or clang\+\+ >= 14"
        ):
            setup_module.find_compiler()


def test_a_missing_compiler_is_named(setup_module, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -m64")
    with pytest.raises(setup_module.PlatformError, match="no-such-compiler -m64: not found"):
        setup_module.find_compiler()


@pytest.mark.parametrize("version", ["2.9.1", "1.13.1+cpu"])
def test_a_torch_too_old_to_build_against_is_refused(setup_module, monkeypatch, version):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    with pytest.raises(setup_module.PlatformError, match=rf"torch >= 2\.10; found {re.escape(version)}"):
        setup_module.find_torch()


def test_the_wheel_serves_every_python_3_and_holds_the_package_alone(tmp_path):
    build = ["build", "--build-lib", tmp_path / "lib"]
    wheel = ["bdist_wheel", "--bdist-dir", tmp_path / "wheel", "--dist-dir", tmp_path]
    info = _build.build_info()  # as it was built: nothing is compiled here
    architectures = ";".join(re.sub(r"(\d)(?=[af]?(\+|$))", r".\1", name) for name in info["cuda_architectures"])
    cuda = {"SAGD_CUDA": str(int(info["cuda"])), "TORCH_CUDA_ARCH_LIST": architectures}
    environment = os.environ | {"CXXFLAGS": info["flags"]} | cuda
    subprocess.run([sys.executable, "setup.py", "--quiet", *build, *wheel], check=True, cwd=ROOT, env=environment)
    (wheel,) = tmp_path.glob("*.whl")
    assert re.fullmatch(r"sagd_kernels-[\d.]+-py3-none-linux_\w+\.whl", wheel.name)
    files = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    needed = {"_C.so", "_build.json", "__init__.py", "py.typed"}
    assert {f"sagd_kernels/{name}" for name in needed} <= set(files)
    assert all(name.startswith("sagd_kernels/") for name in files)
