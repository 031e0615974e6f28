"""Multiply float32 matrices on AMD processors as fast as those can.

torch multiplies by Intel's MKL, which does not use AVX-512 on processors of other makers. torch has oneDNN aboard too,
which does; but it hands float32 matrices to it only where it may round them to bfloat16. oneDNN rounds where the
processor has instructions for whole bfloat16 tiles, and multiplies exactly elsewhere: which of both it does here is
tried before it is used (``benchmarks/matmul.py``).
"""

from __future__ import annotations

import contextlib
import functools
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

_MAKER = "AuthenticAMD"


@contextlib.contextmanager
def fast_matmul() -> Iterator[None]:
    """Inside, float32 matrices on an AMD processor with AVX-512 are multiplied by oneDNN, as exactly as before.

    Nothing changes on other processors, beside a GPU, with torch before 2.9, or where somebody has chosen a precision.
    """
    setting = _setting()
    if setting is None or setting.fp32_precision != "none" or not _gains():
        yield
        return
    setting.fp32_precision = "bf16"
    try:
        yield
    finally:
        setting.fp32_precision = "none"


def _setting() -> Any | None:
    """What holds ``fp32_precision`` of multiplications by oneDNN; None where torch has none."""
    setting = getattr(torch.backends.mkldnn, "matmul", None)
    return setting if hasattr(setting, "fp32_precision") and torch.backends.mkldnn.is_available() else None


@functools.cache
def _gains() -> bool:
    """Whether the processor is such a one, and oneDNN is exact on it.

    By its kind and not by a clock: which library multiplies must not change from run to run, or no run could be
    continued bit for bit. Not beside a GPU, which multiplies itself.
    """
    is_such = torch.backends.cpu.get_cpu_capability() == "AVX512" and _maker() == _MAKER
    return is_such and not torch.cuda.is_available() and rounding("bf16") < 8 * rounding("ieee")


def rounding(precision: str) -> float:
    """Greatest error of a product of two random float32 matrices, beside the product in float64.

    Args:
        precision: As oneDNN is to have it, ``ieee`` or ``bf16``.
    """
    setting = _setting()
    assert setting is not None
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(512, 512, generator=generator) for _ in range(2))
    before = setting.fp32_precision
    setting.fp32_precision = precision
    try:
        product = left @ right
    finally:
        setting.fp32_precision = before
    return float((product.double() - left.double() @ right.double()).abs().max())


def _maker() -> str:
    """The processor's maker, as the processor has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor().rpartition(" ")[2]  # Windows: "AMD64 Family 25 Model 80, AuthenticAMD"
    return next((line.rpartition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")
