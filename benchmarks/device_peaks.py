"""Measure the peak rates of a machine, by large matrix products and copies."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Ceiling:
    """Peak rates of a device: operations a second by type, bytes a second, bytes of memory."""

    fp32: float
    bf16: float
    fp8: float
    bandwidth: float
    memory: float
    origin: str


def measured(device: torch.device, threads: int) -> tuple[Ceiling, dict[str, float]]:
    """Return the ceilings of this machine, and the measurements they are computed from.

    On a CPU the bandwidth is that of a copy inside the cache, which holds the tensors of a small model; FP8 has
    bfloat16's rate, since PyTorch has no plain FP8 product.
    """
    torch.set_num_threads(threads)
    gpu = device.type == "cuda"
    fp32 = _product(device, torch.float32, 8192 if gpu else 1536)
    bf16 = _product(device, torch.bfloat16, 8192) if gpu else fp32
    memory = _copy(device, 2**28 if gpu else 2**26)
    figures = {"fp32_tflops": fp32 / 1e12, "memory_copy_gb_s": memory / 1e9}
    if gpu:
        figures["bf16_tflops"] = bf16 / 1e12
        total = float(torch.cuda.get_device_properties(device).total_memory)
        return Ceiling(fp32, bf16, bf16, memory, total, "measured"), figures
    cached = _copy(device, 2**17)
    figures["cached_copy_gb_s"] = cached / 1e9
    return Ceiling(fp32, fp32, fp32, cached, 0.0, "measured"), figures


def seconds(function: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call; on a GPU between two events of the device."""
    if device.type != "cuda":
        start = time.perf_counter()
        function()
        return time.perf_counter() - start
    begun, done = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begun.record()
    function()
    done.record()
    done.synchronize()
    return float(begun.elapsed_time(done)) / 1000


def _product(device: torch.device, dtype: torch.dtype, size: int) -> float:
    a = torch.randn(size, size, device=device, dtype=dtype)
    return 2 * size**3 / min(seconds(lambda: a @ a, device) for _ in range(12))


def _copy(device: torch.device, numbers: int) -> float:
    """Bytes read and written a second."""
    a = torch.ones(numbers, device=device)
    b = torch.empty_like(a)
    return 2 * a.nbytes / min(seconds(lambda: b.copy_(a), device) for _ in range(max(8, 2**25 // numbers)))
