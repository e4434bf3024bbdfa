"""Triton's interpreter as these tests need it: bfloat16 as the GPU has it, and no work twice."""

from functools import cache
from types import SimpleNamespace

import numpy as np
import triton.language as tl
import triton.runtime.interpreter as triton_interpreter

Handle = triton_interpreter.TensorHandle


def widen(bits):
    return (np.ascontiguousarray(bits).astype(np.uint32) << 16).view(np.float32)


def narrow(values):
    """Round to nearest, ties to even."""
    values = np.ascontiguousarray(values, dtype=np.float32)
    bits = values.view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = ((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FFF), rounded)


def install():
    round_bfloat16()
    patch_once()


def round_bfloat16():
    """The interpreter truncates where it should round, and computes with the raw bits. Kernels
    widen what they load and narrow what they store: casts are all that must be right."""
    cast = triton_interpreter.InterpreterBuilder.cast_impl

    def cast_impl(self, source, target):
        before, after = source.dtype.scalar, target.scalar
        if tl.bfloat16 not in (before, after):
            return cast(self, source, target)
        if before == after:
            return source
        if before == tl.bfloat16:
            wide = Handle(widen(source.data), tl.float32)
            return wide if after == tl.float32 else cast(self, wide, target)
        narrowed = narrow(source.data).reshape(np.shape(source.data))
        return Handle(narrowed, tl.bfloat16)

    triton_interpreter.InterpreterBuilder.cast_impl = cast_impl


def patch_once():
    """The interpreter replaces all of `triton.language` for each launch and for each call of a
    device function, which takes longer than what they compute. In a process that only interprets
    the replacements may stay."""
    patch = triton_interpreter._patch_lang

    @cache
    def patch_for(function):
        patch(function)
        return SimpleNamespace(restore=lambda: None)

    triton_interpreter._patch_lang = patch_for
