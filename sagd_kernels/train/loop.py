"""Training: the state that a checkpoint holds, one step, and the loop around it, in one process or many."""

import copy
import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from sagd_kernels.diffusion import DiffusionProcess

from .checkpoint import (
    FILE_NAME,
    optimizer_tensors,
    prepare_folder,
    read_checkpoint,
    restore_optimizer,
    write_checkpoint,
)
from .config import Config, Execution, ImageError, RunError
from .data import load_batches, open_dataset, split_batch, to_signed
from .model import build_model
from .monitor import open_monitor
from .noise import Purpose, build_process, run_generator, run_key
from .processes import start_processes
from .sampling import sample

PREVIEW = dict(count=16, sampler="ddim", steps=20, progress=False)


class TrainingState:
    """Everything that training changes. All randomness is a function of the seed and the step, so none is stored."""

    def __init__(
        self,
        config: Config,
        channels: int,
        checkpoint: tuple[dict[str, Tensor], dict] | None = None,
        device: torch.device | str = "cpu",
    ):
        """A fresh state, or the one in `checkpoint` (as `read_checkpoint` returns it), equal to the bit."""
        self.config = config
        self.model = build_model(config.model, channels, config.seed).to(device)
        self.ema = EMAModel(self.model.parameters(), decay=config.ema, foreach=True)
        group = {"params": list(self.model.parameters()), "initial_lr": config.lr}
        self.optimizer = torch.optim.AdamW([group], lr=config.lr, fused=True)
        self.step = 0
        self.losses: list[float] = []
        self.seconds = 0.0
        if checkpoint is not None:
            self._restore(*checkpoint)
        self.ema.to(device)
        self.schedule = get_cosine_schedule_with_warmup(
            self.optimizer, config.warmup, config.steps, last_epoch=self.step - 1
        )

    def save(self, path: Path, images: int) -> None:
        """Write the checkpoint; `images`, the size of the data set, guards against resuming on other data."""
        names = [name for name, _ in self.model.named_parameters()]
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"ema.{name}": tensor for name, tensor in zip(names, self.ema.shadow_params, strict=True)}
        tensors |= optimizer_tensors(self.optimizer) | {"losses": torch.tensor(self.losses, dtype=torch.float64)}
        state = {"config": asdict(self.config), "step": self.step, "images": images, "seconds": self.seconds}
        write_checkpoint(path, tensors, state)

    def _restore(self, tensors: dict[str, Tensor], state: dict) -> None:
        names = [name for name, _ in self.model.named_parameters()]
        self.model.load_state_dict({name: tensors[f"model.{name}"] for name in self.model.state_dict()})
        self.step = state["step"]
        self.ema.load_state_dict(
            {"optimization_step": self.step, "shadow_params": [tensors[f"ema.{name}"] for name in names]}
        )
        restore_optimizer(self.optimizer, tensors)
        self.losses = tensors["losses"].tolist()
        self.seconds = state["seconds"]

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
    config: Config,
    folder: Path,
    *,
    execution: Execution | None = None,
    dataset: Dataset | None = None,
    process: DiffusionProcess | None = None,
    resume: Path | None = None,
) -> TrainingState:
    """Train the network that `config` describes, leave its checkpoint in `folder`, and return its state.

    All processes of a run call this with the same arguments; the first of them writes. Ctrl-C or SIGTERM ends training
    early, after the step under way, with a checkpoint: `state.step` says how far.

    Args:
        dataset: what `open_dataset` returns, or anything with its `image_shape`, `__len__` and `__getitems__`, in place
            of the images that `config` names.
        process: in place of the one that `config.weight` names, for another weight, `DDPMSchedule` or prediction.
        resume: the checkpoint to continue from. Its config must be `config`, or that with fewer steps: then the
            learning rate goes on along the longer cosine. Its dataset and process must be the same.
    """
    accelerator, execution = start_processes(), execution or Execution()
    parts = split_batch(config.batch, accelerator.num_processes, execution.accumulate)[accelerator.process_index]
    if dataset is None:
        dataset = open_dataset(config.dataset, config.data, config.image_size, config.channels)
    channels, *plane = dataset.image_shape
    process = (process or build_process(config.weight, *plane)).to(accelerator.device)
    checkpoint = read_checkpoint(resume) if resume else None
    if checkpoint and (contradictions := Config(**checkpoint[1]["config"]).contradictions(asdict(config))):
        raise RunError("; ".join(contradictions))
    if checkpoint and checkpoint[1]["images"] != len(dataset):
        raise RunError(f"--data: the checkpoint saw {checkpoint[1]['images']:,} images, here are {len(dataset):,}")
    state = TrainingState(config, channels, checkpoint, accelerator.device)
    _train_steps(accelerator, state, dataset, process, parts, folder, execution)
    return state


