"""Arithmetic on integers and floats.

Rounding is IEEE's to nearest. What is not: `fma` in float32 goes through float64 and may be off by a rounding in rare
ties, subnormal operands of `.ftz` instructions are not flushed (their results are), directed rounding is `Unsupported`.
The `.approx` functions are as inexact as the PTX ISA allows, see `APPROXIMATION_ERROR`.
"""

from functools import reduce
from typing import TYPE_CHECKING

import numpy as np

from ..errors import Unsupported
from ..ptx import UNSIGNED, Instr, kind_and_bits, numpy_type
from .operands import reader, writer
from .registry import Step, instruction

if TYPE_CHECKING:
    from ..machine import Machine

DIRECTED_ROUNDING = {"rz", "rm", "rp"}
PACKED = {"f16x2": "b32", "bf16x2": "b32", "bf16": "b16", "f32x2": "b64"}
EXPONENT, SIGN = np.uint32(0x7F800000), np.uint32(0x80000000)


def bfloat16_to_float(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def float_to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Bits, rounded to nearest even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return np.where(np.isnan(values), np.uint16(0x7FFF), (rounded >> np.uint32(16)).astype(np.uint16))


def elementwise(m: "Machine", instr: Instr, function) -> Step:
    """destination = function(operands) in the last type of the instruction; packed halves are computed in float32."""
    type_, mods, args = instr.types[-1], instr.mods, instr.args
    if not DIRECTED_ROUNDING.isdisjoint(mods) or "xorsign" in mods:
        raise Unsupported("directed rounding or xorsign")
    write = writer(m, args[0])
    if type_ in PACKED:
        unpack, pack = _packing(type_)
        readers = [reader(m, arg, PACKED[type_]) for arg in args[1:]]
        return lambda ix: write(ix, pack(function(*[unpack(m.spread(read(ix), ix).copy()) for read in readers])))
    readers = [reader(m, arg, type_) for arg in args[1:]]
    saturate, flush = "sat" in mods, "ftz" in mods and type_ == "f32"
    if kind_and_bits(type_)[0] != "f" and (saturate or "cc" in mods):
        raise Unsupported("carry or saturation of integers")

    def step(ix):
        result = function(*[read(ix) for read in readers])
        if saturate:
            result = np.asarray(result)
            result = np.where(np.isnan(result), result.dtype.type(0), np.clip(result, 0, 1))
        write(ix, _flushed(result) if flush else result)

    return step


def _flushed(values) -> np.ndarray:
    """Bits of float32 values, subnormal ones replaced by a zero of their sign."""
    bits = np.asarray(values).view(np.uint32)
    subnormal = (bits & EXPONENT) == 0
    return np.where(subnormal, bits & SIGN, bits) if subnormal.any() else bits


def _packing(type_: str):
    """(unpack, pack) between a packed type's bits and float32 values."""
    if type_ == "bf16":
        return bfloat16_to_float, float_to_bfloat16
    if type_ == "f16x2":
        return (
            lambda bits: bits.view(np.float16).reshape(-1, 2).astype(np.float32),
            lambda values: values.astype(np.float16).reshape(-1).view(np.uint32),
        )
    if type_ == "bf16x2":
        return (
            lambda bits: bfloat16_to_float(bits.view(np.uint16)).reshape(-1, 2),
            lambda values: float_to_bfloat16(values).reshape(-1).view(np.uint32),
        )
    return (
        lambda bits: bits.view(np.float32).reshape(-1, 2),
        lambda values: np.ascontiguousarray(values, np.float32).reshape(-1).view(np.uint64),
    )


# -- sums


@instruction("add", "sub", "addc", "subc")
def add(m: "Machine", instr: Instr) -> Step:
    subtract, use_carry = instr.op.startswith("sub"), instr.op.endswith("c")
    if use_carry or ("cc" in instr.mods and kind_and_bits(instr.types[-1])[0] in "usb"):
        return _add_with_carry(m, instr, subtract, use_carry)
    return elementwise(m, instr, (lambda a, b: a - b) if subtract else (lambda a, b: a + b))


def _add_with_carry(m: "Machine", instr: Instr, subtract: bool, use_carry: bool) -> Step:
    bits = kind_and_bits(instr.types[-1])[1]
    write, (read_a, read_b) = writer(m, instr.args[0]), (reader(m, arg, f"u{bits}") for arg in instr.args[1:])

    def step(ix):
        lanes = m.lanes(ix)
        a, b = m.spread(read_a(ix), ix), m.spread(read_b(ix), ix)
        carry = m.carry[lanes].astype(UNSIGNED[bits]) if use_carry else UNSIGNED[bits](0)
        if subtract:
            result, carried = a - b - carry, (a < b) | ((a == b) & (carry != 0))
        else:
            result = a + b + carry
            carried = (result < a) | ((result == a) & (carry != 0) & (b != 0))
        if "cc" in instr.mods:
            m.carry[lanes] = carried
        write(ix, result)

    return step


@instruction("min", "max")
def extremum(m: "Machine", instr: Instr) -> Step:
    ignore_nan = "f" in instr.types[-1] and "NaN" not in instr.mods
    functions = {("min", False): np.minimum, ("min", True): np.fmin, ("max", False): np.maximum, ("max", True): np.fmax}
    function = functions[instr.op, ignore_nan]
    return elementwise(m, instr, lambda *values: reduce(function, values))


@instruction("neg")
def negate(m: "Machine", instr: Instr) -> Step:
    return elementwise(m, instr, lambda a: -a)


@instruction("abs")
def absolute(m: "Machine", instr: Instr) -> Step:
    return elementwise(m, instr, np.abs)


@instruction("copysign")
def copysign(m: "Machine", instr: Instr) -> Step:
    return elementwise(m, instr, lambda sign, magnitude: np.copysign(magnitude, sign))


# -- products


def high_product(a: np.ndarray, b: np.ndarray, type_: str) -> np.ndarray:
    """The upper half of the product of two integers."""
    kind, bits = kind_and_bits(type_)
    if bits < 64:
        wide = numpy_type(f"{kind}{2 * bits}")
        return ((a.astype(wide) * b.astype(wide)) >> wide(bits)).astype(numpy_type(type_))
    if kind == "s":
        ua, ub = a.view(np.uint64), b.view(np.uint64)
        correction = np.where(a < 0, ub, np.uint64(0)) + np.where(b < 0, ua, np.uint64(0))
        return (high_product(ua, ub, "u64") - correction).view(np.int64)
    mask, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    al, ah, bl, bh = a & mask, a >> half, b & mask, b >> half
    middle = (al * bl >> half) + (ah * bl & mask) + (al * bh & mask)
    return ah * bh + (ah * bl >> half) + (al * bh >> half) + (middle >> half)


@instruction("mul")
def multiply(m: "Machine", instr: Instr) -> Step:
    type_ = instr.types[-1]
    kind, bits = kind_and_bits(type_)
    if kind in "us" and "wide" in instr.mods:
        wide = numpy_type(f"{kind}{2 * bits}")
        write, (a, b) = writer(m, instr.args[0]), (reader(m, arg, type_) for arg in instr.args[1:])
        return lambda ix: write(ix, a(ix).astype(wide) * b(ix).astype(wide))
    if kind in "us" and "hi" in instr.mods:
        return elementwise(m, instr, lambda a, b: high_product(a, b, type_))
    return elementwise(m, instr, lambda a, b: a * b)


@instruction("fma", "mad")
def multiply_add(m: "Machine", instr: Instr) -> Step:
    type_ = instr.types[-1]
    kind, bits = kind_and_bits(type_)
    if kind not in "us":
        fused = {"f32": _fma32, "f32x2": _fma32, "f64": _fma64}.get(type_, lambda a, b, c: a * b + c)
        if "relu" in instr.mods:
            return elementwise(m, instr, lambda a, b, c: np.maximum(fused(a, b, c), 0))
        return elementwise(m, instr, fused)
    if "cc" in instr.mods:
        raise Unsupported("mad.cc")
    wide = f"{kind}{2 * bits}" if "wide" in instr.mods else type_
    write, c = writer(m, instr.args[0]), reader(m, instr.args[3], wide)
    a, b = (reader(m, arg, type_) for arg in instr.args[1:3])
    if "hi" in instr.mods:
        return lambda ix: write(ix, high_product(a(ix), b(ix), type_) + c(ix))
    dtype = numpy_type(wide)
    return lambda ix: write(ix, a(ix).astype(dtype) * b(ix).astype(dtype) + c(ix))


def _fma32(a, b, c):
    return np.add(np.multiply(a, b, dtype=np.float64), c, dtype=np.float64).astype(np.float32)


def _fma64(a, b, c):
    return (a.astype(np.longdouble) * b + c).astype(np.float64)


# -- quotients


@instruction("div")
def divide(m: "Machine", instr: Instr) -> Step:
    type_ = instr.types[-1]
    kind, dtype = kind_and_bits(type_)[0], numpy_type(type_)
    if kind == "f":
        if m.approximate and not {"approx", "full"}.isdisjoint(instr.mods):
            return elementwise(m, instr, lambda a, b: _inexact(np.divide(a, b, dtype=np.float64), DIVISION_ERROR, b))
        return elementwise(m, instr, lambda a, b: a / b)
    if kind != "s":
        return elementwise(m, instr, lambda a, b: (a // np.where(b == 0, 1, b)).astype(dtype))

    def signed(a, b):
        quotient = np.abs(a.astype(np.int64)) // np.where(b == 0, 1, np.abs(b.astype(np.int64)))
        return np.where((a < 0) != (b < 0), -quotient, quotient).astype(dtype)

    return elementwise(m, instr, signed)


@instruction("rem")
def remainder(m: "Machine", instr: Instr) -> Step:
    dtype = numpy_type(instr.types[-1])
    return elementwise(m, instr, lambda a, b: np.fmod(a, np.where(b == 0, 1, b)).astype(dtype))


# -- elementary functions


FUNCTIONS = {
    "sin": np.sin, "cos": np.cos, "ex2": np.exp2, "lg2": np.log2, "sqrt": np.sqrt, "tanh": np.tanh,
    "rsqrt": lambda a: 1 / np.sqrt(a), "rcp": lambda a: 1 / a,
}  # fmt: skip

# Maximal errors of the .approx.f32 forms, from the PTX ISA (sin and cos within [-pi, pi]: from the CUDA C++ Programming
# Guide, which is tighter). They are relative, but for sin, cos and lg2 results below 1 absolute. The emulated result is
# off by a share of it, uniform in [-1, 1], that depends on the argument alone: what the hardware returns is not public.
APPROXIMATION_ERROR = {
    "sin": 2.0**-21.41, "cos": 2.0**-21.19, "ex2": 2.0**-22, "lg2": 2.0**-22, "sqrt": 2.0**-23, "tanh": 2.0**-11,
    "rsqrt": 2.0**-22.9, "rcp": 2.0**-23,
}  # fmt: skip
BEYOND_PI, BEYOND_TWO_PI = 2.0**-20.5, 2.0**-14.7  # of sin and cos
DIVISION_ERROR = 2.0**-22
ABSOLUTE = ("sin", "cos", "lg2")


@instruction(*FUNCTIONS)
def elementary_function(m: "Machine", instr: Instr) -> Step:
    op, function = instr.op, FUNCTIONS[instr.op]

    def wide(a):
        return function(a.astype(np.longdouble if a.dtype == np.float64 else np.float64))

    def approximate(a):
        size = APPROXIMATION_ERROR[op]
        if op in ("sin", "cos"):
            size = np.select([np.abs(a) > 2 * np.pi, np.abs(a) > np.pi], [BEYOND_TWO_PI, BEYOND_PI], size)
        return _inexact(wide(a), size, a, absolute=op in ABSOLUTE)

    if m.approximate and "approx" in instr.mods and instr.types[-1] == "f32":
        return elementwise(m, instr, approximate)
    return elementwise(m, instr, lambda a: wide(a).astype(a.dtype))


def _inexact(exact: np.ndarray, size, argument: np.ndarray, absolute: bool = False) -> np.ndarray:
    """float32 of a result that is off by a pseudo-random share of `size`."""
    bits = np.asarray(argument, np.float32).view(np.uint32).astype(np.uint64)
    share = ((bits * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1
    scale = np.maximum(np.abs(exact), 1) if absolute else np.abs(exact)
    error = np.where(np.isfinite(exact), share * size * scale, 0)
    return (exact + error).astype(np.float32)
