"""Sampling: the library's reference samplers, shared out between the processes of a run."""

from collections.abc import Callable
from itertools import islice

import torch
from accelerate.utils import gather_object
from torch import Tensor
from tqdm import tqdm

from sagd_kernels import fold_in
from sagd_kernels.diffusion import DiffusionProcess, ddim, ddpm

from .noise import Purpose, run_key
from .processes import start_processes

SAMPLERS = {"ddim": ddim, "ddpm": ddpm}


def sample(
    model: Callable[[Tensor, Tensor], Tensor],
    process: DiffusionProcess,
    shape: tuple[int, int, int],
    count: int,
    seed: int,
    *,
    sampler: str = "ddpm",
    steps: int = 100,
    clip: bool = False,
    batch: int = 64,
    progress: bool = True,
) -> Tensor:
    """`count` images [count, *shape] on the CPU, in every process; `model(x, timesteps)` predicts the noise in
    images from -1 to 1.

    "ddpm" injects shaped noise at every step, "ddim" starts from it alone. `clip` clamps every prediction of x_0 to
    [-1, 1]. Each image has its own key: it is the same for every `batch` and number of processes, but for the
    network's rounding. All processes of a run must call this.
    """
    accelerator = start_processes()
    rank, ranks = accelerator.process_index, accelerator.num_processes
    numbers = iter(range(rank * count // ranks, (rank + 1) * count // ranks))
    key, times = run_key(seed, Purpose.SAMPLES), process.schedule.times(steps)
    finished = []
    with tqdm(
        total=steps * count // ranks, desc="sampling", unit="image-step", disable=rank > 0 or not progress
    ) as bar:

        def predict(noisy: Tensor, timesteps: Tensor) -> Tensor:
            bar.update(len(noisy))
            return model(noisy, timesteps)

        while chunk := list(islice(numbers, batch)):
            keys = fold_in(key, torch.tensor(chunk)).to(process.weight.device)
            size, limit = (len(chunk), *shape), 1.0 if clip else None
            finished.append(SAMPLERS[sampler](process, predict, size, times, keys, clip=limit).cpu())
    return torch.cat(gather_object(finished))


def tile(images: Tensor) -> Tensor:
    """Images [N, C, H, W] in a square grid [C, ...], with white lines between and white where the last row ends."""
    columns = max(1, round(len(images) ** 0.5))
    rows = -(-len(images) // columns)
    tiles = torch.nn.functional.pad(images, (1, 1, 1, 1), value=1.0)
    tiles = torch.cat([tiles, tiles.new_ones(rows * columns - len(images), *tiles.shape[1:])])
    channels, height, width = tiles.shape[1:]
    grid = tiles.view(rows, columns, channels, height, width).permute(2, 0, 3, 1, 4)
    return grid.reshape(channels, rows * height, columns * width)
