"""Where the native library is, and what it was built from: the record that setup.py leaves beside it."""

import json
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).parent
_HOW_TO_BUILD = "build it with 'make build' in the source tree, or 'pip install --no-build-isolation -e .'"


def _product(name: str) -> Path:
    path = _PACKAGE / name
    if not path.is_file():
        raise ImportError(f"sagd_kernels has no native library: {path} does not exist; {_HOW_TO_BUILD}")
    return path


def library_path() -> Path:
    """Path of the native library, for ``torch.ops.load_library``. ImportError if it was never built."""
    return _product("_C.so")


def build_info() -> dict[str, Any]:
    """What the native library was built from. ImportError if it was never built.

    Keys: ``version`` of the project; ``instruction_sets`` of the CPU kernels, from the least demanding to the most;
    ``cuda``, whether CUDA kernels are in it; ``cuda_architectures``, their compute capabilities (90: 9.0; 120+PTX: also
    for later GPUs); ``compiler``, its version line; ``flags``, what CXXFLAGS added; ``torch_headers``, the torch it was
    compiled against; ``torch_minimum``, the oldest torch that it loads in.
    """
    return json.loads(_product("_build.json").read_text())
