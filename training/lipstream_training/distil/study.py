"""The miniature study: the paper's variants, each trained in minutes, on the same data and with the same measures.

Each variant of each seed is saved when it is done; an interrupted run continues with what is missing.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lipstream.atomic import new_file, write_file
from lipstream.errors import ConfigError
from lipstream_evaluate.processes import in_processes
from lipstream_evaluate.statistics import correlation, summary
from lipstream_models import CausalDiT
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from ..diffusion import start_as_identity
from .recipe import Recipe
from .rollout import roll_out
from .sampling import constant, sample
from .stages import Networks
from .toy_dataset import CONFIG, FRAMES, Micro, fidelity, load_micro, opening, texts
from .trainer import Trainer

FOUR_STEPS = (0.999, 0.937, 0.833, 0.624, 0.0)
"""Times of the Self Forcing baseline."""
_BASE = Recipe(
    student="micro",
    batch=16,
    accumulate=1,
    warm_up=20,
    weight_decay=0.01,
    clip=1.0,
    beta1=0.9,
    average=0.99,
    lora=0,
    precision="fp32",
    checkpointing=False,
    save_every=10_000,
    sample_every=0,
)
_SELF = replace(_BASE, stage="self_forcing", rate=2e-4, critic_rate=4e-4, beta1=0.0, clip=10.0, exact_critic=True)


@dataclass(frozen=True)
class Variant:
    """A student of the study. `after`: the variant that it starts from. `steps`: those of its `t_list`."""

    name: str
    what: str
    recipe: Recipe
    after: str = ""
    t_list: tuple[float, ...] = CONFIG.t_list


def variants(scale: float = 1.0) -> list[Variant]:
    """All variants, each after the one that it starts from, with `scale` times the usual updates."""

    def times(recipe: Recipe, iterations: int, **changes: Any) -> Recipe:
        return replace(recipe, iterations=max(2, round(scale * iterations)), **changes)

    teacher = times(replace(_BASE, stage="teacher", rate=1e-3), 1000)
    forcing = times(replace(_BASE, stage="forcing", rate=5e-4, windows=((7, 1),)), 500)
    student = times(_SELF, 200, reward="none")
    uniform = replace(student, gate=(0.0, 1.0))
    return [
        Variant("teacher", "the teacher, 50 steps", teacher),
        Variant("forcing", "stage 1", forcing, "teacher"),
        Variant(
            "forcing_moved", "stage 1, the sink at the window's start", replace(forcing, sink_moves=True), "teacher"
        ),
        Variant("dmd", "DMD, guidance at all times", uniform, "forcing"),
        Variant("swdmd", "Sync-Window DMD", student, "forcing"),
        Variant("swdmd_reward", "SW-DMD, reward exp(2 r)", replace(student, reward="exp"), "forcing"),
        Variant(
            "swdmd_normalised", "SW-DMD, reward self-normalised", replace(student, reward="self_normalised"), "forcing"
        ),
        Variant("forcing_4", "stage 1 for four steps", forcing, "teacher", FOUR_STEPS),
        Variant("self_forcing_4", "Self Forcing, four steps", uniform, "forcing_4", FOUR_STEPS),
    ]


def run_study(
    folder: Path, *, seeds: int = 3, scale: float = 1.0, workers: int = 2, quiet: bool = False
) -> dict[str, Any]:
    """Train and measure what is missing in `folder`; returns all results and their means over seeds.

    Args:
        scale: of the usual number of updates. workers: processes, each trains all variants of one seed.
    """
    load_micro(folder, quiet=quiet)
    jobs = [(folder, seed, scale) for seed in range(seeds)]
    wanted = variants(scale)
    with tqdm(total=seeds * len(wanted), desc="variants", disable=quiet) as bar:
        for _ in in_processes(_seed, jobs, workers, ordered=False):
            bar.update(len(wanted))
    return collect(folder, seeds, scale)


def collect(folder: Path, seeds: int, scale: float = 1.0) -> dict[str, Any]:
    """The results so far: per variant its rows, one per seed, and their means."""
    found: dict[str, Any] = {}
    for variant in variants(scale):
        for seed in range(seeds):
            path = _done(folder, seed, variant.name)
            if path.is_file():
                for name, row in json.loads(path.read_text()).items():
                    entry = found.setdefault(name, {"what": row.pop("what"), "rows": []})
                    row.pop("what", None)
                    entry["rows"].append(row)
    for entry in found.values():
        entry["means"] = {name: summary([row[name] for row in entry["rows"]]) for name in entry["rows"][0]}
    return {"scale": scale, "seeds": seeds, "frames": FRAMES, "variants": found}


def _done(folder: Path, seed: int, name: str) -> Path:
    return folder / f"seed-{seed}" / f"{name}.json"


def _seed(job: tuple[Path, int, float]) -> None:
    """All variants of one seed, on one core."""
    folder, seed, scale = job
    torch.set_num_threads(1)
    micro = load_micro(folder)
    for variant in variants(scale):
        if not _done(folder, seed, variant.name).is_file():
            started = time.monotonic()
            networks = _trained(folder, seed, variant, micro)
            rows = _measured(variant, networks, micro, seed)
            for row in rows.values():
                row["training_seconds"] = time.monotonic() - started
            write_file(_done(folder, seed, variant.name), (json.dumps(rows, indent=1) + "\n").encode())


def _trained(folder: Path, seed: int, variant: Variant, micro: Micro) -> Networks:
    """The variant's networks with its weights; trained, unless their file is there."""
    text, negative = texts()
    model = _model(variant.t_list)
    torch.manual_seed(seed)
    if variant.after:
        model.load_state_dict(load_file(_weights(folder, seed, variant.after)))
    else:
        fresh = CausalDiT(CONFIG)
        start_as_identity(fresh)
        model.load_state_dict(fresh.state_dict())
    networks = Networks(model, text, negative)
    path = _weights(folder, seed, variant.name)
    if not path.is_file():
        if variant.recipe.stage == "self_forcing":
            networks.teacher, networks.critic = _model(CONFIG.t_list), _model(CONFIG.t_list)
            for net in (networks.teacher, networks.critic):
                net.load_state_dict(load_file(_weights(folder, seed, "teacher")))
            networks.judge = micro.judge
        recipe = replace(variant.recipe, seed=seed)
        trainer = Trainer(recipe, networks, micro, folder / f"seed-{seed}" / variant.name)
        trainer.run()
        with new_file(path) as partial:
            save_file({name: x.contiguous() for name, x in trainer.weights().items()}, partial)
    return Networks(load_trained(folder, seed, variant.name), text, negative)


