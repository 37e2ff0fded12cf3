"""Checkpoints: one safetensors file (tensors and JSON, no pickle), written whole or not at all."""

import json
import os
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .config import RunError

FILE_NAME = "checkpoint.safetensors"
_FORMAT = "sagd_kernels.train/1"


def prepare_folder(folder: Path) -> None:
    """Make the folder of a run; RunError if it cannot be made or written to, before hundreds of steps are lost."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise RunError(f"--output: {folder} cannot be written to: {error.strerror}") from error


def write_checkpoint(path: Path, tensors: dict[str, Tensor], state: dict) -> None:
    """Write `tensors` and the JSON-able `state` to `path`, atomically.

    The bytes reach the disk under another name in the same folder, which then replaces `path`: a crash at any moment
    leaves either the old checkpoint or the new one. RunError where that fails, as on a full disk.
    """
    content = save(tensors, {"format": _FORMAT, "state": json.dumps(state)})
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise RunError(f"--output: {path} cannot be written, and is as it was before: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # makes the new name itself durable
    finally:
        os.close(folder)


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict]:
    """The tensors and the state in the file at `path`; RunError if it is not a whole checkpoint of this trainer."""
    if not path.is_file():
        raise RunError(f"--resume: there is no checkpoint at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise RunError(f"--resume: {path} is not a checkpoint of {_FORMAT}, but {metadata.get('format')}")
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, json.loads(metadata["state"])
    except (SafetensorError, OSError) as error:
        raise RunError(f"--resume: {path} is damaged or not a safetensors file: {error}") from error


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as flat names: `optimizer.<parameter's index>.<exp_avg, ...>`."""
    return {
        f"optimizer.{index}.{name}": tensor
        for index, slot in optimizer.state_dict()["state"].items()
        for name, tensor in slot.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`, for an optimiser built with the same options over the same parameters."""
    slots: dict[int, dict[str, Tensor]] = {}
    for full_name, tensor in tensors.items():
        if full_name.startswith("optimizer."):
            _, index, name = full_name.split(".")
            slots.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
