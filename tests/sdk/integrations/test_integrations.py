"""The adapters inside the real frameworks, in separate processes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
Beside = Callable[[str, Path], str]


def report(printed: str) -> Any:
    """The line of JSON among what a script and its framework print."""
    (line,) = [line for line in printed.splitlines() if line.startswith(("{", "["))]
    return json.loads(line)


@pytest.mark.slow
def test_livekit_two_segments_the_first_interrupted(beside: Beside) -> None:
    found = report(beside("livekit-agents==1.8.9", HERE / "livekit_script.py"))
    first, second = found["finished"]
    assert first["interrupted"]
    assert 0.3 < first["position"] < 2.5  # of four seconds
    assert not second["interrupted"]
    # The runner counts a frame that was waiting in its queue at the interruption towards what comes next.
    assert 1.999 < second["position"] < 2.041
    assert found["second_sound"] == 2 * 24000
    assert found["second_pictures"] == 50
    assert found["idle_pictures"] > 10
    assert found["threads_left"] == 0


@pytest.mark.slow
def test_livekit_one_engine_speaks_in_two_rooms(beside: Beside) -> None:
    found = report(beside("livekit-agents==1.8.9", HERE / "livekit_rooms_script.py"))
    (first, second), (other,) = found["finished"]
    assert first["interrupted"]
    assert 0.3 < first["position"] < 2.5  # of four seconds
    assert not second["interrupted"]
    assert 1.999 < second["position"] < 2.041
    assert not other["interrupted"]
    assert 2.999 < other["position"] < 3.041
    assert found["threads_left"] == 0


@pytest.mark.slow
def test_livekit_speech_of_any_rate_keeps_its_pitch_and_length(beside: Beside) -> None:
    for found in report(beside("livekit-agents==1.8.9", HERE / "livekit_rates_script.py")):
        assert found["rates"] == [24_000]
        assert found["seconds"] == 1.0
        assert abs(found["hertz"] - 300) <= 1
        assert 8500 < found["peak"] < 9500


@pytest.mark.slow
def test_pipecat_two_segments_the_first_interrupted(beside: Beside) -> None:
    found = report(beside("pipecat-ai==1.14.0", HERE / "pipecat_script.py"))
    assert 0.2 < found["first_sound_s"] < 3.0
    assert found["second_sound"] == 2 * 24000
    assert found["second_pictures"] == 50
    assert found["stopped"] == 1  # the interrupted segment's is gone with it
    assert found["original_sound"] == 0
    assert found["idle_pictures"] > 5
    assert found["threads_left"] == 0


@pytest.mark.slow
def test_a_killed_replica_ends_only_its_own_session(beside: Beside) -> None:
    found = report(beside("ray[serve]==2.60.0", HERE / "ray_script.py"))
    assert found["replicas"] == 2
    assert all(one["code"] is None and one["pictures"] > 40 for one in found["before"])
    ended, unharmed = sorted(found["after"], key=lambda one: one["code"] is None)
    assert ended["code"] == 1006
    assert unharmed["code"] is None
    assert unharmed["pictures"] > 80
