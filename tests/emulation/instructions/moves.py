"""Moves, selection, comparison and conversion."""

from functools import reduce
from typing import TYPE_CHECKING

import numpy as np

from ..errors import Unsupported
from ..ptx import UNSIGNED, Instr, elements, kind_and_bits, numpy_type
from .arithmetic import DIRECTED_ROUNDING, bfloat16_to_float, float_to_bfloat16
from .operands import Reader, reader, writer
from .registry import Step, instruction

if TYPE_CHECKING:
    from ..machine import Machine

TO_INTEGRAL = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
COMPARISONS = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal,
}  # fmt: skip
COMBINATIONS = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}
TF32_MASK = np.uint32(0xFFFFE000)


@instruction("mov")
def move(m: "Machine", instr: Instr) -> Step:
    """Also packs '{a, b}' into a wider register, or unpacks one."""
    type_ = instr.types[-1]
    targets, sources, bits = elements(instr.args[0]), elements(instr.args[1]), kind_and_bits(type_)[1]
    if len(targets) == len(sources) == 1:
        write, read = writer(m, targets[0]), reader(m, sources[0], type_)
        return lambda ix: write(ix, read(ix))
    wide = UNSIGNED[bits]
    if len(targets) > 1:
        width = bits // len(targets)
        writers, read = [writer(m, target) for target in targets], reader(m, sources[0], f"u{bits}")

        def unpack(ix):
            value = read(ix)
            for i, write in enumerate(writers):
                write(ix, (value >> wide(width * i)).astype(UNSIGNED[width]))

        return unpack
    width = bits // len(sources)
    readers, write = [reader(m, source, f"u{width}") for source in sources], writer(m, targets[0])

    def pack(ix):
        parts = [read(ix).astype(wide) << wide(width * i) for i, read in enumerate(readers)]
        write(ix, reduce(np.bitwise_or, parts))

    return pack


@instruction("selp")
def select(m: "Machine", instr: Instr) -> Step:
    write, predicate = writer(m, instr.args[0]), reader(m, instr.args[3], "pred")
    a, b = (reader(m, arg, instr.types[-1]) for arg in instr.args[1:3])
    return lambda ix: write(ix, np.where(predicate(ix), a(ix), b(ix)))


@instruction("setp")
def compare(m: "Machine", instr: Instr) -> Step:
    type_ = instr.types[-1]
    if type_ in ("f16x2", "bf16x2"):
        raise Unsupported("packed setp")
    writers = [writer(m, arg) for arg in instr.args[0].split("|")]
    a, b = (_comparable(m, arg, type_) for arg in instr.args[1:3])
    compared = _comparison(instr.mods[0], is_float=kind_and_bits(type_)[0] in ("f", "bf"))
    combine = next((COMBINATIONS[mod] for mod in instr.mods[1:] if mod in COMBINATIONS), None)
    other = instr.args[3] if combine else None
    read_other = reader(m, other.lstrip("!"), "pred") if other else None

    def step(ix):
        result = compared(a(ix), b(ix))
        if combine is None:
            outcomes = result, ~result
        else:
            predicate = read_other(ix)
            predicate = ~predicate if other.startswith("!") else predicate
            outcomes = combine(result, predicate), combine(~result, predicate)
        for write, outcome in zip(writers, outcomes, strict=False):
            write(ix, outcome)

    return step


def _comparable(m: "Machine", operand: str, type_: str) -> Reader:
    if type_ != "bf16":
        return reader(m, operand, type_)
    read = reader(m, operand, "b16")
    return lambda ix: bfloat16_to_float(read(ix))


def _comparison(name: str, is_float: bool):
    """The function that a comparison operator names; those that end in 'u' also hold for NaN."""

    def unordered(a, b):
        return np.isnan(a) | np.isnan(b) if is_float else np.False_

    if name == "ne" and is_float:
        return lambda a, b: (a != b) & ~unordered(a, b)
    if name in COMPARISONS:
        return COMPARISONS[name]
    if name[:-1] in COMPARISONS and name[-1] == "u":
        return lambda a, b: COMPARISONS[name[:-1]](a, b) | unordered(a, b)
    if name in ("num", "nan"):
        return lambda a, b: unordered(a, b) == (name == "nan")
    raise Unsupported(f"comparison {name}")


