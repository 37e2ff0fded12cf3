"""The trainer in many processes, under gradient accumulation, and killed: the same noise, data and losses."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers", reason="the trainer needs the extra 'train'")

from children import CONTEXT, free_port, launch, start
from safetensors.torch import load_file
from tiny_runs import assert_same_checkpoint

from sagd_kernels.diffusion import DiffusionProcess
from sagd_kernels.train import data, loop, processes
from sagd_kernels.train.checkpoint import FILE_NAME, read_checkpoint
from sagd_kernels.train.config import Config, Execution, ImageError, RunError

CONFIG = Config(dataset="tests", model="tiny", batch=8, steps=6, warmup=2, seed=5)


class Images:
    """Twenty small images, fewer than a run reads, so that every run crosses epochs."""

    image_shape = (2, 10, 12)

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randint(256, (20, *self.image_shape), generator=generator, dtype=torch.uint8)

    def __len__(self):
        return len(self.images)

    def __getitems__(self, indices):
        return self.images[indices]


def train(folder, config=CONFIG, resume=None, **execution):
    return loop.train(config, folder, execution=Execution(**execution), dataset=Images(), resume=resume)


def recorded_train(folder, execution, resume=None):
    """Trains and leaves in record-<rank>.pt what every backward pass was given: images, timesteps, noise."""
    passes, add_noise = [], DiffusionProcess.add_noise

    def recording(self, x0, t, *args, **kwargs):
        noisy, noise = add_noise(self, x0, t, *args, **kwargs)
        passes.append((x0, t, noise))
        return noisy, noise

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiffusionProcess, "add_noise", recording)
        train(folder, resume=resume, **execution)
    torch.save(passes, folder / f"record-{os.environ.get('RANK', 0)}.pt")


def run(folder, count=1, resume=None, **execution):
    """The losses, and for each step the whole batch's images, timesteps and noise."""
    if count == 1:
        recorded_train(folder, execution, resume)
    else:
        launch(recorded_train, folder, execution, resume, processes=count)
    records = [torch.load(folder / f"record-{rank}.pt") for rank in range(count)]
    accumulate = execution.get("accumulate", 1)
    steps = []
    for first in range(0, len(records[0]), accumulate):
        parts = [part for record in records for part in record[first : first + accumulate]]
        steps.append([torch.cat(kind) for kind in zip(*parts, strict=True)])
    losses = read_checkpoint(folder / FILE_NAME)[0]["losses"]
    return losses, steps


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One process, no interruption."""
    folder = tmp_path_factory.mktemp("whole")
    losses, steps = run(folder)
    return losses, steps, folder


def assert_same_run(losses, steps, whole):
    for step, expected in zip(steps, whole[1][-len(steps) :], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(step, expected, strict=True))  # noise and order, to the bit
    torch.testing.assert_close(losses, whole[0], rtol=1e-4, atol=0)


# Splits of the batch


@pytest.mark.parametrize(("count", "accumulate"), [(1, 4), (2, 1), (2, 2)])
def test_every_split_of_the_batch_is_the_same_run(count, accumulate, whole, tmp_path):
    losses, steps = run(tmp_path, count, accumulate=accumulate)
    assert len(steps) == CONFIG.steps
    assert_same_run(losses, steps, whole)


def test_noise_differs_between_steps_and_samples(whole):
    """What the comparisons above rest on: losses that move, and no two planes alike."""
    losses, steps, _ = whole
    planes = torch.cat([noise.flatten(0, 1) for _, _, noise in steps]).flatten(1)
    assert len(planes.unique(dim=0)) == CONFIG.steps * CONFIG.batch * 2
    assert (losses.diff().abs() > 1e-3 * losses[1:]).all()


@pytest.mark.parametrize(("first", "second"), [(2, 1), (1, 2)])
def test_resuming_in_another_number_of_processes(first, second, whole, tmp_path):
    run(tmp_path, first, stop_at=3)
    losses, steps = run(tmp_path, second, resume=tmp_path / FILE_NAME)
    assert len(steps) == 3
    assert_same_run(losses, steps, whole)


def interrupted_train(folder):
    """The second process alone is told to stop, in step 3; it may write nothing."""
    if os.environ["RANK"] == "1":
        loss, calls = DiffusionProcess.loss, []

        def interrupt(*args, **kwargs):
            calls.append(args)
            if len(calls) == 3:
                signal.raise_signal(signal.SIGTERM)
            return loss(*args, **kwargs)

        DiffusionProcess.loss = interrupt
        Path.mkdir = loop.write_checkpoint = None
    train(folder, preview_every=3)


def test_an_interrupted_process_stops_all_and_the_first_one_writes(whole, tmp_path):
    launch(interrupted_train, tmp_path)
    tensors, state = read_checkpoint(tmp_path / FILE_NAME)
    assert state["step"] == 3
    torch.testing.assert_close(tensors["losses"], whole[0][:3], rtol=1e-4, atol=0)
    assert [path.name for path in (tmp_path / "previews").iterdir()] == ["0000003.png"]


class OneUnreadable(Images):
    """Images of which the second process cannot read those of its second backward pass of step 3."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def __getitems__(self, indices):
        self.calls += 1
        if os.environ["RANK"] == "1" and self.calls == 6:
            raise ImageError("--data: image.png is not a readable image")
        return super().__getitems__(indices)


