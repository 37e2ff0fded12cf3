"""What a run leaves to look at: samples.png, noise.png, spectrum.png and metrics.json."""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import matplotlib
import numpy as np
import torch
from torch import Tensor
from torch.utils.benchmark import Timer
from torch.utils.data import Dataset

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from sagd_kernels import shaped_noise, weights
from sagd_kernels.diffusion import DiffusionProcess
from sagd_kernels.reference import full_weight

from .data import to_signed
from .loop import TrainingState
from .noise import Purpose, run_key
from .processes import start_processes
from .sampling import tile

STYLE = {
    "font.size": 11,
    "axes.titlesize": 11,
    "figure.titlesize": 14,
    "figure.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "savefig.dpi": 160,
    "savefig.bbox": "tight",
    "savefig.facecolor": "white",
}
VALUES_AT_ONCE = 1 << 24  # of images that are measured: 64 MB of float32
NOISE_TIMESTEPS = (50, 150, 300, 999)


def write_report(
    folder: Path, state: TrainingState, dataset: Dataset, process: DiffusionProcess, samples: Tensor, sampling: dict
) -> None:
    """Write all four files; `sampling` says how `samples` [N, C, H, W] were drawn, in the words of `sample`."""
    config = state.config
    spread = torch.linspace(0, len(dataset) - 1, min(len(dataset), 2048)).long().tolist()
    data = (to_signed(dataset.__getitems__(part)) for part in _parts(spread, math.prod(dataset.image_shape)))
    curves, spectrum = measure_spectra(process.weight, data, samples, config.seed)
    (image,) = to_signed(dataset.__getitems__([spread[len(spread) // 2]]))
    batch = to_signed(dataset.__getitems__(spread[: config.batch]))
    accelerator = start_processes()
    device, processes = accelerator.device, accelerator.num_processes
    method = f"{sampling['sampler'].upper()} in {sampling['steps']} steps"
    caption = (
        f"{len(samples)} samples: {config.dataset}, noise {config.weight}, {state.step:,} training steps, {method}"
    )
    draw_samples(folder / "samples.png", samples, caption)
    draw_noise(folder / "noise.png", process, image, config.seed, config.weight)
    draw_spectrum(folder / "spectrum.png", curves, config.weight)
    metrics = {
        "config": asdict(config),
        "parameters": state.parameters,
        "loss": loss_ends(state.losses),
        "training_seconds": state.seconds,
        "images_per_second": state.step * config.batch / state.seconds,
        "noise_share_of_step_time": time_noise(process.to(device), batch.to(device))
        * (config.batch / processes)
        / (state.seconds / state.step),
        "samples": {"images": len(samples)} | sampling,
        "spectrum": spectrum,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processes": processes,
    }
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")


def measure_spectra(
    weight: Tensor, data: Iterable[Tensor], samples: Tensor, seed: int, planes: int = 4096
) -> tuple[dict, dict]:
    """Radially averaged power (mean |F|^2 in each ring of frequencies, F unitary, DC left out): curves and distances.

    The curves are of data and samples, images [N, C, H, W] in [-1, 1] (the data in batches, of which one at a time is
    held), of the weight (w^2), and of `planes` fresh planes from the noise operator. Of the distances, the noise's is
    also given in standard errors: their root mean square is about 1 when the operator is right.
    """
    height, width = samples.shape[-2:]
    key, noise_by_plane = run_key(seed, Purpose.MEASUREMENT), []
    for part in _parts(range(planes), height * width):
        noise = shaped_noise(key, (len(part), height, width), weight, plane_offset=part[0])
        noise_by_plane.append(_rings(torch.fft.rfft2(noise, norm="ortho").abs().square(), width))
    noise_by_plane = torch.cat(noise_by_plane)
    curves = {
        "frequency": _rings(weights.radial_frequency(height, width), width),
        "data": _rings(weights.power_spectrum(data), width),
        "samples": _rings(weights.power_spectrum(samples), width),
        "weight": _rings(weight.square(), width),
        "noise": noise_by_plane.mean(0),
    }
    kept = curves["weight"] > 0
    error = (curves["noise"] - curves["weight"])[kept]
    relative_error = error / curves["weight"][kept]
    standard_error = noise_by_plane.std(0)[kept] / planes**0.5
    decibels = 10 * (curves["samples"] / curves["data"])[kept].log10()
    metrics = {
        "noise_vs_weight": {
            "planes": planes,
            "rms_relative_error": _rms(relative_error),
            "max_relative_error": relative_error.abs().max().item(),
            "rms_error_in_standard_errors": _rms(error / standard_error),
        },
        "samples_vs_data": {"rms_decibels": _rms(decibels), "max_decibels": decibels.abs().max().item()},
    }
    return curves, metrics


def draw_spectrum(path: Path, curves: dict, weight_name: str) -> None:
    """Data, samples, and the noise measured against its weight, radially averaged, on logarithmic axes."""
    curves = {name: curve.numpy() for name, curve in curves.items()}
    frequency, kept = curves["frequency"], np.where(curves["weight"] > 0, 1, np.nan)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7.5, 5))
        axes.plot(frequency, curves["data"], color="black", linewidth=2, label="data")
        axes.plot(frequency, curves["samples"], color="tab:orange", linewidth=2, linestyle="--", label="samples")
        axes.plot(frequency, curves["weight"] * kept, color="tab:blue", linewidth=1.5, label="$w^2$, the weight")
        axes.plot(
            frequency, curves["noise"] * kept, "o", color="tab:blue", markersize=5, label="shaped noise, measured"
        )
        axes.axhline(1, color="0.75", linewidth=1, zorder=0, label="white noise")
        axes.set(xscale="log", yscale="log", xlabel="spatial frequency (cycles per pixel)", ylabel="mean power per bin")
        axes.set_ylim(bottom=0.5 * np.nanmin([curves["data"], curves["weight"] * kept]))  # omitted bands reach 1e-10
        axes.set_xticks([tick for tick in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if tick > frequency[0]])
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
        axes.set_title(f"Radially averaged power spectra, weight {weight_name}", loc="left", fontweight="bold")
        axes.legend(frameon=False)
        figure.savefig(path)
        plt.close(figure)


def draw_noise(path: Path, process: DiffusionProcess, image: Tensor, seed: int, weight_name: str) -> None:
    """White and shaped noise of one key: the weight, the noise, and `image` [C, H, W] with ever more of it added."""
    timesteps = torch.tensor(NOISE_TIMESTEPS)
    height, width = image.shape[-2:]
    key = run_key(seed, Purpose.MEASUREMENT, 1)
    white = DiffusionProcess(process.schedule, weights.power_law(height, width, 0.0), width)
    batch = image.expand(len(timesteps), -1, -1, -1).contiguous()
    signal, noise_level = process.levels(timesteps, batch)
    with plt.rc_context(STYLE):
        columns = len(timesteps) + 3
        figure, grid = plt.subplots(2, columns, figsize=(1.55 * columns, 3.9))
        for axes, (name, row) in zip(grid, {"white": white, weight_name: process}.items(), strict=True):
            # one key for each, so every column holds the same noise
            noisy, noise = row.add_noise(batch, timesteps, key.expand(len(timesteps), 2))
            noisy = noisy / (signal + 2 * noise_level)
            plane = torch.fft.fftshift(full_weight(row.weight, width)).numpy()
            axes[0].imshow(plane, cmap="viridis", vmin=0, interpolation="nearest")
            axes[0].set(xticks=[], yticks=[])
            axes[0].spines[:].set_visible(False)
            _show(axes[1], noise[0] / 2)
            _show(axes[2], image)
            for axis, picture in zip(axes[3:], noisy, strict=True):
                _show(axis, picture)
            axes[0].set_ylabel(name, fontsize=12, fontweight="bold")
        for axis, title in zip(grid[0], ("weight $w(f)$", "noise", "image $x_0$"), strict=False):
            axis.set_title(title)
        for axis, timestep in zip(grid[0, 3:], NOISE_TIMESTEPS, strict=True):
            axis.set_title(f"$x_t$, t = {timestep}")
        figure.suptitle("The same key, white and shaped", x=0.01, ha="left")
        figure.tight_layout(h_pad=0.6, w_pad=0.4)
        figure.savefig(path)
        plt.close(figure)


def draw_samples(path: Path, samples: Tensor, caption: str) -> None:
    """The samples [N, C, H, W] in a square grid."""
    grid = tile(samples)
    height, width = grid.shape[-2:]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7, 7 * height / width))
        _show(axes, grid)
        axes.set_title(caption, loc="left", fontsize=10)
        figure.savefig(path)
        plt.close(figure)


