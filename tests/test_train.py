"""The reference trainer: a run leaves what it promises, resuming is exact, and what is damaged is named."""

import json
import math
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers", reason="the trainer needs the extra 'train'")

from PIL import Image
from safetensors.torch import save_file
from tiny_runs import TINY, assert_same_checkpoint, write_idx

from sagd_kernels import weights
from sagd_kernels.diffusion import DDPMSchedule, DiffusionProcess
from sagd_kernels.train import checkpoint, loop, report
from sagd_kernels.train.__main__ import choose_config, main
from sagd_kernels.train.config import PRESETS, Config, Execution, RunError
from sagd_kernels.train.model import Denoiser
from sagd_kernels.train.noise import build_process

FILES = ["checkpoint.safetensors", "metrics.json", "noise.png", "samples.png", "spectrum.png"]


@pytest.fixture(scope="module")
def idx(tmp_path_factory):
    """Fifty small images, fewer than a run's steps read, so that every run crosses epochs."""
    images = np.random.default_rng(0).integers(0, 256, (50, 12, 12), dtype=np.uint8)
    return str(write_idx(tmp_path_factory.mktemp("idx") / "train-images-idx3-ubyte", images))


@pytest.fixture
def train(idx, tmp_path):
    """Runs the command line on the small images; returns its status and the output folder."""

    def run(name, *options):
        arguments = [*TINY, "--dataset", "fashion-mnist", "--data", idx, "--output", str(tmp_path / name), *options]
        return main(arguments), tmp_path / name

    return run


