"""`lipstream-train prepare`: odd videos with their reasons, the same shards after any kill, clips that can be read."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import transformers
import webdataset
from lipstream.errors import ConfigError, FootageError
from lipstream.media import VideoReader
from lipstream_evaluate.media import read_sound
from lipstream_evaluate.syncnet import DRAWN, load_syncnet, sync_score
from lipstream_models import STUDENTS, TAEHV, CausalDiT, SpeechEncoder, WanVAE, WanVAEConfig
from lipstream_models.config import TINY_TAEHV
from lipstream_models.mel import PAST_FRAMES, SAMPLES_AFTER
from lipstream_models.parts import StudentParts
from lipstream_models.released.wav2vec import hidden_states, load_wav2vec
from lipstream_training.cli import main
from lipstream_training.codec import encode_clip
from lipstream_training.data.mask import latent_mask, mouth_mask
from lipstream_training.prepare.command import find_sources, prepare
from lipstream_training.prepare.encode import Encoder
from lipstream_training.prepare.filters import Filters
from lipstream_training.prepare.sample import decode, picture_bytes, video_bytes, video_frames
from lipstream_training.prepare.settings import FRAMES, Released, Settings
from lipstream_training.prepare.shards import Shards, read_tar
from odd_videos import DROPPED, KEPT, make_odd_videos
from safetensors.numpy import load_file
from toys import WAV2VEC_SIZES

TINY = Settings(student="tiny", syncnet=DRAWN, shard=5)


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("odd") / "videos"
    make_odd_videos(folder)
    return folder


@pytest.fixture(scope="module")
def prepared(odd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prepared") / "shards"
    prepare(out, [odd], TINY, drawn=3, quiet=True)
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_every_odd_video_is_kept_or_has_its_reason(prepared: Path) -> None:
    about = json.loads((prepared / "index.json").read_text())
    kept = {decode(files).about["source"] for shard in prepared.glob("*.tar") for _, files in read_tar(shard)}
    assert kept == {*KEPT, "drawn 0", "drawn 1", "drawn 2"}
    for name, reason in DROPPED.items():
        said = [text.partition(": ")[2] for text in about["dropped"][name]]
        assert reason in said, (name, said)
        assert all(text == reason or text.startswith("too short") for text in said)
    assert about["counts"]["kept"] == about["clips"] == sum(len(shard["samples"]) for shard in about["shards"])


def test_the_report_shows_what_was_kept_and_dropped(prepared: Path) -> None:
    text = (prepared / "report.html").read_text()
    for name, reason in DROPPED.items():
        assert name in text
        assert reason in text
    assert text.count("data:image/jpeg") > 12
    assert "was not checked" not in text


def test_clips_are_what_the_videos_show(prepared: Path, odd: Path) -> None:
    """Each clip is found in its video: its sound is in sync, and its reference is another part of the video."""
    shards = Shards(prepared)
    net = load_syncnet(DRAWN)
    seen = 0
    for i in range(len(shards)):
        sample = shards[i]
        assert sample.target.shape == sample.reference.shape == (FRAMES, *STUDENTS["tiny"].crop_size, 3)
        assert sample.sound.shape == ((PAST_FRAMES + FRAMES) * 640 + SAMPLES_AFTER,)
        source = sample.about["source"]
        if source.startswith("drawn"):
            assert sample.tensors["mouth"].shape == (FRAMES, 4)
            continue
        seen += 1
        start, other = sample.about["start"], sample.about["reference_start"]
        assert other >= start + FRAMES or other + 25 <= start
        whole = read_sound(odd / source)
        begin = (start - PAST_FRAMES) * 640
        np.testing.assert_allclose(sample.sound[max(-begin, 0) :][:9000], whole[max(begin, 0) :][:9000], atol=1e-4)
        found = sync_score(net, sample.target, sample.sound[PAST_FRAMES * 640 :])
        assert found is not None
        assert abs(found.offset) <= 1
    assert seen >= len(KEPT)


def test_the_shards_can_be_read_by_webdataset(prepared: Path) -> None:
    urls = [str(path) for path in sorted(prepared.glob("*.tar"))]
    read = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
    shards = Shards(prepared)
    assert len(read) == len(shards)
    for i, sample in enumerate(read):
        files = {key: value for key, value in sample.items() if not key.startswith("__")}
        ours = decode(files)
        np.testing.assert_array_equal(ours.target, shards[i].target)
        assert ours.about == shards[i].about


@pytest.mark.slow
def test_shards_do_not_depend_on_the_number_of_processes(odd: Path, tmp_path: Path) -> None:
    for workers in (1, 2):
        videos = [odd / name for name in ("five_seconds.mp4", "portrait.mp4", "silent.mp4")]
        prepare(tmp_path / str(workers), videos, replace(TINY, student="1.3b"), workers=workers, quiet=True)
    ours, theirs = contents(tmp_path / "1"), contents(tmp_path / "2")
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []


_ARGUMENTS = ["--student", "tiny", "--drawn", "10", "--shard-clips", "3", "--workers", "2"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    assert main(["prepare", str(out), *_ARGUMENTS]) == 0
    return out


def test_killed_at_any_point_it_resumes_to_the_same_shards(undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "lipstream_training.cli", "prepare", str(out), *_ARGUMENTS]
    for part in (
        lambda: (out / "parts").is_dir(),  # begun
        lambda: any(out.glob("parts/*/")) and any(out.glob("parts/*.tar")),  # in the middle
        lambda: any(out.glob("shard-*.tar")) or (out / "index.json").is_file(),  # while shards are written
    ):
        with subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL) as process:
            while not part() and process.poll() is None:
                time.sleep(0.02)
            os.killpg(process.pid, signal.SIGKILL)
    assert main(["prepare", str(out), *_ARGUMENTS]) == 0
    ours, theirs = contents(out), contents(undisturbed)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []


def test_a_finished_folder_is_left_as_it_is(undisturbed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(undisturbed)
    assert main(["prepare", str(undisturbed), *_ARGUMENTS, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["clips"] == 10
    assert contents(undisturbed) == before


def test_a_folder_of_something_else_is_refused(undisturbed: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="other settings"):
        prepare(undisturbed, [], Settings(student="tiny", shard=8), drawn=10)
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(ConfigError, match="not empty"):
        prepare(tmp_path, [], TINY, drawn=1)
    assert contents(tmp_path) == {"mine.txt": b"keep me"}
    with pytest.raises(ConfigError, match="no finished shards"):
        Shards(tmp_path)


def sources_of(folder: Path) -> list[str]:
    """The source of each clip, read from the tar files in the index's order."""
    names = json.loads((folder / "index.json").read_text())["shards"]
    return [json.loads(files["json"])["source"] for name in names for _, files in read_tar(folder / name["name"])]


