"""How pictures are encoded: the codec for a file and its pictures, its pixel format and options, and what is lost."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Literal, get_args

import av

from ..errors import ConfigError
from .hdr import Hdr
from .pixel_format import PictureFormat, siting_name
from .threads import codec_threads

VideoCodec = Literal["h264", "hevc", "av1", "prores"]

_PRESETS = {
    "ultrafast": 10,
    "superfast": 9,
    "veryfast": 9,
    "faster": 8,
    "fast": 8,
    "medium": 7,
    "slow": 5,
    "slower": 4,
    "veryslow": 3,
    "placebo": 3,
}
"""x264's and x265's presets, and those of SVT-AV1 that take their places."""
_FFV1_FORMATS = frozenset(f.name for f in av.Codec("ffv1", "w").video_formats or ())
_NO_HDR = "the HDR metadata are not kept: choose HEVC"
_CHROMA_PLACES = ("left", "center", "topleft", "top", "bottomleft", "bottom")  # H.264, E.2.1


@dataclass(frozen=True)
class Encoding:
    """How the pictures of one file are encoded.

    Attributes:
        encoder: FFmpeg's name. format: that pictures are encoded in. options: of the encoder. tag: FourCC, "" for the
            muxer's choice. losses: what the file does not keep of the pictures, as text; alpha is not counted.
    """

    encoder: str
    format: PictureFormat
    options: dict[str, str]
    tag: str = ""
    losses: tuple[str, ...] = ()


def lossless(format: PictureFormat) -> Encoding:
    """FFV1 in `format`, where it exists there, or in one that holds all of it."""
    if format.name in ("gbrp", "gbrap"):  # FFV1 has them packed
        return Encoding("ffv1", replace(format, name="bgra" if format.has_alpha else "bgr0"), {})
    return Encoding("ffv1", format if format.name in _FFV1_FORMATS else format.full_chroma, {})


def encoding(
    codec: VideoCodec | None, suffix: str, format: PictureFormat, hdr: Hdr | None, *, crf: int, preset: str
) -> Encoding:
    """Encoding of pictures of `format` for a file with `suffix`.

    Args:
        codec: None chooses what most players take and the pictures fit into: H.264; HEVC from 9 bits on; ProRes for
            alpha in .mov.

    Raises:
        ConfigError: no such codec or preset, or a codec that the file cannot hold.
    """
    if codec not in (None, *get_args(VideoCodec)):
        raise ConfigError(
            f"codec {codec!r}", expected=f"one of {', '.join(get_args(VideoCodec))}, or none for a choice"
        )
    if not isinstance(preset, str) or preset not in _PRESETS:
        raise ConfigError(f"preset {preset!r}", expected=f"one of {', '.join(_PRESETS)}")
    if codec is None:
        codec = "prores" if format.has_alpha and suffix == ".mov" else "hevc" if format.depth > 8 else "h264"
    if (codec == "prores" and suffix not in (".mov", ".mkv")) or (codec == "av1" and suffix == ".mov"):
        other = ".mov or .mkv" if codec == "prores" else ".mp4 or .mkv"
        raise ConfigError(f"codec {codec} in {suffix}", expected=other, fix="change the suffix of the output")
    if codec == "prores":
        return _prores(format, hdr)
    depth = 8 if codec == "h264" or format.depth == 8 else 10
    stored = _stored(format, "yuv420p" if depth == 8 else f"yuv420p{depth}le")
    losses: tuple[str, ...] = ()
    if format.depth > depth:
        losses = (f"{format.depth} bits a sample become {depth}" + (": choose HEVC" if depth == 8 else ""),)
    options = {"crf": str(crf), "preset": preset}
    place = _CHROMA_PLACES.index(siting_name(stored.siting) or "left")
    if codec == "h264":
        if place:
            options["x264-params"] = f"chromaloc={place}"
        if hdr:
            losses += (_NO_HDR,)
        return Encoding("libx264", stored, options, losses=losses)
    if codec == "hevc":
        settings = ["log-level=error", *(hdr.x265() if hdr else [])]
        if place:
            settings.append(f"chromaloc={place}")
        if codec_threads():
            settings.append(f"pools={codec_threads()}")
        options["x265-params"] = ":".join(settings)
        return Encoding("libx265", stored, options, "" if suffix == ".mkv" else "hvc1", losses)
    os.environ.setdefault("SVT_LOG", "1")  # errors only; it has no other way to say so
    options["preset"] = str(_PRESETS[preset])
    settings = [f"lp={codec_threads()}"] * bool(codec_threads()) + (hdr.svt_av1() if hdr else [])
    if settings:
        options["svtav1-params"] = ":".join(settings)
    return Encoding("libsvtav1", stored, options, losses=losses)


def _prores(format: PictureFormat, hdr: Hdr | None) -> Encoding:
    """ProRes 422 HQ, or 4444 for alpha, R'G'B' and 4:4:4. It has one quality, and FFmpeg writes 10 bits."""
    full = format.has_alpha or format.is_rgb or format.full_chroma.name == format.name
    stored = _stored(format, f"yuv{'a' * format.has_alpha}444p10le" if full else "yuv422p10le")
    stored = replace(stored, colour=replace(format.colour, full_range=False))  # the only range that ProRes has
    options = {"profile": "4444" if full else "hq", "vendor": "apl0"}
    losses = (f"{format.depth} bits a sample become 10",) if format.depth > 10 else ()
    return Encoding("prores_ks", stored, options, losses=losses + ((_NO_HDR,) if hdr else ()))


def _stored(format: PictureFormat, name: str) -> PictureFormat:
    same_places = "420" in format.name and "420" in name
    return replace(format, name=name, siting=format.siting if same_places else (0.0, 0.5))
