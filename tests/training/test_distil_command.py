"""The commands of distillation as a user runs them: stages after each other, the study, the analysis, the plan."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from lipstream.media import VideoReader
from lipstream_evaluate.syncnet import load_syncnet
from lipstream_models import STUDENTS, TAEHV, CausalDiT, SpeechEncoder
from lipstream_models.config import TINY_TAEHV
from lipstream_models.parts import StudentParts
from lipstream_training.cli import main
from lipstream_training.data.mask import compositing_mask, latent_mask, mouth_mask
from lipstream_training.distil import parallel, plan
from lipstream_training.distil import toy_dataset as micro_world
from lipstream_training.distil.analyze import factorial, pick_landing, pick_window
from lipstream_training.distil.recipe import Recipe, base_values, load_recipe
from lipstream_training.distil.reward import SyncReward
from lipstream_training.distil.sampling import constant, inside, sample, schedule
from lipstream_training.distil.sources import ShardClips, load_model
from lipstream_training.distil.stages import Networks
from lipstream_training.distil.study import run_study, table, variants
from lipstream_training.distil.toy_dataset import fidelity, opening, texts
from lipstream_training.prepare.shards import Shards
from safetensors.torch import load_file, save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore
from toy_distillation import CONFIG, Clips, toy

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of random weights."""
    config = STUDENTS["tiny"]
    torch.manual_seed(0)
    size = config.crop_size[0]
    masks = {"pixel": mouth_mask(size), "latent": latent_mask(size, 4), "composite": compositing_mask(size)}
    tensors = {name: torch.from_numpy(mask) for name, mask in masks.items()}
    text = torch.randn(config.text_len, config.text_dim)
    folder = tmp_path_factory.mktemp("base")
    StudentParts(config, CausalDiT(config), text, TAEHV(TINY_TAEHV), SpeechEncoder(), tensors).save(folder)
    return folder


