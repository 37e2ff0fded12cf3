"""Noise with a spectrum for diffusion models: fused operators for spectrally anisotropic Gaussian diffusion.

Operators (also `torch.ops.sagd.*`): `shaped_noise`, `add_noise`, `spectral_filter`, `whitened_mse`.
Keys: `key`, `next_key`, `split`, `fold_in`. Weights: `sagd_kernels.weights`. In place of `torch.randn_like`:
`ShapedNoise`. What runs where: `explain`, `benchmark`, `build_info`. The operators' definition in float64:
`sagd_kernels.reference`.
The diffusion process around them: `sagd_kernels.diffusion`; other people's trainers: `sagd_kernels.integrations`.
"""

from . import diffusion, integrations, reference, weights
from ._build import build_info
from .backends import explain
from .modules import ShapedNoise
from .ops import add_noise, shaped_noise, spectral_filter, whitened_mse
from .random import fold_in, key, next_key, split

__version__: str = build_info()["version"]

# On CUDA devices: time the backends at the first call of each kind, and keep the fastest (see `backends`).
benchmark = False

__all__ = [
    "ShapedNoise",
    "add_noise",
    "build_info",
    "diffusion",
    "explain",
    "fold_in",
    "integrations",
    "key",
    "next_key",
    "reference",
    "shaped_noise",
    "spectral_filter",
    "split",
    "weights",
    "whitened_mse",
]
