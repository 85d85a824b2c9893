"""`lipstream-train prepare`: cuts each source independently, in any order, then packs all clips into shards, in order.

The clips of a source are kept in OUT/parts until all are complete. A run that was killed continues without repeating
finished sources, and its shards are the same bit for bit. OUT/plan.json lists all sources that were ever given; those
counted by OUT/index.json are finished. So new sources are appended, in shards of their own, and until they are finished
the folder can be read as it was.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from lipstream.atomic import write_file
from lipstream.errors import ConfigError, FootageError
from lipstream.media import limit_threads
from lipstream_evaluate.media import VIDEOS
from lipstream_evaluate.processes import in_processes
from lipstream_evaluate.syncnet import SyncNet, load_syncnet
from safetensors.numpy import load, save
from tqdm import tqdm

from .cut import cut_video, plain
from .draw import draw_clip_of
from .encode import Encoder
from .report import counts, page, reasons
from .sample import decode, tensor_bytes
from .settings import Settings
from .shards import CONSTANTS, INDEX, locate, read_tar, write_tar

_PLAN = "plan.json"
_PARTS = "parts"
_REPORTS = "reports.jsonl"
_ENDS = 1 << 16  # bytes at each end of a video by which it is recognised


@dataclass(frozen=True)
class Source:
    """A video, or (without path) the drawn clip `number`."""

    name: str
    path: Path | None = None
    number: int = 0


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
    sources += [Source(f"drawn {number}", None, number) for number in range(drawn)]
    if not sources:
        raise ConfigError("there is nothing to prepare", fix="give videos, folders or lists, or --drawn N")
    return sources


def prepare(
    out: Path,
    inputs: Sequence[Path],
    settings: Settings,
    *,
    drawn: int = 0,
    shard: tuple[int, int] = (1, 1),
    min_clips: int = 0,
    workers: int = 0,
    quiet: bool = False,
) -> dict[str, Any]:
    """Fill `out` with shards, or append to those in it; returns index.json without the positions of the samples.

    A video that is in `out` already, under whatever name, is skipped.

    Args:
        shard: (i, n): only sources i, i + n, i + 2 n, ... of all, i from 1, as one of n machines.
        min_clips: that `out` must hold at the end.

    Raises:
        ConfigError: `out` was begun with other settings, or was not finished with its sources.
        CheckpointError: weights that do not fit. FootageError: fewer than `min_clips`; the shards are written.
    """
    part, of = shard
    if not 1 <= part <= of:
        raise ConfigError(f"shard {part}/{of}", expected="i/n with i from 1 to n")
    sources = {_identity(source): source for source in find_sources(inputs, drawn)}  # copies of a video are one source
    if part > len(sources):
        raise ConfigError(f"shard {part}/{of} of {len(sources)} sources is empty", fix="fewer shards")
    todo = _begin(out, dict(list(sources.items())[part - 1 :: of]), settings)
    if todo:
        (out / _PARTS).mkdir(exist_ok=True)
        _tools(settings)  # so that a wrong file is reported now
        jobs = [(out, i, source, settings) for i, source in todo.items() if not _part(out, i, "json").is_file()]
        with tqdm(total=len(todo), initial=len(todo) - len(jobs), desc="sources", disable=quiet) as bar:
            kept = 0
            for found in in_processes(_do, jobs, workers, ordered=False):
                kept += found
                bar.set_postfix_str(f"{kept} clips")
                bar.update()
        _assemble(out, list(todo), settings)
    shutil.rmtree(out / _PARTS, ignore_errors=True)
    about: dict[str, Any] = json.loads((out / INDEX).read_text())
    if about["clips"] < min_clips:
        raise FootageError(
            f"{out} holds {about['clips']} clips from {about['sources']} sources; dropped: {reasons(about['counts'])}",
            expected=f"{min_clips} or more (--min-clips)",
            fix=f"see {out / 'report.html'}; give more videos, or set filters lower (lipstream-train prepare --help)",
        )
    return {**about, "shards": [shard["name"] for shard in about["shards"]], "report": str(out / "report.html")}


def _begin(out: Path, sources: Mapping[str, Source], settings: Settings) -> dict[int, Source]:
    """Add new sources to the plan in `out`; returns those that are not finished, by their number in the plan."""
    now = json.loads(json.dumps(dataclasses.asdict(settings), default=str))
    path = out / _PLAN
    planned: list[list[str]] = []
    finished = 0
    if path.is_file():
        before = json.loads(path.read_text())
        planned = before["sources"]
        if other := [name for name in now if before["settings"].get(name) != now[name]]:
            raise ConfigError(
                f"{out} was begun with other settings: {_listed(before['settings'], other)}",
                expected=_listed(now, other),
                fix="the same settings, or another folder: distil takes several (--data A B)",
            )
        if (out / INDEX).is_file():
            finished = json.loads((out / INDEX).read_text()).get("sources", 0)
    elif out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty", expected="a new folder, or one that this command began")
    pending = {number: identity for number, (_, identity) in enumerate(planned) if number >= finished}
    new = [identity for identity in sources if identity not in {known for _, known in planned}]
    if pending and (new or pending.values() - sources.keys()):
        raise ConfigError(
            f"{out} was begun with other sources, and is not finished",
            fix="first the same command again; then others can be added",
        )
    if new:
        pending = dict(enumerate(new, len(planned)))
        planned = planned + [[sources[identity].name, identity] for identity in new]
        out.mkdir(parents=True, exist_ok=True)
        write_file(path, (json.dumps({"settings": now, "sources": planned}, indent=1) + "\n").encode())
    return {number: sources[identity] for number, identity in pending.items()}


def _listed(settings: Mapping[str, Any], names: Sequence[str]) -> str:
    return ", ".join(f"{name} {settings.get(name)}" for name in names)


def _identity(source: Source) -> str:
    """What a source is recognised by: of a video its size and both ends, wherever it is and whatever its name."""
    if source.path is None:
        return source.name
    if not source.path.is_file():
        return f"missing {source.path.absolute()}"
    size = source.path.stat().st_size
    with source.path.open("rb") as file:
        start = file.read(_ENDS)
        file.seek(max(0, size - _ENDS))
        return hashlib.sha256(b"%d %b%b" % (size, start, file.read())).hexdigest()[:32]


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
            cut = draw_clip_of(source.number, settings)
        else:
            cut = cut_video(source.path, settings, syncnet, Path(work))
        samples = ((f"{number:06d}-{key}", _encoded(make(), encoder)) for key, make in cut.samples)
        write_tar(_part(out, number, "tar"), samples)
    report = {
        "name": source.name,
        "drawn": source.path is None,
        "note": cut.note,
        "stretches": [plain(stretch) for stretch in cut.stretches],
    }
    write_file(_part(out, number, "json"), (json.dumps(report) + "\n").encode())
    return len(cut.samples)


def _encoded(files: dict[str, bytes], encoder: Encoder | None) -> dict[str, bytes]:
    if encoder is None:
        return files
    tensors = load(files["safetensors"]) if "safetensors" in files else {}
    return files | {"safetensors": tensor_bytes(tensors | encoder.encode(decode(files)))}


def _assemble(out: Path, numbers: Sequence[int], settings: Settings) -> None:
    """Parts -> further shards of equal numbers of clips, the report, and last the index, which makes them valid."""
    before: dict[str, Any] = {"sources": 0, "shards": []}
    if (out / INDEX).is_file():
        before = json.loads((out / INDEX).read_text())
    shards: list[dict[str, Any]] = before["shards"]
    samples = chain.from_iterable(read_tar(_part(out, number, "tar")) for number in numbers)
    for sample in samples:
        path = out / f"shard-{len(shards):06d}.tar"
        write_tar(path, chain([sample], islice(samples, settings.shard - 1)))
        shards.append({"name": path.name, "bytes": path.stat().st_size, "samples": locate(path)})
    _, encoder = _tools(settings)
    if encoder is not None:
        write_file(out / CONSTANTS, save({"text": encoder.text, "mask": encoder.latent_mask.numpy()}))
    lines = (out / _REPORTS).read_text().splitlines()[: before["sources"]] if before["sources"] else []
    lines += [_part(out, number, "json").read_text().strip() for number in numbers]
    write_file(out / _REPORTS, "".join(f"{line}\n" for line in lines).encode())
    reports = [json.loads(line) for line in lines]
    unchecked = []
    if settings.syncnet is None and not all(report["drawn"] for report in reports):
        unchecked.append("Whether sound and lips are in time was not checked: no --syncnet was given.")
    write_file(out / "report.html", page(reports, unchecked).encode())
    dropped: dict[str, list[str]] = {}
    for report in reports:
        texts = [f"at frame {s['start']}: {s['dropped']}" for s in report["stretches"] if s["dropped"]]
        dropped.setdefault(report["name"], []).extend(texts)  # videos of several folders may have the same name
    index = {
        "clips": sum(len(shard["samples"]) for shard in shards),
        "sources": len(reports),
        "settings": json.loads(json.dumps(dataclasses.asdict(settings), default=str)),
        "counts": counts(reports),
        "unchecked": unchecked,
        "dropped": dropped,
        "shards": shards,
    }
    write_file(out / INDEX, (json.dumps(index) + "\n").encode())
