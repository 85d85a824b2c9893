"""`lipstream personalize` on short drawn videos with toy students, and its parts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from lipstream import LipSyncEngine
from lipstream.bundle import IDENTITY, Bundle, Geometry
from lipstream.cli import main
from lipstream.errors import (
    ConfigError,
    FaceNotFoundError,
    FootageError,
    LipStreamError,
    NoAudioError,
    OutputError,
    QualityError,
)
from lipstream.media import VideoWriter
from lipstream_export.bundle import geometry
from lipstream_models import TAEHV, ClipAttention, StudentConfig, TAEHVConfig
from lipstream_models.constants import FOLDED, stream_constants
from lipstream_models.parts import StudentParts
from lipstream_models.unfold import unfolded
from lipstream_training.codec import encode_clip
from lipstream_training.data.clips import draw_video, evaluation_rng
from lipstream_training.personalize import command
from lipstream_training.personalize import student as student_module
from lipstream_training.personalize.command import STUDENT, Settings, decoder_recipe, personalize
from lipstream_training.personalize.footage import Run, _split, read_footage
from lipstream_training.personalize.identity import BANDS, candidates
from lipstream_training.personalize.measure import Closeness, closeness, mouth, sheet
from lipstream_training.personalize.stream import frames_of
from lipstream_training.personalize.student import latents_of, tune_student
from numpy.typing import NDArray
from toys import CONFIG, toy_parts, toy_student, toy_text

Frames = NDArray[np.uint8]
Sound = NDArray[np.float32]
FRAMES = 150
QUICK = Settings(steps=2, student_steps=2, least=5.0, keep=True)
BOX = (58.0, 248.0, 362.0, 552.0)
RELEASED = replace(CONFIG, latent_size=(8, 8), crop_box=BOX)
"""As released: TAEHV's encoder, patches of 2."""
TINY = replace(CONFIG, latent_size=(12, 12), crop_box=BOX, spatial=4, patch=(1, 3, 3), refine=6, sequence="masked")
"""As `tiny`: the linear encoder, patches of 3, convolutions after the head."""


@pytest.fixture(scope="module")
def person() -> tuple[Frames, Sound]:
    """A drawn person, uint8 [150, 240, 288, 3], and a sound that rises and falls."""
    times = np.arange(FRAMES * 640) / 16_000
    sound = (0.3 * np.sin(2 * np.pi * 200 * times) * np.sin(2 * np.pi * 1.5 * times) ** 2).astype(np.float32)
    return draw_video(evaluation_rng(0), sound, (240, 288))[0], sound


def write(path: Path, frames: Frames, sound: Sound | None) -> Path:
    """Losslessly, so that a frame does not depend on the ones after it."""
    options = {} if sound is None else {"audio_rate": 16_000}
    with VideoWriter(path, frames.shape[2], frames.shape[1], lossless=True, **options) as writer:
        if sound is not None:
            writer.write_audio(sound)
        for frame in frames:
            writer.write(frame)
    return path


def toy(config: StudentConfig, folder: Path) -> Path:
    parts_of(config).save(folder)
    return folder


def parts_of(config: StudentConfig) -> StudentParts:
    parts = toy_parts(config)
    if config.spatial == 8:
        return parts
    codec = TAEHVConfig("linear", decoder_widths=(16, 24, 24, 8), latent_channels=4, spatial=4, upsample="shuffle")
    return replace(parts, taehv=TAEHV(codec).eval())


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> list[StudentParts]:
    """What would be exported, which takes most of the time."""
    found: list[StudentParts] = []

    def record(parts: StudentParts, out: Path, *, quiet: bool) -> dict[str, None]:
        found.append(parts)
        return {"parity": None}

    monkeypatch.setattr(command, "export", record)
    return found


@pytest.fixture(autouse=True, scope="module")
def few_clips() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "REPEATED", 6)
        yield


