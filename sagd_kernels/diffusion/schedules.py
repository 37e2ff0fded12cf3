"""Noise schedules: how much signal and how much noise x_t = signal x_0 + noise eps holds at time t."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Schedule(ABC):
    """The levels (signal, noise) as functions of time, and the times at which a sampler visits them."""

    clean: int | float  # the time of x_0, where signal = 1 and noise = 0; an int where times are integers

    @abstractmethod
    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """signal and noise at times `t`, of its shape and on its device, in float64."""

    @abstractmethod
    def times(self, steps: int) -> Tensor:
        """`steps` times in descending order and, as the last entry, `clean`: [steps + 1]."""


class DDPMSchedule(Schedule):
    """Integer timesteps 0 .. T-1 with signal = sqrt(abar_t) and noise = sqrt(1 - abar_t); x_0 is at time -1.

    Args:
        alphas_cumprod: abar [T], falling, in (0, 1); the last may be 0 (zero terminal SNR). `alphas_cumprod` of a
            scheduler of diffusers fits.
    """

    clean = -1

    def __init__(self, alphas_cumprod: Tensor) -> None:
        abar = torch.as_tensor(alphas_cumprod).double()
        if abar.ndim != 1 or len(abar) == 0:
            raise ValueError(f"alphas_cumprod: expected [T], got {list(abar.shape)}")
        falling = torch.cat([abar.new_ones(1), abar])
        if not (falling.diff() < 0).all() or not falling[-1] >= 0:
            raise ValueError(f"alphas_cumprod: expected values that fall from below 1 to at least 0, got {abar}")
        self.alphas_cumprod = abar
        self._levels = torch.stack([falling.sqrt(), (1 - falling).sqrt()])  # of time t at index t + 1

    @classmethod
    def linear(cls, timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> "DDPMSchedule":
        """beta rises linearly, as in "Denoising Diffusion Probabilistic Models" (arXiv 2006.11239)."""
        return cls((1 - torch.linspace(beta_start, beta_end, timesteps, dtype=torch.float64)).cumprod(0))

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        if t.is_floating_point():
            raise ValueError(f"t: expected integer timesteps, got {t.dtype}")
        # A look at the values would wait for another device, where index_select stops instead; indexing would not.
        if t.device.type == "cpu" and not ((t >= -1) & (t < len(self))).all():
            raise ValueError(f"t: expected timesteps -1 to {len(self) - 1}, got {t.tolist()}")
        self._levels = self._levels.to(t.device)  # copied once: it stays where the times are
        signal, noise = self._levels.index_select(1, t.flatten() + 1)
        return signal.reshape(t.shape), noise.reshape(t.shape)

    def times(self, steps: int, spacing: str = "trailing") -> Tensor:
        """Timesteps as in Table 2 of "Common Diffusion Noise Schedules and Sample Steps are Flawed" (arXiv 2305.08891).

        "trailing" starts at T-1 and is even; "linspace" starts at T-1 and visits 0; "leading" visits 0 and starts
        below T-1, where the signal has not quite vanished.
        """
        total = len(self)
        if not 1 <= steps <= total:
            raise ValueError(f"steps: expected 1 to {total}, the timesteps of the schedule, got {steps}")
        if spacing == "trailing":
            times = (torch.arange(steps, 0, -1, dtype=torch.float64) * (total / steps)).round() - 1
        elif spacing == "linspace":
            times = torch.linspace(total - 1, 0, steps, dtype=torch.float64)
        elif spacing == "leading":
            times = torch.arange(steps - 1, -1, -1, dtype=torch.float64) * (total // steps)
        else:
            raise ValueError(f"spacing: expected 'trailing', 'linspace' or 'leading', got {spacing!r}")
        return torch.cat([times.round().long(), torch.tensor([self.clean])])


class FlowSchedule(Schedule):
    """Flow matching on straight lines: signal = 1 - t and noise = t for t in [0, 1] ("Flow Matching for Generative
    Modeling", arXiv 2210.02747; "Flow Straight and Fast", arXiv 2209.03003). Time runs from data at 0 to noise at 1."""

    clean = 0.0

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = t.double()
        return 1 - t, t

    def times(self, steps: int) -> Tensor:
        """Evenly from 1 to 0."""
        return torch.linspace(1, 0, _positive(steps) + 1, dtype=torch.float64)


class EDMSchedule(Schedule):
    """signal = 1 and noise = t, the time being sigma itself ("Elucidating the Design Space of Diffusion-Based
    Generative Models", arXiv 2206.00364)."""

    clean = 0.0

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> None:
        if not 0 < sigma_min < sigma_max:
            raise ValueError(f"sigma_min, sigma_max: expected 0 < sigma_min < sigma_max, got {sigma_min}, {sigma_max}")
        self.sigma_min, self.sigma_max, self.rho = sigma_min, sigma_max, rho

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = t.double()
        return torch.ones_like(t), t

    def times(self, steps: int) -> Tensor:
        """From sigma_max to sigma_min, evenly in sigma^(1/rho) (equation 5), then 0."""
        ends = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        sigmas = torch.linspace(*ends, _positive(steps), dtype=torch.float64) ** self.rho
        return torch.cat([sigmas, torch.zeros(1, dtype=torch.float64)])


def _positive(steps: int) -> int:
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, got {steps}")
    return steps