@instruction("testp")
def test_property(m: "Machine", instr: Instr) -> Step:
    tests = {"finite": np.isfinite, "infinite": np.isinf, "notanumber": np.isnan, "number": lambda a: ~np.isnan(a)}
    if instr.mods[0] not in tests:
        raise Unsupported(f"testp.{instr.mods[0]}")
    test, write, read = tests[instr.mods[0]], writer(m, instr.args[0]), reader(m, instr.args[1], instr.types[-1])
    return lambda ix: write(ix, test(read(ix)))


@instruction("cvt")
def convert(m: "Machine", instr: Instr) -> Step:
    target, source = instr.types[0], instr.types[-1]
    if target in ("f16x2", "bf16x2"):
        return _convert_pair(m, instr, target)
    if target == "tf32":
        return _convert_tf32(m, instr)
    if len(instr.types) < 2 or "pack" in instr.mods or not DIRECTED_ROUNDING.isdisjoint(instr.mods):
        raise Unsupported("form of cvt")
    to_kind, from_kind = kind_and_bits(target)[0], kind_and_bits(source)[0]
    saturate = "sat" in instr.mods
    if saturate and from_kind in "usb" and to_kind in "usb":
        raise Unsupported("saturation of integers")
    write, read = writer(m, instr.args[0]), reader(m, instr.args[1], "b16" if source == "bf16" else source)
    round_ = next((TO_INTEGRAL[mod] for mod in instr.mods if mod in TO_INTEGRAL), None)
    dtype = numpy_type(target)

    def step(ix):
        values = bfloat16_to_float(read(ix)) if source == "bf16" else read(ix)
        if round_ is not None:
            values = round_(values)
        if to_kind == "bf":
            values = float_to_bfloat16(values.astype(np.float32))
        elif to_kind in "us" and from_kind in ("f", "bf"):
            values = _float_to_integer(values, dtype)
        else:
            values = values.astype(dtype)
        if saturate and to_kind == "f":
            values = np.clip(values, 0, 1)
        if "relu" in instr.mods and to_kind == "f":
            values = np.maximum(values, 0)
        write(ix, values)

    return step


def _float_to_integer(values: np.ndarray, dtype: type) -> np.ndarray:
    """Clamped to the integer's range; NaN gives 0."""
    limits, wide = np.iinfo(dtype), np.longdouble if np.dtype(dtype).itemsize == 8 else np.float64
    return np.where(np.isnan(values), 0, np.clip(values.astype(wide), limits.min, limits.max)).astype(dtype)


def _convert_pair(m: "Machine", instr: Instr, target: str) -> Step:
    write, (high, low) = writer(m, instr.args[0]), (reader(m, arg, "f32") for arg in instr.args[1:3])
    half = float_to_bfloat16 if target == "bf16x2" else lambda values: values.astype(np.float16).view(np.uint16)

    def step(ix):
        a, b = m.spread(high(ix), ix), m.spread(low(ix), ix)
        if "relu" in instr.mods:
            a, b = np.maximum(a, 0), np.maximum(b, 0)
        write(ix, (half(a).astype(np.uint32) << np.uint32(16)) | half(b))

    return step


def _convert_tf32(m: "Machine", instr: Instr) -> Step:
    """Ten bits of mantissa: to nearest even (rn), to nearest with ties away (rna), or truncated (rz)."""
    write, read = writer(m, instr.args[0]), reader(m, instr.args[1], "u32")
    if "rz" in instr.mods:
        return lambda ix: write(ix, read(ix) & TF32_MASK)
    if "rn" in instr.mods:
        even = np.uint32(13)
        return lambda ix: write(ix, (read(ix) + np.uint32(0xFFF) + ((read(ix) >> even) & np.uint32(1))) & TF32_MASK)
    return lambda ix: write(ix, (read(ix) + np.uint32(0x1000)) & TF32_MASK)
