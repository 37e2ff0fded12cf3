"""Schedulers and pipelines of diffusers whose every noise is shaped: x_T, training noise and what samplers inject.

    scheduler = ShapedDDPMScheduler(weight=weights.power_law(64, 64, -0.5))  # was: DDPMScheduler()
    noise = scheduler.randn_like(images)                                     # was: torch.randn_like(images)
    pipeline = ShapedDDPMPipeline(unet, scheduler)                           # was: DDPMPipeline(unet, scheduler)

Everything else stays, because the covariance of the noise cancels in the deterministic part of every update. Other
schedulers with a `step(model_output, timestep, sample, ...)` are shaped by inheritance:
`class ShapedLCMScheduler(ShapedScheduler, LCMScheduler): pass`.
"""

import base64
import functools
import inspect
import warnings
from collections.abc import Callable, Sequence

import safetensors.torch
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    SchedulerMixin,
    UNet2DModel,
)
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from .. import weights
from ..ops import spectral_filter
from ..spectral import even_part, multiplicity
from .interception import Interception
from .placed_weight import PlacedWeight

_PROTOCOL = ["model_output", "timestep", "sample"]  # what `step` takes first
_SURELY_WHITE = 20.0  # nats; shaped noise exceeds it with probability below e^-20, 2e-9


