"""Faces by InsightFace's models, with a double of its library: the calls to it, and the use of its results.

The double has the names of insightface 2.1's `FaceAnalysis` that are used. The real library was run with untrained
networks; its trained models may not be shipped.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from lipstream import FaceOptions, samples
from lipstream.cli import main
from lipstream.errors import ConfigError, MissingExtraError
from lipstream.face import Aligner
from lipstream.face.insightface import InsightFaceTracker

FRAME = np.random.default_rng(0).integers(0, 256, (240, 320, 3), np.uint8)
GROUPS = ((43, 48, 49, 51, 50), (101, 102, 103, 104, 105), (74, 77, 83, 86))
POINTS = np.array([(100.4, 80.0), (160.3, 82.0), (131.0, 120.0)])


def face(left: float = 0.0, size: tuple[float, float] = (100.0, 120.0), score: float = 0.9) -> Any:
    """A face whose alignment points are POINTS, moved to the right by `left`."""
    landmarks = np.zeros((106, 2), np.float32)
    for group, point in zip(GROUPS, POINTS + np.array([left, 0]), strict=True):
        landmarks[list(group)] = point
    box = np.array([80 + left, 60, 80 + left + size[0], 60 + size[1]], np.float32)
    return SimpleNamespace(bbox=box, det_score=np.float32(score), landmark_2d_106=landmarks)


class Library:
    """`FaceAnalysis`, giving the faces of one frame after the other."""

    def __init__(self) -> None:
        self.frames: list[list[Any]] = []
        self.opened: list[Any] = []
        self.models = {"detection": None, "landmark_2d_106": None}

    def __call__(self, name: str, root: str = "", allowed_modules: Any = None, **kwargs: Any) -> Library:
        assert Path(name).is_dir()  # else the library downloads
        self.opened.append((name, allowed_modules, kwargs))
        return self

    def prepare(self, ctx_id: int = 0, det_thresh: float = 0.5, det_size: Any = None) -> None:
        self.opened.append((ctx_id, det_thresh, det_size))

    def get(self, img: Any, max_num: int = 0) -> list[Any]:
        assert img.shape == FRAME.shape
        return self.frames.pop(0)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    found = Library()
    app = ModuleType("insightface.app")
    app.FaceAnalysis = found  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "insightface", ModuleType("insightface"))
    monkeypatch.setitem(sys.modules, "insightface.app", app)
    return found


def test_the_points_are_the_released_ones(library: Library, tmp_path: Path) -> None:
    """Means of the groups, rounded twice; detection at 512 x 512 on the CPU; the transform is the aligner's."""
    library.frames = [[face()], [], [face(1.0)]]
    tracker = InsightFaceTracker(tmp_path)
    assert library.opened == [
        (str(tmp_path), ["detection", "landmark_2d_106"], {"providers": ["CPUExecutionProvider"]}),
        (-1, 0.5, (512, 512)),
    ]
    aligner = Aligner()
    seen, held, moved = (tracker.track(FRAME) for _ in range(3))
    assert seen
    assert held
    assert moved
    np.testing.assert_array_equal(seen.matrix, aligner.solve(np.rint(POINTS)))
    np.testing.assert_array_equal(held.matrix, seen.matrix)
    assert held.held
    np.testing.assert_array_equal(moved.matrix, aligner.solve(np.rint(POINTS) + np.array([1, 0])))
    assert seen.landmarks.shape == (106, 2)


def test_selection_of_the_face(library: Library, tmp_path: Path) -> None:
    """The largest plausible face; or the one nearest to a point, then to its last position."""
    small, large = face(60, (60, 85)), face(0, (90, 130))
    odd = [face(30, (40, 200)), face(30, (200, 100)), face(30, (300, 300), score=0.4)]
    library.frames = [[small, *odd, large]]
    found = InsightFaceTracker(tmp_path).track(FRAME)
    assert found
    assert found.landmarks[43, 0] == np.rint(large.landmark_2d_106[43, 0])
    library.frames = [[large, small], [face(20, (90, 130)), face(75, (60, 85))]]
    tracker = InsightFaceTracker(tmp_path, select=(170.0, 100.0))
    places = [seen.landmarks[43, 0] for _ in range(2) if (seen := tracker.track(FRAME))]
    assert places == [160.0, 175.0]


def test_missing_parts_are_reported(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="no folder of InsightFace's models"):
        InsightFaceTracker(tmp_path / "none")
    del library.models["landmark_2d_106"]
    with pytest.raises(ConfigError, match="lacks the models for landmark_2d_106"):
        InsightFaceTracker(tmp_path)
    monkeypatch.setitem(sys.modules, "insightface.app", None)
    with pytest.raises(MissingExtraError, match="pip install insightface"):
        FaceOptions(insightface=tmp_path).tracker()
    out = tmp_path / "out.mp4"
    files = [str(samples.FACE), str(samples.SPEECH), "-o", str(out)]
    assert main(["run", *files, "--insightface", str(tmp_path)]) == MissingExtraError.exit_code
    assert "pip install insightface" in capsys.readouterr().err
    assert not out.exists()
