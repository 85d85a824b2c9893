"""Compositing on the device: only the part of each frame that a mouth can touch goes up and comes down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...face import Overlay
from ...media.av_frame import Plane
from .cuda import Anything, DeviceMemory, Event, Lane, Layout, Pinned
from .resources import Resources

_ROOM = 1.5  # memory for regions is made this much larger than needed: a face that comes nearer grows
_FOUR = 16  # bytes of four float32


class FrameCompositor:
    """Composites the chunks of one stream, see `lipstream.face.compositing`. `side` alternates from chunk to chunk.

    Of a chunk the host stages what its overlays need, then enqueues it, and when it is done takes the patches.
    """

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._memory: _Memory | None = None
        self._staged: list[_Staged | None] = [None, None]

    def stage(self, side: int, overlays: Sequence[Overlay | None]) -> None:
        """Copy what the overlays of a chunk need to pinned memory.

        May allocate, and then waits for the lane. Raises GpuMemoryError.
        """
        self._staged[side] = staged = _Staged(overlays)
        if staged.first is None:
            return
        if self._memory is None or not self._memory.holds(staged):
            if self._memory is not None:
                self._wait()
            self._memory = _Memory(self._resources, staged)
        staged.fill(self._memory, side)

    def _wait(self) -> None:
        """Wait until the lane does not use the memory any more. For an event: another session may capture the lane."""
        done = Event(self._resources.cuda)
        with self._resources.turn:
            self._resources.decode.record(done)
        done.wait()

    def enqueue(self, side: int, lane: Lane, pictures: int, size: int) -> None:
        """Composite the staged chunk, whose crops uint8 [n, size, size, 3] are at the address `pictures`."""
        staged, memory = self._staged[side], self._memory
        if staged is None or staged.first is None or memory is None:
            return
        memory.upload_mask(lane, staged.first)
        lane.upload(memory.device.at["inputs"], staged.inputs)
        lane.upload(memory.device.at["samples"], staged.samples)
        place = {name: memory.device.at["inputs"] + offset for name, offset in staged.layout.at.items()}
        for index, overlay in enumerate(staged.overlays):
            if overlay is not None:
                self._composite(lane, memory, staged, place, index, overlay, pictures + index * size * size * 3)
        lane.download(staged.results, memory.device.at["samples"])

    def forget(self) -> None:
        """Keep no frame of the chunks that were staged."""
        self._staged = [None, None]

    def patches(self, side: int) -> list[list[Plane] | None]:
        """The samples of each overlay of the chunk, when it is done; valid until the next but one is staged."""
        staged = self._staged[side]
        return [] if staged is None else staged.patches

    def _composite(
        self,
        lane: Lane,
        memory: _Memory,
        staged: _Staged,
        place: dict[str, int],
        index: int,
        overlay: Overlay,
        generated: int,
    ) -> None:
        """Enqueue one overlay. `place`: addresses of the staged inputs, by name. `generated`: that of its crop."""
        kernels, stream, at = self._resources.kernels, int(lane.handle), memory.device.at
        mask, filter = overlay.mask, overlay.filter
        size, cells = len(mask.alpha), len(mask.trusted)
        kernels.colour_offset(
            at["offset"], generated, place[f"wanted.{index}"], at["trusted"], size=size, cells=cells, stream=stream
        )
        kernels.corrected_part(
            at["part"],
            generated,
            at["offset"],
            size=size,
            cells=cells,
            shown=mask.shown,
            block=filter.block,
            pad=filter.pad,
            stream=stream,
        )
        x0, y0, x1, y1 = overlay.region
        kernels.render(
            at["block"],
            at["part"],
            place[staged.filters[id(filter.x)]],
            place[staged.filters[id(filter.y)]],
            at["alpha"],
            region=overlay.region,
            picture_shape=_part_shape(overlay),
            to_picture=filter.to_picture.ravel().tolist(),
            taps=(filter.x.shape[1], filter.y.shape[1]),
            alpha_shape=mask.alpha.shape,
            to_alpha=overlay.to_crop.ravel().tolist(),
            stream=stream,
        )
        for plane, region in enumerate(overlay.samples):
            if not min(region.shape):
                continue
            x, y = region.x, region.y
            kernels.blend(
                at["samples"] + staged.planes.at[f"{index}.{plane}"],
                at["block"],
                place[f"x.{index}.{plane}"],
                place[f"y.{index}.{plane}"],
                shape=region.shape,
                block_shape=(y1 - y0, x1 - x0),
                first=(x.first, y.first),
                step=region.step,
                taps=(len(x.weights), len(y.weights)),
                row=region.row,
                most=region.most,
                dtype=str(overlay.frame.planes[plane].dtype),
                stream=stream,
            )


class _Staged:
    """One chunk on the host.

    Attributes:
        overlays: of its frames. first: one of them, or None. layout: of the small inputs. planes: of the samples.
        filters: names in the layout, by the identity of the weights. inputs, samples: pinned, as they go up. results:
            pinned, the samples as they come down: other memory, since a dropped chunk may come down when the one in its
            place is already staged.
    """

    inputs: Anything
    samples: Anything
    results: Anything

    def __init__(self, overlays: Sequence[Overlay | None]) -> None:
        self.overlays = overlays
        self.first = next((x for x in overlays if x is not None), None)
        self.arrays: dict[str, Anything] = {}
        self.filters: dict[int, str] = {}
        sizes: dict[str, int] = {}
        self.scratch = {"part": 0, "block": 0}
        for index, overlay in enumerate(overlays):
            if overlay is None:
                continue
            self.arrays[f"wanted.{index}"] = overlay.wanted
            for weights in (overlay.filter.x, overlay.filter.y):
                if id(weights) not in self.filters:  # most frames of a chunk have the same ones
                    self.filters[id(weights)] = f"filter.{len(self.filters)}"
                    self.arrays[self.filters[id(weights)]] = weights
            for plane, region in enumerate(overlay.samples):
                self.arrays |= {f"x.{index}.{plane}": region.x.weights, f"y.{index}.{plane}": region.y.weights}
                sizes[f"{index}.{plane}"] = _area(region.shape) * overlay.frame.planes[plane].itemsize
            x0, y0, x1, y1 = overlay.region
            needed = {"part": _area(_part_shape(overlay)), "block": (y1 - y0) * (x1 - x0)}
            self.scratch = {name: max(size, _FOUR * needed[name]) for name, size in self.scratch.items()}
        self.layout = Layout({name: array.nbytes for name, array in self.arrays.items()})
        self.planes = Layout(sizes)

    def fill(self, memory: _Memory, side: int) -> None:
        host = memory.host[side].at
        self.inputs = host["inputs"][: self.layout.bytes]
        self.samples, self.results = host["samples"][: self.planes.bytes], host["results"][: self.planes.bytes]
        for name, array in self.arrays.items():
            _part(self.inputs, self.layout, name, array.dtype, array.shape)[...] = array
        for index, overlay in enumerate(self.overlays):
            if overlay is not None:
                for patch, plane, region in zip(
                    self._patch(self.samples, index, overlay), overlay.frame.planes, overlay.samples, strict=False
                ):
                    patch[...] = plane[region.at]

    @property
    def patches(self) -> list[list[Plane] | None]:
        return [None if x is None else self._patch(self.results, index, x) for index, x in enumerate(self.overlays)]

    def _patch(self, whole: Anything, index: int, overlay: Overlay) -> list[Plane]:
        return [
            _part(whole, self.planes, f"{index}.{plane}", overlay.frame.planes[plane].dtype, region.shape)
            for plane, region in enumerate(overlay.samples)
        ]


class _Memory:
    """Device and pinned memory for chunks up to a size, with one mask. Attributes: device. host: of each side."""

    def __init__(self, resources: Resources, staged: _Staged) -> None:
        assert staged.first is not None
        cuda, self._mask = resources.cuda, staged.first.mask
        self._sizes: dict[str, int] = {name: int(_ROOM * size) for name, size in _needed(staged).items()}
        mask = {"alpha": self._mask.alpha, "trusted": self._mask.trusted}
        fixed = {name: array.nbytes for name, array in mask.items()} | {"offset": staged.first.wanted.nbytes}
        self.device = DeviceMemory(cuda, self._sizes | fixed)
        parts = {"inputs": "inputs", "samples": "samples", "results": "samples"}
        pinned = {name: ((self._sizes[size],), np.uint8) for name, size in parts.items()}
        self.host = [Pinned(cuda, pinned) for _ in range(2)]
        self._pinned = Pinned(cuda, {name: (array.shape, array.dtype) for name, array in mask.items()})
        for name, array in mask.items():
            self._pinned.at[name][...] = array
        self._uploaded = False

    def holds(self, staged: _Staged) -> bool:
        """Whether it is large enough for a chunk, and has its mask."""
        fits = all(size <= self._sizes[name] for name, size in _needed(staged).items())
        return fits and staged.first is not None and staged.first.mask is self._mask

    def upload_mask(self, lane: Lane, overlay: Overlay) -> None:
        """Copy the mask to the device, once."""
        if not self._uploaded:
            for name, array in self._pinned.at.items():
                lane.upload(self.device.at[name], array)
            self._uploaded = True


def _needed(staged: _Staged) -> dict[str, int]:
    """Bytes of the memory that depends on the faces' size."""
    return {"inputs": staged.layout.bytes, "samples": staged.planes.bytes, **staged.scratch}


def _part_shape(overlay: Overlay) -> tuple[int, int]:
    """Shape of what `Filter.prepared` makes of the overlay's crop."""
    left, top, right, bottom = overlay.mask.shown
    block, pad = overlay.filter.block, overlay.filter.pad
    return -(-(bottom - top) // block) + 2 * pad, -(-(right - left) // block) + 2 * pad


def _area(shape: tuple[int, int]) -> int:
    return shape[0] * shape[1]


def _part(whole: Anything, layout: Layout, name: str, dtype: Any, shape: Sequence[int]) -> Anything:
    """The array `name` of a block of bytes."""
    count = int(np.prod(shape))
    return np.frombuffer(whole, dtype, count, layout.at[name]).reshape(shape)
