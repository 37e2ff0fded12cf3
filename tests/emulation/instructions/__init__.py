"""What the PTX instructions do: each is compiled once into a function of the active lanes."""

from typing import TYPE_CHECKING

from ..errors import Unsupported
from ..ptx import Instr
from . import arithmetic, async_copy, bits, matrix, memory, moves, warp  # noqa: F401  they fill the table
from .registry import COMPILERS, Step

if TYPE_CHECKING:
    from ..machine import Machine

# Order accesses that the emulator executes in order anyway, or are hints.
NO_EFFECT = (
    "fence", "membar", "prefetch", "prefetchu", "nanosleep", "griddepcontrol", "discard", "applypriority",
    "createpolicy",
)  # fmt: skip


def compile_instruction(machine: "Machine", instr: Instr) -> Step:
    """A function of `ix`. One that is not modelled compiles, and raises `Unsupported` when it is executed."""
    if instr.op in NO_EFFECT:
        return lambda ix: None
    compiler = COMPILERS.get(instr.op)
    if compiler is None:
        return _unsupported(f"opcode {instr.op}")
    try:
        return compiler(machine, instr)
    except Unsupported as error:
        return _unsupported(str(error))


def _unsupported(message: str) -> Step:
    def step(ix) -> None:
        raise Unsupported(message)

    return step
