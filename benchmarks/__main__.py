"""All benchmarks, by name.

python -m benchmarks                        list: the question and the origin of the last result of each
python -m benchmarks throughput --help      one benchmark, with its options
python -m benchmarks all --out DIR          every benchmark that runs on this machine, results into DIR
python -m benchmarks docs                   README.md, docs/performance.md and its pictures, docs/quality.md
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import lossy_network, render_docs
from .common import ROOT, main

RESULTS = ROOT / "benchmarks" / "results"


@dataclass(frozen=True)
class Benchmark:
    """Attributes: minutes: on two CPU cores. options: for the command `all`. gpu, root: whether it needs them."""

    question: str
    minutes: float
    options: tuple[str, ...] = ()
    gpu: bool = False
    root: bool = False


BENCHMARKS = {
    "throughput": Benchmark("How fast is the whole job up to 1080p, against a plain transcode and eager PyTorch?", 15),
    "stream": Benchmark("How long does a chunk take, and how many streams fit?", 3, ("--streams", "1", "2", "4", "8")),
    "kernels": Benchmark("Where in the graphs does the time go, and how fast are our own kernels?", 1),
    "roofline": Benchmark("How fast could it be at most, here and on GPUs?", 12),
    "ring": Benchmark("What does the K/V ring save over recomputing the window?", 4),
    "flatness": Benchmark("Does a stream of ten minutes get slower or larger?", 4),
    "drift": Benchmark("Does a stream of 24 hours, by simulated clock, drift?", 1),
    "faces": Benchmark("Are face tracking and compositing fast enough for 1080p on one core?", 1),
    "dit_latency": Benchmark("How long does a pass take at the released sizes, in eager PyTorch?", 1, gpu=True),
    "precision": Benchmark("What do BF16 and FP8 cost in quality?", 2),
    "int8": Benchmark("Would int8 make the CPU backend faster?", 1),
    "lip_accuracy": Benchmark("Do the lips follow the new speech, and only that?", 12),
    "proxied": Benchmark("Does the server work for long behind nginx, on a network that loses packets?", 12, root=True),
    "overload": Benchmark("What do clients get while the server's machine is too slow, and after it?", 2),
    "hostile": Benchmark("Do honest clients get what they should while hostile ones attack, and is nothing left?", 17),
    "fuzz": Benchmark("Does anything that a client may send get more than a typed refusal out of the server?", 40),
    "audio_encoder": Benchmark("Do tiny's audio features tell what the mouth of an unseen voice does?", 1),
    "lookahead": Benchmark("How far are a stream's audio features from a clip's?", 2),
}


def listing() -> str:
    """One line for each benchmark, with the commit and the day of its result in results/."""
    lines = []
    for name, benchmark in BENCHMARKS.items():
        needs = "needs a GPU" if benchmark.gpu else "needs root" if benchmark.root else ""
        where = needs or f"{benchmark.minutes:g} min"
        lines.append(f"{name:13} {where:12} {recorded(name):30} {benchmark.question}")
    return "\n".join(lines)


def recorded(name: str) -> str:
    """Commit and machine of the result in results/."""
    try:
        found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    except OSError:
        return "no result"
    return f"{found['commit']}, {found['machine']['cores']} cores"


def run_one(name: str, options: list[str]) -> int:
    module = importlib.import_module(f"benchmarks.{name}")
    return main(module.run, module.build_parser().parse_args(options))


def run_all(args: argparse.Namespace) -> bool:
    """Run every benchmark that this machine can run, and print a table of their results."""
    import torch

    rows = []
    for name, benchmark in BENCHMARKS.items():
        if (benchmark.gpu and not torch.cuda.is_available()) or (benchmark.root and not lossy_network.available()):
            continue
        if args.only and name not in args.only:
            continue
        print(f"== {name}: {benchmark.question}", flush=True)
        begun = time.monotonic()
        quick = ["--quick"] if args.quick else []
        status = run_one(name, [*benchmark.options, *quick, "--json", str(args.out / f"{name}.json")])
        rows.append((name, "ok" if status == 0 else f"status {status}", time.monotonic() - begun))
    for name, state, seconds in rows:
        print(f"{name:13} {state:10} {seconds:6.0f} s")
    return all(state == "ok" for _, state, _ in rows)


def start(arguments: list[str]) -> int:
    if arguments and arguments[0] in BENCHMARKS:
        return run_one(arguments[0], arguments[1:])
    parser = argparse.ArgumentParser(
        "python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", metavar="NAME, all or docs")
    every = commands.add_parser("all", help="every one that this machine can run")
    every.add_argument("--out", type=Path, default=ROOT / "out" / "benchmarks", help="folder (default out/benchmarks)")
    every.add_argument("--only", nargs="+", choices=BENCHMARKS, help="these alone")
    every.add_argument("--quick", action="store_true", help="the smallest run that exercises everything")
    pages = commands.add_parser("docs", help="README.md and docs from benchmarks/results")
    pages.add_argument("--results", type=Path, default=RESULTS)
    pages.add_argument("--docs", type=Path, default=ROOT / "docs")
    args = parser.parse_args(arguments)
    if args.command == "all":
        return main(run_all, args)
    if args.command == "docs":
        render_docs.fill(args.results, args.docs)
        return 0
    print(f"{listing()}\n\npython -m benchmarks NAME --help describes what is measured; `all` runs all.")
    return 0


if __name__ == "__main__":
    sys.exit(start(sys.argv[1:]))
