"""Machine instructions issued, by class: each is traced to its PTX instruction and takes that one's executed count.

Where ptxas unrolled a loop its copies share the executions of their PTX instruction; how many copies there are is the
median over instructions of the basic block that map one to one. The loop's own overhead is then attributed
approximately. Slow paths are taken as never executed: those that ptxas puts into subroutines (exact division,
trigonometry of large arguments), and those of shuffles and barriers for warps that have diverged.
"""

import re
import statistics
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache

from .counters import Counters
from .ptx import Kernel
from .toolchain import disassemble

CLASSES = [  # the first whose pattern matches the start of an opcode; any other is int_alu
    (r"(FFMA2|FADD2|FMUL2)", "fp32x2"), (r"FFMA", "fp32_fma"), (r"FADD", "fp32_add"), (r"FMUL", "fp32_mul"),
    (r"(HMMA|IMMA|DMMA|BMMA|QMMA|OMMA)", "mma"), (r"(HFMA2|HADD2|HMUL2|HMNMX2|HSETP2|HSET2)", "half"),
    (r"(DFMA|DADD|DMUL|DSETP|DMNMX)", "fp64"), (r"IMAD", "int_mul"), (r"MUFU", "mufu"),
    (r"(F2I|I2F(?!P)|F2F(?!P)|FRND|POPC|FLO|BREV|UPOPC|UFLO)", "convert"),
    (r"(LDS|STS|LDSM|STSM|ATOMS|REDS)\b", "mem_shared"), (r"(LDL|STL)", "mem_local"),
    (r"(LDG|STG|LD|ST|ATOM|ATOMG|RED|REDG|LDGSTS)\b", "mem_global"), (r"(SHFL|REDUX)", "shuffle"),
    (r"(BAR|MEMBAR|ERRBAR|DEPBAR|LDGDEPBAR|FENCE|CCTL|SYNCS|WARPSYNC)", "barrier"),
    (r"(BRA|EXIT|BSSY|BSYNC|BRX|CALL|RET|BREAK|YIELD|BMOV|NANOSLEEP|ACQBULK|PREEXIT)", "control"),
    (r"(LDC|S2R|S2UR|CS2R|R2UR|ULDC|LDCU|U[A-Z])", "uniform"),
    (r"(FSETP|FSEL|FMNMX|SEL|ISETP|FSET|FCHK|PLOP3|PSETP|CSEL)", "select"),
]  # fmt: skip
# Machine opcodes that a PTX instruction becomes one of, if not unrolled.
ONE_TO_ONE = {
    "ld": r"LD[GSL]?\b", "st": r"ST[GSL]?\b", "bar": r"BAR\b", "shfl": r"SHFL", "fma": r"FFMA\b", "mma": r".MMA\b",
}  # fmt: skip


@dataclass(frozen=True)
class Mix:
    """Machine instructions of a kernel.

    Attributes:
        by_class: warp instructions issued, of the blocks that were run.
        static: instructions in the kernel's code.
        unrolled: the largest number of copies that ptxas made of a loop's body.
    """

    by_class: dict[str, float]
    static: int
    unrolled: int


def machine_mix(counters: Counters, cubin: bytes) -> Mix:
    """From the executed counts of PTX instructions and the cubin that `assemble` made of the kernel."""
    kernel = counters.kernel
    code = _code(cubin, kernel.name)
    by_pc = defaultdict(list)
    for pc, opcode in code:
        by_pc[pc].append(opcode)
    copies = _copies(kernel, by_pc)
    total = defaultdict(float)
    for pc, opcodes in by_pc.items():
        known = pc is not None and pc < len(counters.warps)
        issued = counters.warps[pc] / copies[pc] if known else counters.warps[0]
        for opcode in opcodes:
            total[classify(opcode)] += issued
    return Mix(dict(total), len(code), max(copies.values(), default=1))


def classify(opcode: str) -> str:
    return next((name for pattern, name in CLASSES if re.match(pattern, opcode)), "int_alu")


