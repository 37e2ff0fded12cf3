"""PTX text to a `Kernel`: parameters, variables, registers, labels and a flat list of instructions.

Reads the PTX that nvcc and Triton write, not all that the PTX ISA allows: one level of `.func` is skipped, not called.
"""

import re
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from .errors import EmulationError, Unsupported

UNSIGNED = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
SIGNED = {8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64}
FLOAT = {16: np.float16, 32: np.float32, 64: np.float64}

# Kind and bits of the types whose name is not kind + bits.
SPECIAL_TYPES = {
    "pred": ("p", 1),
    "bf16": ("bf", 16),
    "tf32": ("b", 32),
    "f16x2": ("fx2", 32),
    "bf16x2": ("bfx2", 32),
    "f32x2": ("f32x2", 64),
}
TYPE = re.compile(r"[subf]\d+|" + "|".join(SPECIAL_TYPES))
STATE_SPACES = ("global", "shared", "cluster", "local", "param", "const")


@lru_cache(None)
def kind_and_bits(type_: str) -> tuple[str, int]:
    """'f32' -> ('f', 32)."""
    return SPECIAL_TYPES.get(type_) or (type_[0], int(type_[1:]))


def numpy_type(type_: str) -> type:
    """The NumPy type in which a PTX type is computed; untyped bits and packed types are unsigned."""
    kind, bits = kind_and_bits(type_)
    return np.bool_ if kind == "p" else {"s": SIGNED, "f": FLOAT}.get(kind, UNSIGNED)[bits]


def state_space(mods: list[str]) -> str:
    """The state space that a memory instruction names, 'cluster' for shared::cluster; 'generic' where it names none."""
    spaces = ("cluster" if mod == "shared__cluster" else mod.split("__")[0] for mod in mods)
    return next((space for space in spaces if space in STATE_SPACES), "generic")


def elements(operand: str) -> list[str]:
    """'{a, b}' -> ['a', 'b']; anything else -> [operand]."""
    operand = operand.strip()
    return [part.strip() for part in operand[1:-1].split(",")] if operand.startswith("{") else [operand]


