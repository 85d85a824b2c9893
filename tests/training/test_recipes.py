"""The recipes in training/recipes, and the commands for several machines in docs/distillation.md."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from lipstream.cli import build_parser
from lipstream_models import STUDENTS
from lipstream_training.cli import LIPSTREAM_TRAIN
from lipstream_training.distil.recipe import Recipe, load_recipe
from torch.distributed import run

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "training" / "recipes").glob("*.toml"))
PAGE = (ROOT / "docs" / "distillation.md").read_text()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_valid_and_named_by_what_it_does(path: Path) -> None:
    recipe = load_recipe(path)
    assert path.stem == f"{recipe.student}_{recipe.stage}"
    assert recipe.student in STUDENTS
    assert f"`{path.name}`" in PAGE


def test_the_recipes_have_the_released_batches_on_eight_gpus() -> None:
    released = {"14b": 16, "1.3b": 64}
    for student, clips in released.items():
        for stage in ("forcing", "self_forcing"):
            recipe = load_recipe(ROOT / "training" / "recipes" / f"{student}_{stage}.toml")
            assert 8 * recipe.batch * recipe.accumulate == clips
    assert load_recipe(ROOT / "training/recipes/14b_self_forcing.toml", accumulate=4) == Recipe()


def commands() -> list[list[str]]:
    """The arguments of all launches on the page: in shell blocks and in the Job."""
    found = []
    for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if "lipstream_training.launch" in line and not line.startswith("S="):
                found.append(shlex.split(line.partition("lipstream_training.launch")[2]))
    for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL):
        service, job = yaml.safe_load_all(block)
        pod: dict[str, Any] = job["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert container["command"] == ["python", "-m", "lipstream_training.launch"]
        assert pod["subdomain"] == service["metadata"]["name"]
        assert job["spec"]["completions"] == job["spec"]["parallelism"] == 2
        assert f"{job['metadata']['name']}-0.{pod['subdomain']}:29500" in container["args"]
        found.append(container["args"])
    return found


def test_the_commands_for_several_machines_are_understood() -> None:
    assert len(commands()) == 3
    for command in commands():
        launch = run.parse_args([x.replace("$SLURM_NNODES", "2") for x in command])
        assert (launch.nnodes, launch.nproc_per_node, launch.rdzv_backend) == ("2", "8", "c10d")
        assert launch.rdzv_endpoint.endswith(":29500")
        assert run.parse_args([*command, "--loggers", "wandb"]).training_script == "distil"  # no option of torchrun's
        arguments = [launch.training_script, *launch.training_script_args]
        args = build_parser(LIPSTREAM_TRAIN).parse_args(arguments)
        changes = {name: x for name in ("batch", "accumulate") if (x := getattr(args, name)) is not None}
        recipe = load_recipe(ROOT / "training" / "recipes" / Path(args.recipe).name, **changes)
        assert 16 * recipe.batch * recipe.accumulate == 16
