"""The CUDA module loads and checks its arguments on any machine, and gives the bits of the CPU kernels on a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from lipstream import _native

cuda: Any = pytest.importorskip(
    "lipstream._native_cuda", reason="lipstream._native_cuda is not built: no CUDA compiler, or LIPSTREAM_CUDA is off"
)
on_gpu = pytest.mark.skipif(
    cuda.device_count() == 0 or not torch.cuda.is_available(), reason="needs a GPU, and PyTorch for its memory"
)
without_gpu = pytest.mark.skipif(cuda.device_count() > 0, reason="would give a real GPU made-up addresses")

Arguments = dict[str, Any]
RING: Arguments = {"ring_shape": (7, 4, 2, 12), "dtype": "float32"}
ADDRESS = 1 << 20
WRITE = RING | dict.fromkeys(("k_ring", "v_ring", "k", "v", "cos_t", "sin_t", "cos_s", "sin_s"), ADDRESS)
WRITE |= {"slot": 3, "frames": 3, "temporal_pairs": 2}
KEEP = RING | dict.fromkeys(("k_ring", "v_ring", "sink_base"), ADDRESS)
KEEP |= {"slot": 0, "rolling": 6, "first": 0, "count": 1}
ANCHOR = RING | dict.fromkeys(("k_ring", "sink_base", "cos", "sin"), ADDRESS)
ANCHOR |= {"rolling": 6, "count": 1, "temporal_pairs": 2}
CONDITION: Arguments = dict.fromkeys(("condition", "first", "mask", "masked", "sequence"), ADDRESS)
CONDITION |= {"latent_shape": (16, 3, 8, 8)}
ADVANCE: Arguments = dict.fromkeys(("next", "clean", "x", "velocity", "noise"), ADDRESS)
ADVANCE |= {"t": 1.0, "next_t": 0.5, "count": 12}


@pytest.mark.parametrize(
    ("function", "given", "wrong", "message"),
    [
        ("ring_write", WRITE, {"k": 0}, "k is 0, expected a device address"),
        ("ring_write", WRITE, {"v_ring": ADDRESS + 4}, "expected a device address, a multiple of 8"),
        ("ring_write", WRITE, {"v_ring": ADDRESS + 2, "dtype": "bfloat16"}, "a multiple of 4"),
        ("ring_write", WRITE, {"cos_s": 0}, "cos_s is 0"),
        ("ring_write", WRITE, {"slot": 5}, "slot is 5, expected the 3 frames"),
        ("ring_write", WRITE, {"slot": -1}, "slot is -1"),
        ("ring_write", WRITE, {"frames": 0}, "frames is 0, expected 1 or more"),
        ("ring_write", WRITE, {"temporal_pairs": 7}, "7 temporal pairs, expected 0 to 6"),
        ("ring_write", WRITE, {"dtype": "float16"}, "dtype is 'float16', expected 'float32' or 'bfloat16'"),
        ("ring_write", WRITE, {"ring_shape": (7, 4, 2, 11)}, "head size is 11, expected an even"),
        ("ring_write", WRITE, {"ring_shape": (7, 0, 2, 12)}, r"ring_shape is \(7, 0, 2, 12\), expected"),
        ("ring_write", WRITE, {"ring_shape": (7, 2**62, 2, 12)}, "ring_shape is"),
        ("ring_write", WRITE, {"ring_shape": (7, 4, 2**62, 12)}, "ring_shape is"),
        ("ring_keep", KEEP, {"slot": 6}, "slot is 6, expected the 1 frames"),
        ("ring_keep", KEEP, {"first": 1}, "first is 1"),
        ("ring_keep", KEEP, {"rolling": 8}, "rolling is 8"),
        ("ring_keep", KEEP, {"count": -1}, "count is -1"),
        ("ring_keep", KEEP, {"sink_base": 0}, "sink_base is 0"),
        ("ring_anchor", ANCHOR, {"count": 2}, "rolling is 6, expected the 2 frames"),
        ("ring_anchor", ANCHOR, {"sin": 0}, "sin is 0"),
        ("ring_anchor", ANCHOR, {"k_ring": 12}, "k_ring is 12, expected a device address, a multiple of 8"),
        ("assemble_condition", CONDITION, {"masked": 0}, "masked is 0, expected a device address"),
        ("assemble_condition", CONDITION, {"condition": ADDRESS + 2}, "a multiple of 4"),
        ("assemble_condition", CONDITION, {"latent_shape": (16, 3, 0, 8)}, "latent_shape is not"),
        ("assemble_condition", CONDITION, {"latent_shape": (2**20, 2**20, 2**20, 2**20)}, "latent_shape is not"),
        ("advance", ADVANCE, {"velocity": 0}, "velocity is 0"),
        ("advance", ADVANCE, {"next": 0}, "next is 0"),
        ("advance", ADVANCE, {"count": -1}, "count is -1, expected 0"),
        ("advance", ADVANCE, {"count": 2**31}, "count is 2147483648"),
    ],
)
def test_invalid_arguments_are_rejected(function: str, given: Arguments, wrong: Arguments, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        getattr(cuda, function)(**{**given, **wrong})


@without_gpu
@pytest.mark.parametrize(
    ("function", "given"),
    [
        ("ring_write", WRITE),
        ("ring_keep", KEEP),
        ("ring_anchor", ANCHOR),
        ("assemble_condition", CONDITION),
        ("advance", ADVANCE),
    ],
)
def test_without_a_gpu_the_cuda_error_is_raised(function: str, given: Arguments) -> None:
    with pytest.raises(RuntimeError, match=r"^cudaError\w+: "):
        getattr(cuda, function)(**given)


def test_keeping_and_anchoring_no_frames_is_accepted() -> None:
    cuda.ring_keep(**{**KEEP, "slot": -1, "count": 0, "sink_base": 0})
    cuda.ring_anchor(**{**ANCHOR, "count": 0, "sink_base": 0})


def stored(rng: np.random.Generator, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(rng.standard_normal(shape).astype(np.float32)).to(dtype)


def as_numpy(x: torch.Tensor) -> Any:
    return (x.view(torch.uint16) if x.dtype == torch.bfloat16 else x).numpy()


@on_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("tokens", "heads", "head_dim", "temporal_pairs"),
    [(1024, 40, 128, 22), (16, 2, 24, 4), (5, 3, 14, 3), (3, 1, 2, 1), (4, 2, 12, 0), (4, 2, 12, 6), (7, 300, 64, 12)],
)
def test_same_bits_as_the_cpu(dtype: torch.dtype, tokens: int, heads: int, head_dim: int, temporal_pairs: int) -> None:
    """A whole chunk, kept, anchored and written on both; odd sizes take the narrow kernels."""
    rng = np.random.default_rng(4)
    frame, rolling, sink = (tokens, heads, head_dim), 6, 2
    k_ring, v_ring = (stored(rng, (rolling + sink, *frame), dtype) for _ in range(2))
    k, v = (stored(rng, (3, *frame), dtype) for _ in range(2))
    base = torch.zeros((sink, *frame), dtype=dtype)
    angle_t = rng.uniform(0, 6, (3, temporal_pairs))
    angle_s = rng.uniform(0, 6, (tokens, head_dim // 2 - temporal_pairs))
    tables = [f(angle).astype(np.float32) for angle in (angle_t, angle_s) for f in (np.cos, np.sin)]
    turn = [tables[0][2].copy(), tables[1][2].copy()]

    host = [as_numpy(x) for x in (k_ring, v_ring, base, k, v)]
    device = [x.to("cuda", copy=True) for x in (k_ring, v_ring, base, k, v)]
    device_tables, device_turn = ([torch.from_numpy(x).cuda() for x in part] for part in (tables, turn))

    _native.ring_keep(host[0], host[1], host[2], 3, rolling, 0, sink)
    _native.ring_anchor(host[0], host[2], rolling, sink, turn[0], turn[1])
    _native.ring_write(host[0], host[1], host[3], host[4], 3, tables[0], tables[1], tables[2], tables[3])

    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    at = [x.data_ptr() for x in device]
    named: Arguments = {
        "ring_shape": (rolling + sink, *frame),
        "dtype": str(dtype).removeprefix("torch."),
        "stream": stream.cuda_stream,
    }
    cuda.ring_keep(at[0], at[1], at[2], 3, rolling, 0, sink, **named)
    cuda.ring_anchor(
        at[0], at[2], rolling, sink, *(x.data_ptr() for x in device_turn), temporal_pairs=temporal_pairs, **named
    )
    cuda.ring_write(
        *(at[0], at[1], at[3], at[4], 3),
        *(x.data_ptr() for x in device_tables),
        frames=3,
        temporal_pairs=temporal_pairs,
        **named,
    )
    stream.synchronize()
    for ours, theirs in zip(device[:3], host[:3], strict=True):
        np.testing.assert_array_equal(as_numpy(ours.cpu()), theirs)
