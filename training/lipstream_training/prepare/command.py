"""`lipstream-train prepare`: cuts each source independently, in any order, then packs all clips into shards, in order.

The clips of a source are kept in OUT/parts until all are complete. A run that was killed continues without repeating
finished sources, and its shards are the same bit for bit.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from lipstream.atomic import write_file
from lipstream.errors import ConfigError
from lipstream.media import limit_threads
from lipstream_evaluate.media import VIDEOS
from lipstream_evaluate.processes import in_processes
from lipstream_evaluate.syncnet import SyncNet, load_syncnet
from safetensors.numpy import load, save_file
from tqdm import tqdm

from .cut import cut_video, plain
from .draw import draw_clips
from .encode import Encoder
from .report import counts, page
from .sample import decode, tensor_bytes
from .settings import Settings
from .shards import CONSTANTS, INDEX, locate, read_tar, write_tar

_BLOCK = 4  # drawn clips that are one source
_PLAN = "plan.json"
_PARTS = "parts"


@dataclass(frozen=True)
class Source:
    """A video, or (without path) the drawn clips `first` to ``first + count - 1``."""

    name: str
    path: Path | None = None
    first: int = 0
    count: int = 0


def find_sources(inputs: Sequence[Path], drawn: int) -> list[Source]:
    """Videos of folders (and theirs), of lists (.txt, a path on each line) and by name; then drawn clips.

    Raises:
        ConfigError: a path does not exist, or there is no source.
    """
    paths: list[Path] = []
    for given in inputs:
        if given.is_dir():
            paths += sorted(file for file in given.rglob("*") if file.is_file() and file.suffix.lower() in VIDEOS)
        elif given.suffix == ".txt" and given.is_file():
            lines = [line.strip() for line in given.read_text().splitlines()]
            paths += [given.parent / line for line in lines if line and not line.startswith("#")]
        elif given.is_file():
            paths.append(given)
        else:
            raise ConfigError(f"no such file or folder: {given}")
    sources = [Source(path.name, path) for path in dict.fromkeys(paths)]
    for first in range(0, drawn, _BLOCK):
        count = min(_BLOCK, drawn - first)
        sources.append(Source(f"drawn {first} to {first + count - 1}", None, first, count))
    if not sources:
        raise ConfigError("there is nothing to prepare", fix="give videos, folders or lists, or --drawn N")
    return sources


def prepare(
    out: Path, inputs: Sequence[Path], settings: Settings, *, drawn: int = 0, workers: int = 0, quiet: bool = False
) -> dict[str, Any]:
    """Fill `out` with shards; returns the content of index.json, without the positions of the samples.

    Raises:
        ConfigError: `out` was started with other sources or settings. CheckpointError: weights that do not fit.
    """
    sources = find_sources(inputs, drawn)
    _begin(out, sources, settings)
    if not (out / INDEX).is_file():
        _tools(settings)  # so that a wrong file is reported now
        jobs = [(out, i, source, settings) for i, source in enumerate(sources) if not _part(out, i, "json").is_file()]
        with tqdm(total=len(sources), initial=len(sources) - len(jobs), desc="sources", disable=quiet) as bar:
            kept = 0
            for found in in_processes(_do, jobs, workers, ordered=False):
                kept += found
                bar.set_postfix_str(f"{kept} clips")
                bar.update()
        _assemble(out, sources, settings)
    shutil.rmtree(out / _PARTS, ignore_errors=True)
    about: dict[str, Any] = json.loads((out / INDEX).read_text())
    return {**about, "shards": [shard["name"] for shard in about["shards"]], "report": str(out / "report.html")}


def _begin(out: Path, sources: Sequence[Source], settings: Settings) -> None:
    """Write the plan to `out`, or compare it with the one there."""
    plan = {
        "settings": json.loads(json.dumps(dataclasses.asdict(settings), default=str)),
        "sources": [[source.name, _fingerprint(source)] for source in sources],
    }
    path = out / _PLAN
    if path.is_file():
        before = json.loads(path.read_text())
        for what in ("settings", "sources"):
            if before[what] != plan[what]:
                raise ConfigError(f"{out} was begun with other {what}", fix="the same command again, or another folder")
        return
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty", expected="a new folder, or one that this command began")
    (out / _PARTS).mkdir(parents=True, exist_ok=True)
    write_file(path, (json.dumps(plan, indent=1) + "\n").encode())


def _fingerprint(source: Source) -> str:
    if source.path is None or not source.path.is_file():
        return ""
    stat = source.path.stat()
    return hashlib.sha256(f"{source.path.absolute()} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:16]


def _part(out: Path, number: int, suffix: str) -> Path:
    return out / _PARTS / f"{number:06d}.{suffix}"


_tools_of: dict[Settings, tuple[SyncNet | None, Encoder | None]] = {}


def _tools(settings: Settings) -> tuple[SyncNet | None, Encoder | None]:
    """Loaded once in each process."""
    if settings not in _tools_of:
        syncnet = load_syncnet(settings.syncnet) if settings.syncnet else None
        _tools_of[settings] = syncnet, _encoder(settings)
    return _tools_of[settings]


def _encoder(settings: Settings) -> Encoder | None:
    if isinstance(settings.encode, Path):
        return Encoder.of_checkpoint(settings.encode)
    return Encoder.of_released(settings.encode, settings.config) if settings.encode else None


def _do(job: tuple[Path, int, Source, Settings]) -> int:
    """Write the part of one source; returns its number of clips."""
    out, number, source, settings = job
    limit_threads(1)  # x264's output depends on the number of threads
    syncnet, encoder = _tools(settings)
    with tempfile.TemporaryDirectory(dir=out / _PARTS) as work:
        if source.path is None:
            cut = draw_clips(source.first, source.count, settings)
        else:
            cut = cut_video(source.path, settings, syncnet, Path(work))
        samples = ((f"{number:06d}-{key}", _encoded(make(), encoder)) for key, make in cut.samples)
        write_tar(_part(out, number, "tar"), samples)
    report = {"name": source.name, "note": cut.note, "stretches": [plain(stretch) for stretch in cut.stretches]}
    write_file(_part(out, number, "json"), (json.dumps(report) + "\n").encode())
    return len(cut.samples)


def _encoded(files: dict[str, bytes], encoder: Encoder | None) -> dict[str, bytes]:
    if encoder is None:
        return files
    tensors = load(files["safetensors"]) if "safetensors" in files else {}
    return files | {"safetensors": tensor_bytes(tensors | encoder.encode(decode(files)))}


def _assemble(out: Path, sources: Sequence[Source], settings: Settings) -> None:
    """Parts -> shards of equal numbers of clips, the report, and last the index, whose presence marks completion."""

    samples = chain.from_iterable(read_tar(_part(out, number, "tar")) for number in range(len(sources)))
    shards: list[dict[str, Any]] = []
    for sample in samples:
        path = out / f"shard-{len(shards):06d}.tar"
        write_tar(path, chain([sample], islice(samples, settings.shard - 1)))
        shards.append({"name": path.name, "bytes": path.stat().st_size, "samples": locate(path)})
    _, encoder = _tools(settings)
    if encoder is not None:
        save_file({"text": encoder.text, "mask": encoder.latent_mask.numpy()}, out / CONSTANTS)
    reports = [json.loads(_part(out, number, "json").read_text()) for number in range(len(sources))]
    unchecked = []
    if settings.syncnet is None and any(source.path for source in sources):
        unchecked.append("Whether sound and lips are in time was not checked: no --syncnet was given.")
    write_file(out / "report.html", page(reports, unchecked).encode())
    index = {
        "clips": sum(len(shard["samples"]) for shard in shards),
        "settings": json.loads(json.dumps(dataclasses.asdict(settings), default=str)),
        "counts": counts(reports),
        "unchecked": unchecked,
        "dropped": {
            report["name"]: [f"at frame {s['start']}: {s['dropped']}" for s in report["stretches"] if s["dropped"]]
            for report in reports
        },
        "shards": shards,
    }
    write_file(out / INDEX, (json.dumps(index) + "\n").encode())