def test_new_videos_are_appended_and_those_that_are_there_are_skipped(odd: Path, tmp_path: Path) -> None:
    out, settings = tmp_path / "out", Settings(student="tiny", shard=2)
    copies = tmp_path / "copies"
    copies.mkdir()
    (copies / "renamed.mp4").write_bytes((odd / "five_seconds.mp4").read_bytes())
    prepare(out, [odd / "five_seconds.mp4"], settings, drawn=3, workers=1, quiet=True)
    before, first = contents(out), sources_of(out)
    found = prepare(out, [copies, odd / "silent.mp4", odd / "portrait.mp4"], settings, drawn=5, workers=1, quiet=True)
    after = contents(out)
    assert all(after[name] == before[name] for name in before if name.endswith(".tar"))
    added = sources_of(out)[len(first) :]
    assert sources_of(out)[: len(first)] == first
    assert set(added) == {"portrait.mp4", "drawn 3", "drawn 4"}
    assert len(added) == len(Shards(out)) - len(first)
    assert found["clips"] == len(sources_of(out)) == found["counts"]["kept"]
    assert found["sources"] == 1 + 3 + 2 + 2
    assert "renamed.mp4" not in found["dropped"]
    assert all(name in (out / "report.html").read_text() for name in ("five_seconds.mp4", "silent.mp4"))
    assert Shards(out)[len(first)].about["source"] == added[0]
    with pytest.raises(ConfigError, match="seed 0"):
        prepare(out, [odd / "uhd.mp4"], replace(settings, seed=4), workers=1, quiet=True)
    assert contents(out) == after


