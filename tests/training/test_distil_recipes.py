"""The recipes `default` and `released`: each field against a small statement of what it does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lipstream.errors import ConfigError
from lipstream_training.distil.recipe import Recipe, base_values, load_recipe
from lipstream_training.distil.trainer import Trainer
from torch import Tensor
from toy_distillation import RECIPE, Clips, networks

RELEASED = replace(Recipe(**base_values("released")), student="toy", lora=0, precision="fp32", sample_every=0)


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_a_recipe_starts_from_a_named_one(tmp_path: Path) -> None:
    default, released = load_recipe("default"), load_recipe("released")
    assert default == load_recipe(None) == Recipe()
    assert released.fields() == base_values("released")
    assert (released.critic_clip, released.non_finite, released.exact_critic) == (0.0, "zero", False)
    path = tmp_path / "r.toml"
    path.write_text('recipe = "released"\nrate = 1\nnon_finite = "skip"\n')
    found = load_recipe(path, batch="3")
    assert found == replace(released, rate=1.0, non_finite="skip", batch=3)
    path.write_text('recipe = "upstream"\n')
    with pytest.raises(ConfigError, match="upstream"):
        load_recipe(path)
    with pytest.raises(ConfigError, match="no recipe"):
        load_recipe("relased")


class Spoiling:
    """A trainer's networks in which gradients of one parameter are spoilt at one update."""

    def __init__(self, recipe: Recipe, out: Path, value: float, spoilt: str) -> None:
        self.nets = networks(recipe)
        self.trainer = Trainer(recipe, self.nets, Clips(), out)
        self.active, self.value = False, value
        net = getattr(self.nets, spoilt)
        net.head.head.weight.register_hook(self._spoil)

    def _spoil(self, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        if self.active:
            gradient[0, 0] = self.value
        return gradient

    def weights(self, net: str) -> dict[str, Tensor]:
        return {name: x.detach().clone() for name, x in getattr(self.nets, net).named_parameters()}


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("net", ["model", "critic"])
def test_a_default_update_that_is_not_finite_is_skipped(net: str, value: float, tmp_path: Path) -> None:
    spoiling = Spoiling(replace(RECIPE, update_ratio=1), tmp_path, value, net)
    spoiling.trainer.run(1)
    before = {name: spoiling.weights(name) for name in ("model", "critic")}
    spoiling.active = True
    spoiling.trainer.run(2)
    other = "critic" if net == "model" else "model"
    after = {name: spoiling.weights(name) for name in before}
    assert all(torch.equal(x, before[net][name]) for name, x in after[net].items())
    assert any(not torch.equal(x, before[other][name]) for name, x in after[other].items())
    spoiling.active = False
    spoiling.trainer.run(3)
    last = spoiling.weights(net)
    assert all(bool(x.isfinite().all()) for x in last.values())
    assert any(not torch.equal(x, before[net][name]) for name, x in last.items())
    prefix = "student" if net == "model" else "critic"
    assert [line[f"{prefix}/skipped"] for line in lines(tmp_path)] == [0, 1, 0]


@pytest.mark.parametrize(("value", "zero"), [(float("inf"), True), (float("nan"), False)])
def test_a_released_update_has_numbers_for_what_is_not_finite(value: float, zero: bool, tmp_path: Path) -> None:
    """Upstream's nan_to_num and clipping, then AdamW with beta1 = 0, written out for the first update."""
    recipe = replace(RECIPE, stage="forcing", non_finite="zero", clip=0.5, beta1=0.0)
    spoiling = Spoiling(recipe, tmp_path, value, "model")
    spoiling.active = True
    before = spoiling.weights("model")
    taken: dict[str, Tensor] = {}
    for name, parameter in spoiling.nets.model.named_parameters():
        parameter.register_hook(lambda g, name=name: taken.__setitem__(name, taken.get(name, 0) + g.clone()))
    spoiling.trainer.run(1)
    gradients = {name: torch.nan_to_num(g) for name, g in taken.items()}
    norm = torch.cat([g.flatten() for g in gradients.values()]).norm()
    factor = torch.clamp(recipe.clip / (norm + 1e-6), max=1)
    assert bool(factor == 0) is zero
    for name, g in gradients.items():
        g = factor * g
        step = g / (g.square().sqrt() + 1e-8)  # the moments' corrections cancel in the first update
        expected = before[name] * (1 - recipe.rate * recipe.weight_decay) - recipe.rate * step
        torch.testing.assert_close(spoiling.weights("model")[name], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_released_critic_is_not_clipped_and_stays_finite(value: float, tmp_path: Path) -> None:
    assert RELEASED.critic_clip == 0
    spoiling = Spoiling(
        replace(RELEASED, batch=1, accumulate=1, rate=1e-3, critic_rate=1e-3), tmp_path, value, "critic"
    )
    before = spoiling.weights("critic")
    spoiling.active = True
    spoiling.trainer.run(1)
    assert all(torch.equal(x, before[name]) for name, x in spoiling.weights("critic").items())
    spoiling.active = False
    spoiling.trainer.run(2)
    assert all(bool(x.isfinite().all()) for x in spoiling.weights("critic").values())
    assert any(not torch.equal(x, before[name]) for name, x in spoiling.weights("critic").items())


@pytest.mark.parametrize("clip", [0.0, 1e-3])
def test_the_critic_has_a_clipping_of_its_own(clip: float, tmp_path: Path) -> None:
    """Its gradient at AdamW's second moment: beta1 = 0, so that the moment is (1 - beta2) g^2 after one update."""
    recipe = replace(RECIPE, critic_clip=clip, clip=1e-6)
    trainer = Trainer(recipe, networks(recipe), Clips(), tmp_path)
    trainer.run(1)
    assert trainer.nets.critic is not None
    state = trainer._critic._optimizer.state  # type: ignore[union-attr]
    squares = sum(float(state[p]["exp_avg_sq"].sum()) for p in trainer.nets.critic.parameters() if p in state)
    norm = (squares / (1 - recipe.beta2)) ** 0.5
    logged = lines(tmp_path)[0]["critic/gradient"]
    assert logged > 0.01
    assert norm == pytest.approx(clip or logged, rel=1e-3)
