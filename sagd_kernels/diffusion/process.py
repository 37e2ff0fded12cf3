"""The forward process with shaped noise, and everything that follows from it in closed form.

Notation: x_t = a_t x_0 + s_t eps with eps = T_w xi, so q(x_t | x_0) = N(a_t x_0, s_t^2 Sigma_w); a and s are the signal
and noise levels of a `Schedule`. Sigma_w is diagonal in frequency, and so is every formula below. With one weight for
all times it cancels from what is deterministic, and the usual scalars remain; only the sources of noise change.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from ..reference import align_left
from ..spectral import check_half_plane, check_nonnegative, even_part, inverse, weight_dtype
from .distribution import SpectralNormal
from .schedules import DDPMSchedule, Schedule

PREDICTIONS = ("eps", "x0", "v", "flow", "score")
Time = float | Tensor


class DiffusionProcess:
    """The forward process of a schedule and a spectral weight, its posterior, its losses and one reverse step.

    Times `t` are numbers or tensors [N], one for each sample of planes [N, ..., H, W]: integers for a `DDPMSchedule`,
    else floats. Models are called as `model(x, t)` with such a tensor and return what `prediction` names:

    | prediction | value |
    | --- | --- |
    | "eps" | the noise T_w xi, with its spectrum |
    | "x0" | the data |
    | "v" | a_t eps - s_t x_0 (arXiv 2202.00512) |
    | "flow" | eps - x_0, the velocity dx/dt of `FlowSchedule` |
    | "score" | grad log q(x_t) = -Sigma_w^-1 eps / s_t |

    Args:
        schedule: the levels as functions of time.
        weight: [..., H, W//2+1], float32 or float64, see `sagd_kernels.weights`; leading dimensions broadcast against
            the batch, so a weight for each channel is [C, H, W//2+1]. With `per_timestep`, [T, ..., H, W//2+1]: the
            noise of step s then has the weight w_s, and x_t holds noise of covariance
            sum_s beta_s (prod_{k>s} alpha_k) Sigma_{w_s}. eps is that noise over s_t: its weight changes with t.
        width: W.
        prediction: what models return.
        per_timestep: one weight for each timestep of a `DDPMSchedule`; all omit the same frequencies, if any. Holds
            T planes of float64.

    **Singular weights.** Where the weight omits a band, nothing there is ever noised or learned, but a network leaks
    into it, and division by a small a_t amplifies that. So every prediction is projected on the kept bands
    (`denoise`), as are the states of all samplers.
    """

    draw = staticmethod(ops.shaped_noise)  # where all random numbers of samplers come from

    def __init__(
        self, schedule: Schedule, weight: Tensor, width: int, *, prediction: str = "eps", per_timestep: bool = False
    ) -> None:
        if not isinstance(schedule, Schedule):
            raise TypeError(f"schedule: expected a Schedule, got {type(schedule).__name__}")
        _check_prediction("prediction", prediction)
        weight = even_part(check_nonnegative("weight", check_half_plane("weight", weight, width)), width)
        if not (weight > 0).flatten(-2).any(-1).all():
            raise ValueError("weight: expected a positive value at one frequency at least, got zero everywhere")
        self.schedule, self.width, self.prediction, self.per_timestep = schedule, width, prediction, per_timestep
        self.dtype = weight.dtype
        # the weight of eps: one for all times, or one for each timestep in its first dimension
        self.weight = _marginal_weights(schedule, weight) if per_timestep else weight
        kept = (weight[0] if per_timestep else weight) > 0
        self.kept_bands = None if kept.all() else kept.to(self.dtype)

    def to(self, device: torch.device | str) -> "DiffusionProcess":
        """The same process with its weight on `device`."""
        moved = copy.copy(self)
        moved.weight = self.weight.to(device)
        moved.kept_bands = None if self.kept_bands is None else self.kept_bands.to(device)
        return moved

    # ---- the forward process

    def levels(self, t: Time, x: Tensor) -> tuple[Tensor, Tensor]:
        """a_t and s_t in float64, with the dimensions of `x` (sizes N or 1, then 1)."""
        signal, noise = self.schedule.levels(self._time(t, x))
        return align_left(signal, x.ndim), align_left(noise, x.ndim)

    def weight_at(self, t: Time, x: Tensor) -> Tensor:
        """The weight of eps at time t, fit for the operators on planes `x`."""
        return self._weight(t, x).to(weight_dtype(x.dtype))

    def add_noise(self, x0: Tensor, t: Tensor, key: Tensor, *, plane_offset: int = 0) -> tuple[Tensor, Tensor]:
        """x_t ~ q(x_t | x_0) and the eps in it, drawn by the operator `add_noise`."""
        levels = self.levels(t, x0)
        return ops.add_noise(x0, key, self.weight_at(t, x0), *levels, plane_offset=plane_offset)

    def marginal(self, x0: Tensor, t: Time) -> SpectralNormal:
        """q(x_t | x_0) for t after `clean`."""
        return self._normal(_scaled(x0, self.levels(t, x0)[0]), *self._noise_at(t, x0))

    def prior(self, t: Time, x: Tensor) -> SpectralNormal:
        """N(0, s_t^2 Sigma_w) over planes like `x`: what samplers start from, q(x_t | x_0 = 0)."""
        return self.marginal(torch.zeros_like(x), t)

    def posterior(self, x: Tensor, x0: Tensor, t: Time, s: Time) -> SpectralNormal:
        """q(x_s | x_t, x_0) for times s before t, s after `clean`. Equations 6 and 7 of arXiv 2006.11239, per bin."""
        eps = self.convert(x0, x, t, "x0", "eps")
        mean = self.step(x0, eps, t, s, eta=1.0)
        _, injected = self._reverse_gains(t, s, 1.0, x)
        return self._normal(mean, *self._noise_at(t, x, injected))

    def noise(self, key: Tensor, size: torch.Size, t: Time, gain: Tensor | None = None, dtype=None) -> Tensor:
        """gain * s_t T_w xi: noise as x_t holds it, times a number or, per bin, a half plane."""
        like = torch.empty((), dtype=dtype or self.dtype, device=self.weight.device).expand(size)
        return self.draw(key, size, *self._noise_at(t, like, gain), dtype=like.dtype)

    # ---- what a model predicts

    def convert(self, value: Tensor, x: Tensor, t: Time, source: str, target: str) -> Tensor:
        """A prediction `value` at (x_t, t), from one of the forms above into another.

        Forms divide by what they lack: x_0 from "eps" by a_t, eps from "x0" by s_t.
        """
        _check_prediction("source", source)
        _check_prediction("target", target)
        if source == target:
            return value
        signal, noise = self.levels(t, x)
        if source == "score":
            value = ops.spectral_filter(value, -self.weight_at(t, x).square(), _per_plane(noise))
            source = "eps"
        if target == "score":
            return self._score(self.convert(value, x, t, source, "eps"), t)
        # value = a x_0 + b eps and x = signal x_0 + noise eps, solved for c x_0 + d eps
        (a, b), (c, d) = (_combination(form, signal, noise) for form in (source, target))
        determinant = a * noise - b * signal
        return _scaled(value, (c * noise - d * signal) / determinant) + _scaled(x, (a * d - b * c) / determinant)

    def target(self, x0: Tensor, eps: Tensor, t: Time) -> Tensor:
        """What the model should have returned for x_t made of `x0` and `eps`."""
        if self.prediction == "score":
            return self._score(eps, t)
        a, b = _combination(self.prediction, *self.levels(t, x0))
        return _scaled(x0, a) + _scaled(eps, b)

    def loss(
        self, model, x0: Tensor, t: Tensor, key: Tensor, *, whitened: bool = False, plane_offset: int = 0
    ) -> Tensor:
        """The training loss of `model` on data x0 [N, ..., H, W] at times t [N], with noise of the key: a scalar.

        Plain: the mean squared error of the prediction, which weighs bin f by w(f)^2 relative to the likelihood.
        Whitened: the mean over bins with w > 0 of |F(error)|^2 / w^2, the evidence bound's weighting of frequencies.
        A score is compared as the eps that it stands for, which is denoising score matching weighted by s_t^2.
        """
        x, eps = self.add_noise(x0, t, key, plane_offset=plane_offset)
        output = _predict(model, x, t)
        if self.prediction == "score":
            output, target = self.convert(output, x, t, "score", "eps"), eps
        else:
            target = self.target(x0, eps, t)
        return ops.whitened_mse(output, target, self.weight_at(t, x)) if whitened else F.mse_loss(output, target)

    def denoise(self, model, x: Tensor, t: Time, *, clip: float | None = None) -> tuple[Tensor, Tensor]:
        """The model's x_0 and eps at (x_t, t), projected on the kept bands.

        `clip` clamps x_0 to [-clip, clip] first, and eps becomes what x_t leaves for it.
        """
        t = self._time(t, x).expand(x.shape[:1])
        output = _predict(model, x, t.to(weight_dtype(x.dtype)) if t.is_floating_point() else t)
        x0 = self.convert(output, x, t, self.prediction, "x0")
        if clip is None:
            eps = self.convert(output, x, t, self.prediction, "eps")
        else:
            x0 = x0.clamp(-clip, clip)
            eps = self.convert(x0, x, t, "x0", "eps")
        return self.project(x0), self.project(eps)

    def project(self, planes: Tensor) -> Tensor:
        """The planes without the bands that the weight omits; the planes themselves where it omits none."""
        if self.kept_bands is None:
            return planes
        return ops.spectral_filter(planes, self.kept_bands.to(weight_dtype(planes.dtype)))

    @staticmethod
    def filter(planes: Tensor, gain: Tensor) -> Tensor:
        """The planes times a gain: a number for each sample or, per bin, a half plane."""
        return (
            ops.spectral_filter(planes, gain.to(weight_dtype(planes.dtype)))
            if _is_plane(gain)
            else _scaled(planes, gain)
        )

    # ---- from one time to another

    def step(self, x0: Tensor, eps: Tensor, t: Time, s: Time, *, eta: float = 0.0, key: Tensor | None = None) -> Tensor:
        """x_s from x_t = a_t x0 + s_t eps, s before t: DDIM's step (equation 12 of arXiv 2010.02502), per bin.

        eta = 0 moves every bin's noise to its level at time s; eta = 1 draws from `posterior`, as DDPM does. The noise
        that goes with eta > 0 is drawn from `key`; without a key the result is the mean.
        """
        carried, injected = self._reverse_gains(t, s, eta, eps)
        signal, noise = self.levels(s, eps)[0], self.levels(t, eps)[1]
        x = _scaled(x0, signal) + self.filter(_scaled(eps, noise), carried)
        if eta > 0 and key is not None:
            x = x + self.noise(key, x.shape, t, injected, x.dtype)
        return x

    def flow_increment(self, x0: Tensor, eps: Tensor, at: Time, t: Time, s: Time) -> Tensor:
        """The probability flow's increment from time t to s, with x_0 and eps as they are at time `at`, t or s.

        dx = x_0 da + T_w xi ds, so (a_s - a_t) x_0 + (s_s - s_t) eps; `per_timestep`, each with its own weight.
        """
        (signal_t, _), (signal_s, _) = self.levels(t, x0), self.levels(s, x0)
        gain = self.variance_ratio(s, at, x0).sqrt() - self.variance_ratio(t, at, x0).sqrt()
        return _scaled(x0, signal_s - signal_t) + self.filter(_scaled(eps, self.levels(at, x0)[1]), gain)

    def variance_ratio(self, s: Time, t: Time, x: Tensor) -> Tensor:
        """V_s / V_t, where V = s^2 w^2 is the noise's variance in a bin: a number or, `per_timestep`, a half plane."""
        noise_s, noise_t = self.levels(s, x)[1], self.levels(t, x)[1]
        ratio = (noise_s / noise_t).square()
        if self.per_timestep:
            ratio = ratio * (self._weight(s, x) * inverse(self._weight(t, x))).square()
        return ratio

    def transition_share(self, t: Time, s: Time, x: Tensor) -> Tensor:
        """Of the noise's variance in x_t, the share that came after time s: 1 - (a_t / a_s)^2 V_s / V_t."""
        signal_t, signal_s = self.levels(t, x)[0], self.levels(s, x)[0]
        return (1 - (signal_t / signal_s).square() * self.variance_ratio(s, t, x)).clamp(min=0)

    def _reverse_gains(self, t: Time, s: Time, eta: float, x: Tensor) -> tuple[Tensor, Tensor]:
        """What multiplies the noise s_t eps of x_t, and fresh noise of its law, in x_s."""
        ratio = self.variance_ratio(s, t, x)
        injected = eta**2 * ratio * self.transition_share(t, s, x)
        return (ratio - injected).clamp(min=0).sqrt(), injected.sqrt()

    def _time(self, t: Time, x: Tensor) -> Tensor:
        if x.shape[-1] != self.width:
            raise ValueError(f"planes: expected [..., H, {self.width}], the width of the process, got {list(x.shape)}")
        integer = isinstance(self.schedule.clean, int)  # a float of torch's default dtype would be rounded
        t = torch.as_tensor(t, dtype=None if integer else torch.float64, device=x.device)
        if t.ndim > 1 or (t.ndim == 1 and len(t) not in (1, len(x))):
            raise ValueError(f"t: expected a number or [{len(x)}], one for each sample, got {list(t.shape)}")
        return t

    def _weight(self, t: Time, x: Tensor) -> Tensor:
        """The weight of eps at time t, its leading dimensions those of `x`."""
        if not self.per_timestep:
            return self.weight
        t = self._time(t, x)
        weight = self.weight[t.clamp(min=0)]  # x_0 holds no noise, of whatever weight
        inner = weight.shape[t.ndim :]
        return weight.reshape(*t.shape, *[1] * (x.ndim - t.ndim - len(inner)), *inner)

    def _score(self, eps: Tensor, t: Time) -> Tensor:
        """-Sigma_w^-1 eps / s_t, by the pseudo-inverse where the weight is singular."""
        noise = self.levels(t, eps)[1]
        return ops.spectral_filter(eps, -inverse(self.weight_at(t, eps)).square(), _per_plane(1 / noise))

    def _noise_at(self, t: Time, x: Tensor, gain: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The weight and the scale of the noise gain * s_t T_w xi."""
        weight, scale = self.weight_at(t, x), self.levels(t, x)[1]
        if gain is not None and _is_plane(gain):
            weight = weight * gain.to(weight.dtype)
        elif gain is not None:
            scale = scale * gain
        return weight, scale

    def _normal(self, loc: Tensor, weight: Tensor, scale: Tensor) -> SpectralNormal:
        return SpectralNormal(weight, self.width, loc, _per_plane(scale), validate_args=False)


def _marginal_weights(schedule: Schedule, weights: Tensor) -> Tensor:
    """The weight of eps at every timestep [T, ..., H, W//2+1], float64, for one weight of each step's noise.

    V_t = alpha_t V_{t-1} + beta_t w_t^2 with alpha_t = abar_t / abar_{t-1} = 1 - beta_t; the weight is sqrt(V_t) / s_t.
    """
    if not isinstance(schedule, DDPMSchedule):
        raise ValueError(f"per_timestep: expected a DDPMSchedule, got {type(schedule).__name__}")
    if weights.ndim < 3 or len(weights) != len(schedule):
        raise ValueError(
            f"weight: expected [T, ..., H, W//2+1] with T = {len(schedule)} timesteps, got {list(weights.shape)}"
        )
    if not ((weights > 0) == (weights[0] > 0)).all():
        raise ValueError("weight: expected all timesteps to omit the same frequencies; a weight may be small instead")
    abar = schedule.alphas_cumprod.to(weights.device)
    alphas = abar / torch.cat([abar.new_ones(1), abar[:-1]])
    variance, marginal = torch.zeros_like(weights[0], dtype=torch.float64), []
    for alpha, level, weight in zip(alphas, abar, weights.double(), strict=True):
        variance = alpha * variance + (1 - alpha) * weight.square()
        marginal.append((variance / (1 - level)).sqrt())
    return torch.stack(marginal)


def _check_prediction(name: str, prediction: str) -> None:
    if prediction not in PREDICTIONS:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, PREDICTIONS))}, got {prediction!r}")


def _predict(model, x: Tensor, t: Tensor) -> Tensor:
    """The model's output in the dtype of `x`, or a ValueError unless it is a tensor of the shape of `x`."""
    output = model(x, t)
    if not isinstance(output, Tensor) or output.shape != x.shape:
        got = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"model: expected to return a tensor of the shape of its input {list(x.shape)}, got {got}")
    return output.to(x.dtype)


def _combination(prediction: str, signal: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """The numbers a, b of a prediction a x_0 + b eps."""
    zero, one = torch.zeros_like(signal), torch.ones_like(signal)
    return {"eps": (zero, one), "x0": (one, zero), "v": (-noise, signal), "flow": (-one, one)}[prediction]


def _is_plane(gain: Tensor) -> bool:
    return gain.shape[-2:] != (1, 1)


def _per_plane(number: Tensor) -> Tensor:
    """A number for each sample, [N, 1, ..., 1], without the dimensions of the planes."""
    return number.squeeze((-2, -1))


def _scaled(planes: Tensor, numbers: Tensor) -> Tensor:
    return (planes * numbers.to(weight_dtype(planes.dtype))).to(planes.dtype)
