"""Training: the state that a checkpoint holds, one step, and the loop around it."""

import copy
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from tqdm import tqdm

from sagd_kernels import add_noise

from .checkpoint import optimizer_tensors, restore_optimizer, write_checkpoint
from .config import Config, RunError
from .data import load_batches, to_signed
from .model import TRAIN_TIMESTEPS, build_model, build_scheduler
from .noise import Purpose, run_generator, run_key


class TrainingState:
    """Everything that training changes. All randomness is a function of the seed and the step, so none is stored."""

    def __init__(self, config: Config, channels: int, checkpoint: tuple[dict[str, Tensor], dict] | None = None):
        """A fresh state, or the one in `checkpoint` (as `read_checkpoint` returns it), equal to the bit."""
        self.config = config
        self.alphas_cumprod = build_scheduler().alphas_cumprod
        self.model = build_model(config.model, channels, config.seed)
        self.ema = EMAModel(self.model.parameters(), decay=config.ema, foreach=True)
        group = {"params": list(self.model.parameters()), "initial_lr": config.lr}
        self.optimizer = torch.optim.AdamW([group], lr=config.lr, fused=True)
        self.step = 0
        self.losses: list[float] = []
        self.seconds = self.noise_seconds = 0.0
        if checkpoint is not None:
            self._restore(*checkpoint)
        self.schedule = get_cosine_schedule_with_warmup(
            self.optimizer, config.warmup, config.steps, last_epoch=self.step - 1
        )

    def save(self, path: Path, images: int) -> None:
        """Write the checkpoint; `images`, the size of the data set, guards against resuming on other data."""
        names = [name for name, _ in self.model.named_parameters()]
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"ema.{name}": tensor for name, tensor in zip(names, self.ema.shadow_params, strict=True)}
        tensors |= optimizer_tensors(self.optimizer) | {"losses": torch.tensor(self.losses, dtype=torch.float64)}
        state = {"config": asdict(self.config), "step": self.step, "images": images}
        write_checkpoint(path, tensors, state | {"seconds": self.seconds, "noise_seconds": self.noise_seconds})

    def _restore(self, tensors: dict[str, Tensor], state: dict) -> None:
        names = [name for name, _ in self.model.named_parameters()]
        self.model.load_state_dict({name: tensors[f"model.{name}"] for name in self.model.state_dict()})
        self.step = state["step"]
        self.ema.load_state_dict(
            {"optimization_step": self.step, "shadow_params": [tensors[f"ema.{name}"] for name in names]}
        )
        restore_optimizer(self.optimizer, tensors)
        self.losses = tensors["losses"].tolist()
        self.seconds, self.noise_seconds = state["seconds"], state["noise_seconds"]

    @property
    def parameters(self) -> int:
        """How many numbers the network learns."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def averaged_model(self) -> nn.Module:
        """A copy of the network with the moving average of its parameters, for sampling."""
        model = copy.deepcopy(self.model).eval()
        self.ema.copy_to(model.parameters())
        return model


def train(
    state: TrainingState,
    dataset: torch.utils.data.Dataset,
    weight: Tensor,
    path: Path,
    *,
    stop: int,
    checkpoint_every: int,
    workers: int = 0,
) -> None:
    """Train `state` up to step `stop` and leave a checkpoint at `path`, also every `checkpoint_every` steps.

    Ctrl-C or SIGTERM ends the loop early, after the step under way, with a checkpoint: `state.step` says how far.
    """
    config = state.config
    batches = load_batches(dataset, config.seed, config.batch, state.step, stop, workers)
    with (
        tqdm(total=config.steps, initial=state.step, desc="training", unit="step") as progress,
        finish_step_on_interrupt() as interrupted,
    ):
        began = time.perf_counter()
        for images in batches:
            loss = train_step(state, to_signed(images), weight)
            now = time.perf_counter()
            state.seconds += now - began
            progress.set_postfix_str(f"loss {loss:.4f}, {config.batch / (now - began):,.0f} images/s", refresh=False)
            progress.update()
            if interrupted.is_set():
                break
            if state.step % checkpoint_every == 0 and state.step < stop:
                state.save(path, len(dataset))
            began = time.perf_counter()
        state.save(path, len(dataset))


def train_step(state: TrainingState, images: Tensor, weight: Tensor) -> float:
    """One step of DDPM's simple loss || eps_w - eps_theta(x_t, t) ||^2 on images in [-1, 1]; returns the loss."""
    config = state.config
    generator = run_generator(config.seed, Purpose.TIMESTEPS, state.step)
    timesteps = torch.randint(TRAIN_TIMESTEPS, (len(images),), generator=generator)
    signal_level = state.alphas_cumprod[timesteps]

    began = time.perf_counter()
    key = run_key(config.seed, Purpose.TRAINING_NOISE, state.step)
    noisy, noise = add_noise(images, key, weight, signal_level.sqrt(), (1 - signal_level).sqrt())
    state.noise_seconds += time.perf_counter() - began

    with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bfloat16"):
        predicted = state.model(noisy, timesteps)
    loss = F.mse_loss(predicted.float(), noise)
    if not torch.isfinite(loss):
        raise RunError(f"the loss is {loss.item()} at step {state.step}; the last checkpoint is intact, lower --lr")
    state.optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(state.model.parameters(), 1.0)
    state.optimizer.step()
    state.schedule.step()
    state.ema.step(state.model.parameters())
    state.step += 1
    state.losses.append(loss.item())
    return state.losses[-1]


@contextmanager
def finish_step_on_interrupt() -> Iterator[threading.Event]:
    """Yields an event that the first SIGINT or SIGTERM sets, instead of tearing a step in two; a second one kills."""
    requested = threading.Event()
    previous = {}

    def request(number, frame):
        requested.set()
        signal.signal(number, previous[number])

    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.signal(number, request)
    try:
        yield requested
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