@pytest.fixture(scope="module")
def stages(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All three stages, two updates each, by the command line."""
    root = tmp_path_factory.mktemp("stages")
    shards = str(root / "shards")
    assert main(["prepare", shards, "--student", "tiny", "--drawn", "2", "--encode", str(base), "--workers", "1"]) == 0
    common = ["--data", shards, "--student", "tiny", "--lora", "0", "--precision", "fp32", "--batch", "1"]
    common += ["--accumulate", "1", "--iterations", "2", "--codec", str(base)]

    def stage(name: str, *more: str) -> None:
        assert main(["distil", str(root / name), *common, "--stage", name, *more]) == 0

    stage("teacher", "--init", str(base))
    stage("forcing", "--init", str(root / "teacher"), "--sample-every", "2")
    stage(
        "self_forcing",
        *("--init", str(root / "forcing"), "--teacher", str(root / "teacher")),
        *("--syncnet", "drawn", "--base", str(base)),
    )
    return root


def test_stages_follow_each_other_to_a_checkpoint_that_can_be_exported(stages: Path, base: Path) -> None:
    weights = [load_file(stages / name / "student.safetensors") for name in ("teacher", "forcing", "self_forcing")]
    for before, after in pairwise(weights):
        assert before.keys() == after.keys()
        assert any(not torch.equal(before[name], after[name]) for name in before)
    whole = StudentParts.from_checkpoint(stages / "self_forcing" / "checkpoint")
    assert torch.equal(whole.student.state_dict()["head.head.weight"], weights[-1]["head.head.weight"])
    assert torch.equal(whole.text, StudentParts.from_checkpoint(base).text)
    lines = [json.loads(line) for line in (stages / "self_forcing" / "log.jsonl").read_text().splitlines()]
    assert "student/sync_c" in lines[0]
    assert "student/loss" not in lines[1]  # the student is updated at every fifth iteration


def test_a_stage_trains_the_adapters_of_the_stage_before_on(stages: Path, tmp_path: Path) -> None:
    """With a rate of 0 the second stage returns what it was given."""
    common = ["--data", str(stages / "shards"), "--student", "tiny", "--precision", "fp32", "--accumulate", "1"]
    common += ["--iterations", "1", "--frames", "6", "--lora", "2", "--lora-alpha", "1", "--stage", "forcing"]
    first, second, fresh = (tmp_path / name for name in ("first", "second", "fresh"))
    init = str(stages / "forcing")
    assert main(["distil", str(first), *common, "--init", init, "--rate", "1e-3"]) == 0
    assert main(["distil", str(second), *common, "--init", str(first), "--rate", "0"]) == 0
    assert (
        main(["distil", str(fresh), *common, "--init", str(first), "--rate", "0", "--continue-adapters", "false"]) == 0
    )
    before, after = (load_file(folder / "adapter.safetensors") for folder in (first, second))
    assert any(name.endswith("lora_B.default.weight") and bool(x.any()) for name, x in before.items())
    assert before.keys() == after.keys()
    assert all(torch.equal(x, after[name]) for name, x in before.items())
    assert not (fresh / "adapter.safetensors").exists()
    weights = [load_file(folder / "student.safetensors") for folder in (first, second, fresh)]
    for name, x in weights[0].items():
        torch.testing.assert_close(weights[1][name], x, rtol=0, atol=1e-6)
        torch.testing.assert_close(weights[2][name], x, rtol=0, atol=1e-6)


def test_the_released_recipe_runs_by_its_name(stages: Path, base: Path, tmp_path: Path) -> None:
    """Counted from 1 to 5: the student's update is the fifth."""
    teacher, out = str(stages / "teacher"), tmp_path / "out"
    small = ["--student", "tiny", "--lora", "0", "--precision", "fp32", "--accumulate", "2", "--frames", "6"]
    files = ["--init", str(stages / "forcing"), "--teacher", teacher, "--syncnet", "drawn", "--codec", str(base)]
    more = ["--iterations", "6", "--sample-every", "0"]
    data = ["--data", str(stages / "shards"), "--recipe", "released"]
    assert main(["distil", str(out), *data, *small, *files, *more]) == 0
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert ["student/loss" in line for line in lines] == [False] * 4 + [True]
    written = json.loads((out / "recipe.json").read_text())
    expected = load_recipe("released", student="tiny", lora=0, precision="fp32", accumulate=2, frames=6)
    assert load_recipe("default", **written) == replace(expected, iterations=6, sample_every=0)


def test_the_log_has_samples(stages: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(stages / "forcing" / "log"))
    log.Reload()
    assert {"sample/0", "sample/1"} <= set(log.Tags()["images"])
    frames = list(VideoReader(stages / "forcing" / "samples" / "0000002.mp4"))
    assert len(frames) == 81
    assert frames[0].shape == (192, 192, 3)  # two clips beside each other, generated above filmed
    assert "loss" in log.Tags()["scalars"]


@pytest.mark.slow
def test_a_teacher_is_analysed(stages: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["analyze", str(tmp_path), "--data", str(stages / "shards"), "--teacher", str(stages / "teacher")]
    arguments += ["--size", "tiny", "--codec", str(base), "--clips", "1", "--steps", "3"]
    assert main(arguments) == 0
    found = json.loads((tmp_path / "analysis.json").read_text())
    assert len(found["trajectory"]["guided"]) == 3
    assert len(found["factorial"]) == 4
    assert (tmp_path / "analysis.svg").read_text().count("<svg") == 1
    assert "landing t" in capsys.readouterr().out


def test_wrong_use_is_an_error_with_a_fix(
    stages: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*arguments: str) -> str:
        assert main(["distil", str(tmp_path / "out"), "--student", "tiny", *arguments]) > 0
        return capsys.readouterr().err

    shards = str(stages / "shards")
    assert "needs a teacher" in refused("--data", shards)
    assert "--reward none" in refused("--data", shards, "--teacher", str(stages / "teacher"))
    assert "constants.safetensors" in refused("--data", str(tmp_path))
    assert "is no tiny" in refused("--data", shards, "--stage", "forcing", "--init", _spoilt(tmp_path))
    assert "expected" in refused("--data", shards, "--batch", "many")
    assert "default, released, or a TOML file" in refused("--data", shards, "--recipe", "relased")
    assert "needs a teacher" in refused("--data", shards, "--recipe", "released")
    assert "--checkpointing true" in refused("--data", shards, "--recipe", "released", "--checkpointing", "false")
    for frames in ("4", "24"):
        assert "a multiple of 3 up to 21" in refused("--data", shards, "--stage", "forcing", "--frames", frames)
    assert main(["analyze", str(tmp_path)]) > 0


def test_clips_are_cut_to_their_first_frames(stages: Path) -> None:
    """The beginning of a clip is used as a clip: latents, conditions, sound and reward."""
    config = STUDENTS["tiny"]
    whole = ShardClips(stages / "shards", config).batch((1, 0))
    cut = ShardClips(stages / "shards", config, 6).batch((1, 0))
    torch.testing.assert_close(cut.target, whole.target[:, :, :6])
    torch.testing.assert_close(cut.condition, whole.condition[:, :, :6])
    torch.testing.assert_close(cut.audio, whole.audio[:, :24])

    def decode(latents: torch.Tensor) -> torch.Tensor:
        video = torch.zeros(1, 4 * latents.shape[2] - 3, 3, *config.crop_size)
        video += torch.linspace(0, 1, video.shape[1]).view(1, -1, 1, 1, 1)
        return video

    judge = SyncReward(load_syncnet("drawn"), decode, Shards(stages / "shards"))
    assert judge(cut.target[:1], (1,)).shape == (1,)


def test_the_reference_frame_is_the_references_or_the_targets(stages: Path) -> None:
    assert (base_values("default")["first_latent"], base_values("released")["first_latent"]) == ("reference", "target")
    config, shards = STUDENTS["tiny"], Shards(stages / "shards")
    c = config.latent_channels
    default = ShardClips(stages / "shards", config).batch((1, 0))
    upstream = ShardClips(stages / "shards", config, 0, "target").batch((1, 0))
    for row, clip in enumerate((1, 0)):
        held = shards.tensors(clip)
        for batch, name in ((default, "first"), (upstream, "target")):
            first = torch.from_numpy(held[name][:, :1]).float()
            assert torch.equal(batch.condition[row, :c], first.expand(-1, batch.target.shape[2], -1, -1))
    assert torch.equal(default.condition[:, c:], upstream.condition[:, c:])
    assert not torch.equal(default.condition, upstream.condition)


def test_several_folders_are_trained_on(
    stages: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = stages / "shards", tmp_path / "a=b"
    arguments = ["--student", "tiny", "--encode", str(base), "--drawn", "1", "--seed", "5", "--workers", "1"]
    assert main(["prepare", str(other), *arguments]) == 0
    config = STUDENTS["tiny"]
    together = ShardClips([one, other], config)
    assert together.sizes == [2, 1]
    for clip, (folder, number) in enumerate([(one, 0), (one, 1), (other, 0)]):
        alone = ShardClips(folder, config).batch((number,))
        torch.testing.assert_close(together.batch((clip,)).target, alone.target)
        sound = Shards([one, other]).sound(clip)
        np.testing.assert_array_equal(sound, Shards(folder).sound(number))

    options = ["--student", "tiny", "--lora", "0", "--precision", "fp32", "--batch", "1", "--accumulate", "3"]
    command = [
        "distil",
        str(tmp_path / "out"),
        *options,
        "--stage",
        "forcing",
        "--iterations",
        "1",
        "--save-every",
        "1",
    ]
    assert main([*command, "--data", f"{one}=1", f"{other}=2"]) == 0
    assert not (tmp_path / "out" / "last.safetensors").exists()
    used = json.loads((tmp_path / "out" / "step-0000001" / "data.json").read_text())
    assert used == {"sizes": [2, 1], "weights": [1.0, 2.0]}
    assert main([*command, "--iterations", "2", "--data", f"{one}=1", "--data", f"{other}=1"]) > 0
    assert "other data" in capsys.readouterr().err
    (tmp_path / "out" / "step-0000001" / "data.json").unlink()
    assert main([*command, "--iterations", "2", "--data", f"{one}=1", f"{other}=2"]) > 0
    assert "not recorded" in capsys.readouterr().err

    held_out = ["--data", str(one), "--validate", str(other), "--loggers", "", "--codec", str(base)]
    held_out += ["--syncnet", "drawn"]
    assert main(["distil", str(tmp_path / "held"), *command[2:], *held_out]) == 0
    logged = json.loads((tmp_path / "held" / "log.jsonl").read_text())
    assert logged["validation/loss"] > 0
    assert {"validation/sync_c", "validation/sync_d", "validation/true/sync_c"} <= {*logged}
    assert cv2.imread(str(tmp_path / "held" / "validation" / "0000001.png")).shape == (192, 768, 3)
    averaged = ["--average", "0.9", "--data", str(one)]
    assert main(["distil", str(tmp_path / "average"), *command[2:], *averaged]) == 0
    mean, last = (load_file(tmp_path / "average" / f"{name}.safetensors") for name in ("student", "last"))
    assert mean.keys() == last.keys()
    assert any(not torch.equal(x, last[name]) for name, x in mean.items())
    again = load_model([tmp_path / "average" / "last.safetensors"], "tiny").state_dict()
    assert all(torch.equal(x, last[name]) for name, x in again.items())
    assert main([*command, "--data", str(one), str(other), "--validate", str(other)]) > 0
    assert "not in --data" in capsys.readouterr().err
    for wrong, said in (([f"{one}=1", str(other)], "for every folder"), ([f"{one}=much"], "FOLDER=WEIGHT")):
        assert main([*command, "--data", *wrong]) > 0
        assert said in capsys.readouterr().err

    constants = load_file(other / "constants.safetensors")
    save_file(constants | {"text": constants["text"] + 1}, other / "constants.safetensors")
    assert main([*command, "--data", str(one), str(other)]) > 0
    assert "do not fit each other: another prompt" in capsys.readouterr().err


def _spoilt(folder: Path) -> str:
    path = folder / "student.safetensors"
    path.write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    return str(path)


@pytest.fixture(scope="module")
def small_world() -> Iterator[None]:
    """A study on few clips."""
    load = micro_world.load_micro

    def few(folder: Path, **options: Any) -> micro_world.Micro:
        return load(folder, 24, 4, quiet=True)

    with pytest.MonkeyPatch.context() as patch:
        for module in ("study", "toy_dataset"):
            patch.setattr(f"lipstream_training.distil.{module}.load_micro", few)
        yield


@pytest.mark.slow
def test_the_study_runs_is_resumed_and_tabulated(small_world: None, tmp_path: Path) -> None:
    found = run_study(tmp_path, seeds=1, scale=0.002, workers=1, quiet=True)
    names = [variant.name for variant in variants()]
    assert set(found["variants"]) == {"drawn", "teacher_guided", *names}
    assert len(table(found).splitlines()) == 2 + len(names) + 2
    truth = found["variants"]["drawn"]["rows"][0]
    assert truth["psnr_mouth"] > 60
    (tmp_path / "seed-0" / "swdmd.json").unlink()
    before = (tmp_path / "seed-0" / "dmd.json").read_bytes()
    again = run_study(tmp_path, seeds=1, scale=0.002, workers=1, quiet=True)
    assert (tmp_path / "seed-0" / "dmd.json").read_bytes() == before
    same = ("sync_c", "opening", "psnr_mouth")
    for name in names:
        for key in same:
            assert again["variants"][name]["rows"][0][key] == found["variants"][name]["rows"][0][key]


@pytest.mark.slow
def test_the_micro_codec_reconstructs_its_frames(small_world: None, tmp_path: Path) -> None:
    micro = micro_world.load_micro(tmp_path)
    rows = micro.unseen
    latents = micro.target[list(rows)]
    video = micro.decode(latents)
    assert video.shape == (4, 33, 3, 32, 32)
    inner = (video > 0.01) & (video < 0.99)
    assert inner.float().mean() > 0.5
    assert fidelity(micro, latents, rows)["psnr_mouth"] > 60
    assert opening(micro)(latents).shape == (4, 33)
    assert micro.judge(latents, rows).mean() > micro.judge(latents, tuple(reversed(rows))).mean()


def test_the_sampler_reaches_the_target_of_a_known_velocity() -> None:
    """Sampling with the exact velocity towards a target reaches it for any number of steps."""
    batch = Clips().batch((0, 1))
    noise = torch.randn(batch.target.shape, generator=torch.Generator().manual_seed(0))
    model = toy()
    model.forward = lambda x, c, a, t, kv, attend: (x - batch.target) / t[:, None, :, None, None]  # type: ignore[method-assign]
    networks = Networks(model, *torch.zeros(2, CONFIG.text_len, CONFIG.text_dim))
    for steps in (1, 7):
        torch.testing.assert_close(
            sample(networks, batch, noise, steps, constant(4.5)), batch.target, atol=1e-4, rtol=0
        )
    times = schedule(50)
    assert times[0] == 1
    assert times[-1] == 0
    assert times[20] == pytest.approx(0.882, abs=1e-3)
    assert times[30] == pytest.approx(0.769, abs=1e-3)
    assert times[40] == pytest.approx(0.556, abs=1e-3)
    assert [inside(0.5, 0.9, 4.5)(t) for t in (0.4, 0.7, 0.95)] == [1, 4.5, 1]


def test_landing_and_window_of_known_curves() -> None:
    free = [{"t": t, "fidelity": f, "sync": 1.0} for t, f in ((1.0, 10.0), (0.9, 18.0), (0.7, 19.7), (0.3, 20.0))]
    guided = [{**p, "sync": s} for p, s in zip(free, (1.1, 2.0, 1.9, 1.2), strict=True)]
    assert pick_landing(free) == 0.7
    assert pick_window(free, guided) == (0.7, 0.9)


def test_the_factorial_has_a_row_for_each_choice() -> None:
    batch, model = Clips().batch((0,)), toy()
    networks = Networks(model, *torch.randn(2, CONFIG.text_len, CONFIG.text_dim))
    noise = torch.randn(batch.target.shape)

    def rows(guidance: float) -> list[dict[str, Any]]:
        return factorial(networks, batch, lambda x: {"mean": float(x.mean())}, 0.769, guidance, noise, 0)

    found = rows(4.5)
    choices = list(product((False, True), repeat=2))
    assert [(row["first_guided"], row["second_guided"]) for row in found] == choices
    assert len({row["mean"] for row in found}) == 4
    assert len({row["mean"] for row in rows(1.0)}) == 1


@pytest.mark.parametrize("gpus", [8, 64])
def test_the_plan_has_the_memory_of_a_14b_step_under_fsdp(gpus: int) -> None:
    """The memory of rank 0 for a stage-2 step, with networks sharded on the meta device over simulated ranks."""
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=gpus)
    try:
        over = init_device_mesh("cpu", (gpus,))
        recipe, config = Recipe(), STUDENTS["14b"]
        held = trained = 0
        for learns in (True, True, False):
            net = plan.constructed(config, recipe, trained=learns)
            parallel.shard(net, over, "bf16")
            local = [(p.to_local().numel(), p.requires_grad) for p in net.parameters()]  # type: ignore[attr-defined]
            held += sum(n for n, _ in local)
            trained += sum(n for n, grad in local if grad)
    finally:
        torch.distributed.destroy_process_group()
    parts = plan.memory(recipe, gpus)
    assert 4 * held == pytest.approx(parts.weights, rel=0.01)  # rank 0 rounds its shards up
    assert 8 * trained == pytest.approx(parts.moments, rel=0.03)


def test_the_arithmetic_is_that_of_the_released_system() -> None:
    """92.8 and 12.1 TFLOP for a pass over a chunk against a full window (published shapes)."""
    assert plan.flops(STUDENTS["14b"], 3, 7) == pytest.approx(92.8e12, rel=0.01)
    assert plan.flops(STUDENTS["1.3b"], 3, 7) == pytest.approx(12.1e12, rel=0.01)
    assert plan.count(plan.constructed(STUDENTS["14b"], Recipe(), trained=False)) == pytest.approx(14.294e9, rel=1e-3)
    faster = replace(Recipe(), checkpointing=False)
    assert plan.hours(faster, 8) < plan.hours(Recipe(), 8)
    assert plan.memory(faster, 8).activations > plan.memory(Recipe(), 8).activations


def test_the_documentation_contains_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "distillation.md").read_text()
    for student in ("14b", "1.3b"):
        assert main(["plan", "--student", student]) == 0
        for line in capsys.readouterr().out.strip().splitlines():
            assert line in page
    assert len(np.unique([row["total"] for row in plan.table("14b")])) == 5
    assert texts()[0].shape == (2, 8)
