"""What a run of distillation logs, and where to."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lipstream.errors import ConfigError, MissingExtraError
from lipstream_training.distil.log import Log, logger_names
from lipstream_training.distil.mixture import Mixture
from lipstream_training.distil.noise import Noise
from lipstream_training.distil.recipe import Recipe
from lipstream_training.distil.stages import Losses
from lipstream_training.distil.trainer import Trainer
from toy_distillation import RECIPE, Clips, networks

FORCING = replace(RECIPE, stage="forcing", warm_up=3, rate=4e-4)


def lines(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_every_update_has_its_rate_throughput_and_memory(tmp_path: Path) -> None:
    Trainer(replace(FORCING, accumulate=3), networks(FORCING), Clips(), tmp_path, loggers=()).run()
    logged = lines(tmp_path)
    assert [line["rate"] for line in logged] == pytest.approx([1e-4, 2e-4, 3e-4, 4e-4, 4e-4, 4e-4])
    for line in logged:
        assert line["clips_per_second"] * line["seconds"] == pytest.approx(2 * 3)
        assert line["peak_memory_gib"] > 0
    if (status := Path("/proc/self/status")).is_file():
        peak = next(int(text.split()[1]) for text in status.read_text().splitlines() if text.startswith("VmHWM"))
        assert logged[-1]["peak_memory_gib"] == pytest.approx(peak / 2**20, rel=0.1)
    assert not (tmp_path / "log").exists()


def test_both_rates_of_the_last_stage_are_logged(tmp_path: Path) -> None:
    recipe = replace(RECIPE, rate=1e-3, critic_rate=5e-4, iterations=1)
    Trainer(recipe, networks(recipe), Clips(), tmp_path, loggers=()).run()
    (line,) = lines(tmp_path)
    assert (line["student/rate"], line["critic/rate"]) == (1e-3, 5e-4)


@pytest.mark.parametrize("stage", ["teacher", "forcing", "self_forcing"])
def test_validation_is_the_loss_of_clips_that_are_not_trained_on(stage: Any, tmp_path: Path) -> None:
    recipe = replace(RECIPE, stage=stage, iterations=5)
    read: set[int] = set()

    class Watched(Clips):
        def batch(self, clips: tuple[int, ...]) -> Any:
            read.update(clips)
            return super().batch(clips)

    nets = networks(recipe)
    order = Mixture([4])
    trainer = Trainer(recipe, nets, Watched(7), tmp_path, order=order, held_out=[4, 5, 6], validate_every=2, loggers=())
    trainer.run(1)
    first = lines(tmp_path)[-1]["validation/loss"]  # after the last update of this run
    assert first == pytest.approx(by_hand(recipe, nets, Losses(nets, recipe)), rel=1e-5)
    trainer.run()
    assert [line["iteration"] for line in lines(tmp_path) if "validation/loss" in line] == [1, 2, 4, 5]
    assert ("validation/student/loss" in lines(tmp_path)[-1]) is (stage == "self_forcing")
    assert read == set(range(7))
    assert {trainer.clips(i) for i in range(40)} == set(range(4))


@torch.no_grad()
def by_hand(recipe: Recipe, nets: Any, losses: Losses) -> float:
    """The mean loss of the clips 4, 5 and 6, in batches of two."""
    each = []
    for part, clips in enumerate([(4, 5), (6,)]):
        batch, noise = Clips(7).batch(clips), Noise(recipe.seed, 0, [clip - 4 for clip in clips], "validation")
        if recipe.stage == "teacher":
            each.append(losses.teacher(batch, noise))
        else:
            each.append((losses.forcing if recipe.stage == "forcing" else losses.critic)(batch, noise, part))
    return float(torch.cat(each).mean())


def test_validation_changes_nothing(tmp_path: Path) -> None:
    weights = []
    for held_out in ((), (5, 6)):
        out = tmp_path / str(len(held_out))
        options: dict[str, Any] = {"order": Mixture([5]), "held_out": held_out, "validate_every": 1, "loggers": ()}
        trainer = Trainer(RECIPE, networks(RECIPE), Clips(), out, **options)
        trainer.run()
        weights.append(trainer.weights())
    assert all(torch.equal(x, weights[1][name]) for name, x in weights[0].items())


class Recorder:
    """Records calls of functions that it makes up: (name, positional and keyword arguments)."""

    def __init__(self, name: str, results: dict[str, Any]) -> None:
        self.module, self.calls = ModuleType(name), list[tuple[str, tuple[Any, ...], dict[str, Any]]]()
        for function in results:
            setattr(self.module, function, self.function(function, results[function]))

    def function(self, name: str, result: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            self.calls.append((name, arguments, options))
            return result

        return call

    def named(self, name: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        return [(arguments, options) for found, arguments, options in self.calls if found == name]


def test_wandb_gets_numbers_pictures_and_the_same_run_after_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = Recorder("wandb", {"Image": "a picture"})
    run = SimpleNamespace(id="r7", log=fake.function("log", None), finish=fake.function("finish", None))
    monkeypatch.setattr(fake.module, "init", fake.function("init", run), raising=False)
    monkeypatch.setitem(sys.modules, "wandb", fake.module)
    out = tmp_path / "mine"
    picture = np.zeros((4, 4, 3), np.uint8)
    for until in (2, 3):
        recipe = replace(FORCING, iterations=3, sample_every=2)
        trainer = Trainer(
            recipe,
            networks(recipe),
            Clips(),
            out,
            order=Mixture([6]),
            held_out=[6],
            validate_every=2,
            show_held_out=lambda model, i: ({"validation/sync_c": 3.0 + i}, {"validation/clips": picture}),
            loggers=logger_names("wandb"),
            sample=lambda model, i: {"sample/0": picture},
        )
        trainer.run(until)
    (_, first), (_, second) = fake.named("init")
    assert (first["id"], second["id"]) == (None, "r7")
    assert first["name"] == "mine"
    assert first["config"]["warm_up"] == 3
    logged = [(arguments[0], options["step"]) for arguments, options in fake.named("log")]
    assert [step for numbers, step in logged if "loss" in numbers] == [1, 2, 3]
    assert ({"sample/0": "a picture"}, 2) in logged
    assert [step for numbers, step in logged if numbers == {"validation/clips": "a picture"}] == [2, 3]
    assert [(numbers.get("validation/sync_c"), step) for numbers, step in logged if "validation/loss" in numbers] == [
        (5.0, 2),
        (6.0, 3),
    ]
    assert [options for _, options in fake.named("finish")] == [{"exit_code": 0}] * 2
    assert [numbers["loss"] for numbers, _ in logged if "loss" in numbers] == [line["loss"] for line in lines(out)]


def test_mlflow_gets_numbers_pictures_and_the_same_run_after_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = SimpleNamespace(info=SimpleNamespace(run_id="r9"))
    functions = ("log_params", "log_metrics", "log_image", "end_run")
    fake = Recorder("mlflow", {"start_run": run} | dict.fromkeys(functions))
    monkeypatch.setitem(sys.modules, "mlflow", fake.module)
    picture = np.zeros((4, 4, 3), np.uint8)
    with Log(tmp_path, {"rate": 0.1}, logger_names("mlflow")) as log:
        log.numbers(1, {"loss": 0.5})
        log.pictures(1, {"sample/0": picture})
    with pytest.raises(ZeroDivisionError), Log(tmp_path, {"rate": 0.1}, ["mlflow"]):
        raise ZeroDivisionError
    assert fake.calls == [
        ("start_run", (), {"run_name": tmp_path.name}),
        ("log_params", ({"rate": 0.1},), {}),
        ("log_metrics", ({"loss": 0.5},), {"step": 1}),
        ("log_image", (picture,), {"key": "sample/0", "step": 1}),
        ("end_run", ("FINISHED",), {}),
        ("start_run", (), {"run_id": "r9"}),
        ("end_run", ("FAILED",), {}),
    ]


def test_loggers_are_named_and_must_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert logger_names("tensorboard") == ("tensorboard",)
    assert logger_names("") == ()
    with pytest.raises(ConfigError, match="--loggers 'paper'"):
        logger_names("tensorboard,paper")
    monkeypatch.setitem(sys.modules, "wandb", None)  # an import of it fails
    with pytest.raises(MissingExtraError) as error:
        logger_names("tensorboard, wandb")
    assert error.value.fix == "pip install wandb"
