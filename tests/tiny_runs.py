"""What tests of the trainer share: a run that takes a second, images for it, and what compares two of them."""

import gzip

import numpy as np
import torch
from safetensors.torch import load_file

TINY = ["--model", "tiny", "--batch", "8", "--steps", "20", "--warmup", "5", "--samples", "4", "--sample-steps", "4"]


def write_idx(path, images):
    """uint8 [N, H, W] as an IDX file, gzipped if the name says so."""
    content = bytes([0, 0, 8, 3]) + np.array(images.shape, ">u4").tobytes() + images.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def assert_same_checkpoint(left, right):
    left, right = load_file(left / "checkpoint.safetensors"), load_file(right / "checkpoint.safetensors")
    assert left.keys() == right.keys()
    different = [name for name in left if not torch.equal(left[name], right[name])]
    assert not different
