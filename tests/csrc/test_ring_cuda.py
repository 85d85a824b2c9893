"""The CUDA module loads and checks its arguments on any machine, and gives the bits of the CPU kernels on a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from lipstream import _native
from test_kernels_on_cpu import ODD, converted, pictures
from test_plugin import SIZES, Case, check

cuda: Any = pytest.importorskip(
    "lipstream._native_cuda", reason="lipstream._native_cuda is not built: no CUDA compiler, or LIPSTREAM_CUDA is off"
)
_no_gpu = pytest.mark.skipif(
    cuda.device_count() == 0 or not torch.cuda.is_available(), reason="needs a GPU, and PyTorch for its memory"
)


def on_gpu(test: Any) -> Any:
    return pytest.mark.gpu(_no_gpu(test))


without_gpu = pytest.mark.skipif(cuda.device_count() > 0, reason="would give a real GPU made-up addresses")

Arguments = dict[str, Any]
RING: Arguments = {"ring_shape": (7, 4, 2, 12), "dtype": "float32"}
ADDRESS = 1 << 20
WRITE = RING | dict.fromkeys(("k_ring", "v_ring", "k", "v", "k_weight", "cos_t", "sin_t", "cos_s", "sin_s"), ADDRESS)
WRITE |= {"slot": 3, "frames": 3, "temporal_pairs": 2, "eps": 1e-6}
KEEP = RING | dict.fromkeys(("k_ring", "v_ring", "sink_base"), ADDRESS)
KEEP |= {"slot": 0, "rolling": 6, "first": 0, "count": 1}
ANCHOR = RING | dict.fromkeys(("k_ring", "sink_base", "cos", "sin"), ADDRESS)
ANCHOR |= {"rolling": 6, "count": 1, "temporal_pairs": 2}
CONDITION: Arguments = dict.fromkeys(("condition", "first", "mask", "masked", "sequence"), ADDRESS)
CONDITION |= {"latent_shape": (16, 3, 8, 8)}
ADVANCE: Arguments = dict.fromkeys(("next", "clean", "x", "velocity", "noise"), ADDRESS)
ADVANCE |= {"t": 1.0, "next_t": 0.5, "count": 12}
UNPACK: Arguments = {"planes": ADDRESS, "bytes": ADDRESS, "picture_shape": (12, 8, 8)}
PACK: Arguments = UNPACK | {"not_finite": ADDRESS}
OFFSET: Arguments = dict.fromkeys(("offset", "generated", "wanted", "trusted"), ADDRESS) | {"size": 64, "cells": 32}
PART: Arguments = dict.fromkeys(("part", "generated", "offset"), ADDRESS) | {"size": 64, "cells": 32}
PART |= {"shown": (3, 4, 60, 62), "block": 2, "pad": 6}
RENDER: Arguments = dict.fromkeys(("block", "picture", "filter_x", "filter_y", "alpha"), ADDRESS)
RENDER |= {"region": (5, 6, 50, 60), "picture_shape": (40, 41), "taps": (6, 8), "alpha_shape": (64, 64)}
RENDER |= {"to_picture": (1, 0, 0, 0, 1, 0), "to_alpha": (1, 0, 0, 0, 1, 0)}
BLEND: Arguments = dict.fromkeys(("samples", "block", "weights_x", "weights_y"), ADDRESS)
BLEND |= {"shape": (20, 30), "block_shape": (41, 61), "first": (0, -1), "step": (2, 2), "taps": (2, 3)}
BLEND |= {"row": (0.2, 0.7, 0.1, 16.0), "most": 255, "dtype": "uint8"}


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
        ("ring_write", WRITE, {"k_weight": 0}, "k_weight is 0"),
        ("ring_write", WRITE, {"dtype": "float8_e4m3", "k_scale": ADDRESS}, "v_scale is 0, expected a device address"),
        ("ring_write", WRITE, {"dtype": "int8"}, "dtype is 'int8', expected 'float32', 'float16', 'bfloat16' or"),
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
        ("ring_anchor", ANCHOR, {"dtype": "float8_e4m3"}, "heads_first is False, expected True"),
        ("ring_anchor", ANCHOR, {"k_ring": [ADDRESS, ADDRESS]}, "of 2, 2 and 1 layers, expected the same number"),
        ("ring_anchor", ANCHOR, {"k_ring": [ADDRESS, 4], "sink_base": [ADDRESS] * 2}, "k_ring is 4, expected a device"),
        ("ring_keep", KEEP, {"v_ring": [ADDRESS] * 3}, "of 1, 3 and 1 layers"),
        ("assemble_condition", CONDITION, {"masked": 0}, "masked is 0, expected a device address"),
        ("assemble_condition", CONDITION, {"condition": ADDRESS + 2}, "a multiple of 4"),
        ("assemble_condition", CONDITION, {"latent_shape": (16, 3, 0, 8)}, "latent_shape is not"),
        ("assemble_condition", CONDITION, {"latent_shape": (2**20, 2**20, 2**20, 2**20)}, "latent_shape is not"),
        ("advance", ADVANCE, {"velocity": 0}, "velocity is 0"),
        ("advance", ADVANCE, {"next": 0}, "next is 0"),
        ("advance", ADVANCE, {"count": -1}, "count is -1, expected 0"),
        ("advance", ADVANCE, {"count": 2**31}, "count is 2147483648"),
        ("unpack_pictures", UNPACK, {"bytes": 0}, "bytes is 0, expected a device address"),
        ("unpack_pictures", UNPACK, {"planes": ADDRESS + 2}, "a multiple of 4"),
        ("unpack_pictures", UNPACK, {"picture_shape": (2**16, 8, 8)}, r"picture_shape is \(65536, 8, 8\), expected"),
        ("unpack_pictures", UNPACK, {"picture_shape": (1, 2**62, 2**62)}, "picture_shape is"),
        ("pack_pictures", PACK, {"planes": 0}, "planes is 0"),
        ("pack_pictures", PACK, {"not_finite": ADDRESS + 2}, "not_finite is"),
        ("pack_pictures", PACK, {"picture_shape": (12, 0, 8)}, "picture_shape is"),
        ("pack_pictures", PACK, {"picture_shape": (12, 8192, 8192)}, "picture_shape is"),
        ("colour_offset", OFFSET, {"wanted": 0}, "wanted is 0, expected a device address"),
        ("colour_offset", OFFSET, {"cells": 33}, "cells is 33, expected 1 to 32"),
        ("colour_offset", OFFSET, {"size": 20}, "cells is 32, expected 1 to 20"),
        ("corrected_part", PART, {"part": ADDRESS + 4}, "part is 1048580, expected a device address, a multiple of 16"),
        ("corrected_part", PART, {"shown": (3, 4, 65, 62)}, "shown is not a part of a picture of 64"),
        ("corrected_part", PART, {"block": 0}, "block is 0"),
        ("corrected_part", PART, {"pad": -1}, "pad is -1"),
        ("render", RENDER, {"region": (5, 6, 5, 60)}, "region is"),
        ("render", RENDER, {"region": (0, 0, 2**20, 2**20)}, "region is"),
        ("render", RENDER, {"taps": (7, 8)}, "taps are 7, expected an even number"),
        ("render", RENDER, {"taps": (42, 8)}, "taps is 42, expected 2 to 41"),
        ("render", RENDER, {"to_alpha": (1, 0, np.nan, 0, 1, 0)}, "to_alpha holds nan"),
        ("blend", BLEND, {"block_shape": (0, 61)}, "block_shape is"),
        ("blend", BLEND, {"taps": (0, 3)}, "taps is 0"),
        ("blend", BLEND, {"dtype": "uint16", "samples": ADDRESS + 1}, "a multiple of 2"),
        ("blend", BLEND, {"dtype": "float32"}, "expected 'uint8' or 'uint16'"),
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
        ("ring_anchor", ANCHOR | {"k_ring": [ADDRESS] * 70, "sink_base": [ADDRESS] * 70, "heads_first": True}),
        ("ring_keep", KEEP | {"k_ring": [ADDRESS], "v_ring": [ADDRESS], "sink_base": [ADDRESS]}),
        ("assemble_condition", CONDITION),
        ("advance", ADVANCE),
        ("unpack_pictures", UNPACK),
        ("pack_pictures", PACK),
        ("colour_offset", OFFSET),
        ("corrected_part", PART),
        ("render", RENDER),
        ("blend", BLEND | {"dtype": "uint16"}),
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
@pytest.mark.parametrize("heads_first", [False, True])
@pytest.mark.parametrize(
    ("tokens", "heads", "head_dim", "temporal_pairs"),
    [(1024, 40, 128, 22), (16, 2, 24, 4), (5, 3, 14, 3), (3, 1, 2, 1), (4, 2, 12, 0), (4, 2, 12, 6), (7, 300, 64, 12)],
)
def test_the_sink_moves_as_on_the_cpu(
    dtype: torch.dtype, heads_first: bool, tokens: int, heads: int, head_dim: int, temporal_pairs: int
) -> None:
    """Two layers in one launch, the same bits; odd sizes take the narrow kernels."""
    rng = np.random.default_rng(4)
    frame, rolling, sink = (tokens, heads, head_dim), 6, 2
    layers = [[stored(rng, (slots, *frame), dtype) for slots in (rolling + sink, rolling + sink, sink)] for _ in "ab"]
    angles = rng.uniform(0, 6, temporal_pairs)
    turn = [f(angles).astype(np.float32) for f in (np.cos, np.sin)]

    def turned(x: torch.Tensor, back: bool = False) -> torch.Tensor:
        order = (0, 1, 2, 3) if not heads_first else (1, 2, 0, 3) if back else (2, 0, 1, 3)
        return x.permute(order).contiguous()

    device = [[turned(x).to("cuda", copy=True) for x in layer] for layer in layers]
    device_turn = [torch.from_numpy(x).cuda() for x in turn]
    for k_ring, v_ring, base in ([as_numpy(x) for x in layer] for layer in layers):
        _native.ring_keep(k_ring, v_ring, base, 3, rolling, 0, sink)
        _native.ring_anchor(k_ring, base, rolling, sink, turn[0], turn[1])

    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    k, v, base = ([layer[i].data_ptr() for layer in device] for i in range(3))
    named: Arguments = {
        "ring_shape": (rolling + sink, *frame),
        "dtype": str(dtype).removeprefix("torch."),
        "heads_first": heads_first,
        "stream": stream.cuda_stream,
    }
    cuda.ring_keep(k, v, base, 3, rolling, 0, sink, **named)
    cuda.ring_anchor(
        k, base, rolling, sink, *(x.data_ptr() for x in device_turn), temporal_pairs=temporal_pairs, **named
    )
    stream.synchronize()
    for ours, theirs in zip(device, layers, strict=True):
        for x, expected in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(as_numpy(turned(x.cpu(), back=True)), as_numpy(expected))


@on_gpu
@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("shape", [(12, 512, 512), (3, 17, 31)])
def test_pictures_are_converted_as_by_numpy(shape: tuple[int, int, int], odd: float | None) -> None:
    given, planes = pictures(shape, odd)
    unpacked, packed = converted(given, planes)
    device = [torch.from_numpy(x).cuda() for x in (given, planes)]
    found_planes, found_bytes = torch.from_numpy(unpacked).cuda() * 0, torch.from_numpy(packed).cuda() * 0
    flag = torch.zeros(1, dtype=torch.int32, device="cuda")
    torch.cuda.synchronize()
    cuda.unpack_pictures(found_planes.data_ptr(), device[0].data_ptr(), picture_shape=shape)
    cuda.pack_pictures(found_bytes.data_ptr(), flag.data_ptr(), device[1].data_ptr(), picture_shape=shape)
    cuda.synchronize()
    assert found_planes.cpu().numpy().tobytes() == unpacked.tobytes()
    np.testing.assert_array_equal(found_bytes.cpu().numpy(), packed)
    assert flag.item() == (odd is not None)


@on_gpu
@pytest.mark.parametrize("ring", ["float32", "float16", "bfloat16", "float8"])
@pytest.mark.parametrize("sizes", [*SIZES.values(), {"tokens": 1024, "heads": 12}, {"tokens": 1024, "heads": 40}])
def test_a_chunk_is_written_as_by_the_plugin(ring: str, sizes: dict[str, Any]) -> None:
    case = Case(ring, **{**sizes, "offset": 0})
    tensors = case.tensors()
    on_device = {name: torch.from_numpy(x.reshape(-1).view(np.uint8)).cuda() for name, x in tensors.items()}
    at = {name: x.data_ptr() for name, x in on_device.items() if name != "slot"}
    cuda.ring_write(
        **at,
        slot=case.slot,
        ring_shape=(case.slots, case.tokens, case.heads, case.head_dim),
        frames=case.frames,
        temporal_pairs=tensors["cos_t"].shape[1],
        eps=float(case.eps),
        dtype="float8_e4m3" if ring == "float8" else ring,
    )
    torch.cuda.synchronize()
    rings = [on_device[name].cpu().numpy().view(tensors[name].dtype) for name in ("k_ring", "v_ring")]
    check(case, np.stack(rings).reshape(2, *tensors["k_ring"].shape[1:]))