def test_an_append_that_was_killed_leaves_the_clips_readable_and_continues(tmp_path: Path) -> None:
    settings = Settings(student="tiny", shard=2)
    whole, out = tmp_path / "whole", tmp_path / "out"
    for folder in (whole, out):
        prepare(folder, [], settings, drawn=3, workers=1, quiet=True)
    prepare(whole, [], settings, drawn=6, workers=1, quiet=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lipstream_training.prepare.command.counts", _killed)  # after the new shards, before the index
        with pytest.raises(KeyboardInterrupt):
            prepare(out, [], settings, drawn=6, workers=1, quiet=True)
    assert len(Shards(out)) == 3
    with pytest.raises(ConfigError, match="not finished"):
        prepare(out, [], settings, drawn=7, workers=1, quiet=True)
    prepare(out, [], settings, drawn=6, workers=1, quiet=True)
    assert contents(out) == contents(whole)


def _killed(*arguments: Any) -> None:
    raise KeyboardInterrupt


def test_machines_share_the_sources(undisturbed: Path, tmp_path: Path) -> None:
    """Together the parts have the clips of one machine, each once."""
    for part in (1, 2, 3):
        assert main(["prepare", str(tmp_path), *_ARGUMENTS, "--workers", "1", "--shard", f"{part}/3"]) == 0
    parts = [sources_of(tmp_path / f"part-{part}-of-3") for part in (1, 2, 3)]
    assert parts[1] == ["drawn 1", "drawn 4", "drawn 7"]
    assert sorted(source for part in parts for source in part) == sorted(sources_of(undisturbed))
    mine, theirs = Shards(tmp_path / "part-2-of-3")[1], Shards(undisturbed)[4]
    np.testing.assert_array_equal(mine.target, theirs.target)
    for wrong in ("0/3", "4/3", "3", "11/11"):
        assert main(["prepare", str(tmp_path / "out"), *_ARGUMENTS, "--shard", wrong]) == ConfigError.exit_code
    assert not (tmp_path / "out").exists()


def test_too_few_clips_are_an_error_with_the_reasons(
    odd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["prepare", str(tmp_path / "out"), str(odd / "silent.mp4"), "--student", "tiny"]
    command += ["--quiet", "--workers", "1"]
    assert main(command) == FootageError.exit_code
    said = capsys.readouterr().err
    assert "0 clips from 1 sources; dropped: silent (" in said
    assert "report.html" in said
    assert main([*command, "--drawn", "2", "--min-clips", "3"]) == FootageError.exit_code
    assert main([*command, "--drawn", "2", "--min-clips", "2"]) == 0


def test_sources_come_from_folders_lists_and_names(odd: Path, tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text(f"# mine\n{odd / 'silent.mp4'}\n\n{odd / 'uhd.mp4'}\n")
    assert [source.name for source in find_sources([listed], 0)] == ["silent.mp4", "uhd.mp4"]
    assert len(find_sources([odd, odd / "uhd.mp4"], 9)) == 12 + 9
    with pytest.raises(ConfigError, match="no such"):
        find_sources([tmp_path / "gone"], 0)
    with pytest.raises(ConfigError, match="nothing to prepare"):
        find_sources([], 0)


@pytest.mark.parametrize(
    ("filters", "reason"),
    [
        ({"face": 400.0}, "small face"),
        ({"sharpness": 1e6}, "blurred"),
        ({"mouth": 9.0}, "the mouth does not move"),
        ({"speech": 1.1}, "hardly any speech"),
        ({"jump": 1e-4}, "a jump of the face"),
        ({"confidence": 50.0}, "no sync"),
    ],
)
def test_every_filter_drops_clips(odd: Path, tmp_path: Path, filters: dict[str, Any], reason: str) -> None:
    settings = Settings(student="tiny", syncnet=DRAWN, filters=Filters(**filters))
    found = prepare(tmp_path / "out", [odd / "five_seconds.mp4"], settings, quiet=True)
    assert found["clips"] == 0
    assert any(reason in text for text in found["dropped"]["five_seconds.mp4"])


def test_an_offset_of_zero_turns_the_filter_off(odd: Path, tmp_path: Path) -> None:
    """By default no clip of this video is kept."""
    settings = Settings(student="tiny", syncnet=DRAWN, filters=Filters(offset=0))
    assert prepare(tmp_path / "out", [odd / "out_of_sync.mp4"], settings, quiet=True)["clips"] > 0


def test_large_crops_are_stored_as_video(odd: Path, tmp_path: Path) -> None:
    settings = Settings(student="1.3b", filters=Filters(offset=0))
    prepare(tmp_path / "out", [odd / "five_seconds.mp4"], settings, quiet=True)
    sample = Shards(tmp_path / "out")[0]
    assert sample.target.shape == (FRAMES, 512, 512, 3)
    names = {name.split(".", 1)[1] for shard in (tmp_path / "out").glob("*.tar") for name in _names(shard)}
    assert names == {"target.mp4", "reference.mp4", "identity.png", "sound.wav", "json"}


def _names(shard: Path) -> list[str]:
    return [f"{key}.{extension}" for key, files in read_tar(shard) for extension in files]


def test_stored_crops_can_be_read_back() -> None:
    smooth = np.linspace(0, 255, 160)[None, :, None].repeat(160, 0).repeat(3, 2).astype(np.uint8)
    frames = np.stack([np.roll(smooth, i, axis=0) for i in range(5)])
    np.testing.assert_array_equal(video_frames(video_bytes(frames, "npy"), "npy"), frames)
    back = video_frames(video_bytes(frames, "mp4"), "mp4").astype(int)
    assert np.abs(back - frames).mean() < 2


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = STUDENTS["tiny"]
    torch.manual_seed(0)
    size = config.crop_size[0]
    pixel = torch.from_numpy(mouth_mask(size))
    masks = {"pixel": pixel, "latent": torch.from_numpy(latent_mask(size, 4)), "composite": pixel.clone()}
    text = torch.randn(config.text_len, config.text_dim)
    folder = tmp_path_factory.mktemp("checkpoint")
    StudentParts(config, CausalDiT(config), text, TAEHV(TINY_TAEHV), SpeechEncoder(), masks).save(folder)
    return folder


def test_features_computed_ahead_are_those_computed_when_read(checkpoint: Path, tmp_path: Path) -> None:
    plain, ahead = tmp_path / "plain", tmp_path / "ahead"
    prepare(plain, [], Settings(student="tiny"), drawn=2, quiet=True)
    prepare(ahead, [], Settings(student="tiny", encode=checkpoint), drawn=2, quiet=True)
    encoder = Encoder.of_checkpoint(checkpoint)
    cached, fly = Shards(ahead), Shards(plain, encoder)
    assert (ahead / "constants.safetensors").is_file()
    for i in range(2):
        a, b = cached[i].tensors, fly[i].tensors
        assert a.keys() == b.keys() == {"target", "masked", "reference", "first", "audio", "mouth"}
        assert a["target"].shape[1] == 21
        assert a["audio"].shape[0] == FRAMES
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.slow
def test_released_files_encode_as_the_released_system_does(odd: Path, tmp_path: Path) -> None:
    """Latents encoded in pieces equal those of the whole clip; the input of wav2vec is only the clip."""
    torch.manual_seed(0)
    vae, encoder = WanVAE(WanVAEConfig(dim=4)), transformers.Wav2Vec2Model(transformers.Wav2Vec2Config(**WAV2VEC_SIZES))
    torch.save(vae.state_dict(), tmp_path / "vae.pth")
    torch.save(torch.randn(512, 4096), tmp_path / "text.pt")
    encoder.save_pretrained(tmp_path / "wav2vec")
    mask = np.full((256, 256), 255, np.uint8)
    mask[120:240, 40:216] = 0
    (tmp_path / "mask.png").write_bytes(picture_bytes(mask[..., None].repeat(3, 2)))
    files = Released(tmp_path / "vae.pth", tmp_path / "wav2vec", tmp_path / "text.pt", tmp_path / "mask.png")
    prepare(tmp_path / "out", [odd / "five_seconds.mp4"], Settings(encode=files), quiet=True)
    sample = Shards(tmp_path / "out")[0]
    found = sample.tensors
    assert {name: x.shape for name, x in found.items()} == {
        "target": (16, 21, 64, 64),
        "masked": (16, 21, 64, 64),
        "reference": (16, 21, 64, 64),
        "first": (16, 1, 64, 64),
        "audio": (81, 64),
    }
    with torch.inference_mode():
        kept = torch.from_numpy(cv2.resize(mask, (512, 512), interpolation=cv2.INTER_LINEAR) > 127).float()
        whole = encode_clip(vae.eval(), sample.target[:13], kept)
        clip = torch.from_numpy(sample.sound[PAST_FRAMES * 640 : (PAST_FRAMES + FRAMES) * 640])
        audio = hidden_states(load_wav2vec(tmp_path / "wav2vec"), clip, FRAMES)
    np.testing.assert_allclose(found["masked"][:, :4], whole.numpy(), atol=5e-3)
    np.testing.assert_allclose(found["audio"], audio.numpy(), atol=1e-5)
    text = load_file(tmp_path / "out" / "constants.safetensors")["text"]
    np.testing.assert_allclose(text, torch.load(tmp_path / "text.pt", weights_only=True).numpy())


def test_the_reference_never_shows_the_clip_itself(prepared: Path) -> None:
    for i, sample in ((i, Shards(prepared)[i]) for i in range(3)):
        assert np.abs(sample.target.astype(int) - sample.reference).max(axis=(1, 2, 3)).min() > 0, i


def test_real_videos_without_syncnet_are_said_to_be_unchecked(odd: Path, tmp_path: Path) -> None:
    found = prepare(tmp_path / "out", [odd / "five_seconds.mp4"], Settings(student="tiny"), quiet=True)
    assert "not checked" in found["unchecked"][0]
    assert len(list(VideoReader(odd / "five_seconds.mp4"))) == 125