@pytest.fixture(scope="module")
def tuned(person: tuple[Frames, Sound], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Checkpoint, video, bundle."""
    folder = tmp_path_factory.mktemp("tuned")
    source, video = toy(RELEASED, folder / "toy"), write(folder / "person.mkv", *person)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Closeness, "better_than", lambda *_: True)
        found = personalize(video, folder / "bundle", source, QUICK, quiet=True)
    assert found["kept"][-2:] == ["student", "decoder"]
    assert not found["warnings"]
    return source, video, folder / "bundle"


def test_the_result_is_a_bundle_that_runs(tuned: tuple[Path, Path, Path], person: tuple[Frames, Sound]) -> None:
    _, _, bundle = tuned
    frames, sound = person
    engine = LipSyncEngine.load(bundle)
    with engine.session(frames[:30]) as session:
        session.push_audio(sound[:16_000], 16_000)
        session.flush()
        assert len(list(session)) == 25
    model = Bundle.load(bundle).manifest.model
    assert model["name"] == "toy, personalised"
    assert model["personalised"].keys() - {"identity"} == {"before", "student", "decoder", "after"}


def test_student_and_decoder_change_and_nothing_else(tuned: tuple[Path, Path, Path]) -> None:
    source, _, bundle = tuned
    before, after = StudentParts.from_checkpoint(source), StudentParts.from_bundle(Bundle.load(bundle))
    old, new = before.weights(), after.weights()
    assert old.keys() == new.keys()
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert {name.partition(".")[0] for name in changed} == {"student", "taehv"}
    assert any(name.startswith("taehv.decoder.") for name in changed)
    assert not any(name.startswith("taehv.encoder.") for name in changed)
    constants, found = before.constants(), after.constants()
    found.pop(IDENTITY, None)
    for name, x in found.items():
        torch.testing.assert_close(x, constants[name], rtol=0, atol=1e-6)
    for name in changed:  # as a trained student's
        assert torch.equal(new[name], new[name].bfloat16().float()), name


def test_the_part_held_out_has_no_effect_and_a_seed_repeats(
    tuned: tuple[Path, Path, Path],
    person: tuple[Frames, Sound],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    exported: list[StudentParts],
) -> None:
    """Another last third of the pictures, and of the sound but for its first two frames, which features look ahead."""
    source, _, bundle = tuned
    frames, sound = person[0].copy(), person[1].copy()
    boundary = FRAMES - FRAMES // 3
    frames[boundary:] = (0.8 * frames[boundary:]).astype(np.uint8)
    sound[(boundary + 2) * 640 :] *= 0.3
    monkeypatch.setattr(Closeness, "better_than", lambda *_: True)
    video = write(tmp_path / "other.mkv", frames, sound)
    for seed in (0, 1):
        personalize(video, tmp_path / "out", source, replace(QUICK, seed=seed), quiet=True)
    first = Bundle.load(bundle)
    wanted = StudentParts.from_bundle(first).weights()
    same, other = (parts.weights() for parts in exported)
    assert wanted.keys() == same.keys()
    assert all(torch.equal(x, same[name]) for name, x in wanted.items())
    assert not all(torch.equal(x, other[name]) for name, x in wanted.items())
    assert first.manifest.model["personalised"] != exported[0].model["personalised"]


def test_the_command(person: tuple[Frames, Sound], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = np.concatenate([person[0], person[0][::-1]] * 2)[:510]
    source, video = (
        toy(TINY, tmp_path / "toy"),
        write(tmp_path / "person.mkv", frames, np.tile(person[1], 4)[: 510 * 640]),
    )
    out, picture = tmp_path / "bundle", tmp_path / "sheet.png"
    options = ["--bundle", str(source), "--steps", "1", "--student-steps", "1", "--quiet", "--keep"]
    assert main(["personalize", str(video), "-o", str(out), *options, "--sheet", str(picture), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["held_out"].keys() - {"identity"} == {"before", "student", "decoder", "after"}
    assert found["face_seconds"] == pytest.approx(510 / 25, abs=0.2)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert Bundle.load(out).manifest.geometry == geometry(TINY)


def test_what_does_not_get_better_is_not_written(
    tuned: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exported: list[StudentParts]
) -> None:
    source, video, _ = tuned
    monkeypatch.setattr(Closeness, "better_than", lambda *_: False)
    settings = replace(QUICK, steps=1, student_steps=1)
    with pytest.raises(QualityError, match="did not get better"):
        personalize(video, tmp_path / "bundle", source, replace(settings, keep=False), quiet=True)
    assert not exported
    assert not (tmp_path / "bundle").exists()
    found = personalize(video, tmp_path / "bundle", source, settings, quiet=True)
    assert "did not get better" in found["warnings"][0]
    assert not found["kept"]
    old, new = StudentParts.from_checkpoint(source).weights(), exported[0].weights()
    assert all(torch.equal(x, new[name]) for name, x in old.items())


@pytest.mark.parametrize("place", ["folder", "file", "file/bundle", "x" * 256])
def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    for file in ("file", "folder/mine"):
        (tmp_path / file).write_bytes(b"mine")
    monkeypatch.setattr(command, "load_source", mock.Mock(side_effect=AssertionError("the work has begun")))
    with pytest.raises(OutputError):
        personalize(tmp_path / "video.mkv", tmp_path / place, Path("tiny"), QUICK, quiet=True)
    assert {path.name for path in tmp_path.rglob("*")} == {"folder", "file", "mine"}


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda frames, sound: (frames, None), NoAudioError, "no audio"),
        (lambda frames, sound: (frames, 0 * sound), FootageError, "silent"),
        (lambda frames, sound: (frames[:30], sound[: 30 * 640]), FootageError, "for 1.2 s of 1.2"),
        (lambda frames, sound: (np.full_like(frames, 90), sound), FaceNotFoundError, "no face"),
        (lambda frames, sound: (np.concatenate([frames, frames], 2), sound), FootageError, "several people"),
    ],
    ids=["mute", "silent", "short", "faceless", "two people"],
)
def test_unusable_videos(
    person: tuple[Frames, Sound],
    tmp_path: Path,
    change: Callable[[Frames, Sound], tuple[Frames, Sound | None]],
    error: type[LipStreamError],
    says: str,
) -> None:
    frames, sound = person
    video = write(tmp_path / "video.mkv", *change(frames[:60], sound[: 60 * 640]))
    with pytest.raises(error, match=says) as raised:
        read_footage(video, *crops_of(RELEASED), face_at=None, least=2.0, quiet=True)
    assert raised.value.fix or error is NoAudioError


def test_a_point_chooses_one_of_two_people(person: tuple[Frames, Sound], tmp_path: Path) -> None:
    frames, sound = person
    pair = np.concatenate([frames[:40], frames[:40]], axis=2)
    video = write(tmp_path / "video.mkv", pair, sound[: 40 * 640])
    footage = read_footage(video, *crops_of(RELEASED), face_at=(144.0, 120.0), least=1.0, quiet=True)
    assert footage.seconds == pytest.approx(1.6, abs=0.1)


def crops_of(config: StudentConfig) -> tuple[Geometry, NDArray[np.float32]]:
    return geometry(config), toy_parts(config).masks["composite"].numpy()


def test_runs_are_split_in_time_and_cut_into_whole_clips() -> None:
    def run(start: int, count: int) -> Run:
        return Run(start, np.zeros((count, 2, 2, 3), np.uint8))

    before, after = _split([run(0, 50), run(60, 40), run(120, 30)], 80)
    assert [(x.start, len(x.crops)) for x in before] == [(0, 50), (60, 30)]
    assert [(x.start, len(x.crops)) for x in after] == [(90, 10), (120, 30)]
    assert [(x.start, len(x.crops)) for x in run(7, 70).clips(33)] == [(7, 33), (40, 33)]
    parts = toy_parts(RELEASED)
    assert [frames_of(parts, run(0, n)) for n in (8, 9, 20, 21)] == [0, 9, 9, 21]


def test_the_frame_that_shows_the_person() -> None:
    """One for closed lips, which have no edges, up to one for teeth, which have the most."""
    parts = parts_of(TINY)
    count, encoder = 40, parts.codec("encoder")
    assert encoder
    contrasts = np.random.default_rng(0).permutation(count)  # of each frame's mouth
    crops = np.full((count, 48, 48, 3), 128, np.uint8)
    rows, columns = mouth(parts)
    for crop, contrast in zip(crops, contrasts, strict=True):
        crop[rows, columns][:9] += np.uint8(3 * contrast)
    latents = {int(contrasts[i]): encode_clip(encoder, crops[i][None])[:, :1] for i in range(count)}
    chosen = [
        next(contrast for contrast, latent in latents.items() if torch.equal(latent, identity))
        for identity in candidates(parts, [Run(0, crops[:15]), Run(50, crops[15:])])
    ]
    for contrast, (first, last) in zip(chosen, BANDS.values(), strict=True):
        assert first * count - 1 <= contrast <= last * count


def test_without_steps_only_the_identity_changes(
    person: tuple[Frames, Sound], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exported: list[StudentParts]
) -> None:
    source, video = toy(TINY, tmp_path / "toy"), write(tmp_path / "person.mkv", *person)
    monkeypatch.setattr(Closeness, "better_than", lambda *_: True)
    monkeypatch.setattr(command, "_identity", lambda parts, person, runs: next(candidates(parts, person.clips)))
    found = personalize(video, tmp_path / "bundle", source, replace(QUICK, steps=0, student_steps=0), quiet=True)
    assert found["kept"] == ["identity"]
    assert exported[0].identity is not None
    old, new = StudentParts.from_checkpoint(source).weights(), exported[0].weights()
    assert all(torch.equal(x, new[name]) for name, x in old.items())


def test_settings_are_checked() -> None:
    for wrong in (
        {"minutes": 0.0},
        {"minutes": float("nan")},
        {"steps": -1},
        {"student_steps": -1},
        {"seed": -1},
        {"seed": 2**63},
    ):
        with pytest.raises(ConfigError):
            Settings(**wrong)  # type: ignore[arg-type]


def test_pieces_of_the_decoder_are_whole_tokens() -> None:
    for config in (RELEASED, TINY):
        recipe = decoder_recipe(toy_parts(config))
        assert recipe.token == config.patch[1]
        assert recipe.size % recipe.token == 0
        assert recipe.size <= min(config.latent_size)


@torch.no_grad()
def test_the_constants_of_a_bundle_become_weights() -> None:
    original, other, text = toy_student(), toy_student(seed=1), toy_text()
    constants = stream_constants(original, text)
    kept = {name: x for name, x in original.state_dict().items() if not FOLDED.search(name)}
    other.load_state_dict(kept, strict=False)
    rng = torch.Generator().manual_seed(0)
    x, condition = (torch.randn(1, n, 3, *CONFIG.latent_size, generator=rng) for n in (4, 13))
    audio = torch.randn(1, 12, CONFIG.audio_dim, generator=rng)
    t = torch.tensor([CONFIG.t_list])
    attend = ClipAttention(CONFIG, 3, causal=True)
    given = x, condition, audio, t, original.text_kv(text[None]), attend
    wanted = original(*given)
    assert (other(*given) - wanted).abs().max() > 1e-2
    found = unfolded(StudentParts(CONFIG, student=other, shared=constants))
    assert found.student
    assert found.text is not None
    assert found.shared is None
    torch.testing.assert_close(found.student(*given), wanted, rtol=0, atol=1e-4)
    for name, x in found.constants().items():
        torch.testing.assert_close(x, constants[name], rtol=1e-4, atol=1e-5)


def test_a_large_student_gets_adapters(person: tuple[Frames, Sound], monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedding of patches and the audio's layers are trained beside them."""
    monkeypatch.setattr(student_module, "LARGE", 0)
    parts = toy_parts(RELEASED).with_constants()
    assert parts.student
    rng = np.random.default_rng(0)
    clips = [Run(5, rng.integers(0, 255, (33, 64, 64, 3)).astype(np.uint8))]
    data = latents_of(parts, clips, person[1])
    losses: list[float] = []
    found = tune_student(parts, data, replace(STUDENT, steps=3), seed=0, progress=losses.append)
    assert found.student
    before, after = parts.student.state_dict(), found.student.state_dict()
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(".self_attn.q." in name for name in changed)
    assert not any(FOLDED.search(name) or name.startswith("head") for name in changed)
    assert len(losses) == 3


def test_closeness() -> None:
    parts = toy_parts(RELEASED)
    rng = np.random.default_rng(0)
    true = rng.integers(0, 255, (3, 64, 64, 3)).astype(np.uint8)
    assert closeness(parts, true, true) == Closeness(0.0, 1.0, 1.0)
    grey = (true // 2 + 64).astype(np.uint8)
    found = closeness(parts, grey, true)
    assert found.sharpness == pytest.approx(0.25, abs=0.02)
    assert found.error > 20
    other = Closeness(5.0, 0.5, 1.0)
    assert Closeness(4.0, 0.9, 1.0).better_than(other)
    assert Closeness(6.0, 0.9, 1.0).better_than(other)
    assert Closeness(4.5, 0.55, 1.1).better_than(other)
    assert not Closeness(4.0, 0.9, 1.2).better_than(other)
    assert not Closeness(9.0, 0.9, 1.0).better_than(other)
    assert not Closeness(5.0, 2.1, 1.0).better_than(other)
    assert len(sheet(parts, [true, grey])) > 1000
