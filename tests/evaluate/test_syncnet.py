"""SyncNet against its published shapes, its cepstra against the published package, its offsets against known ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import python_speech_features
import torch
from lipstream.errors import CheckpointError
from lipstream_evaluate.syncnet import (
    DRAWN,
    SyncNet,
    distances,
    embed,
    load_syncnet,
    mfcc,
    score,
    sync_score,
)
from lipstream_models import STUDENTS
from lipstream_models.mel import PAST_FRAMES
from lipstream_training.data.clips import Clip, draw_clip
from lipstream_training.syncnet import SMALL, SyncNetRecipe, told_apart, train_syncnet
from safetensors.torch import save_file
from torch import nn

FRAMES = 60
_BRANCHES = {
    "netcnnaud": {
        0: (64, 1, 3, 3),
        4: (192, 64, 3, 3),
        8: (384, 192, 3, 3),
        11: (256, 384, 3, 3),
        14: (256, 256, 3, 3),
        18: (512, 256, 5, 4),
    },
    "netcnnlip": {
        0: (96, 3, 5, 7, 7),
        4: (256, 96, 1, 5, 5),
        8: (256, 256, 1, 3, 3),
        11: (256, 256, 1, 3, 3),
        14: (256, 256, 1, 3, 3),
        18: (512, 256, 1, 6, 6),
    },
    "netfcaud": {0: (512, 512), 3: (1024, 512)},
    "netfclip": {0: (512, 512), 3: (1024, 512)},
}
"""Weights of the published file, branch -> number of the layer -> shape; a batch norm follows each but the last."""


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    box = STUDENTS["tiny"].crop_box
    return [draw_clip(np.random.default_rng([7, i]), FRAMES, 64, box) for i in range(4)]


def sound(clip: Clip, late: int = 0) -> np.ndarray:
    """The audio while the clip is shown, if the mouth is `late` frames late against it."""
    start = (PAST_FRAMES + late) * 640
    return clip.audio[max(start, 0) :][: FRAMES * 640]


def test_every_parameter_has_the_published_name_and_shape() -> None:
    wanted = {}
    for branch, layers in _BRANCHES.items():
        for number, shape in layers.items():
            wanted |= {f"{branch}.{number}.weight": shape, f"{branch}.{number}.bias": shape[:1]}
            if len(shape) > 2 or number == 0:
                names = ("weight", "bias", "running_mean", "running_var")
                wanted |= {f"{branch}.{number + 1}.{name}": shape[:1] for name in names}
    state = SyncNet().state_dict()
    assert {k: tuple(x.shape) for k, x in state.items() if not k.endswith("num_batches_tracked")} == wanted
    held = sum(4 * x.numel() for x in state.values() if x.is_floating_point())
    assert 0 < 54_573_114 - held < 20_000  # the published file holds them, and some kilobytes of names


@pytest.mark.parametrize("samples", [400, 401, 12_345, 51_840])
def test_cepstra_are_those_of_the_package(samples: int) -> None:
    audio = (0.1 * np.random.default_rng(samples).standard_normal(samples)).astype(np.float32)
    wanted = python_speech_features.mfcc(audio.astype(np.float64) * 32768, 16_000)
    np.testing.assert_allclose(mfcc(audio), wanted, rtol=0, atol=2e-5)


def test_silence_has_finite_cepstra() -> None:
    assert np.isfinite(mfcc(np.zeros(16_000, np.float32))).all()


@torch.no_grad()
def test_a_whole_clip_gives_the_embeddings_of_its_windows() -> None:
    net = SyncNet(replace(SMALL, size=80)).eval()
    frames = 255 * torch.rand(1, 3, 9, 80, 80)
    windows = torch.cat([net.lips(frames[:, :, i : i + 5]) for i in range(5)], dim=1)
    torch.testing.assert_close(net.lips(frames), windows, rtol=1e-4, atol=1e-5)
    cepstra = torch.randn(1, 4 * 9 - 1, 13)
    windows = torch.cat([net.sound(cepstra[:, 4 * i : 4 * i + 20]) for i in range(4)], dim=1)
    torch.testing.assert_close(net.sound(cepstra), windows)


def test_the_published_size_takes_the_published_crops() -> None:
    net = SyncNet().eval()
    with torch.no_grad():
        assert net.lips(torch.zeros(1, 3, 5, 224, 224)).shape == (1, 1, 1024)
        assert net.sound(torch.zeros(1, 20, 13)).shape == (1, 1, 1024)


def test_scores_are_those_of_the_published_loop() -> None:
    lips, sound = torch.randn(2, 40, 16, generator=torch.Generator().manual_seed(0))
    sound = 0.3 * sound + torch.cat([lips[3:], lips[:3]])  # the sound of a moment comes three frames before its lips
    padded = nn.functional.pad(sound, (0, 0, 15, 15))
    rows = [nn.functional.pairwise_distance(lips[[i]].repeat(31, 1), padded[i : i + 31]) for i in range(40)]
    torch.testing.assert_close(distances(lips, sound), torch.stack(rows))
    means = torch.stack(rows).mean(0)
    found = score(lips, sound)
    assert found.distance == pytest.approx(float(means.min()))
    assert found.confidence == pytest.approx(float(means.median() - means.min()))
    assert found.offset == 15 - int(means.argmin()) == 3


@pytest.mark.parametrize("late", [-10, -3, 0, 1, 10])
def test_known_shifts_are_found_exactly(clips: list[Clip], late: int) -> None:
    net = load_syncnet(DRAWN)
    for clip in clips:
        whole = np.concatenate([np.zeros(640 * 10, np.float32), clip.audio, np.zeros(640 * 10, np.float32)])
        start = (PAST_FRAMES + 10 + late) * 640
        found = sync_score(net, clip.target, whole[start : start + FRAMES * 640])
        assert found is not None
        assert found.offset == late


def test_confidence_falls_with_noise(clips: list[Clip]) -> None:
    net = load_syncnet(DRAWN)
    noise = np.random.default_rng(0).standard_normal(FRAMES * 640).astype(np.float32)
    means = []
    for level in (0.0, 0.05, 0.5):
        found = [sync_score(net, clip.target, sound(clip) + level * noise) for clip in clips]
        means.append(np.mean([one.confidence for one in found if one]))
    assert means[0] > means[1] > means[2]


def test_silence_and_too_short_clips_have_no_score(clips: list[Clip]) -> None:
    net = load_syncnet(DRAWN)
    assert sync_score(net, clips[0].target, np.zeros(FRAMES * 640, np.float32)) is None
    assert sync_score(net, clips[0].target[:5], sound(clips[0])) is None


def test_a_long_clip_in_pieces_gives_the_same_embeddings(clips: list[Clip]) -> None:
    net = load_syncnet(DRAWN)
    crops = np.concatenate([clip.target for clip in clips])
    read, _ = embed(net, crops, np.ones(640 * len(crops), np.float32))
    with torch.no_grad():
        whole = net.lips(torch.from_numpy(crops[..., ::-1].copy()).permute(3, 0, 1, 2)[None].float())[0]
    torch.testing.assert_close(read, whole, rtol=1e-4, atol=1e-4)


def test_the_published_form_of_file_loads(tmp_path: Path) -> None:
    net = SyncNet()
    state = {k: x for k, x in net.state_dict().items() if not k.endswith("num_batches_tracked")}
    path = tmp_path / "syncnet_v2.model"
    torch.save(state, path, _use_new_zipfile_serialization=False)  # of 2017, before there were zip files
    loaded = load_syncnet(path)
    for name, x in state.items():
        assert torch.equal(loaded.state_dict()[name], x)
    assert not loaded.training


def test_errors_name_the_wrong_files(tmp_path: Path) -> None:
    def refused(path: Path) -> str:
        with pytest.raises(CheckpointError) as caught:
            load_syncnet(path)
        assert str(path) in str(caught.value)
        return str(caught.value)

    assert "no such file" in refused(tmp_path / "gone.model")
    (tmp_path / "text.model").write_text("not weights")
    refused(tmp_path / "text.model")
    torch.save([1, 2], tmp_path / "list.model")
    assert "list" in refused(tmp_path / "list.model")
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "other.model")
    assert "missing" in refused(tmp_path / "other.model")
    state = SyncNet().state_dict()
    state["netfclip.3.weight"] = torch.zeros(512, 512)
    torch.save(state, tmp_path / "shape.model")
    assert "(1024, 512)" in refused(tmp_path / "shape.model")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    refused(tmp_path / "other.safetensors")


@pytest.mark.slow
def test_training_starts_and_its_file_loads(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    recipe = SyncNetRecipe(clips=4, frames=24, steps=3, batch=2, look=16)
    net = train_syncnet(path, recipe)
    loaded = load_syncnet(path)
    assert loaded.config == net.config == SMALL
    for name, x in net.state_dict().items():
        if x.is_floating_point():
            torch.testing.assert_close(loaded.state_dict()[name], x, rtol=1e-2, atol=1e-3)


def test_the_loss_is_least_for_matching_embeddings() -> None:
    class Same(nn.Module):
        def lips(self, x: torch.Tensor) -> torch.Tensor:
            return x

        def sound(self, x: torch.Tensor) -> torch.Tensor:
            return x

    x = 100 * torch.eye(6)[None]
    assert float(told_apart(Same(), x, x)) < 1e-6  # type: ignore[arg-type]
    assert float(told_apart(Same(), x, x.flip(1))) > 100  # type: ignore[arg-type]
