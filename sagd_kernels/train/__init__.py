"""The thin reference trainer: `python -m sagd_kernels.train`.

A DDPM (Ho et al., "Denoising diffusion probabilistic models", NeurIPS 2020) on diffusers' U-Net, schedulers and moving
average, whose every noise comes from the operators: `add_noise` in training, `shaped_noise` in sampling.
The package needs the extra `train`; `import sagd_kernels` alone never imports it.
"""