@pytest.fixture(scope="module")
def finished(idx, tmp_path_factory):
    """The folder of a finished run, not to be changed."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert main([*TINY, "--dataset", "fashion-mnist", "--data", idx, "--output", str(folder)]) == 0
    return folder


# A run


def test_short_run_on_mnist_leaves_all_files(tmp_path, capsys):
    folder = tmp_path / "run"
    assert main([*TINY, "--batch", "32", "--output", str(folder)]) == 0
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert str(folder / "samples.png") in capsys.readouterr().out.splitlines()[-1]
    for name in FILES[2:]:
        with Image.open(folder / name) as picture:
            assert min(picture.size) > 300
            assert np.asarray(picture.convert("L")).std() > 10

    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["config"]["dataset"] == "mnist"
    assert metrics["loss"]["last"] < 0.97 * metrics["loss"]["first"]
    assert metrics["images_per_second"] > 0
    assert 0 < metrics["noise_share_of_step_time"] < 1
    spectrum = metrics["spectrum"]
    assert spectrum["noise_vs_weight"]["max_relative_error"] < 0.05
    assert 0.3 < spectrum["noise_vs_weight"]["rms_error_in_standard_errors"] < 2
    assert all(math.isfinite(value) for value in spectrum["samples_vs_data"].values())


def test_checkpoint_holds_everything(finished):
    tensors, state = checkpoint.read_checkpoint(finished / "checkpoint.safetensors")
    model = Denoiser("tiny", 1)
    for name, parameter in model.named_parameters():
        trained, average = tensors[f"model.{name}"], tensors[f"ema.{name}"]
        assert trained.shape == average.shape == parameter.shape
        assert not torch.equal(trained, average)
    for index in range(len(list(model.parameters()))):
        assert tensors[f"optimizer.{index}.step"] == 20
        assert tensors[f"optimizer.{index}.exp_avg_sq"].max() > 0
    assert len(tensors["losses"]) == state["step"] == state["config"]["steps"] == 20


def test_the_report_measures_images_in_parts(tmp_path, monkeypatch):
    """All at once, 2,048 of 512 x 512 would take tens of GB, after the last step."""

    class Recording(Flat):
        asked = ()

        def __getitems__(self, indices):
            self.asked += (len(indices),)
            noise = torch.randint(256, (16, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
            return noise[indices]

    images, process, metrics = Recording(), build_process("power:-0.5", 8, 8), []
    state = loop.train(Config(dataset="flat", model="tiny", batch=2, steps=1), tmp_path, dataset=images)
    samples = torch.rand(4, 1, 8, 8)
    for limit in (report.VALUES_AT_ONCE, 3 * 64):
        monkeypatch.setattr(report, "VALUES_AT_ONCE", limit)
        images.asked = ()
        report.write_report(tmp_path, state, images, process, samples, {"sampler": "ddim", "steps": 1})
        metrics.append(json.loads((tmp_path / "metrics.json").read_text())["spectrum"])
    assert max(images.asked) == 3 and sum(images.asked) == 16 + 1 + 2  # the spectrum, the picture, the timing
    for name, values in metrics[0].items():
        assert metrics[1][name] == pytest.approx(values, rel=1e-4)


# Resuming


def test_resumed_run_equals_uninterrupted(train, finished):
    status, parts = train("parts", "--stop-at", "11")
    assert status == 0
    assert [path.name for path in parts.iterdir()] == ["checkpoint.safetensors"]
    assert main(["--resume", str(parts), "--samples", "4", "--sample-steps", "4"]) == 0
    assert_same_checkpoint(finished, parts)
    assert (finished / "samples.png").read_bytes() == (parts / "samples.png").read_bytes()


def test_interrupt_finishes_the_step_and_resumes_exactly(train, finished, monkeypatch, capsys):
    step = loop.train_step

    def interrupted_step(accelerator, state, *arguments):
        if state.step == 7:
            signal.raise_signal(signal.SIGINT)
        return step(accelerator, state, *arguments)

    monkeypatch.setattr(loop, "train_step", interrupted_step)
    handler = signal.getsignal(signal.SIGINT)
    status, folder = train("run")
    assert status == 130
    assert signal.getsignal(signal.SIGINT) is handler
    assert f"step 8: go on with python -m sagd_kernels.train --resume {folder}" in capsys.readouterr().out
    monkeypatch.undo()
    assert main(["--resume", str(folder), "--samples", "4", "--sample-steps", "4"]) == 0
    assert_same_checkpoint(folder, finished)


def test_resuming_with_a_contradicting_option_names_it(finished, capsys):
    assert main(["--resume", str(finished), "--lr", "0.5", "--seed", "0", "--weight", "white"]) == 2
    message = capsys.readouterr().err
    assert "--lr: the checkpoint has 0.002, got 0.5" in message
    assert "--weight: the checkpoint has power:-0.5, got white" in message
    assert "--seed" not in message


def test_resuming_on_other_data_is_refused(finished, tmp_path, capsys):
    other = write_idx(tmp_path / "images", np.zeros((3, 12, 12), np.uint8))
    assert main(["--resume", str(finished), "--data", str(other)]) == 2
    assert "--data: the checkpoint saw 50 images, here are 3" in capsys.readouterr().err


def test_diverged_run_stops_with_its_step(train, capsys):
    status, folder = train("run", "--lr", "1e30", "--warmup", "0")
    assert status == 2
    assert "error: the loss is nan at step" in capsys.readouterr().err
    assert not list(folder.iterdir())


def test_existing_run_is_not_overwritten_unasked(train, capsys):
    _, folder = train("run", "--stop-at", "1")
    before = (folder / "checkpoint.safetensors").read_bytes()
    status, _ = train("run", "--stop-at", "2")
    assert status == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (folder / "checkpoint.safetensors").read_bytes() == before
    status, _ = train("run", "--stop-at", "2", "--overwrite")
    assert status == 0
    assert (folder / "checkpoint.safetensors").read_bytes() != before


@pytest.mark.parametrize("place", ["file", "file/below", "/proc", "/proc/nothing"])
def test_an_output_that_cannot_be_written_is_named_before_training(idx, place, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setattr(loop, "train_step", None)
    output = tmp_path / place  # "/proc" itself is absolute, and nobody may write there
    assert main([*TINY, "--dataset", "fashion-mnist", "--data", idx, "--output", str(output)]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(errors) == 1 and f"error: --output: {output} cannot be written to: " in errors[0]


def test_a_folder_that_can_be_written_is_left_as_it_was(tmp_path):
    checkpoint.prepare_folder(tmp_path / "run")
    assert not list((tmp_path / "run").iterdir())


def test_a_finished_run_can_be_extended(tmp_path):
    """As the longer run from there on: its order of the data, its noise, its learning rate."""
    config, path = Config(dataset="flat", model="tiny", batch=4, steps=4, warmup=1), tmp_path / checkpoint.FILE_NAME
    first = loop.train(config, tmp_path, dataset=Flat())
    longer = replace(config, steps=8)
    extended = loop.train(longer, tmp_path, dataset=Flat(), execution=Execution(stop_at=6), resume=path)
    assert extended.step == 6 and extended.losses[:4] == first.losses
    whole = loop.train(longer, tmp_path / "whole", dataset=Flat(), execution=Execution(stop_at=6))
    assert extended.schedule.get_last_lr() == whole.schedule.get_last_lr() != [0.0]
    assert first.schedule.get_last_lr() == [0.0]
    assert checkpoint.read_checkpoint(path)[1]["config"]["steps"] == 8
    with pytest.raises(RunError, match="--steps: the checkpoint has 8, got 4"):
        loop.train(config, tmp_path, dataset=Flat(), resume=path)


def test_more_steps_extend_a_run_and_fewer_are_refused(finished, capsys):
    stored = checkpoint.read_checkpoint(finished / checkpoint.FILE_NAME)[1]["config"]
    assert choose_config({"steps": 30}, stored) == replace(Config(**stored), steps=30)
    assert choose_config({}, stored).steps == 20
    assert main(["--resume", str(finished), "--steps", "19"]) == 2
    assert "--steps: the checkpoint has 20, got 19 (a run can be extended, not shortened)" in capsys.readouterr().err


def test_presets_are_defaults_that_options_override(finished, capsys):
    config = choose_config({"preset": "paper", "steps": 7}, None)
    assert (config.model, config.batch, config.ema, config.steps) == ("paper", 128, 0.9999, 7)
    for name in PRESETS:
        assert choose_config({"preset": name}, None) != choose_config({}, None)
    assert main(["--resume", str(finished), "--preset", "paper"]) == 2
    assert "--batch: the checkpoint has 8, got 128" in capsys.readouterr().err


# From Python


class Flat:
    """Images of one colour each, as a data set of one's own."""

    image_shape = (1, 8, 8)

    def __len__(self):
        return 16

    def __getitems__(self, indices):
        return torch.tensor(indices, dtype=torch.uint8).mul(16).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)


