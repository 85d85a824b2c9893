"""`choose` runs the denoiser's engine where there is a GPU, and takes a mask if a length gives wrong numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from engine_stand_ins import Engine, IgnoresTheLength, WritesBeyond, session_of
from lipstream.bundle import Bundle
from lipstream.errors import VerificationError
from lipstream_engines.attends import Choice, choose
from lipstream_engines.lower_ring import Attends
from lipstream_engines.recipe import Recipe

RECIPE = Recipe("test", "", "bf16")


class Builder:
    """Attributes: forms: what was built, in order."""

    def __init__(self) -> None:
        self.forms: list[Attends] = []

    def build(self, attends: Attends) -> Path:
        self.forms.append(attends)
        return Path(attends)


@pytest.fixture(scope="module")
def sessions(tiny: dict[str, Bundle]) -> dict[str, Any]:
    return {form: session_of(tiny["bf16"], "denoiser", "native", form) for form in ("length", "mask")}


def test_the_length_is_kept_where_it_is_right(tiny: dict[str, Bundle], sessions: Any) -> None:
    builder = Builder()
    choice = choose(
        tiny["bf16"], RECIPE, builder.build, runs_here=True, open_runner=lambda plan: Engine(sessions[str(plan)])
    )
    assert (choice, builder.forms) == (Choice("length", True, {}), ["length"])


def test_an_engine_that_ignores_the_length_is_replaced(tiny: dict[str, Bundle], sessions: Any) -> None:
    builder = Builder()
    choice = choose(
        tiny["bf16"],
        RECIPE,
        builder.build,
        runs_here=True,
        open_runner=lambda plan: (IgnoresTheLength if str(plan) == "length" else Engine)(sessions[str(plan)]),
    )
    assert (choice.attends, choice.checked, builder.forms) == ("mask", True, ["length", "mask"])
    assert {"denoiser/velocity@0", "denoiser/velocity@1"} <= {*choice.refused["length"]}


def test_no_engine_is_better_than_one_with_wrong_numbers(tiny: dict[str, Bundle], sessions: Any) -> None:
    with pytest.raises(VerificationError, match="whether a length or a mask") as error:
        choose(
            tiny["bf16"],
            RECIPE,
            Builder().build,
            runs_here=True,
            open_runner=lambda plan: WritesBeyond(sessions[str(plan)]),
        )
    assert 'ring = "function"' in error.value.fix


def test_without_a_gpu_nothing_is_run_and_the_recipe_may_decide(tiny: dict[str, Bundle]) -> None:
    def run(plan: Path) -> Any:
        raise AssertionError("there is no GPU")

    for attends, form in (("auto", "length"), ("length", "length"), ("mask", "mask")):
        builder = Builder()
        recipe = Recipe("test", "", "bf16", attends=attends)  # type: ignore[arg-type]
        choice = choose(tiny["bf16"], recipe, builder.build, runs_here=attends != "auto", open_runner=run)
        assert (choice, builder.forms) == (Choice(form, False, {}), [form])  # type: ignore[arg-type]
