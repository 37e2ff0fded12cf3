"""Child processes for tests: forked from a server that has imported the trainer, so that each starts at once."""

import multiprocessing
import os
import socket

import torch

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["sagd_kernels.train.loop", "sagd_kernels.distributed"])


def start(function, *arguments, rank: int = 0, processes: int = 1, port: int = 0):
    """Starts `function(*arguments)` as process `rank` of `processes`, with the environment that torchrun would set."""
    child = CONTEXT.Process(target=_run, args=(function, arguments, rank, processes, port), daemon=True)
    child.start()
    return child


def launch(function, *arguments, processes: int = 2) -> None:
    """Runs `function(*arguments)` in that many processes of one group, and waits for their success."""
    port = free_port()
    children = [start(function, *arguments, rank=rank, processes=processes, port=port) for rank in range(processes)]
    for child in children:
        child.join(timeout=300)
    codes = [child.exitcode for child in children]
    for child in children:
        child.kill()  # one that still waits for another
    assert codes == [0] * processes, f"exit codes {codes}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _run(function, arguments, rank: int, processes: int, port: int) -> None:
    torch.set_num_threads(1)
    if processes > 1:
        number = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        os.environ.update({name: str(value) for name, value in number.items()})
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    function(*arguments)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
