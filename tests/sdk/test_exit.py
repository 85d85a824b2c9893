"""The process ends, without an abort, whatever threads of LipStream are doing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("exit_script.py")
SITUATIONS = [
    "closed player",
    "unclosed player",
    "dropped session",
    "unclosed session",
    "iterating",
    "preparing",
    "dubbing",
]


def end_while(situation: str, threads: int, seconds: float, folder: Path) -> None:
    command = [sys.executable, str(SCRIPT), situation, str(threads), str(seconds), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert not any(folder.iterdir())


@pytest.mark.parametrize("situation", SITUATIONS)
def test_the_process_ends(situation: str, tmp_path: Path) -> None:
    end_while(situation, 1, 0.4, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [0, 1])
@pytest.mark.parametrize("situation", SITUATIONS)
def test_the_process_ends_at_any_moment(situation: str, threads: int, tmp_path: Path) -> None:
    for run in range(8):
        end_while(situation, threads, 0.1 + 0.07 * run, tmp_path)


def test_work_that_begins_while_the_process_ends_is_refused() -> None:
    code = (
        "import atexit\n"
        "atexit.register(lambda: late())\n"  # runs after LipStream's, which is registered later, on import
        "from lipstream import LipSyncEngine, samples\n"
        "from lipstream.errors import SessionClosedError\n"
        "def late():\n"
        "    for use in (engine.warmup, lambda: engine.session(samples.FACE), lambda: LipSyncEngine.load('tiny')):\n"
        "        try:\n"
        "            use()\n"
        "        except SessionClosedError as error:\n"
        "            print(error.found)\n"
        "engine = LipSyncEngine.load('tiny', threads=1)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "the process is ending\n" * 3, "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_process_does_not_wait_for_the_threads_of_its_parent() -> None:
    code = (
        "import os, sys, threading\n"
        "from lipstream.shutdown import working\n"
        "inside, leave = threading.Event(), threading.Event()\n"
        "def work():\n"
        "    with working():\n"
        "        inside.set()\n"
        "        leave.wait()\n"
        "threading.Thread(target=work, daemon=True).start()\n"
        "inside.wait()\n"
        "if not os.fork():\n"
        "    sys.exit(3)\n"
        "assert os.waitstatus_to_exitcode(os.wait()[1]) == 3\n"
        "leave.set()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=False)
    assert (done.returncode, done.stderr) == (0, "")
