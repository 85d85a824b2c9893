"""Measure at which times a teacher's denoising forms sync and fidelity, and find the best two steps for a student.

Trajectory: sync and fidelity of the teacher's x0 at each of its steps, with and without guidance. Factorial: two steps,
from 1 to the landing time and from there to 0, each with and without guidance (the paper's motivation). Both give a
landing time and a guidance window for a new student.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lipstream.atomic import write_file
from lipstream_evaluate.syncnet import load_syncnet
from lipstream_models import STUDENTS, ClipAttention
from lipstream_models.schedule import add_noise, predict_x0
from torch import Tensor

from ..prepare.shards import Shards
from .reward import SyncReward
from .rollout import Batch
from .sampling import constant, schedule, trajectory
from .sources import ShardClips, load_model, open_decoder, prompt
from .stages import Networks

Measure = Callable[[Tensor], dict[str, float]]
"""Latents [B, C, F, h, w] -> `sync` and `fidelity` (more is better), and further measures."""
_NEAR = 0.95  # share of the last step's fidelity gain at which a step counts as the landing


def analyze(
    networks: Networks, batch: Batch, measure: Measure, *, steps: int = 50, guidance: float = 4.5, seed: int = 0
) -> dict[str, Any]:
    """Both experiments on `networks.model` as the teacher, and the landing time and window, ready for JSON."""
    noise = torch.randn(batch.target.shape, generator=torch.Generator().manual_seed(seed)).to(batch.target.device)
    times = schedule(steps)
    curves = {}
    for name, scale in (("free", 1.0), ("guided", guidance)):
        seen = trajectory(networks, batch, noise, times, constant(scale))
        curves[name] = [{"t": t, **measure(x0)} for t, x0 in seen]
    landing = pick_landing(curves["free"])
    window = pick_window(curves["free"], curves["guided"])
    return {
        "steps": steps,
        "guidance": guidance,
        "trajectory": curves,
        "landing": landing,
        "window": window,
        "factorial": factorial(networks, batch, measure, landing, guidance, noise, seed),
    }


def pick_landing(curve: Sequence[dict[str, float]]) -> float:
    """The noisiest time at which x0 has made `_NEAR` of the gain from its first to its best fidelity."""
    first, best = curve[0]["fidelity"], max(point["fidelity"] for point in curve)
    return next(point["t"] for point in curve if point["fidelity"] >= first + _NEAR * (best - first))


def pick_window(free: Sequence[dict[str, float]], guided: Sequence[dict[str, float]]) -> tuple[float, float]:
    """Times, least and greatest, between which guidance raises sync by at least half of its largest gain."""
    gains = [(b["t"], b["sync"] - a["sync"]) for a, b in zip(free, guided, strict=True)]
    most = max(gain for _, gain in gains)
    inside = [t for t, gain in gains if gain >= most / 2]
    return min(inside), max(inside)


@torch.no_grad()
def factorial(
    networks: Networks, batch: Batch, measure: Measure, landing: float, guidance: float, noise: Tensor, seed: int
) -> list[dict[str, Any]]:
    """Two steps, at 0.999 and at `landing`, each guided or not: four rows."""
    net, rows = networks.model, len(batch.target)
    attend = ClipAttention(net.config, batch.target.shape[2], causal=False, device=batch.target.device)
    sure = networks.text_kv(net, rows)
    free = networks.text_kv(net, rows, negative=torch.ones(rows, dtype=torch.bool))
    silence = torch.zeros_like(batch.audio)

    def x0(x: Tensor, t: float, guided: bool) -> Tensor:
        time = torch.full((rows, x.shape[2]), t, device=x.device)
        v = net(x, batch.condition, batch.audio, time, sure, attend).float()
        if guided:
            v = v + (guidance - 1) * (v - net(x, batch.condition, silence, time, free, attend).float())
        return predict_x0(x, v, t)

    fresh = torch.randn(noise.shape, generator=torch.Generator().manual_seed(seed + 1)).to(noise.device)
    found = []
    for first in (False, True):
        start = x0(noise, 0.999, first)
        for second in (False, True):
            made = x0(add_noise(start, fresh, landing), landing, second)
            found.append({"first_guided": first, "second_guided": second, **measure(made)})
    return found


def analyze_micro(folder: Path, *, clips: int, steps: int, guidance: float) -> dict[str, Any]:
    """Analyze the study's first teacher: sync is Sync-C, fidelity the PSNR in the mouth, on clips never trained on."""
    from .study import load_trained
    from .toy_dataset import fidelity, load_micro, texts

    micro = load_micro(folder)
    chosen = micro.unseen[:clips]

    def measure(latents: Tensor) -> dict[str, float]:
        sync = float(micro.judge(latents, chosen).mean())
        inside = fidelity(micro, latents, chosen)
        return {"sync": sync, "fidelity": inside["psnr_mouth"], "psnr_outside": inside["psnr_outside"]}

    networks = Networks(load_trained(folder, 0, "teacher"), *texts())
    return analyze(networks, micro.batch(chosen), measure, steps=steps, guidance=guidance)


