"""Trains and evaluates arms x seeds x step counts, whatever of it is not done yet.

In the output folder: `settings.json`, the classifier, `training/<training>/<seed>/<steps>/` with a checkpoint,
and `results/<arm>/<seed>-<steps>.json` with a strip of samples beside it. Every result appears whole or not at all, so
the same command goes on after any interruption, and commands for different seeds may run side by side.
"""

import json
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load, save
from torch import Tensor

from sagd_kernels.diffusion import DiffusionProcess
from sagd_kernels.train.checkpoint import FILE_NAME
from sagd_kernels.train.config import Config, Execution, RunError, fastest_precision
from sagd_kernels.train.data import to_signed
from sagd_kernels.train.loop import TrainingState, train
from sagd_kernels.train.sampling import sample

from .arms import ARMS, TRAININGS
from .data import VARIANTS, Variant, notch, open_split
from .metrics import Classifier, Evaluator, accuracy, train_classifier

REFERENCE = 10_000  # training images that all metrics compare with
STRIP = 12  # images shown of each arm


@dataclass(frozen=True)
class Settings:
    """What defines the results: an output folder has one. `steps` is the length of training, `limit` of the data."""

    dataset: str
    model: str = "small"
    steps: int = 1800
    batch: int = 64
    warmup: int = 100
    samples: int = 1000
    sample_steps: int = 50
    epochs: int = 3
    limit: int | None = None
    precision: str = field(default_factory=fastest_precision)


class Interrupted(Exception):
    """Ctrl-C or SIGTERM, after the trainer has saved."""


