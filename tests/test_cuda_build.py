"""With nvcc, and without a GPU, the library is built with CUDA kernels, and loads where there is neither."""

import os
import shutil
import subprocess
import sys

import pytest
from test_build import ROOT, run, setup_module  # noqa: F401


@pytest.mark.parametrize(
    ("wanted", "architectures"),
    [
        ("9.0", ["90"]),
        ("8.0 9.0a+PTX", ["80", "90a+PTX"]),
        ("8.6;12.0", ["86", "120"]),
        ("", ["80", "86", "89", "90", "100", "120+PTX"]),
    ],
)
def test_architectures_are_those_that_were_asked_for(setup_module, monkeypatch, wanted, architectures):  # noqa: F811
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", wanted)
    assert setup_module.cuda_architectures() == architectures


def test_an_architecture_that_is_none_is_named(setup_module, monkeypatch):  # noqa: F811
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "Hopper")
    with pytest.raises(setup_module.PlatformError, match=r"TORCH_CUDA_ARCH_LIST.*Hopper"):
        setup_module.cuda_architectures()


def test_a_kernel_of_a_later_gpu_is_compiled_from_ptx(setup_module):  # noqa: F811
    assert setup_module.gencode("90") == "-gencode=arch=compute_90,code=[sm_90]"
    assert setup_module.gencode("120+PTX") == "-gencode=arch=compute_120,code=[sm_120,compute_120]"


def test_without_nvcc_cuda_is_left_out_unless_it_is_demanded(setup_module, monkeypatch, tmp_path):  # noqa: F811
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setattr(setup_module.importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("SAGD_CUDA", raising=False)
    assert setup_module.find_cuda() is None
    monkeypatch.setenv("SAGD_CUDA", "1")
    with pytest.raises(setup_module.PlatformError, match=r"SAGD_CUDA=1.*no nvcc.*pip install nvidia-cuda-nvcc"):
        setup_module.find_cuda()
    monkeypatch.setenv("SAGD_CUDA", "yes")
    with pytest.raises(setup_module.PlatformError, match="expected 0, 1 or nothing, got yes"):
        setup_module.find_cuda()


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on PATH")
@pytest.mark.parametrize("source", ["clusters", "large", "plan"])
def test_nvcc_takes_what_the_cpus_compiler_took(source, tmp_path):
    """The host code; the kernels are compiled where they are emulated, and all of it below."""
    flags = ["-std=c++20", "--expt-relaxed-constexpr", "-Icsrc", "-arch=sm_90", "-ptx"]
    command = ["nvcc", *flags, "-o", str(tmp_path / "ptx"), f"csrc/cuda/{source}.cu"]
    compiled = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert compiled.returncode == 0, compiled.stderr
    assert "warning" not in compiled.stderr, compiled.stderr


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on PATH")
def test_the_library_with_cuda_loads_without_a_gpu(tmp_path):
    for name in ("csrc", "sagd_kernels", "setup.py", "pyproject.toml", "README.md"):
        source, target = ROOT / name, tmp_path / name
        ignored = shutil.ignore_patterns("_C.so", "_build.json", "__pycache__")
        shutil.copytree(source, target, ignore=ignored) if source.is_dir() else shutil.copy(source, target)
    environment = os.environ | {"SAGD_CUDA": "1", "TORCH_CUDA_ARCH_LIST": "9.0+PTX", "PYTHONPATH": str(tmp_path)}
    build = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    built = subprocess.run(build, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    assert "(90+PTX)" in built.stdout.splitlines()[-1]
    library = tmp_path / "sagd_kernels" / "_C.so"
    assert "libcuda" not in run("readelf", "-d", library)
    assert run("nm", "-D", "--defined-only", library) == ""
    program = (
        "import torch, sagd_kernels as sagd; info = sagd.build_info(); plan = torch.ops.sagd._cuda_plan;"
        "assert info['cuda'] and info['cuda_architectures'] == ['90+PTX'];"
        "assert plan(64, 64, 101376) and (torch.cuda.is_available() or not plan(64, 64));"
        "sagd.spectral_filter(torch.ones(8, 8), torch.ones(8, 5))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path, env=environment)
