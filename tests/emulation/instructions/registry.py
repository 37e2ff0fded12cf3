"""The table from an opcode to the function that compiles it."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..ptx import Instr

if TYPE_CHECKING:
    from ..machine import Machine

Step = Callable[[object], None]
Compiler = Callable[["Machine", Instr], Step]

COMPILERS: dict[str, Compiler] = {}


def instruction(*opcodes: str) -> Callable[[Compiler], Compiler]:
    """Registers a compiler: (machine, instruction) -> a function of `ix` that executes it on the active lanes."""

    def register(compiler: Compiler) -> Compiler:
        COMPILERS.update((opcode, compiler) for opcode in opcodes)
        return compiler

    return register
