"""HDR metadata of a video: its mastering display and its light levels (SMPTE ST 2086, CTA-861.3)."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

Point = tuple[Fraction, Fraction]
"""CIE 1931 chromaticity (x, y)."""


@dataclass(frozen=True)
class Hdr:
    """Metadata of one video.

    Attributes:
        primaries: of red, green and blue, and the white point; None if not stated.
        luminance: of the darkest and the brightest pixel of the mastering display, cd/m2; None if not stated.
        light: the content's maximum and the highest mean of a frame, cd/m2; None if not stated.
    """

    primaries: tuple[Point, Point, Point, Point] | None = None
    luminance: tuple[Fraction, Fraction] | None = None
    light: tuple[int, int] | None = None

    @staticmethod
    def of(side_data: Mapping[str, bytes]) -> Hdr | None:
        """Metadata in the side data of a decoded frame, by PyAV's names of their types; None if it has none."""
        display = side_data.get("MASTERING_DISPLAY_METADATA")
        light = side_data.get("CONTENT_LIGHT_LEVEL")
        if display is None and light is None:
            return None
        primaries = luminance = None
        if display is not None:  # AVMasteringDisplayMetadata: ten AVRational, two flags
            *numbers, has_primaries, has_luminance = struct.unpack_from("=22i", display)
            values = [Fraction(a, b or 1) for a, b in zip(numbers[::2], numbers[1::2], strict=True)]
            points = [(values[i], values[i + 1]) for i in (0, 2, 4, 6)]
            primaries = (points[0], points[1], points[2], points[3]) if has_primaries else None
            luminance = (values[8], values[9]) if has_luminance else None
        levels = struct.unpack_from("=2I", light) if light is not None else None
        return Hdr(primaries, luminance, levels)

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it; see `from_json`."""
        return {
            "primaries": self.primaries and [[str(x), str(y)] for x, y in self.primaries],
            "luminance": self.luminance and [str(level) for level in self.luminance],
            "light": self.light,
        }

    @staticmethod
    def from_json(found: dict[str, Any]) -> Hdr:
        """What `to_json` gave. Raises ValueError, TypeError or KeyError for anything else."""
        primaries = luminance = light = None
        if found["primaries"] is not None:
            red, green, blue, white = ((Fraction(x), Fraction(y)) for x, y in found["primaries"])
            primaries = red, green, blue, white
        if found["luminance"] is not None:
            darkest, brightest = map(Fraction, found["luminance"])
            luminance = darkest, brightest
        if found["light"] is not None:
            most, mean = map(int, found["light"])
            light = most, mean
        return Hdr(primaries, luminance, light)

    def x265(self) -> list[str]:
        """x265's options: chromaticities in units of 0.00002, luminance in 0.0001 cd/m2."""
        options = ["hdr10=1", "repeat-headers=1"]
        if self.primaries and self.luminance:
            options.append("master-display=" + self._display(50_000, 10_000))
        if self.light:
            options.append(f"max-cll={self.light[0]},{self.light[1]}")
        return options

    def svt_av1(self) -> list[str]:
        """SVT-AV1's options."""
        options = []
        if self.primaries and self.luminance:
            options.append("mastering-display=" + self._display(0, 0))
        if self.light:
            options.append(f"content-light={self.light[0]},{self.light[1]}")
        return options

    def _display(self, per_unit: int, per_nit: int) -> str:
        """In the order green, blue, red, white; in whole units, or as decimals where a scale is 0."""
        assert self.primaries is not None
        assert self.luminance is not None
        red, green, blue, white = self.primaries
        darkest, brightest = self.luminance

        def text(value: Fraction, scale: int) -> str:
            return str(round(value * scale)) if scale else f"{float(value):.6f}"

        points = zip("GBR", (green, blue, red), strict=True)
        places = [*points, ("WP", white)]
        shown = "".join(f"{name}({text(x, per_unit)},{text(y, per_unit)})" for name, (x, y) in places)
        return f"{shown}L({text(brightest, per_nit)},{text(darkest, per_nit)})"
