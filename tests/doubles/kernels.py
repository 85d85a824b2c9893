"""`lipstream._native_cuda` on a `Device`: the formulas in NumPy, and the ring's kernels of the CPU.

tests/csrc/host checks that the CUDA kernels compute the same bits. A ring in FP8 is moved as the numbers that its codes
stand for without their scale, and rounded again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
from lipstream import _native
from lipstream.backends import sampler
from lipstream.backends.stepped import to_planes
from lipstream.face import compositing
from lipstream.media.lanczos import prepared

from .device import Bytes, Device

Floats = np.ndarray[Any, np.dtype[np.float32]]


def rounded(pictures: Floats) -> Bytes:
    """Pictures float32 in [0, 1] as uint8, half to even; NaN as 0."""
    return np.rint(np.clip(np.nan_to_num(pictures, nan=0.0), 0, 1) * np.float32(255)).astype(np.uint8)


def decoded(codes: Bytes) -> Floats:
    """What E4M3 codes stand for."""
    return codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32)


def is_fp8(dtype: str, heads_first: bool) -> bool:
    """Whether a ring holds codes, of the types that the double has."""
    assert dtype == "float32" or (dtype == "float8_e4m3" and heads_first)
    return dtype != "float32"


def make(device: Device) -> ModuleType:
    """The module."""

    def put(
        name: str,
        stream: int,
        reads: dict[str, tuple[int, Sequence[int]]],
        writes: dict[str, tuple[int, Sequence[int]]],
        compute: Callable[[dict[str, Floats]], dict[str, Floats]],
        in_place: tuple[str, ...] = (),
        codes: frozenset[str] = frozenset(),
    ) -> None:
        """float32 tensors by name, in memory as E4M3 if named in `codes`: their addresses and shapes."""

        def views(ends: dict[str, tuple[int, Sequence[int]]]) -> dict[str, Bytes]:
            return {
                key: device.view(address, (1 if key in codes else 4) * int(np.prod(shape)))
                for key, (address, shape) in ends.items()
            }

        def run(given: dict[str, Bytes]) -> dict[str, np.ndarray[Any, Any]]:
            floats = {key: decoded(x) if key in codes else x.view(np.float32) for key, x in given.items()}
            found = compute({key: x.reshape(reads[key][1]) for key, x in floats.items()})
            return {key: _native.e4m3(x) if key in codes else x for key, x in found.items()}

        device.counts[name] += 1
        device.put(
            stream,
            device.computation(name, lambda: views(reads), lambda: views(writes), run, in_place=frozenset(in_place)),
        )

    def rings(shape: Sequence[int], rolling: int, heads_first: bool) -> tuple[list[int], list[int]]:
        slots, tokens, heads, dim = shape
        sinks = max(slots - rolling, 1)
        if heads_first:
            return [heads, slots, tokens, dim], [heads, sinks, tokens, dim]
        return [slots, tokens, heads, dim], [sinks, tokens, heads, dim]

    def frames_first(x: Floats, heads_first: bool) -> Floats:
        return np.array(x.transpose(1, 2, 0, 3) if heads_first else x, order="C")

    def back(x: Floats, heads_first: bool) -> Floats:
        return np.ascontiguousarray(x.transpose(2, 0, 1, 3) if heads_first else x)

    def layers(
        names: Sequence[str], addresses: Sequence[Sequence[int]], shapes: Sequence[Sequence[int]]
    ) -> dict[str, tuple[int, Sequence[int]]]:
        """Tensors of every layer, "name.i"; each of `addresses` is one for each layer."""
        (count,) = {len(of_layers) for of_layers in addresses}
        named = zip(names, addresses, shapes, strict=True)
        return {f"{name}.{i}": (at[i], shape) for name, at, shape in named for i in range(count)}

    def ring_keep(
        k_ring: Sequence[int],
        v_ring: Sequence[int],
        sink_base: Sequence[int],
        slot: int,
        rolling: int,
        first: int,
        count: int,
        *,
        ring_shape: Sequence[int],
        dtype: str,
        heads_first: bool = False,
        stream: int = 0,
    ) -> None:
        fp8 = is_fp8(dtype, heads_first)
        ring, sink = rings(ring_shape, rolling, heads_first)

        def compute(given: dict[str, Floats]) -> dict[str, Floats]:
            found = {}
            for i in range(len(k_ring)):
                k, v, base = (frames_first(given[f"{name}.{i}"], heads_first) for name in ("k", "v", "base"))
                _native.ring_keep(k, v, base, slot, rolling, first, count)
                found |= {f"v.{i}": back(v, heads_first), f"base.{i}": back(base, heads_first)}
            return found

        ends = layers(("k", "v", "base"), (k_ring, v_ring, sink_base), (ring, ring, sink))
        written = {name: end for name, end in ends.items() if not name.startswith("k.")}
        put("ring_keep", stream, ends, written, compute, tuple(written), frozenset(ends) if fp8 else frozenset())

    def ring_anchor(
        k_ring: Sequence[int],
        sink_base: Sequence[int],
        rolling: int,
        count: int,
        cos: int,
        sin: int,
        *,
        ring_shape: Sequence[int],
        temporal_pairs: int,
        dtype: str,
        heads_first: bool = False,
        stream: int = 0,
    ) -> None:
        fp8 = is_fp8(dtype, heads_first)
        ring, sink = rings(ring_shape, rolling, heads_first)

        def compute(given: dict[str, Floats]) -> dict[str, Floats]:
            found = {}
            for i in range(len(k_ring)):
                k, base = (frames_first(given[f"{name}.{i}"], heads_first) for name in ("k", "base"))
                _native.ring_anchor(k, base, rolling, count, given["cos"], given["sin"], threads=1)
                found[f"k.{i}"] = back(k, heads_first)
            return found

        ends = layers(("k", "base"), (k_ring, sink_base), (ring, sink))
        written = {name: end for name, end in ends.items() if name.startswith("k.")}
        tables = {"cos": (cos, [temporal_pairs]), "sin": (sin, [temporal_pairs])}
        codes = frozenset(ends) if fp8 else frozenset()
        put("ring_anchor", stream, ends | tables, written, compute, tuple(written), codes)

    def assemble_condition(
        condition: int,
        first: int,
        mask: int,
        masked: int,
        sequence: int,
        *,
        latent_shape: Sequence[int],
        stream: int = 0,
    ) -> None:
        channels, frames, height, width = latent_shape
        reads: dict[str, tuple[int, Sequence[int]]] = {
            "first": (first, [channels, 1, height, width]),
            "mask": (mask, [height, width]),
            "masked": (masked, latent_shape),
            "sequence": (sequence, latent_shape),
        }
        writes: dict[str, tuple[int, Sequence[int]]] = {
            "condition": (condition, [3 * channels + 1, frames, height, width])
        }
        put(
            "condition",
            stream,
            reads,
            writes,
            lambda x: {"condition": sampler.assemble_condition(x["first"], x["mask"], x["masked"], x["sequence"])},
        )

    def advance(
        next: int,
        clean: int,
        x: int,
        velocity: int,
        noise: int,
        *,
        t: float,
        next_t: float,
        count: int,
        stream: int = 0,
    ) -> None:
        size = [count]
        reads: dict[str, tuple[int, Sequence[int]]] = {"x": (x, size), "velocity": (velocity, size)}
        writes: dict[str, tuple[int, Sequence[int]]] = {"clean": (clean, size)}
        if noise:
            reads["noise"], writes["next"] = (noise, size), (next, size)

        def compute(given: dict[str, Floats]) -> dict[str, Floats]:
            x0 = sampler.predict_x0(given["x"], given["velocity"], t)
            return {"clean": x0} | ({"next": sampler.add_noise(x0, given["noise"], next_t)} if noise else {})

        put("advance", stream, reads, writes, compute, ("next",) if next == x else ())

    def unpack_pictures(planes: int, bytes: int, *, picture_shape: Sequence[int], stream: int = 0) -> None:
        count, height, width = picture_shape
        size = 3 * count * height * width

        def compute(given: dict[str, Bytes]) -> dict[str, Floats]:
            return {"planes": to_planes(given["bytes"].reshape(count, height, width, 3))}

        device.put(
            stream,
            device.computation(
                "unpack",
                lambda: {"bytes": device.view(bytes, size)},
                lambda: {"planes": device.view(planes, 4 * size)},
                compute,
            ),
        )

    def pack_pictures(
        bytes: int, not_finite: int, planes: int, *, picture_shape: Sequence[int], stream: int = 0
    ) -> None:
        count, height, width = picture_shape
        size = 3 * count * height * width

        def compute(given: dict[str, Bytes]) -> dict[str, np.ndarray[Any, Any]]:
            x = given["planes"].view(np.float32).reshape(count, 3, height, width)
            flag = given["not_finite"].view(np.int32) | np.int32(not np.isfinite(x).all())
            return {"bytes": rounded(x.transpose(0, 2, 3, 1)), "not_finite": flag}

        def ends(*names: str) -> Callable[[], dict[str, Bytes]]:
            places = {"planes": (planes, 4 * size), "bytes": (bytes, size), "not_finite": (not_finite, 4)}
            return lambda: {name: device.view(*places[name]) for name in names}

        device.put(
            stream,
            device.computation(
                "pack",
                ends("planes", "not_finite"),
                ends("bytes", "not_finite"),
                compute,
                in_place=frozenset({"not_finite"}),
            ),
        )

    def put_arrays(
        name: str,
        stream: int,
        reads: dict[str, tuple[int, Sequence[int], str]],
        writes: dict[str, tuple[int, Sequence[int], str]],
        compute: Callable[[dict[str, Any]], dict[str, np.ndarray[Any, Any]]],
    ) -> None:
        """A step of compositing: arrays by name, with their addresses, shapes and types."""

        def views(ends: dict[str, tuple[int, Sequence[int], str]]) -> dict[str, Bytes]:
            return {
                key: device.view(address, int(np.prod(shape)) * np.dtype(dtype).itemsize)
                for key, (address, shape, dtype) in ends.items()
            }

        def run(given: dict[str, Bytes]) -> dict[str, np.ndarray[Any, Any]]:
            return compute({key: x.view(reads[key][2]).reshape(reads[key][1]) for key, x in given.items()})

        device.counts[name] += 1
        computation = device.computation(
            name, lambda: views(reads), lambda: views(writes), run, in_place=frozenset({*reads} & {*writes})
        )
        device.put(stream, computation)

    def colour_offset(
        offset: int, generated: int, wanted: int, trusted: int, *, size: int, cells: int, stream: int = 0
    ) -> None:
        reads = {
            "generated": (generated, (size, size, 3), "uint8"),
            "wanted": (wanted, (cells, cells, 3), "float32"),
            "trusted": (trusted, (cells, cells), "float32"),
        }

        def compute(given: dict[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
            pictures = given["generated"] / np.float32(255)
            return {"offset": compositing.colour_offset(pictures, given["wanted"], given["trusted"])}

        put_arrays("colour_offset", stream, reads, {"offset": (offset, (cells, cells, 3), "float32")}, compute)

    def corrected_part(
        part: int,
        generated: int,
        offset: int,
        *,
        size: int,
        cells: int,
        shown: Sequence[int],
        block: int,
        pad: int,
        stream: int = 0,
    ) -> None:
        left, top, right, bottom = shown
        shape = (-(-(bottom - top) // block) + 2 * pad, -(-(right - left) // block) + 2 * pad, 4)
        reads = {
            "generated": (generated, (size, size, 3), "uint8"),
            "offset": (offset, (cells, cells, 3), "float32"),
        }

        def compute(given: dict[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
            whole = compositing.corrected(given["generated"] / np.float32(255), given["offset"])
            return {"part": prepared(whole[top:bottom, left:right], block, pad)}

        put_arrays("corrected_part", stream, reads, {"part": (part, shape, "float32")}, compute)

    def render(
        block: int,
        picture: int,
        filter_x: int,
        filter_y: int,
        alpha: int,
        *,
        region: Sequence[int],
        picture_shape: Sequence[int],
        to_picture: Sequence[float],
        taps: Sequence[int],
        alpha_shape: Sequence[int],
        to_alpha: Sequence[float],
        stream: int = 0,
    ) -> None:
        x0, y0, x1, y1 = region
        reads = {
            "picture": (picture, (*picture_shape, 4), "float32"),
            "filter_x": (filter_x, (256, taps[0]), "float32"),
            "filter_y": (filter_y, (256, taps[1]), "float32"),
            "alpha": (alpha, alpha_shape, "float32"),
        }
        of_picture, of_alpha = (np.array(values, np.float64).reshape(2, 3) for values in (to_picture, to_alpha))

        def compute(given: dict[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
            found = np.empty((y1 - y0, x1 - x0, 4), np.float32)
            filters = given["filter_x"], given["filter_y"]
            _native.render(found, (x0, y0), 1.0, given["picture"], of_picture, *filters, given["alpha"], of_alpha)
            return {"block": found}

        put_arrays("render", stream, reads, {"block": (block, (y1 - y0, x1 - x0, 4), "float32")}, compute)

    def blend(
        samples: int,
        block: int,
        weights_x: int,
        weights_y: int,
        *,
        shape: Sequence[int],
        block_shape: Sequence[int],
        first: tuple[int, int],
        step: tuple[int, int],
        taps: Sequence[int],
        row: Sequence[float],
        most: float,
        dtype: str,
        stream: int = 0,
    ) -> None:
        place = (samples, shape, dtype)
        reads = {
            "samples": place,
            "block": (block, (*block_shape, 4), "float32"),
            "weights_x": (weights_x, (taps[0],), "float32"),
            "weights_y": (weights_y, (taps[1],), "float32"),
        }

        def compute(given: dict[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
            plane = given["samples"].copy()
            region = (0, 0, shape[1], shape[0])
            weights = given["weights_x"], given["weights_y"]
            _native.blend(plane, region, given["block"], first, step, *weights, row, most)
            return {"samples": plane}

        put_arrays("blend", stream, reads, {"samples": place}, compute)

    overlays = (colour_offset, corrected_part, render, blend)
    module = ModuleType("lipstream._native_cuda")
    conversions = (unpack_pictures, pack_pictures)
    for call in (ring_keep, ring_anchor, assemble_condition, advance, *conversions, *overlays):
        setattr(module, call.__name__, call)
    return module
