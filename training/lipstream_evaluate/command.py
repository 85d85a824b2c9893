"""`lipstream evaluate`: results of one or more systems -> table, JSON and page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lipstream.atomic import write_file
from lipstream.errors import LipStreamError
from tqdm import tqdm

from .cases import Case, find_cases
from .judge import Verdict, judge
from .networks import WEIGHTS, load_networks
from .page import page
from .processes import in_processes
from .report import report, table
from .syncnet import DRAWN, SyncNet, load_syncnet

_OF = {"lpips": "lpips", "csim": "arcface", "fid": "inception", "fvd": "i3d"}


@dataclass(frozen=True)
class Judges:
    """Files of weights. `syncnet`: also "drawn", or None."""

    syncnet: str | None = None
    networks: Mapping[str, Path] | None = None

    def load(self) -> tuple[SyncNet | None, dict[str, Any]]:
        """SyncNet or None, and the other networks by name.

        Raises:
            CheckpointError: a file is missing or of another network. MissingExtraError: a package is not installed.
        """
        return load_syncnet(self.syncnet) if self.syncnet else None, load_networks(self.networks or {})

    def left_out(self) -> dict[str, str]:
        """Metrics that cannot be computed, and what they need."""
        given = self.networks or {}
        out = {} if self.syncnet else {"sync_c": "give --syncnet FILE (syncnet_v2.model), or --syncnet drawn"}
        return out | {
            metric: f"give --{name} FILE ({WEIGHTS[name]})" for metric, name in _OF.items() if name not in given
        }


def evaluate(
    systems: Mapping[str, Path],
    references: Path,
    audio: Path | None,
    judges: Judges,
    output: Path | None,
    *,
    paper: bool = False,
    workers: int = 0,
    quiet: bool = False,
) -> tuple[dict[str, Any], str]:
    """Evaluate all systems. Returns the content of evaluation.json, and the table as text.

    Args:
        output: folder for evaluation.json and index.html. paper: the published rows in the table as well.
        workers: processes; 0 for one per core.

    Raises:
        ConfigError, CheckpointError, MissingExtraError: before any clip is evaluated.
    """
    cases, missing = find_cases(systems, references, audio)
    judges.load()  # so that a wrong file is reported before the long part
    verdicts: list[Verdict] = []
    jobs = [(case, judges) for case in cases]
    with tqdm(total=len(cases), desc="judging", unit="clip", disable=quiet) as bar:
        for case, verdict in zip(cases, in_processes(_judge, jobs, workers), strict=True):
            if isinstance(verdict, Verdict):
                verdicts.append(verdict)
            else:
                missing.append(f"{case.system}: {case.result.name}: {verdict}")
            bar.update()
    found = report(verdicts, missing, judges.left_out())
    found["settings"] = {"syncnet": judges.syncnet, **{k: str(v) for k, v in (judges.networks or {}).items()}}
    if judges.syncnet == DRAWN:
        found["notes"] = ["SyncNet is the small one trained on drawn faces: compare its numbers with nothing published"]
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        write_file(output / "evaluation.json", (json.dumps(found, indent=1) + "\n").encode())
        write_file(output / "index.html", page(found, verdicts, paper=paper).encode())
    text = "\n".join([table(found, paper=paper), *found.get("notes", [])])
    return found, text


_loaded: dict[Any, tuple[SyncNet | None, dict[str, Any]]] = {}


def _judge(job: tuple[Case, Judges]) -> Verdict | str:
    """The verdict, or the reason why there is none. Networks are loaded once in each process."""
    case, judges = job
    key = judges.syncnet, tuple(sorted((judges.networks or {}).items()))
    if key not in _loaded:
        _loaded.clear()
        _loaded[key] = judges.load()
    try:
        return judge(case, *_loaded[key])
    except LipStreamError as error:
        return str(error)
