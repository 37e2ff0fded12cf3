"""Draws docs/images/: one draw of noise under six weights, and each weight's profile, 2-D picture and noise sample.

    python docs/make_figures.py

Needs matplotlib, scikit-learn and pillow, all of the extra `sagd-kernels[train]`. The two photographs whose spectrum
is shown come with scikit-learn. All samples use one key, so they differ by their weight alone.
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.datasets import load_sample_images
from torch import Tensor

import sagd_kernels
from sagd_kernels import weights
from sagd_kernels.reference import full_weight

IMAGES = Path(__file__).parent / "images"
SIZE = 64
CORNER = 0.5**0.5
INK, MUTED, BLUE, ORANGE = "#1f2a37", "#8a94a3", "#1d5b8f", "#d9622b"
BLUES = LinearSegmentedColormap.from_list("blues", ["#ffffff", "#b9d3e8", "#4f91c2", BLUE, "#0c2740"])

plt.rcParams.update(
    {
        "font.family": "DejaVu Sans",
        "font.size": 9.5,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": MUTED,
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": INK,
        "ytick.color": INK,
        "xtick.major.width": 0.8,
        "ytick.major.width": 0.8,
        "savefig.dpi": 128,
    }
)


def photographs() -> Tensor:
    """Grey patches [N, 64, 64] of the two photographs bundled with scikit-learn, values in 0 .. 1."""
    grey = torch.stack([torch.tensor(photo).float().mean(-1) / 255 for photo in load_sample_images().images])
    return grey.unfold(1, SIZE, SIZE // 2).unfold(2, SIZE, SIZE // 2).reshape(-1, SIZE, SIZE)


def figures() -> dict[str, list[tuple[str, Tensor]]]:
    """For each figure, its rows: the call that makes a weight, and the weight."""
    spectrum = weights.power_spectrum(photographs())
    shaped = weights.combine(weights.power_law(SIZE, SIZE, -0.5), weights.omit_band(SIZE, SIZE, 0.2, 0.3), width=SIZE)
    return {
        "power_law": [
            ("power_law(64, 64, -0.5)", weights.power_law(SIZE, SIZE, -0.5)),
            ("power_law(64, 64, 1.0)", weights.power_law(SIZE, SIZE, 1.0)),
        ],
        "band_pass": [("band_pass(64, 64, 0.1, 0.2)", weights.band_pass(SIZE, SIZE, 0.1, 0.2))],
        "omit_band": [("omit_band(64, 64, 0.1, 0.2)", weights.omit_band(SIZE, SIZE, 0.1, 0.2))],
        "two_band": [
            (
                "two_band(64, 64, (0, 0.15), (0.3, 0.7071), gamma_low=0.8, gamma_high=0.2)",
                weights.two_band(SIZE, SIZE, (0, 0.15), (0.3, 0.7071), gamma_low=0.8, gamma_high=0.2),
            ),
            (
                'two_band(64, 64, (0, 0.5), (0.5, 0.7071), mixture="paper", normalized=False)',
                weights.two_band(SIZE, SIZE, (0, 0.5), (0.5, 0.7071), mixture="paper", normalized=False),
            ),
        ],
        "from_power_spectrum": [
            ("from_power_spectrum(spectrum, 64)", weights.from_power_spectrum(spectrum, SIZE)),
            (
                "from_power_spectrum(spectrum, 64, radial=True)",
                weights.from_power_spectrum(spectrum, SIZE, radial=True),
            ),
        ],
        "combine": [("combine(power_law(64, 64, -0.5), omit_band(64, 64, 0.2, 0.3), width=64)", shaped)],
        "power": [("power(combine(...), -1)", weights.power(shaped, -1))],
    }


def draw_overview() -> Figure:
    """The same white noise xi under six weights: only T_w differs."""
    size, side, gap = 128, 1.5, 0.1
    shown = {
        "power_law(α = −1)": weights.power_law(size, size, -1.0),
        "power_law(α = −0.5)": weights.power_law(size, size, -0.5),
        "white": weights.power_law(size, size, 0.0),
        "power_law(α = 1)": weights.power_law(size, size, 1.0),
        "band_pass(0.1, 0.2)": weights.band_pass(size, size, 0.1, 0.2),
        "omit_band(0.1, 0.3)": weights.omit_band(size, size, 0.1, 0.3),
    }
    figure, axes = plt.subplots(1, len(shown), figsize=(len(shown) * (side + gap) - gap, side + 0.25))
    figure.subplots_adjust(left=0, right=1, bottom=0, top=side / (side + 0.25), wspace=gap / side)
    for panel, (name, weight) in zip(axes, shown.items(), strict=True):
        noise = sagd_kernels.shaped_noise(sagd_kernels.key(5), [size, size], weight)
        panel.imshow(noise.numpy(), cmap="gray", vmin=-3, vmax=3, interpolation="nearest")
        panel.set_title(name, fontsize=8.5, color=INK, pad=3)
        panel.set_axis_off()
    return figure


def draw(rows: list[tuple[str, Tensor]]) -> Figure:
    """One row of three panels for each weight, placed in inches so that a sample's pixels are whole screen pixels."""
    width, height, side, base = 9.6, 3.0, 2.0, 0.6
    figure = plt.figure(figsize=(width, height * len(rows)))

    def panel(row: int, left: float, across: float):
        bottom = base + height * (len(rows) - 1 - row)
        return figure.add_axes((left / width, bottom / height / len(rows), across / width, side / height / len(rows)))

    for row, (call, weight) in enumerate(rows):
        top = (base + side + 0.25 + height * (len(rows) - 1 - row)) / height / len(rows)
        figure.text(0.1 / width, top, call, family="DejaVu Sans Mono", fontsize=10, color=BLUE, va="center")
        kept = weight[weight > 0]
        scale = "log" if kept.max() > 100 * kept.min() else "linear"
        draw_profile(panel(row, 0.7, 2.85), weight, scale)
        draw_plane(panel(row, 4.85, side), panel(row, 6.92, 0.09), weight, scale)
        draw_sample(panel(row, 7.5, side), weight)
    return figure


