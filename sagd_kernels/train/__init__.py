"""The thin reference trainer: `python -m sagd_kernels.train`.

A DDPM (Ho et al., "Denoising diffusion probabilistic models", NeurIPS 2020) on diffusers' U-Net and moving average, by
accelerate in one process or many, whose process and samplers are those of `sagd_kernels.diffusion`.
The package needs the extra `train`; `import sagd_kernels` alone never imports it.
"""
