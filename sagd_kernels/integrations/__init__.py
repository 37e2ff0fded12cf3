"""Shaped noise in the trainers and samplers people already have.

`intercept` shapes the draws of code that one cannot edit. `sagd_kernels.integrations.diffusers` has schedulers and
pipelines for diffusers, which only that module needs; `sagd_kernels.integrations.k_diffusion` has noise samplers.
"""

from .interception import intercept

__all__ = ["intercept"]
