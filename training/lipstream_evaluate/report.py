"""Verdicts -> numbers per system, as a table and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .judge import Verdict
from .statistics import frechet, summary


@dataclass(frozen=True)
class Metric:
    """A column. `better`: 1 where high is good, -1 where low is, 0 where neither."""

    label: str
    better: int
    digits: int
    what: str


METRICS = {
    "sync_c": Metric("Sync-C", 1, 2, "SyncNet's confidence that lips and sound agree"),
    "sync_d": Metric("Sync-D", -1, 2, "SyncNet's distance between lips and sound"),
    "sync_offset": Metric("offset", 0, 0, "frames by which SyncNet finds the mouth late"),
    "opening_sound": Metric("opening ~ sound", 1, 2, "correlation of the lip gap with the loudness"),
    "opening_sound_best": Metric("at best lag", 1, 2, "the same at the lag where it is greatest"),
    "opening_lag": Metric("lag", 0, 0, "that lag: frames by which the mouth is late"),
    "opening_reference": Metric("opening ~ ref.", 0, 2, "correlation of the lip gap with the reference's"),
    "ssim": Metric("SSIM", 1, 3, "structural similarity to the reference, whole frame"),
    "ssim_mouth": Metric("SSIM mouth", 1, 3, "in the part that lip-sync may change"),
    "ssim_outside": Metric("SSIM outside", 1, 3, "in the rest of the frame, which should not change"),
    "psnr": Metric("PSNR", 1, 1, "dB, whole frame; 99 for equal pictures"),
    "psnr_mouth": Metric("PSNR mouth", 1, 1, "dB, in the part that lip-sync may change"),
    "psnr_outside": Metric("PSNR outside", 1, 1, "dB, in the rest of the frame"),
    "lpips": Metric("LPIPS", -1, 3, "perceptual distance of the face to the reference's"),
    "csim": Metric("CSIM", 1, 3, "cosine of the identity embeddings"),
    "fid": Metric("FID", -1, 2, "Fréchet distance of Inception's features of all faces"),
    "fvd": Metric("FVD", -1, 2, "Fréchet distance of I3D's features of all 16 frames in a row"),
}
"""What is reported, in the order of the columns."""

_DISTANCES = {"fid": "inception", "fvd": "i3d"}
_PUBLISHED = Path(__file__).with_name("published.json")


def published() -> dict[str, Any]:
    """The paper's table: `source`, and `rows`."""
    found: dict[str, Any] = json.loads(_PUBLISHED.read_text())
    return found


def report(verdicts: Sequence[Verdict], missing: Sequence[str], left_out: Mapping[str, str]) -> dict[str, Any]:
    """The content of evaluation.json.

    Args:
        verdicts: of all clips. missing: results without partner and the like. left_out: metric -> why.
    """
    systems: dict[str, Any] = {}
    for name in dict.fromkeys(verdict.case.system for verdict in verdicts):
        clips = [verdict for verdict in verdicts if verdict.case.system == name]
        means = {
            metric: found
            for metric in METRICS
            if (found := summary([clip.values.get(metric, math.nan) for clip in clips]))["mean"] is not None
        }
        for metric, network in _DISTANCES.items():
            pairs = [(clip.ours[network], clip.theirs[network]) for clip in clips if network in clip.ours]
            if pairs:
                distance = frechet(*(np.concatenate(x) for x in zip(*pairs, strict=True)))
                if not math.isnan(distance):
                    means[metric] = {"mean": distance, "ci95": None, "samples": sum(len(x) for x, _ in pairs)}
        systems[name] = {"clips": len(clips), "frames": sum(clip.frames for clip in clips), "metrics": means}
    return {
        "systems": systems,
        "clips": [_clip(verdict) for verdict in verdicts],
        "missing": list(missing),
        "left_out": dict(left_out),
    }


def _clip(verdict: Verdict) -> dict[str, Any]:
    case = verdict.case
    return {
        "system": case.system,
        "name": case.name,
        **{role: str(getattr(case, role)) for role in ("result", "reference", "audio")},
        "frames": verdict.frames,
        "metrics": {name: None if math.isnan(x) else x for name, x in verdict.values.items()},
        "notes": verdict.notes,
        "lip_gap": _plain(verdict.gap),
        "reference_lip_gap": _plain(verdict.reference_gap),
        "loudness": _plain(verdict.sound),
    }


def _plain(track: Any) -> list[float | None]:
    return [None if math.isnan(x) else round(float(x), 4) for x in track]


def rows(found: Mapping[str, Any], *, paper: bool = False) -> tuple[list[str], list[list[str]]]:
    """Heading and cells of the table: a row for each system, and for each of the paper's where `paper`."""
    columns = [name for name in METRICS if any(name in s["metrics"] for s in found["systems"].values())]
    extra = published()["rows"] if paper else []
    if paper:
        columns = [name for name in METRICS if name in columns or any(name in row for row in extra)]
    heading = ["system", "clips", *(METRICS[name].label + _ARROWS[METRICS[name].better] for name in columns)]
    table = [
        [system, str(s["clips"]), *(_cell(name, s["metrics"].get(name)) for name in columns)]
        for system, s in found["systems"].items()
    ]
    for row in extra:
        cells = [_cell(name, {"mean": row[name], "ci95": None}) if name in row else "" for name in columns]
        table.append([f"{row['system']} (published)", "", *cells])
    return heading, table


_ARROWS = {1: " ↑", -1: " ↓", 0: ""}


def _cell(name: str, value: Mapping[str, Any] | None) -> str:
    if value is None:
        return "-"
    digits = METRICS[name].digits
    text = f"{value['mean']:.{digits}f}"
    if value["ci95"]:
        low, high = value["ci95"]
        text += f" [{low:.{digits}f}, {high:.{digits}f}]"
    return text


def table(found: Mapping[str, Any], *, paper: bool = False) -> str:
    """For a terminal: metrics down, systems across; then the notes."""
    heading, body = rows(found, paper=paper)
    columns = [heading, *body]
    widths = [max(len(cell) for cell in column) for column in columns]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in zip(*columns, strict=True)
    ]
    lines += ["", "mean over clips [95 % interval, bootstrap over clips]"]
    lines += [f"left out: {METRICS[name].label}: {why}" for name, why in found["left_out"].items()]
    lines += [f"missing: {text}" for text in found["missing"]]
    lines += [f"{clip['system']}: {clip['name']}: {note}" for clip in found["clips"] for note in clip["notes"]]
    return "\n".join(lines)