def analyze_files(
    data: Path,
    teacher: Sequence[Path],
    size: str,
    *,
    negative: Path | None,
    syncnet: str,
    codec: Path,
    clips: int,
    steps: int,
    guidance: float,
) -> dict[str, Any]:
    """Analyze any teacher on prepared shards: sync is Sync-C, fidelity the PSNR of the decoded pictures.

    Raises:
        ConfigError, CheckpointError: files that do not fit.
    """
    config = STUDENTS[size]
    found = ShardClips(data, config)
    chosen = tuple(range(min(clips, len(found))))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    decode = open_decoder(codec, device)
    batch = found.batch(chosen).to(device)
    judge = SyncReward(load_syncnet(syncnet), decode, Shards(data))
    filmed = decode(batch.target)

    def measure(latents: Tensor) -> dict[str, float]:
        error = (decode(latents) - filmed).square().flatten(1).mean(1)
        return {
            "sync": float(judge(latents, chosen).mean()),
            "fidelity": float((-10 * torch.log10(error.clamp_min(1e-10))).mean()),
        }

    model = load_model(teacher, size).to(device).eval()
    networks = Networks(model, found.text.to(device), prompt(negative, config).to(device))
    return analyze(networks, batch, measure, steps=steps, guidance=guidance)


def write(found: dict[str, Any], out: Path) -> None:
    """Write `out`/analysis.json and `out`/analysis.svg."""
    out.mkdir(parents=True, exist_ok=True)
    write_file(out / "analysis.json", (json.dumps(found, indent=1) + "\n").encode())
    plot(found, out / "analysis.svg")


def plot(found: dict[str, Any], path: Path) -> None:
    """Both experiments as an SVG."""
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(13, 3.8), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    low, high = found["window"]
    for axes, name in ((left, "sync"), (middle, "fidelity")):
        for label, curve in found["trajectory"].items():
            axes.plot([point["t"] for point in curve], [point[name] for point in curve], label=label)
        axes.axvspan(low, high, color="#dddddd", label="guidance helps sync")
        axes.axvline(found["landing"], color="#888888", ls=":", label=f"landing, t = {found['landing']:.3f}")
        axes.set(xlabel="t, noise to the left", ylabel=name)
        axes.invert_xaxis()
        axes.grid(alpha=0.3)
    left.legend(fontsize=8)
    for row in found["factorial"]:
        label = " / ".join("guided" if row[f"{which}_guided"] else "free" for which in ("first", "second"))
        right.scatter(row["fidelity"], row["sync"], s=50, label=label)
    right.set(xlabel="fidelity", ylabel="sync", title="two steps: first / second")
    right.grid(alpha=0.3)
    right.legend(fontsize=8)
    figure.savefig(path, format="svg", metadata={"Date": None})


def describe(found: dict[str, Any]) -> str:
    """The result as text for a terminal."""
    low, high = found["window"]
    lines = [f"landing t = {found['landing']:.3f}; guidance helps sync for t in {low:.3f} to {high:.3f}"]
    for row in found["factorial"]:
        first, second = ("guided" if row[f"{which}_guided"] else "free" for which in ("first", "second"))
        lines.append(f"  {first:6} then {second:6}: sync {row['sync']:.3f}, fidelity {row['fidelity']:.2f}")
    return "\n".join(lines)