def _train_steps(
    accelerator: Accelerator,
    state: TrainingState,
    dataset: Dataset,
    process: DiffusionProcess,
    parts: list[range],
    folder: Path,
    execution: Execution,
) -> None:
    config, main = state.config, accelerator.is_main_process
    stop = min(execution.stop_at or config.steps, config.steps)
    network = accelerator.prepare_model(state.model)  # itself or, in many processes, inside DDP
    workers, stopping = execution.workers, False
    batches = load_batches(dataset, config.seed, config.batch, state.step, stop, parts=parts, workers=workers)
    if main:
        prepare_folder(folder)
    with (
        tqdm(total=config.steps, initial=state.step, desc="training", unit="step", disable=not main) as progress,
        open_monitor(folder, state.step, tensorboard=execution.tensorboard and main) as monitor,
        finish_step_on_interrupt(launched=accelerator.num_processes > 1) as interrupted,
    ):
        while state.step < stop and not stopping:
            began = time.perf_counter()
            try:
                stopping = train_step(accelerator, state, network, process, parts, batches, interrupted)
            except ImageError as error:
                if not state.step:
                    raise
                if main:
                    state.save(folder / FILE_NAME, len(dataset))
                accelerator.wait_for_everyone()  # the launcher ends all processes when the first one ends
                advice = f"step {state.step:,} is saved: put another image in its place and --resume {folder}"
                raise RunError(f"{error}; {advice}") from error
            seconds = time.perf_counter() - began
            state.seconds += seconds
            curves = {"loss": state.losses[-1], "images/s": config.batch / seconds}
            progress.set_postfix_str("loss {loss:.4f}, {images/s:,.0f} images/s".format(**curves), refresh=False)
            progress.update()
            monitor.scalars(state.step, **curves, lr=state.schedule.get_last_lr()[0])
            if execution.preview_every and state.step % execution.preview_every == 0:
                samples = sample(state.averaged_model(), process, dataset.image_shape, seed=config.seed, **PREVIEW)
                if main:
                    monitor.preview(state.step, samples)
            if main and state.step % execution.checkpoint_every == 0 and state.step < stop:
                state.save(folder / FILE_NAME, len(dataset))
        if main:
            state.save(folder / FILE_NAME, len(dataset))


def train_step(
    accelerator: Accelerator,
    state: TrainingState,
    network: nn.Module,
    process: DiffusionProcess,
    parts: list[range],
    batches: Iterator[tuple[Tensor, ImageError | None]],
    interrupted: threading.Event,
) -> bool:
    """One step on the loss of `process`: `parts` are this process's places in the batch, a backward pass for each, and
    `batches` yields their images.

    What is random belongs to a place in the whole batch, so no split of the batch changes it. Returns whether
    `interrupted` was set in any process. An image that one of them cannot read is an ImageError in all, and the state
    is as it was. Of both all must hear alike, and at the step's end, or one would wait for the others.
    """
    config, device = state.config, accelerator.device
    generator = run_generator(config.seed, Purpose.TIMESTEPS, state.step)
    timesteps = torch.randint(len(process.schedule), (config.batch,), generator=generator).to(device)
    key = run_key(config.seed, Purpose.TRAINING_NOISE, state.step).to(device)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16")

    state.optimizer.zero_grad()
    loss, unreadable = torch.zeros((), device=device), None
    for part in parts:
        images, error = next(batches)
        unreadable = unreadable or error
        images = to_signed(images.to(device, non_blocking=True))
        plane_offset = part.start * images.shape[1]
        with nullcontext() if part == parts[-1] else accelerator.no_sync(network):
            with autocast:
                share = process.loss(network, images, timesteps[part.start : part.stop], key, plane_offset=plane_offset)
            (share / len(parts)).backward()
        loss += share.detach() / len(parts)
    news = loss.new_tensor([interrupted.is_set(), unreadable is not None])
    loss, requests, failures = accelerator.reduce(torch.cat([loss[None], news]), "mean").tolist()
    if failures:
        raise unreadable or ImageError("--data: another process met an image that is not readable")
    if not math.isfinite(loss):
        raise RunError(f"the loss is {loss} at step {state.step}; lower --lr. An earlier checkpoint is as it was")
    if config.grad_clip:
        nn.utils.clip_grad_norm_(state.model.parameters(), config.grad_clip)
    state.optimizer.step()
    state.schedule.step()
    state.ema.step(state.model.parameters())
    state.step += 1
    state.losses.append(loss)
    return requests > 0


@contextmanager
def finish_step_on_interrupt(*, launched: bool) -> Iterator[threading.Event]:
    """Yields an event that the first SIGINT or SIGTERM sets, instead of tearing a step in two.

    A second one kills, unless the process was launched: then it comes from the launcher, which kills by itself.
    """
    requested = threading.Event()
    previous = {}

    def request(number, frame):
        requested.set()
        if not launched:
            signal.signal(number, previous[number])

    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.signal(number, request)
    try:
        yield requested
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