def time_noise(process: DiffusionProcess, images: Tensor) -> float:
    """Seconds that the noise of one training image takes, in a batch of `images`: the median of some calls."""
    call = Timer(
        "process.add_noise(images, t, key)",
        globals=dict(
            process=process,
            images=images,
            t=torch.zeros(len(images), dtype=torch.int64, device=images.device),
            key=run_key(0, Purpose.MEASUREMENT).to(images.device),
        ),
        num_threads=torch.get_num_threads(),
    )
    return call.blocked_autorange(min_run_time=0.05).median / len(images)


def loss_ends(losses: list[float], window: int = 100) -> dict:
    """Mean loss over the first and the last `window` steps (a tenth of the run, if that is fewer)."""
    window = max(1, min(window, len(losses) // 10))
    return {"first": sum(losses[:window]) / window, "last": sum(losses[-window:]) / window, "window_steps": window}


def _show(axes, image: Tensor) -> None:
    """An image [C, H, W] in [-1, 1], one channel in grey."""
    pixels = (image.clamp(-1, 1) * 0.5 + 0.5).permute(1, 2, 0)
    axes.imshow(pixels.squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _parts(numbers: Sequence[int], values: int) -> Iterator[Sequence[int]]:
    """The numbers in parts of images of so many values each that fit in memory, however large the images are."""
    size = max(1, VALUES_AT_ONCE // values)
    return (numbers[start : start + size] for start in range(0, len(numbers), size))


def _rings(values: Tensor, width: int) -> Tensor:
    """Averages of [..., H, W//2+1] over the rings of frequencies, DC's own left out."""
    return weights.radial_profile(values.double(), width)[..., 1:]


def _rms(values: Tensor) -> float:
    return values.square().mean().sqrt().item()