@dataclass(frozen=True)
class _Line:
    """A line of the listing: `pc` is the PTX instruction's index or None, `labels` stand in front of it."""

    pc: int | None
    guarded: bool
    opcode: str
    operands: str
    labels: tuple[str, ...]

    @property
    def targets(self) -> list[str]:
        """Labels where it goes, or where later ones do by what it prepares (BSSY)."""
        return re.findall(r"\((\.L_\w+)\)", self.operands)

    @property
    def leaves(self) -> bool:
        """Whether the next line is not reached from here."""
        jumps = self.opcode == "BRA" and re.fullmatch(r"\s*`\(\.L_\w+\)\s*;", self.operands)
        return not self.guarded and bool(jumps or self.opcode.startswith(("EXIT", "RET", "BRX", "JMX")))


@lru_cache(256)
def _code(cubin: bytes, entry: str) -> list[tuple[int | None, str]]:
    """(PTX instruction index or None, opcode) of a kernel, without padding and slow paths."""
    lines = _listing(disassemble(cubin), entry)
    slow = _diverged_only(lines)
    return [(line.pc, line.opcode) for i, line in enumerate(lines) if i not in slow and line.opcode != "NOP"]


def _listing(text: str, entry: str) -> list[_Line]:
    """Without subroutines and the endless loop at the end."""
    lines, labels, inside, pc, exited = [], (), False, None, False
    for line in map(str.strip, text.split("\n")):
        if line == f".text.{entry}:":
            inside = True
        elif line.startswith(".section") or re.match(r"(\$.*|__internal.*):$", line):
            inside = False  # the next section, or a subroutine
        elif inside and line.startswith("//## File"):
            number = re.search(r'"ptx", line (\d+)', line)
            pc = int(number.group(1)) - 1 if number else pc
        elif inside and re.match(r"\.L_\w+:$", line):
            labels += (line[:-1],)
        elif inside and (match := re.match(r"/\*[0-9a-f]{4,}\*/\s+(@!?\w+\s+)?([A-Z][\w.]*)(.*)", line)):
            found = _Line(pc, bool(match[1]), match[2], match[3], labels)
            endless_loop = exited and found.opcode == "BRA" and not {*found.targets}.isdisjoint(labels)
            if not endless_loop:
                lines.append(found)
            exited |= found.opcode.startswith("EXIT")
            labels = ()
    return lines


def _diverged_only(lines: list[_Line]) -> set[int]:
    """Lines that only BRA.DIV leads to, which a warp takes whose lanes have not met."""
    at = {label: i for i, line in enumerate(lines) for label in line.labels}
    named = {label for line in lines for label in line.targets}
    slow = {at[label] for line in lines if line.opcode == "BRA.DIV" for label in line.targets}

    def reached(from_: set[int], divergent: bool) -> set[int]:
        found, todo = set(), list(from_)
        while todo:
            i = todo.pop()
            if i in found or i == len(lines):
                continue
            found.add(i)
            line = lines[i]
            if divergent or line.opcode != "BRA.DIV":
                todo += [at[label] for label in line.targets if label in at]
            if not line.leaves:
                todo.append(i + 1)
        return found

    entered = {0} | {i for label, i in at.items() if label not in named}  # by jump tables
    return reached(slow, True) - reached(entered, False)


def _copies(kernel: Kernel, by_pc: dict[int | None, list[str]]) -> dict[int, int]:
    """How often each PTX instruction stands in the machine code, by basic block."""
    ends = (instr.pc + 1 for instr in kernel.code if instr.op in ("bra", "ret", "exit"))
    heads = sorted({0, *kernel.labels.values(), *ends})
    copies = {}
    for start, end in zip(heads, [*heads[1:], len(kernel.code)], strict=True):
        seen = []
        for instr in kernel.code[start:end]:
            if instr.op in ONE_TO_ONE and instr.space not in ("param", "const"):
                found = sum(bool(re.match(ONE_TO_ONE[instr.op], opcode)) for opcode in by_pc.get(instr.pc, ()))
                seen += [found] if found else []
        copies.update(dict.fromkeys(range(start, end), max(1, round(statistics.median(seen))) if seen else 1))
    return copies