class ShapedScheduler(SchedulerMixin):
    """Goes before a scheduler class of diffusers: its schedulers take a `weight`, and draw noise of that weight.

    Args:
        weight: [H, W//2+1] or, for one per channel, [C, H, W//2+1]; float32 or float64, see `sagd_kernels.weights`.
            Part of the scheduler's config (as base64 of safetensors), so `save_pretrained`, `from_pretrained` and
            `from_config` keep it, also to a scheduler of another class.

    The other arguments are the scheduler's own. Where the weight is 0, `step` projects the network's output and the
    state on the bands with w > 0, because a network leaks a little into bands that it never saw noised, and sampling
    amplifies that. Clipping pixels undoes the projection, so both together warn. So does a run that starts from white
    x_T.

    Raises:
        TypeError: no weight was given, or not by its name; or, where the class is defined, the scheduler class has no
            `step(model_output, timestep, sample, ...)`.
        ValueError: no such weight.
    """

    def __init_subclass__(cls, **kwargs) -> None:
        super().__init_subclass__(**kwargs)
        if ShapedScheduler in cls.__bases__:  # diffusers reads both signatures, so each class has functions of its own
            step = getattr(cls, "step", None)  # where a package is missing, diffusers says here which
            found = [] if step is None else list(inspect.signature(step).parameters)[1:]
            if found[:3] != _PROTOCOL:
                raise TypeError(f"{cls.__name__}: expected a scheduler whose step takes {_PROTOCOL}, got {found}")
            cls.__init__ = _taking_a_weight(cls.__init__)
            cls.step = _with_shaped_noise(step)

    @property
    def weight(self) -> Tensor:
        """The weight, as it was given."""
        return self._weight.weight

    def randn_like(self, x: Tensor, generator: torch.Generator | list[torch.Generator] | None = None) -> Tensor:
        """Noise of the weight with the shape, dtype and device of `x`: for training, in place of `torch.randn_like`."""
        return self.randn(x.shape, generator, x.device, x.dtype)

    def randn(
        self,
        size: Sequence[int],
        generator: torch.Generator | list[torch.Generator] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Noise of the weight, with the arguments of diffusers' `randn_tensor`; x_T up to `init_noise_sigma`."""
        self._check_size("size", size)
        with self._shaped_draws():
            return randn_tensor(tuple(size), generator, device, dtype)

    def _shaped_draws(self) -> Interception:
        return Interception(self._weight)

    def _set_weight(self, weight: Tensor | str) -> None:
        if isinstance(weight, str):
            weight = _decode(weight)
        self._weight = PlacedWeight(weight)
        if weight.ndim > 3:
            raise ValueError(f"weight: expected [H, W//2+1] or [C, H, W//2+1], got {list(weight.shape)}")
        self._kept_bands = None
        if (weight == 0).any():
            self._kept_bands = PlacedWeight(weights.power(weight, 0))
            if self.config.get("clip_sample") or self.config.get("thresholding"):
                warnings.warn(
                    "clip_sample, thresholding: expected False for a weight that is 0 on some band; clipping pixels "
                    "fills that band again",
                    stacklevel=3,
                )
        self.register_to_config(weight=_encode(weight))

    def _check_size(self, name: str, size: Sequence[int]) -> None:
        if not self._weight.fits(size):
            raise ValueError(f"{name}: expected {self._weight.expected_size()} for this weight, got {list(size)}")
        if self.weight.ndim == 3 and len(size) > 4:  # where it would broadcast against another dimension than C
            raise ValueError(f"{name}: expected [N, C, H, W] for a weight for each channel, got {list(size)}")

    def _project(self, planes: Tensor) -> Tensor:
        return spectral_filter(planes, self._kept_bands.like(planes))

    def _warn_if_white(self, x: Tensor) -> None:
        """Warns where x_T is likelier to be white than shaped, by a log-likelihood ratio that only white noise has."""
        weight, rounding = even_part(self._weight.like(x), x.shape[-1]), torch.finfo(x.dtype).eps
        # an omitted band says nothing, as x has been projected
        variance = torch.where(weight > 0, weight.square() + rounding**2, 1)
        spectrum = torch.fft.rfft2(x.to(weight.dtype) / getattr(self, "init_noise_sigma", 1.0), norm="ortho")
        ratio = spectrum.abs().square() * (1 / variance - 1) + variance.log()
        if (ratio * multiplicity(x.shape[-1], like=weight)).sum() / 2 > _SURELY_WHITE:
            warnings.warn(
                "x_T: expected noise of the scheduler's weight, got what looks white; draw it with scheduler.randn, or "
                "run the pipeline as a Shaped pipeline or within sagd_kernels.integrations.intercept(scheduler.weight)",
                stacklevel=3,
            )

    def __repr__(self) -> str:
        return super().__repr__().replace(self.config.weight, f"{self.weight.dtype} {list(self.weight.shape)}")


def _taking_a_weight(init: Callable) -> Callable:
    @functools.wraps(init)
    def __init__(self, *args, weight: Tensor | str | None = None, **kwargs) -> None:
        name = type(self).__name__
        if any(isinstance(argument, Tensor) for argument in args):
            raise TypeError(f"weight: expected by its name, {name}(weight=...), got a tensor by position")
        if weight is None:
            raise TypeError(
                f"weight: expected {name}(weight=...) or {name}.from_pretrained(folder, weight=...), got none"
            )
        init(self, *args, **kwargs)
        self._set_weight(weight)

    signature = inspect.signature(init)
    parameters = [*signature.parameters.values(), inspect.Parameter("weight", inspect.Parameter.KEYWORD_ONLY)]
    parameters.sort(key=lambda parameter: parameter.kind)  # a scheduler's **kwargs come last
    __init__.__signature__ = signature.replace(parameters=parameters)
    return __init__


def _with_shaped_noise(step: Callable) -> Callable:
    @functools.wraps(step)
    def shaped_step(self, model_output: Tensor, timestep: Tensor | float, sample: Tensor, *args, **kwargs):
        self._check_size("sample", sample.shape)
        if self._kept_bands is not None:
            channels = sample.shape[1]  # of the output, too; any after them are a learned variance
            predicted = self._project(model_output[:, :channels])
            model_output = torch.cat([predicted, model_output[:, channels:]], dim=1)
            sample = self._project(sample)
        if timestep == self.timesteps[0]:
            self._warn_if_white(sample)
        with self._shaped_draws():
            return step(self, model_output, timestep, sample, *args, **kwargs)

    return shaped_step


class _Encoded(str):
    """The text of a weight, which diffusers prints where a scheduler that takes no weight is given a config with it."""

    def __repr__(self) -> str:
        return f"<weight in {len(self):,} characters>"


def _encode(weight: Tensor) -> _Encoded:
    return _Encoded(base64.b64encode(safetensors.torch.save({"weight": weight.cpu().contiguous()})).decode())


def _decode(text: str) -> Tensor:
    try:
        return safetensors.torch.load(base64.b64decode(text, validate=True))["weight"]
    except (ValueError, KeyError, safetensors.SafetensorError) as error:
        raise ValueError(f"weight: expected a tensor or the text of one from a config, got {text[:40]!r}") from error


class ShapedDDPMScheduler(ShapedScheduler, DDPMScheduler):
    """`DDPMScheduler` with shaped noise."""


class ShapedDDIMScheduler(ShapedScheduler, DDIMScheduler):
    """`DDIMScheduler` with shaped noise."""

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """As DDIM's own, except that `timestep_spacing="linspace"` warns and becomes "trailing".

        DDIM steps from t to t - T // n, but linspace puts its n timesteps (T - 1) / (n - 1) apart: with T = 1000 and
        n = 10 every step would stop 11 short of the next timestep.
        """
        if self.config.timestep_spacing == "linspace":
            warnings.warn(
                "timestep_spacing: DDIM's steps do not fit 'linspace'; 'trailing' is used instead", stacklevel=2
            )
            self.register_to_config(timestep_spacing="trailing")
        super().set_timesteps(num_inference_steps, device)


class ShapedDPMSolverMultistepScheduler(ShapedScheduler, DPMSolverMultistepScheduler):
    """`DPMSolverMultistepScheduler` with shaped noise: x_T for the ODE solvers, every step's for the SDE solvers."""


class ShapedEulerAncestralDiscreteScheduler(ShapedScheduler, EulerAncestralDiscreteScheduler):
    """`EulerAncestralDiscreteScheduler` with shaped noise."""


class ShapedEDMEulerScheduler(ShapedScheduler, EDMEulerScheduler):
    """`EDMEulerScheduler` with shaped noise: x_T, and churn where `s_churn` asks for it."""


class ShapedFlowMatchEulerDiscreteScheduler(ShapedScheduler, FlowMatchEulerDiscreteScheduler):
    """`FlowMatchEulerDiscreteScheduler` with shaped noise: x_T, and every step's if `stochastic_sampling`."""


class ShapedPipeline(DiffusionPipeline):
    """Goes before a pipeline class of diffusers: what a call draws, x_T included, has its scheduler's weight.

    A saved one is loaded by its own class. `DiffusionPipeline.from_pretrained` looks for the class in diffusers alone.
    """

    def __call__(self, *args, **kwargs):
        if not isinstance(self.scheduler, ShapedScheduler):
            raise TypeError(f"scheduler: expected a ShapedScheduler, got {type(self.scheduler).__name__}")
        with self.scheduler._shaped_draws():
            return super().__call__(*args, **kwargs)


class ShapedDDPMPipeline(ShapedPipeline, DDPMPipeline):
    """`DDPMPipeline` with shaped noise."""


class ShapedDDIMPipeline(ShapedPipeline, DDIMPipeline):
    """`DDIMPipeline` with shaped noise; as there, a scheduler of another class is made a DDIM scheduler."""

    def __init__(self, unet: UNet2DModel, scheduler: ShapedScheduler) -> None:
        super(DDIMPipeline, self).__init__()
        self.register_modules(unet=unet, scheduler=ShapedDDIMScheduler.from_config(scheduler.config))
