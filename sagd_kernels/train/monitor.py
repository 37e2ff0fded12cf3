"""What a run shows on the way: grids of samples, and curves for tensorboard."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from .config import RunError
from .sampling import tile


class Monitor:
    """Writes previews/<step>.png into the folder of a run and, with a writer, curves and the same grids."""

    def __init__(self, folder: Path, writer=None):
        self.folder, self.writer = folder, writer

    def scalars(self, step: int, **values: float) -> None:
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)

    def preview(self, step: int, samples: Tensor) -> None:
        """`samples` are [N, C, H, W] in [-1, 1]."""
        pixels = ((tile(samples).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        path = self.folder / "previews" / f"{step:07}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels.permute(1, 2, 0).squeeze(-1).numpy()).save(path)
        if self.writer is not None:
            self.writer.add_image("samples", pixels, step)


@contextmanager
def open_monitor(folder: Path, step: int, *, tensorboard: bool) -> Iterator[Monitor]:
    """A monitor of a run at step `step`; what tensorboard's files hold of later steps, before a crash, is void."""
    if not tensorboard:
        yield Monitor(folder)
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as error:
        raise RunError(f"--tensorboard: {error}: pip install tensorboard") from None
    with SummaryWriter(str(folder / "tensorboard"), purge_step=step) as writer:
        yield Monitor(folder, writer)
