"""What a run was measured on, in words that stay true when the numbers have moved elsewhere."""

import datetime
import platform
import re
from pathlib import Path
from typing import NamedTuple

import torch

import sagd_kernels

from .contenders import CONTENDERS


class Machine(NamedTuple):
    """The columns that every row of a run shares."""

    device_key: str
    device: str
    cores: int
    sagd: str
    instruction_set: str
    compiler: str
    torch: str
    python: str
    peers: str
    missing: str
    date: str


def describe(device: torch.device, cores: int) -> Machine:
    """The machine, and which contenders are installed on it. `cores` is the most that the run uses."""
    build = sagd_kernels.build_info()
    cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if cuda else _processor()
    reasons = {c.name: c.missing() for c in CONTENDERS.values() if device.type in c.devices}
    present = {CONTENDERS[name].version() for name, reason in reasons.items() if not reason}
    present = {version for version in present if not version.startswith("torch ")}
    return Machine(
        device_key=_key(f"cuda {name}") if cuda else f"{_key(f'cpu {name}')}-{cores}c",
        device=name,
        cores=cores,
        sagd=build["version"],
        instruction_set="cuda" if cuda else torch.ops.sagd._cpu_isa(),
        compiler=" ".join(filter(None, [build["compiler"], build["flags"]])),
        torch=torch.__version__,
        python=platform.python_version(),
        peers=", ".join(sorted(present)),
        missing=", ".join(f"{name} ({reason})" for name, reason in reasons.items() if reason),
        date=datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    )


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text() if cpuinfo.exists() else "", re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def _key(name: str) -> str:
    """A directory's name: 'Intel(R) Xeon(R) Gold 6348 CPU @ 2.60GHz' gives 'intel-xeon-gold-6348'."""
    name = re.sub(r"\((r|tm)\)|\bcpu @.*|\b\d+-core processor|\bprocessor\b", " ", name.lower())
    return re.sub(r"[^a-z0-9]+", "-", name).strip("-")