def draw_profile(axes: Axes, weight: Tensor, scale: str) -> None:
    """One dot for every bin, so a weight that depends on direction shows as a cloud; DC as a ring."""
    r = weights.radial_frequency(SIZE, SIZE)
    axes.axhline(1, color=MUTED, linewidth=0.8, dashes=(4, 3), zorder=0)
    axes.text(CORNER + 0.012, 1, "white", color=MUTED, fontsize=8, va="center")
    axes.axvline(0.5, color=MUTED, linewidth=0.8, linestyle=":", zorder=0)
    axes.plot(
        r.flatten()[1:].numpy(),
        weight.flatten()[1:].numpy(),
        ".",
        color=BLUE,
        markersize=3.6,
        markeredgewidth=0,
        clip_on=False,
        zorder=3,
    )
    axes.plot(
        0,
        weight[0, 0].item(),
        "o",
        color="white",
        markeredgecolor=ORANGE,
        markeredgewidth=1.6,
        markersize=6,
        clip_on=False,
        zorder=4,
    )
    axes.annotate(
        "DC",
        (0, 0),
        xytext=(0, -21),
        xycoords="axes fraction",
        textcoords="offset points",
        color=ORANGE,
        ha="center",
        va="top",
    )
    if scale == "log":
        axes.set(yscale="log")
        axes.margins(y=0.12)
        axes.yaxis.set_major_formatter("{x:g}")
    else:
        axes.set(ylim=(0, 1.12 * weight.max().item()))
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axes.set(xlim=(0, CORNER), xlabel="r (cycles per pixel)", ylabel="w(r)")
    axes.set_xticks([0, 0.25, 0.5, CORNER], ["0", "0.25", "0.5", "0.7071"])


def draw_plane(axes: Axes, bar: Axes, weight: Tensor, scale: str) -> None:
    """The full plane, DC in the middle; a weight of 0 is white."""
    first, last = -0.5 - 0.5 / SIZE, 0.5 - 0.5 / SIZE
    image = axes.imshow(
        torch.fft.fftshift(full_weight(weight, SIZE)).numpy(),
        cmap=BLUES,
        norm="log" if scale == "log" else Normalize(0, weight.max().item()),
        extent=(first, last, last, first),
    )
    axes.set(xlabel="horizontal frequency", ylabel="vertical frequency")
    axes.set_xticks([-0.5, -0.25, 0, 0.25], ["−0.5", "−0.25", "0", "0.25"])
    axes.set_yticks([-0.5, -0.25, 0, 0.25], ["−0.5", "−0.25", "0", "0.25"])
    axes.set(xlim=(first, last), ylim=(last, first))
    axes.spines[:].set_visible(True)
    axes.figure.colorbar(
        image, cax=bar, format="{x:g}", ticks=None if scale == "log" else MaxNLocator(4, steps=[1, 2, 5, 10])
    )
    bar.spines[:].set_visible(False)
    bar.tick_params(labelsize=8.5, length=2.5)
    bar.set_title("w", fontsize=9.5, pad=5)


def draw_sample(axes: Axes, weight: Tensor) -> None:
    noise = sagd_kernels.shaped_noise(sagd_kernels.key(2), [SIZE, SIZE], weight)
    deviation = full_weight(weight, SIZE).square().mean().sqrt().item()
    axes.imshow(noise.numpy(), cmap="gray", vmin=-3 * deviation, vmax=3 * deviation, interpolation="nearest")
    axes.set(xticks=[], yticks=[], xlabel=f"noise, σ = {deviation:.3g}")
    axes.spines[:].set_visible(False)


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    drawn = {"overview": draw_overview()} | {f"weight_{name}": draw(rows) for name, rows in figures().items()}
    for name, figure in drawn.items():
        path = IMAGES / f"{name}.png"
        figure.savefig(path)
        print(f"{path.name}  {path.stat().st_size / 1000:.0f} kB")