def train_with_one_unreadable(folder):
    with pytest.raises(RunError) as error:
        loop.train(CONFIG, folder, execution=Execution(accumulate=2), dataset=OneUnreadable())
    assert ("image.png is not a readable image" if os.environ["RANK"] == "1" else "another process") in str(error.value)
    assert f"step 2 is saved: put another image in its place and --resume {folder}" in str(error.value)


def test_an_image_that_a_later_process_cannot_read_loses_no_step(whole, tmp_path):
    launch(train_with_one_unreadable, tmp_path)
    assert read_checkpoint(tmp_path / FILE_NAME)[1]["step"] == 2
    losses, steps = run(tmp_path, 2, resume=tmp_path / FILE_NAME, accumulate=2)
    assert len(steps) == CONFIG.steps - 2
    assert_same_run(losses, steps, whole)


def test_indivisible_batch_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"--batch: expected a multiple of 3, .* --accumulate 3, got 8"):
        train(tmp_path, accumulate=3)
    assert data.split_batch(8, 2, 2) == [[range(0, 2), range(2, 4)], [range(4, 6), range(6, 8)]]


def test_sharded_parameters_are_refused(tmp_path, monkeypatch):
    class Sharding:
        distributed_type = processes.DistributedType.FSDP

    monkeypatch.setattr(processes, "Accelerator", lambda **_: Sharding)
    with pytest.raises(RunError, match=r"expected one process or data parallelism \(DDP\), got FSDP"):
        train(tmp_path)


# SIGKILL


def doomed_train(folder, resume, started=None, deadly=None):
    """Trains, with a checkpoint at every step, until the second checkpoint's call of `deadly`: (name, before/after)."""
    if deadly is not None:
        name, when = deadly
        call, calls = getattr(os, name), []
        fatal = {"fsync": 3, "replace": 2}[name]  # each checkpoint syncs its file and its folder

        def die(*arguments):
            calls.append(arguments)
            if len(calls) == fatal:
                if when == "after":
                    call(*arguments)
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments)

        setattr(os, name, die)
    if started is not None:
        started.set()
    train(folder, resume=resume, checkpoint_every=1)


@pytest.mark.parametrize(
    ("deadly", "step"), [(("fsync", "before"), 1), (("replace", "before"), 1), (("replace", "after"), 2)]
)
def test_death_within_a_checkpoint_leaves_the_old_or_the_new(deadly, step, whole, tmp_path):
    child = start(doomed_train, tmp_path, None, None, deadly)
    child.join(timeout=300)
    assert child.exitcode == -signal.SIGKILL
    assert read_checkpoint(tmp_path / FILE_NAME)[1]["step"] == step
    train(tmp_path, resume=tmp_path / FILE_NAME)
    assert_same_checkpoint(tmp_path, whole[2])
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]  # no partial file stays


def kill_at_random(folder, kills, seed):
    """Trains to the end, killed that many times, at random moments at most one checkpoint after the last."""
    moments, path = random.Random(seed), folder / FILE_NAME

    def written():
        return path.stat().st_mtime_ns if path.exists() else None

    for _ in range(kills):
        started, before = CONTEXT.Event(), written()
        child = start(doomed_train, folder, path if path.exists() else None, started)
        assert started.wait(timeout=300)
        if moments.random() < 0.5:
            while child.is_alive() and written() == before:
                time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.02))
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        if path.exists():
            read_checkpoint(path)
    train(folder, resume=path if path.exists() else None)


def test_killed_run_resumes_exactly(whole, tmp_path):
    kill_at_random(tmp_path, kills=3, seed=0)
    assert_same_checkpoint(tmp_path, whole[2])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
def test_run_killed_at_other_moments_resumes_exactly(seed, whole, tmp_path):
    kill_at_random(tmp_path, kills=4, seed=seed)
    assert_same_checkpoint(tmp_path, whole[2])


# Launchers


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        ["torch.distributed.run", "--nproc-per-node", "2", "--master-port"],
        ["accelerate.commands.launch", "--cpu", "--num_processes", "2", "--main_process_port"],
    ],
    ids=["torchrun", "accelerate"],
)
def test_command_line_under_a_launcher(launcher, tmp_path):
    options = ["-m", "sagd_kernels.train", "--model", "tiny", "--steps", "4", "--batch", "8", "--warmup", "1"]
    options += ["--precision", "float32", "--samples", "3", "--sample-steps", "2", "--preview-every", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for name, command in {"one": [], "many": ["-m", *launcher, str(free_port())]}.items():
        arguments = [sys.executable, *command, *options, "--output", str(tmp_path / name)]
        result = subprocess.run(arguments, capture_output=True, text=True, env=environment, timeout=600)
        assert result.returncode == 0, result.stderr
    assert result.stdout.count("Done: look at") == 1
    one, many = (load_file(tmp_path / name / FILE_NAME)["losses"] for name in ("one", "many"))
    torch.testing.assert_close(one, many, rtol=1e-4, atol=0)
    left, right = (sorted(path.name for path in (tmp_path / name).rglob("*")) for name in ("one", "many"))
    assert left == right
