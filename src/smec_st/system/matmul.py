"""Multiply float32 matrices with oneDNN on AMD processors, where it is faster than torch's default.

By default torch multiplies with Intel's MKL, which does not use AVX-512 on processors of other vendors. torch also
contains oneDNN, which does, but uses it for float32 matrices only if it is allowed to round them to bfloat16. oneDNN
rounds on processors with instructions for bfloat16 tiles (AMX) and computes in float32 on others. We measure which of
the two happens before we use it; ``benchmarks/matmul.py`` has the timings.
"""

from __future__ import annotations

import contextlib
import functools
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

_VENDOR = "AuthenticAMD"


@contextlib.contextmanager
def fast_matmul() -> Iterator[None]:
    """Multiply float32 matrices with oneDNN within this context, on AMD processors with AVX-512, at full precision.

    Nothing changes on other processors, on machines with a GPU, with torch before 2.9, or if a precision was set.
    """
    setting = _precision_setting()
    if setting is None or setting.fp32_precision != "none" or not _use_onednn():
        yield
        return
    setting.fp32_precision = "bf16"
    try:
        yield
    finally:
        setting.fp32_precision = "none"


def _precision_setting() -> Any | None:
    """Return the object whose ``fp32_precision`` controls multiplications by oneDNN; None if torch has none."""
    setting = getattr(torch.backends.mkldnn, "matmul", None)
    return setting if hasattr(setting, "fp32_precision") and torch.backends.mkldnn.is_available() else None


@functools.cache
def _use_onednn() -> bool:
    """Return whether this is an AMD processor with AVX-512, without a GPU, on which oneDNN computes in float32.

    The decision depends on the kind of processor and not on a timing, because the library must not change from run to
    run: otherwise a run could not be resumed bit for bit.
    """
    is_amd_with_avx512 = torch.backends.cpu.get_cpu_capability() == "AVX512" and _cpu_vendor() == _VENDOR
    return is_amd_with_avx512 and not torch.cuda.is_available() and rounding("bf16") < 8 * rounding("ieee")


def rounding(precision: str) -> float:
    """Return the largest error in a product of two random float32 matrices, compared with float64.

    Args:
        precision: The precision that oneDNN is set to, ``ieee`` or ``bf16``.
    """
    setting = _precision_setting()
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


def _cpu_vendor() -> str:
    """Return the vendor string of the processor; empty if it is unknown."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor().rpartition(" ")[2]  # Windows: "AMD64 Family 25 Model 80, AuthenticAMD"
    return next((line.rpartition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")
