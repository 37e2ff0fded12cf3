"""Operands: readers give an array over the active lanes or a scalar for all of them, writers take either."""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ..errors import Unsupported
from ..ptx import SIGNED, UNSIGNED, kind_and_bits, numpy_type

if TYPE_CHECKING:
    from ..machine import Machine

Reader = Callable[[object], np.ndarray]
Writer = Callable[[object, np.ndarray], None]


def reader(m: "Machine", operand: str, type_: str) -> Reader:
    """Of a register, special register, variable's address or constant, as a PTX type."""
    target, bits = numpy_type(type_), kind_and_bits(type_)[1]
    if m.kernel.register_type(operand) is not None:
        return _register_reader(m, operand, target, bits)
    if operand.startswith("%"):
        if not re.match(r"%(tid|ntid|ctaid|nctaid|laneid|warpid|lanemask|cluster_n?ctarank)", operand):
            raise Unsupported(f"register {operand}")

        def read_special(ix):
            values = m.special_registers[operand]
            return (values if ix is None else values[ix]).astype(target, copy=False)

        return read_special
    constant = _constant(m, operand, type_)
    return lambda ix: constant


def _register_reader(m: "Machine", name: str, target: type, bits: int) -> Reader:
    def read(ix):
        values = m.register(name)
        if ix is not None:
            values = values[ix]
        if values.dtype in (np.bool_, target):
            return values
        if values.dtype.itemsize * 8 != bits:
            values = values.astype(UNSIGNED[bits])
        return values.view(target)

    return read


def _constant(m: "Machine", operand: str, type_: str) -> np.generic:
    kernel, target, (kind, bits) = m.kernel, numpy_type(type_), kind_and_bits(type_)
    for prefixes, width, floating in ((("0f", "0F"), np.uint32, np.float32), (("0d", "0D"), np.uint64, np.float64)):
        if operand.startswith(prefixes):
            value = np.array(int(operand[2:], 16), width)
            return (value.view(floating) if kind == "f" else value).astype(target)
    if operand in kernel.shared or operand in kernel.local:
        return np.array({**kernel.local, **kernel.shared}[operand]).astype(target)
    if operand in m.param_offset:
        return np.array(m.param_offset[operand], np.uint64).astype(target)
    if operand in kernel.variables:
        return np.array(m.global_memory.address(kernel.variables[operand]), np.uint64).astype(target)
    if operand == "WARP_SZ":
        return np.array(32, target)
    if not re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|\d+)U?", operand):
        raise Unsupported(f"operand {operand}")
    value = int(operand.rstrip("U"), 0)
    return np.array(bool(value)) if kind == "p" else np.array(value & ((1 << bits) - 1), UNSIGNED[bits]).view(target)


def writer(m: "Machine", operand: str) -> Writer:
    """Of a register. It takes bits of the register's width, or integers to be extended with their sign."""
    if operand == "_":
        return lambda ix, values: None
    type_ = m.kernel.register_type(operand)
    if type_ is None:
        raise Unsupported(f"destination {operand}")
    stored = np.dtype(np.bool_ if type_ == "pred" else UNSIGNED[kind_and_bits(type_)[1]])

    def write(ix, values):
        values = np.asarray(values)
        if values.dtype != stored:
            values = values.astype(bool) if stored == np.bool_ else _as_bits(values, stored)
        register = m.register(operand)
        if ix is None:
            register[:] = values
        else:
            register[ix] = values

    return write


def _as_bits(values: np.ndarray, stored: np.dtype) -> np.ndarray:
    if values.dtype.kind == "f":
        values = values.view(UNSIGNED[values.dtype.itemsize * 8])
    if values.dtype.kind == "i" and values.dtype.itemsize < stored.itemsize:
        return values.astype(SIGNED[stored.itemsize * 8]).view(stored)
    return values.astype(stored, copy=False)


def address(m: "Machine", operand: str) -> Reader | int:
    """Reader of the uint64 address that '[base+offset]' stands for; of a parameter, its offset as an int instead.

    Addresses in registers of 32 bits, those of shared memory, wrap: compilers write [r + offset] with a negative r.
    """
    base, sign, offset = re.match(r"\[\s*([^+\-\s\]]+)\s*(?:([+-])\s*(-?\w+))?\s*\]", operand).groups()
    offset = int(offset, 0) * (-1 if sign == "-" else 1) if offset else 0
    if base in m.param_offset:
        return m.param_offset[base] + offset
    bits = 32 if m.kernel.register_type(base) in ("b32", "u32", "s32") else 64
    read, distance, mask = reader(m, base, f"u{bits}"), np.uint64(offset & (2**64 - 1)), np.uint64(2**bits - 1)
    return lambda ix: (read(ix).astype(np.uint64) + distance) & mask
