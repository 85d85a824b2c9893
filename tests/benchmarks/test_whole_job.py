"""The whole job: which cases are run, in which order, and how they are compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lipstream import samples
from lipstream.errors import ConfigError

from benchmarks import clips, throughput, whole_job


def test_ones_own_video_is_measured_alone(tmp_path: Path) -> None:
    clips.make_clip(tmp_path / "own.mp4", 640, 360, 2)
    args = throughput.build_parser().parse_args(["--video", str(tmp_path / "own.mp4")])
    assert whole_job.sources(args.video, args.sizes, tmp_path) == ({"640x360": tmp_path / "own.mp4"}, [])
    videos, made = whole_job.sources(None, ["1280x720", "384x320"], tmp_path)
    assert videos == {"384x320": samples.FACE, "1280x720": tmp_path / "1280x720.mp4"}
    assert made == ["1280x720"]


def test_ratios_are_formed_within_each_round() -> None:
    def runs(*fps: float) -> list[dict[str, Any]]:
        return [{"fps": x, "seconds": 292 / x, "frames": 292, "peak_memory_mib": 100.0} for x in fps]

    found = whole_job.compare(
        {"onnxruntime": runs(40, 90, 60), "transcode": runs(80, 100, 50), "torch": runs(20, 90, 15)}
    )
    assert found["fps"]["median"] == 60
    assert found["share_of_transcode"] == {"median": 0.9, "min": 0.5, "max": 1.2, "n": 3}
    assert found["times_faster_than_eager"] == {"median": 2, "min": 1, "max": 4, "n": 3}
    assert (found["transcode"]["fps"]["median"], found["eager"]["fps"]["median"]) == (80, 20)
    assert "eager" not in whole_job.compare({"onnxruntime": runs(1), "transcode": runs(1)})


def test_jobs_alternate_and_eager_pytorch_runs_at_the_first_and_the_last_size() -> None:
    table = whole_job.cases({name: Path(name) for name in ("small", "middle", "large")}, [1, 2])
    assert [(case.size, case.cores) for case in table if "torch" in case.jobs] == [("small", 2), ("large", 2)]
    forwards, backwards = ("onnxruntime", "transcode", "torch"), ("torch", "transcode", "onnxruntime")
    order = [job for case, job in whole_job.rounds(table, 3) if (case.size, case.cores) == ("large", 2)]
    assert order == [*forwards, *backwards, *forwards]


def test_cores_that_the_machine_lacks_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert whole_job.available([4096, 1]) == [1]
    assert "not measured on 4096 cores" in capsys.readouterr().out
    with pytest.raises(ConfigError):
        whole_job.available([4096])