def load_trained(folder: Path, seed: int, name: str) -> CausalDiT:
    """A network that the study has trained. Raises ConfigError where it has not."""
    variant = next(variant for variant in variants() if variant.name == name)
    path = _weights(folder, seed, name)
    if not path.is_file():
        raise ConfigError(f"{folder} holds no {name} yet", fix=f"lipstream-train study {folder}")
    model = _model(variant.t_list)
    model.load_state_dict(load_file(path))
    return model.eval()


def _weights(folder: Path, seed: int, name: str) -> Path:
    return folder / f"seed-{seed}" / f"{name}.safetensors"


def _model(t_list: tuple[float, ...]) -> CausalDiT:
    return CausalDiT(replace(CONFIG, t_list=t_list))


@torch.no_grad()
def _measured(variant: Variant, networks: Networks, micro: Micro, seed: int) -> dict[str, dict[str, Any]]:
    """Rows of the table: one, but for the teacher one for each guidance."""
    clips = micro.unseen
    batch = micro.batch(clips)
    generator = torch.Generator().manual_seed(1000 + seed)

    def draw(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator)

    if variant.recipe.stage == "teacher":
        noise, found = draw(batch.target), {}
        for name, scale in (("teacher", 1.0), ("teacher_guided", 4.5)):
            started = time.monotonic()
            made = sample(networks, batch, noise, 50, constant(scale))
            what = f"{variant.what}, {'guided by 4.5' if scale > 1 else 'not guided'}"
            found[name] = _row(what, 50, made, micro, clips, time.monotonic() - started)
        truth = _row("what was drawn, through the codec", 0, batch.target, micro, clips, math.inf)
        return {"drawn": truth, **found}
    started = time.monotonic()
    kv = networks.text_kv(networks.model, len(clips))
    made = roll_out(networks.model, batch, kv, draw)
    steps = len(variant.t_list) - 1
    return {variant.name: _row(variant.what, steps, made, micro, clips, time.monotonic() - started)}


def _row(what: str, steps: int, made: Tensor, micro: Micro, clips: tuple[int, ...], seconds: float) -> dict[str, Any]:
    sync = micro.sync(made, clips)
    read = opening(micro)(made)
    mouths = [correlation(a.numpy(), micro.mouth[i].numpy()) for a, i in zip(read, clips, strict=True)]
    return {
        "what": what,
        "sync_c": sum(c for c, _ in sync) / len(sync),
        "sync_d": sum(d for _, d in sync) / len(sync),
        "opening": float(summary(mouths)["mean"] or 0.0),
        **fidelity(micro, made, clips),
        "steps": steps,
        "fps": len(clips) * FRAMES / seconds,
    }


def table(found: dict[str, Any]) -> str:
    """The results as a Markdown table."""
    lines = [
        "| | Sync-C | Sync-D | opening | PSNR mouth | PSNR outside | steps | fps, one core |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for entry in found["variants"].values():
        m = entry["means"]

        def cell(name: str, digits: int, m: dict[str, Any] = m) -> str:
            low, high = m[name]["min"], m[name]["max"]
            if low is None:
                return ""
            spread = f" ({low:.{digits}f} to {high:.{digits}f})" if m[name]["values"] > 1 else ""
            return f"{m[name]['mean']:.{digits}f}{spread}"

        cells = [
            cell("sync_c", 2),
            cell("sync_d", 2),
            cell("opening", 2),
            cell("psnr_mouth", 1),
            cell("psnr_outside", 1),
        ]
        steps = m["steps"]["mean"]
        lines.append(f"| {entry['what']} | {' | '.join(cells)} | {steps:.0f} | {cell('fps', 0)} |")
    return "\n".join(lines)


def plots(found: dict[str, Any], path: Path) -> None:
    """Sync against fidelity, each seed a point: an SVG."""
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(10, 4.2), layout="constrained")
    for axes, (name, label) in zip(
        figure.subplots(1, 2),
        (("psnr_mouth", "PSNR in the mouth, dB"), ("opening", "opening, correlation")),
        strict=True,
    ):
        for i, entry in enumerate(found["variants"].values()):
            rows: Sequence[dict[str, float]] = entry["rows"]
            if not rows[0]["steps"]:  # what was drawn
                axes.axhline(rows[0]["sync_c"], color="#888888", ls=":", label=entry["what"])
                continue
            x, y = ([row[key] for row in rows] for key in (name, "sync_c"))
            axes.scatter(x, y, label=entry["what"], s=34, marker="osD^v"[i % 5], color=f"C{i % 10}")
        axes.set(xlabel=label, ylabel="Sync-C")
        axes.grid(alpha=0.3)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=7)
    figure.savefig(path, format="svg", metadata={"Date": None})