class Study:
    """The settings' data, classifier and metrics, and what is done of the runs, in an output folder."""

    def __init__(self, settings: Settings, output: Path):
        self.settings, self.output = settings, output
        output.mkdir(parents=True, exist_ok=True)
        self._check_settings()
        self.training, self.held_out = open_split(settings.dataset, settings.limit)
        self.reference = to_signed(self.training.images[:REFERENCE])

    def run(self, arms: list[str], seeds: list[int], step_counts: list[int]) -> None:
        """Do what is missing, seed by seed, and say how long it will take; Interrupted if the trainer was."""
        names = list(dict.fromkeys(ARMS[arm].training for arm in arms))
        for seed in seeds:
            self.measure_data(seed)
        units = [
            (name, seed, steps, missing)
            for seed in seeds
            for name in names
            for steps in sorted(step_counts)
            if (missing := [arm for arm in arms if ARMS[arm].training == name and not self.done(arm, seed, steps)])
        ]
        clock = Clock()
        for name, seed, steps, _ in units:
            clock.plan("train", steps - self._step_before(name, seed, steps, step_counts))
        clock.plan("evaluate", sum(len(missing) for *_, missing in units))
        for number, (name, seed, steps, missing) in enumerate(units, 1):
            print(f"[{number}/{len(units)}] {name}, seed {seed}, {steps} steps{clock.left()}", flush=True)
            before = self._step_before(name, seed, steps, step_counts)
            with clock.measure("train", steps - before):
                state = self.train(name, seed, steps)
            for arm in missing:
                with clock.measure("evaluate", 1):
                    self.evaluate(arm, state, seed, steps)

    def train(self, name: str, seed: int, steps: int) -> TrainingState:
        """The state of a training after `steps`, from its last checkpoint up to there."""
        training, settings = TRAININGS[name], self.settings
        config = Config(
            dataset=settings.dataset, weight=name, model=settings.model, steps=settings.steps, batch=settings.batch,
            warmup=settings.warmup, seed=seed, precision=settings.precision,
        )  # fmt: skip
        state = train(
            config,
            self._folder(name, seed) / str(steps),
            execution=Execution(stop_at=steps, checkpoint_every=100),
            dataset=Variant(self.training.images, training.data),
            process=training.process(self.reference),
            resume=self._checkpoint(name, seed, steps),
        )
        if state.step < steps:
            raise Interrupted
        return state

    def evaluate(self, arm: str, state: TrainingState, seed: int, steps: int) -> None:
        """Sample an arm and write its result; the same seed starts all arms from the same white noise."""
        process = (ARMS[arm].sampling or TRAININGS[ARMS[arm].training].process)(self.reference)
        images = self._sample(state, process, seed)
        self._write_result(arm, seed, steps, notch(images) if ARMS[arm].notch else images)

    def measure_data(self, seed: int) -> None:
        """The floor: held-out images, as many as are sampled, clean, corrupted and notched, as arms of 0 steps."""
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(self.held_out), generator=generator)[: self.settings.samples]
        images = to_signed(self.held_out.images[chosen])
        for name, variant in VARIANTS.items():
            if not self.done(f"data-{name}", seed, 0):
                self._write_result(f"data-{name}", seed, 0, variant(images, chosen.tolist()))

    def done(self, arm: str, seed: int, steps: int) -> bool:
        return self._result(arm, seed, steps).exists()

    @cached_property
    def evaluator(self) -> Evaluator:
        path = self.output / "classifier.safetensors"
        if path.exists():
            classifier = Classifier(self.reference.shape[1]).eval().requires_grad_(False)
            classifier.load_state_dict(load(path.read_bytes()))
        else:
            classifier = train_classifier(self.training, self.settings.epochs)
            share = accuracy(classifier, self.held_out)
            print(f"The classifier names {share:.1%} of {len(self.held_out):,} held-out images rightly.", flush=True)
            _write(self.output / "classifier.json", json.dumps({"accuracy": share}).encode())
            _write(path, save(classifier.state_dict()))
        return Evaluator(classifier, self.reference)

    def _sample(self, state: TrainingState, process: DiffusionProcess, seed: int) -> Tensor:
        """DDIM from the averaged network, which runs in the precision that it was trained in."""
        settings, model = self.settings, state.averaged_model()

        def predict(noisy: Tensor, timesteps: Tensor) -> Tensor:
            with torch.autocast(noisy.device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"):
                return model(noisy, timesteps).float()

        shape = tuple(self.reference.shape[1:])
        return sample(predict, process, shape, settings.samples, seed, sampler="ddim", steps=settings.sample_steps)

    def _write_result(self, arm: str, seed: int, steps: int, images: Tensor) -> None:
        path = self._result(arm, seed, steps)
        path.parent.mkdir(parents=True, exist_ok=True)
        row = torch.cat(list(images[:STRIP]), -1).squeeze(0)
        pixels = ((row.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        Image.fromarray(pixels.numpy()).save(path.with_suffix(".png"))
        _write(path, json.dumps(self.evaluator(images)).encode())  # last: it says that this is done

    def _result(self, arm: str, seed: int, steps: int) -> Path:
        return self.output / "results" / arm / f"{seed}-{steps}.json"

    def _folder(self, name: str, seed: int) -> Path:
        return self.output / "training" / name / str(seed)

    def _checkpoint(self, name: str, seed: int, steps: int) -> Path | None:
        """The furthest checkpoint that is not beyond `steps`."""
        folders = [path.parent for path in self._folder(name, seed).glob(f"*/{FILE_NAME}")]
        counts = [int(folder.name) for folder in folders if int(folder.name) <= steps]
        return self._folder(name, seed) / str(max(counts)) / FILE_NAME if counts else None

    def _step_before(self, name: str, seed: int, steps: int, step_counts: list[int]) -> int:
        """Where training starts on its way to `steps`, to estimate its time: a checkpoint counts as finished."""
        checkpoint = self._checkpoint(name, seed, steps)
        reached = int(checkpoint.parent.name) if checkpoint else 0
        return max([reached, *(count for count in step_counts if count < steps)])

    def _check_settings(self) -> None:
        """RunError where the folder holds the results of other settings."""
        path, wanted = self.output / "settings.json", asdict(self.settings)
        if not path.exists():
            _write(path, json.dumps(wanted, indent=2).encode())
        stored = json.loads(path.read_text())
        different = [
            f"{name} {stored.get(name)}, not {wanted[name]}" for name in wanted if stored.get(name) != wanted[name]
        ]
        if different:
            raise RunError(f"--output: {self.output} holds results with {'; '.join(different)}")


class Clock:
    """The time left, from the speed of this session: the kinds of work differ in speed."""

    def __init__(self):
        self.planned, self.finished, self.seconds = defaultdict(int), defaultdict(int), defaultdict(float)

    def plan(self, kind: str, amount: int) -> None:
        self.planned[kind] += amount

    @contextmanager
    def measure(self, kind: str, amount: int) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[kind] += time.perf_counter() - began
        self.finished[kind] += amount

    def left(self) -> str:
        """ ", 12 min left", or nothing before every kind of work was measured."""
        kinds = [kind for kind, amount in self.planned.items() if amount]
        if not all(self.finished[kind] for kind in kinds):
            return ""
        seconds = sum(
            (self.planned[kind] - self.finished[kind]) * self.seconds[kind] / self.finished[kind] for kind in kinds
        )
        return f", about {seconds / 60:.0f} min left"


def _write(path: Path, content: bytes) -> None:
    """The whole file or none; the other name is this process's own."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    os.replace(temporary, path)
