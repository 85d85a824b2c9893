"""Errors of several processes: each is printed once, by one of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist
from lipstream.errors import ConfigError
from lipstream_training import launch
from torch.distributed import run
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

OURS = ["-m", "lipstream_training.launch", "--nproc-per-node", "2"]
TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "lipstream_training.cli"]


@pytest.mark.parametrize("launcher", [OURS, TORCHRUN], ids=["ours", "torchrun"])
def test_a_users_error_is_printed_once(launcher: list[str], tmp_path: Path) -> None:
    command = [sys.executable, *launcher, "distil", str(tmp_path / "out"), "--data", str(tmp_path / "gone")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.stderr.count("holds no constants.safetensors") == 1
    assert done.stderr.count("fix: prepare it with --encode") == 1
    if launcher is OURS:
        assert done.returncode == ConfigError.exit_code
        assert len(done.stderr.strip().splitlines()) == 2
    assert done.stdout == ""


def test_the_first_process_that_has_an_error_prints_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launch.announces("config", "a single process")
    assert launch.announces("terminated", "a single process")
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ranks = {"WORLD_SIZE": "3", "TORCHELASTIC_RUN_ID": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    for name, value in ranks.items():
        monkeypatch.setenv(name, value)
    said = [launch.announces("config", message) for message in ("one", "one", "another", "one", "another")]
    assert said == [True, False, True, False, False]
    assert not launch.announces("terminated", "by torchrun, after the error of another rank")
    monkeypatch.setenv("MASTER_PORT", "none")
    assert launch.announces("config", "one")  # rather twice than never


def test_only_a_bug_or_crash_shows_torchruns_table(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def ends_with(status: int) -> None:
        failure = ProcessFailure(local_rank=1, pid=7, exitcode=status, error_file="")

        def fail(args: object) -> None:
            seen.append(args)
            raise ChildFailedError("lipstream_training.cli", {1: failure})

        monkeypatch.setattr(run, "run", fail)

    ends_with(34)
    options = ["--nnodes", "2", "--nproc-per-node", "4"]
    assert launch.main([*options, "distil", "out", "--data", "x", "--log", "wandb"]) == 34
    args = seen[0]
    assert (args.nnodes, args.nproc_per_node, args.module) == ("2", "4", True)
    assert [args.training_script, *args.training_script_args] == [
        "lipstream_training.cli",
        *("distil", "out", "--data", "x", "--log", "wandb"),
    ]
    for status in (70, 1, -9):
        ends_with(status)
        with pytest.raises(ChildFailedError):
            launch.main(["distil", "out"])
