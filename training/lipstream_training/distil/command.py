"""`lipstream-train distil`: one stage of the recipe, on one process or under torchrun."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lipstream.atomic import write_file
from lipstream.errors import ConfigError
from lipstream.media import VideoWriter
from lipstream_evaluate.syncnet import load_syncnet
from lipstream_models import STUDENTS, CausalDiT
from lipstream_models.parts import StudentParts
from lipstream_models.released.student import Adapters
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from ..prepare.shards import Shards
from . import parallel
from .generate import generate
from .held_out import HeldOut
from .log import logger_names
from .mixture import Mixture
from .recipe import Recipe
from .reward import SyncReward
from .sources import ADAPTER, LAST, WEIGHTS, ShardClips, load_model, load_unmerged_model, open_decoder, prompt
from .stages import Networks
from .trainer import Trainer


@dataclass(frozen=True)
class Inputs:
    """Files that a stage starts from.

    Attributes:
        shards: folders of `lipstream-train prepare`, with latents. weights: of these folders in the training data; none
            for every clip once in an epoch. student: initial weights; empty for random ones.
        teacher: for self_forcing. critic: initial weights of the fake score; the teacher's if empty.
        held_out: a folder of clips that are not trained on, for the losses on them in the log every `validate_every`
            updates. The first `validate_clips` of them are generated then, too, and measured and drawn, if there is a
            decoder; 0: none. negative: embedding of the negative prompt; zeros without it.
        syncnet, codec: of the reward and of validation: SyncNet's weights, and the decoder: taew2_1, or a checkpoint of
            ours.
        base: checkpoint whose codec, audio encoder and masks go with the student into OUT/checkpoint.
    """

    shards: tuple[Path, ...]
    weights: tuple[float, ...] = ()
    student: tuple[Path, ...] = ()
    teacher: tuple[Path, ...] = ()
    critic: tuple[Path, ...] = ()
    negative: Path | None = None
    syncnet: str | None = None
    codec: Path | None = None
    base: Path | None = None
    held_out: Path | None = None
    validate_every: int = 100
    validate_clips: int = 4


def distil(out: Path, inputs: Inputs, recipe: Recipe, *, log: str = "tensorboard", quiet: bool = False) -> None:
    """Run a stage to its end, from the last checkpoint in `out` if there is one.

    Writes OUT/student.safetensors, adapters merged, and OUT/recipe.json; with `base` also OUT/checkpoint. Where the
    recipe has a moving average, these two are the average, and OUT/last.safetensors are the weights after the last
    update. Where a following stage can train the adapters on, also OUT/adapter.safetensors: as a training delta.

    Args:
        log: names of loggers, with commas between them; see `log.logger_names`.

    Raises:
        ConfigError, CheckpointError, MissingExtraError: before anything is trained.
    """
    if recipe.student not in STUDENTS:
        raise ConfigError(f"student {recipe.student!r}", expected=", ".join(STUDENTS))
    if inputs.held_out in inputs.shards:
        raise ConfigError(f"--validate {inputs.held_out}", expected="a folder that is not in --data")
    if inputs.validate_every < 1:
        raise ConfigError(f"--validate-every {inputs.validate_every}", expected="1 or more")
    if inputs.validate_clips < 0:
        raise ConfigError(f"--validate-clips {inputs.validate_clips}", expected="0 or more")
    loggers = logger_names(log)
    device = parallel.start()
    config = STUDENTS[recipe.student]
    folders = [*inputs.shards, *([inputs.held_out] if inputs.held_out else [])]
    data = ShardClips(folders, config, recipe.frames, recipe.first_latent)
    order = Mixture(data.sizes[: len(inputs.shards)], inputs.weights, recipe.seed)
    torch.manual_seed(recipe.seed)
    model, adapters = _model(inputs.student, recipe)
    networks = Networks(model, data.text, prompt(inputs.negative, config), adapters=adapters)
    codec = inputs.codec or inputs.base
    decode = open_decoder(codec, device) if codec else None
    syncnet, shards = load_syncnet(inputs.syncnet) if inputs.syncnet else None, Shards(folders)
    if recipe.stage == "self_forcing":
        if not inputs.teacher:
            raise ConfigError("self_forcing needs a teacher", fix="give --teacher FILE")
        networks.teacher = load_model(inputs.teacher, "14b" if recipe.student == "1.3b" else recipe.student)
        networks.critic, networks.critic_adapters = _model(inputs.critic or inputs.teacher, recipe)
        if recipe.reward != "none":
            if syncnet is None or decode is None:
                raise ConfigError(
                    f"the reward {recipe.reward!r} needs SyncNet and a decoder",
                    fix="give --syncnet FILE and --codec FILE, or --reward none",
                )
            networks.judge = SyncReward(syncnet, decode, shards, recipe.reward_scoring)
    show = None if decode is None else _samples(networks, recipe, data, decode, out / "samples")
    held_out = range(sum(order.sizes), len(data))
    shown = held_out[: inputs.validate_clips]
    show_held_out = None
    if decode and shown:
        show_held_out = HeldOut(networks, recipe.stage, data, shown, shards.sound, decode, out / "validation", syncnet)
    trainer = Trainer(
        recipe,
        networks,
        data,
        out,
        order=order,
        held_out=held_out,
        validate_every=inputs.validate_every,
        show_held_out=show_held_out,
        loggers=loggers,
        device=device,
        sample=show,
    )
    hidden = quiet or parallel.rank() > 0
    with tqdm(total=recipe.updates, initial=trainer.iteration, desc=recipe.stage, disable=hidden) as bar:

        def progress(loss: float) -> None:
            bar.set_postfix_str(f"loss {loss:.4f}")
            bar.update()

        trainer.run(progress=progress)
    if recipe.average:
        _write(out / LAST, trainer.weights(averaged=False))
    weights = trainer.weights()
    adapter = trainer.delta() if recipe.lora and recipe.continue_adapters else {}
    if adapter:
        _write(out / ADAPTER, adapter)
    _write(out / WEIGHTS, weights)
    if parallel.rank() == 0:
        write_file(out / "recipe.json", (json.dumps(recipe.fields(), indent=1) + "\n").encode())
        if inputs.base is not None:
            parts = StudentParts.from_checkpoint(inputs.base)
            assert parts.student, "every checkpoint has a student"
            parts.student.load_state_dict(weights)
            parts.save(out / "checkpoint")


def _model(files: Sequence[Path], recipe: Recipe) -> tuple[CausalDiT, Adapters]:
    """The initial weights of a network that is trained, and the adapters that it goes on with."""
    if not files:
        return CausalDiT(STUDENTS[recipe.student]), {}
    new_audio = recipe.stage == "teacher"  # every other stage goes on from a model with audio
    if recipe.lora and recipe.continue_adapters:
        return load_unmerged_model(files, recipe.student, new_audio=new_audio)
    return load_model(files, recipe.student, new_audio=new_audio), {}


def _write(path: Path, weights: dict[str, Tensor]) -> None:
    if parallel.rank() == 0:
        write_file(path, save({name: x.contiguous() for name, x in weights.items()}))


def _samples(
    networks: Networks, recipe: Recipe, data: ShardClips, decode: Callable[[Tensor], Tensor], folder: Path
) -> Callable[[CausalDiT, int], dict[str, Any]]:
    """Two clips, generated above and target below: some frames for the log, and a video in `folder`."""
    clips = tuple(range(min(2, len(data))))

    @torch.no_grad()
    def show(model: CausalDiT, iteration: int) -> dict[str, Any]:
        batch = data.batch(clips).to(networks.text.device)
        made = generate(networks, recipe.stage, model, batch, seed=0)
        both = torch.cat([decode(made), decode(batch.target)], dim=3)  # [clips, V, 3, 2 H, W]
        frames = (both * 255).round().byte().permute(0, 1, 3, 4, 2).cpu().numpy()
        if parallel.rank() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            beside = np.concatenate(list(frames), axis=2)
            with VideoWriter(folder / f"{iteration:07d}.mp4", beside.shape[2], beside.shape[1]) as writer:
                for frame in beside:
                    writer.write(frame)
        moments = np.linspace(0, frames.shape[1] - 1, 8).astype(int)
        return {f"sample/{i}": np.concatenate(list(clip[moments]), axis=1) for i, clip in enumerate(frames)}

    return show
