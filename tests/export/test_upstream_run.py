"""`lipstream export` and `lipstream run --upstream` on files in the released formats, against a recorded run.

The files have the weights of the record, which `tests/golden_pipeline.py` describes. The package `insightface`, whose
models are not free, is one that finds the recorded faces.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import golden
import golden_pipeline
import numpy as np
import pytest
import torch
from lipstream.media import VideoReader, VideoWriter
from safetensors.torch import save_file

FILE = Path(__file__).parents[3] / "shared" / "golden_pipeline" / "pipeline_w7.safetensors"
FOUND = """
import json, numpy as np
from pathlib import Path
from types import SimpleNamespace

class FaceAnalysis:
    def __init__(self, root, **options):
        self.models = {"detection": None, "landmark_2d_106": None}
        recorded = np.load(Path(root) / "recorded.npz")
        self.known = {picture.tobytes(): (box, points) for picture, box, points in zip(*recorded.values())}

    def prepare(self, **options):
        pass

    def get(self, image):
        box, points = self.known[np.ascontiguousarray(image).tobytes()]
        return [SimpleNamespace(bbox=box, landmark_2d_106=points, det_score=0.9)]
"""
COMMAND = """
import json, sys
from lipstream.cli import main
from lipstream_models import STUDENTS, StudentConfig
sizes = json.loads(sys.argv[1])
STUDENTS["14b"] = StudentConfig(**{**sizes, "t_list": tuple(sizes["t_list"])})
sys.exit(main(sys.argv[2:]))
"""
"""`lipstream`, whose student of the size "14b" has the recorded width."""


def write_release(record: Any, folder: Path) -> list[str]:
    """The files, and the arguments that name them."""
    under: dict[str, dict[str, torch.Tensor]] = {}
    for name, x in record.weights.items():
        part, _, key = name.partition("/")
        under.setdefault(part, {})[key] = x.bfloat16()  # as recorded: nothing is rounded
    torch.save({f"_core.{name}": x for name, x in under["student"].items()}, folder / "student.pth")
    torch.save(under["vae"], folder / "vae.pth")
    (folder / "wav2vec").mkdir()
    save_file({name: x.float() for name, x in under["wav2vec"].items()}, folder / "wav2vec" / "model.safetensors")
    config = {"model_type": "wav2vec2", **record.config["wav2vec"]}
    (folder / "wav2vec" / "config.json").write_text(json.dumps(config))
    torch.save({"context": torch.from_numpy(record.inputs["text"])[None].bfloat16()}, folder / "text.pt")
    cv2.imwrite(str(folder / "mask.png"), record.inputs["mask"].astype(np.uint8))
    files = {"student": "student.pth", "vae": "vae.pth", "wav2vec": "wav2vec", "text": "text.pt", "mask": "mask.png"}
    return [word for option, name in files.items() for word in (f"--{option}", str(folder / name))]


def write_inputs(record: Any, folder: Path) -> None:
    """Video and sound, and a package `insightface`."""
    pictures = golden_pipeline.pictures_of(record)
    height, width = pictures[0].shape[:2]
    with VideoWriter(folder / "video.mkv", width, height, lossless=True) as writer:
        for picture in pictures:
            writer.write(picture)
    golden_pipeline.write_wave(folder / "sound.wav", record.inputs["waveform_int16"].astype(np.int16).reshape(-1))
    np.savez(folder / "recorded.npz", np.stack(pictures), record.inputs["bbox"], record.inputs["landmarks"])
    (folder / "insightface").mkdir()
    (folder / "insightface" / "__init__.py").touch()
    (folder / "insightface" / "app.py").write_text(FOUND)


@pytest.mark.slow
def test_the_command_line_gives_the_recorded_frames(tmp_path: Path) -> None:
    if not FILE.is_file():
        pytest.skip(f"NO RUN OF THE COMMAND LINE COMPARED: {FILE} is missing")
    record = golden.Golden(FILE)
    release = write_release(record, tmp_path)
    write_inputs(record, tmp_path)
    sizes = record.config["student"] | {"audio_hidden": record.weights["student/audio_proj.proj.weight"].shape[0]}

    def lipstream(*arguments: str) -> None:
        path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            [sys.executable, "-c", COMMAND, json.dumps(sizes), *arguments],
            env=os.environ | {"PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]

    lipstream("export", "--model", "14b", *release, "--decoder", "wan", "--no-parity", "-o", str(tmp_path / "bundle"))
    run = ["run", str(tmp_path / "video.mkv"), str(tmp_path / "sound.wav"), "--bundle", str(tmp_path / "bundle")]
    run += ["--upstream", "--insightface", str(tmp_path), "--noise", "torch", "--seed", str(record.config["seed"])]
    lipstream(*run, "--lossless", "-o", str(tmp_path / "out.mkv"))
    frames = np.stack(list(VideoReader(tmp_path / "out.mkv")))
    expected = record.outputs["frames_s8"].numpy().astype(int)
    assert np.abs(frames[:, ::8, ::8] - expected).max() <= golden_pipeline.FRAMES
    sources = np.stack([golden_pipeline.pictures_of(record)[int(i)] for i in record.inputs["shown"]])
    assert np.abs(sources[:, ::8, ::8] - expected).max() > 10 * golden_pipeline.FRAMES  # the mouth was replaced

    lipstream(*run, "-o", str(tmp_path / "out.mp4"))  # encoded twice
    encoded = np.stack(list(VideoReader(tmp_path / "out.mp4", opencv=True)))
    assert encoded.shape == frames.shape
    assert np.abs(encoded.astype(int) - frames).mean() < 3