def align(n: int, unit: int) -> int:
    return -(-n // unit) * unit


@dataclass
class Instr:
    """One instruction, `@[!]pred op.mods args`; `::` in a modifier reads `__`.

    Attributes:
        pc: its index in the kernel's code.
        types: those of `mods` that are types.
    """

    op: str
    mods: list[str] = field(default_factory=list)
    args: list[str] = field(default_factory=list)
    pred: str | None = None
    negated: bool = False
    pc: int = 0
    text: str = ""

    def __post_init__(self) -> None:
        self.types = [mod for mod in self.mods if TYPE.fullmatch(mod)]
        self.space = state_space(self.mods)
        self.text = self.text or self.op


def entries(source: str) -> list[str]:
    """Names of the kernels in a PTX module."""
    return re.findall(r"\.entry\s+([\w$]+)\s*\(", _clean(source))


class Kernel:
    """One `.entry` of a PTX module: the one of that name, or the first.

    Attributes:
        producer: what wrote it, "nvcc" or "triton"; "" if neither.
        target: the architecture that the module names, "sm_80".
        params: (name, type, offset, bytes) of each parameter.
        shared: offset of each variable in the block's shared memory; dynamic memory starts at `dynamic_offset`.
        local: offset of each variable in a thread's local memory, of `local_size` bytes.
        variables: module-scope arrays in global and constant memory.
        code: the instructions; `labels` gives the index that each label stands for.
        annotated: the module with a `.loc` in front of each instruction that names its index as line number plus 1,
            so that a disassembler can say which PTX instruction a machine instruction comes from.
    """

    def __init__(self, source: str, name: str | None = None) -> None:
        self.producer = "nvcc" if "NVIDIA NVVM" in source else "triton" if "LLVM NVPTX" in source else ""
        source = _clean(source)
        matches = re.finditer(r"\.entry\s+([\w$]+)\s*\(", source)
        entry = next((match for match in matches if name in (None, match.group(1))), None)
        if entry is None:
            raise EmulationError(f"no entry {name!r}; the module has {entries(source)}")
        self.name = entry.group(1)
        closing = source.index(")", entry.end())
        start = source.index("{", closing)
        end = _matching_brace(source, start)
        target = re.search(r"\.target\s+(\w+)", source)
        self.target = target.group(1) if target else "sm_75"
        self._read_params(source[entry.end() : closing])
        self.shared: dict[str, int] = {}
        self.local: dict[str, int] = {}
        self.variables: dict[str, np.ndarray] = {}
        self.shared_size = self.local_size = 0
        self._dynamic: list[str] = []
        for statement in _module_scope(source).split(";"):
            self._declare(statement.strip())
        self.registers: dict[str, str] = {}
        self._prefixes: dict[str, str] = {}
        self.code: list[Instr] = []
        self.labels: dict[str, int] = {}
        self._lines: list[str] = []
        self._read_body(source[start + 1 : end])
        self.dynamic_offset = align(self.shared_size, 16) if self._dynamic else self.shared_size
        self.shared.update((name, self.dynamic_offset) for name in self._dynamic)
        head = re.sub(r"(\.address_size\s+\d+)", r'\1\n.file 1 "ptx"', source[: start + 1], count=1)
        self.annotated = "\n".join([head, *self._lines, source[end:]])

    def register_type(self, name: str) -> str | None:
        """The declared type of a register; None if it is not one."""
        found = self.registers.get(name)
        if found is None:
            found = self._prefixes.get(name.rstrip("0123456789"))
            if found is not None:
                self.registers[name] = found
        return found

    # -- declarations

    def _read_params(self, text: str) -> None:
        self.params, offset = [], 0
        pattern = r"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)(?:(?:\s+\.\w+(?:\s+\d+)?)*)\s+([\w$]+)(?:\[(\d+)\])?"
        for declaration in filter(None, map(str.strip, text.split(","))):
            alignment, type_, name, count = re.match(pattern, declaration).groups()
            width = kind_and_bits(type_)[1] // 8
            offset = align(offset, int(alignment or width))
            self.params.append((name, type_, offset, width * int(count or 1)))
            offset += width * int(count or 1)
        self.param_size = offset

    def _declare(self, statement: str) -> bool:
        """A variable in module or kernel scope; False if the statement is something else."""
        pattern = (
            r"\.(shared|global|const|local)\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)((?:\[\d*\])*)\s*(?:=\s*(.*))?$"
        )
        match = re.search(pattern, statement, re.DOTALL)
        if not match:
            return False
        space, alignment, type_, name, dims, init = match.groups()
        bits = kind_and_bits(type_)[1]
        count = int(np.prod([int(n) for n in re.findall(r"\d+", dims)] or [1]))
        alignment, size = int(alignment or bits // 8), count * bits // 8
        if space == "shared" and "[]" in dims:
            self._dynamic.append(name)
        elif space == "shared":
            self.shared[name] = align(self.shared_size, alignment)
            self.shared_size = self.shared[name] + size
        elif space == "local":
            self.local[name] = align(self.local_size, alignment)
            self.local_size = self.local[name] + size
        else:
            self.variables[name] = _initialised(count, bits, init)
        return True

    # -- the body

    def _read_body(self, body: str) -> None:
        """Cut the body into statements. A register declared in nested braces gets a name of its own."""
        scopes: list[dict[str, str]] = [{}]
        self._scope_count, statement = 0, ""
        for token in re.split(r"([;{}])", body):
            if token == ";":
                self._read_statement(statement.strip(), scopes)
                statement = ""
            elif token == "{" and not statement.strip():
                self._scope_count += 1
                scopes.append({})
                self._lines.append("{")
            elif token == "}" and not statement.strip() and len(scopes) > 1:
                scopes.pop()
                self._lines.append("}")
            else:
                statement = self._read_labels(statement + token)
        self.code.append(Instr("exit", pc=len(self.code)))

    def _read_labels(self, statement: str) -> str:
        """The statement without the labels in front of it."""
        while label := re.match(r"\s*([\w$]+):(?!:)", statement):
            self.labels[label.group(1)] = len(self.code)
            self._lines.append(label.group().strip())
            statement = statement[label.end() :]
        return statement

    def _read_statement(self, statement: str, scopes: list[dict[str, str]]) -> None:
        if not statement:
            return
        if not statement.startswith("."):
            self._read_instruction(statement, scopes)
            return
        self._lines.append(statement + ";")
        if statement.startswith(".reg"):
            self._read_registers(statement, scopes)
        elif not statement.startswith(".pragma") and not self._declare(statement):
            raise Unsupported(statement)

    def _read_registers(self, statement: str, scopes: list[dict[str, str]]) -> None:
        type_, names = re.match(r"\.reg\s+\.(\w+)\s+(.*)$", statement, re.DOTALL).groups()
        for name in map(str.strip, names.split(",")):
            numbered = re.fullmatch(r"([%\w$]+)<\d+>", name)
            if numbered:
                self._prefixes[numbered.group(1)] = type_
            else:
                scopes[-1][name] = name if len(scopes) == 1 else f"{name}@{self._scope_count}"
                self.registers[scopes[-1][name]] = type_

    def _read_instruction(self, statement: str, scopes: list[dict[str, str]]) -> None:
        pc, text, pred, negated = len(self.code), " ".join(statement.split()), None, False
        self._lines += [f".loc 1 {pc + 1} 0", statement + ";"]
        guard = re.match(r"@(!?)([%\w$]+)\s+", statement)
        if guard:
            negated, pred = guard.group(1) == "!", _scoped(guard.group(2), scopes)
            statement = statement[guard.end() :]
        name, *rest = statement.split(None, 1)
        op, *mods = name.replace("::", "__").split(".")
        args = _split_operands(rest[0]) if rest else []
        if len(scopes) > 1:
            args = [re.sub(r"[%A-Za-z_$][\w$.]*", lambda m: _scoped(m.group(0), scopes), arg) for arg in args]
        self.code.append(Instr(op, mods, args, pred, negated, pc, text))


def _clean(source: str) -> str:
    """Without comments, debug sections and line information."""
    source = source.partition(".section")[0]
    source = re.sub(r"/\*.*?\*/", " ", source, flags=re.DOTALL)
    source = re.sub(r"//[^\n]*", "", source)
    return re.sub(r"(?m)^\s*\.(loc|file)\b[^\n]*$", "", source)


def _matching_brace(source: str, start: int) -> int:
    """Index of the brace that closes the one at `start`."""
    depth = 0
    for match in re.compile(r"[{}]").finditer(source, start):
        depth += 1 if match.group() == "{" else -1
        if depth == 0:
            return match.start()
    raise EmulationError("unbalanced braces")


def _module_scope(source: str) -> str:
    """The module without its function bodies."""
    kept, position = "", 0
    for match in re.finditer(r"\.(?:entry|func)\b", source):
        if match.start() < position:
            continue
        brace, semicolon = source.find("{", match.start()), source.find(";", match.start())
        if brace < 0 or 0 <= semicolon < brace:  # a declaration
            continue
        kept += source[position : match.start()] + ";"
        position = _matching_brace(source, brace) + 1
    return kept + source[position:]


def _initialised(count: int, bits: int, init: str | None) -> np.ndarray:
    array = np.zeros(count, UNSIGNED[bits])
    words = [word for word in map(str.strip, (init or "").strip().strip("{}").split(",")) if word]
    values = [int(word[2:], 16) if word[:2].lower() in ("0f", "0d") else int(word, 0) for word in words]
    array[: len(values)] = np.array([value & ((1 << bits) - 1) for value in values], UNSIGNED[bits])
    return array


def _split_operands(text: str) -> list[str]:
    """At the commas that no bracket encloses."""
    parts, depth, current = [], 0, ""
    for char in text:
        depth += (char in "{[(") - (char in "}])")
        if char == "," and depth == 0:
            parts.append(current.strip())
            current = ""
        else:
            current += char
    return [*parts, current.strip()] if current.strip() else parts


def _scoped(name: str, scopes: list[dict[str, str]]) -> str:
    return next((scope[name] for scope in reversed(scopes) if name in scope), name)