def test_training_from_python_is_deterministic(tmp_path):
    """Another weight, schedule or prediction than the configuration can name: a process of one's own."""
    config = Config(dataset="flat", model="tiny", batch=4, steps=3)
    process = DiffusionProcess(DDPMSchedule.linear(50), weights.power_law(8, 8, -1.0), 8, prediction="v")
    losses = [
        loop.train(given, tmp_path / str(number), dataset=Flat(), process=process).losses
        for number, (given, process) in enumerate(
            [(config, process), (config, process), (config, None), (replace(config, seed=1), process)]
        )
    ]
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]
    assert losses[0] != losses[3]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_resuming_is_exact_in_every_precision(precision, tmp_path):
    config = Config(dataset="flat", model="tiny", batch=4, steps=6, precision=precision)
    whole = loop.train(config, tmp_path / "whole", dataset=Flat())
    loop.train(config, tmp_path / "parts", dataset=Flat(), execution=Execution(stop_at=3))
    resumed = loop.train(config, tmp_path / "parts", dataset=Flat(), resume=tmp_path / "parts" / checkpoint.FILE_NAME)
    assert resumed.losses == whole.losses
    with pytest.raises(RunError, match=r"--lr: the checkpoint has 0\.002, got 0\.1"):
        loop.train(replace(config, lr=0.1), tmp_path, dataset=Flat(), resume=tmp_path / "whole" / checkpoint.FILE_NAME)
    assert_same_checkpoint(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("limit", [0.0, 0.01])
def test_gradients_are_clipped(limit, tmp_path, monkeypatch):
    norms, step = [], torch.optim.AdamW.step

    def spying(optimizer, *arguments, **options):
        gradients = [parameter.grad for group in optimizer.param_groups for parameter in group["params"]]
        norms.append(torch.nn.utils.get_total_norm(gradients).item())
        return step(optimizer, *arguments, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", spying)
    loop.train(Config(dataset="flat", model="tiny", batch=4, steps=2, grad_clip=limit), tmp_path, dataset=Flat())
    assert norms == pytest.approx([limit] * 2, rel=1e-3) if limit else min(norms) > 0.1


def test_monitoring_survives_a_crash(tmp_path):
    """Previews, and curves without what a killed run logged after its checkpoint."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = Config(dataset="flat", model="tiny", batch=4, steps=6)
    path, execution = tmp_path / checkpoint.FILE_NAME, Execution(preview_every=3, tensorboard=True)
    loop.train(config, tmp_path, dataset=Flat(), execution=Execution(stop_at=2))
    early = path.read_bytes()
    for _ in range(2):  # the second run starts where the first did
        path.write_bytes(early)
        state = loop.train(config, tmp_path, dataset=Flat(), execution=execution, resume=path)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [
        (step, pytest.approx(state.losses[step - 1])) for step in (3, 4, 5, 6)
    ]
    assert [event.step for event in events.Images("samples")] == [3, 6]
    previews = [Image.open(tmp_path / "previews" / f"000000{step}.png") for step in (3, 6)]
    assert all(np.asarray(preview).std() > 10 for preview in previews)


# Damage


@pytest.mark.parametrize("keep", [0, 7, 0.5, -1])
def test_truncated_checkpoint_is_refused_and_left_alone(finished, tmp_path, capsys, keep):
    whole = (finished / "checkpoint.safetensors").read_bytes()
    damaged = tmp_path / "checkpoint.safetensors"
    damaged.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    before = damaged.read_bytes()
    assert main(["--resume", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert str(damaged) in message
    assert "damaged" in message
    assert damaged.read_bytes() == before
    assert list(tmp_path.iterdir()) == [damaged]


def test_foreign_checkpoints_are_refused(tmp_path, capsys):
    foreign = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(3)}, foreign)
    assert main(["--resume", str(foreign)]) == 2
    assert f"{foreign} is not a checkpoint of sagd_kernels.train" in capsys.readouterr().err
    assert main(["--resume", str(tmp_path)]) == 2
    assert f"no checkpoint at {tmp_path / 'checkpoint.safetensors'}" in capsys.readouterr().err


def test_failed_write_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.safetensors"
    checkpoint.write_checkpoint(path, {"x": torch.zeros(2)}, {"step": 1})

    def full_disk(descriptor):
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full_disk)
    with pytest.raises(RunError, match=f"--output: {path} cannot be written, and is as it was before: No space left"):
        checkpoint.write_checkpoint(path, {"x": torch.ones(2)}, {"step": 2})
    tensors, state = checkpoint.read_checkpoint(path)
    assert state == {"step": 1}
    assert not tensors["x"].any()
    assert list(tmp_path.iterdir()) == [path]
